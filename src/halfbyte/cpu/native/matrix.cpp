#include "matrix.h"

#include <cstring>

#include "half.h"

namespace halfbyte {
namespace {

// What is known of a packed format without looking at values.
struct Packing {
    int64_t block_bytes, group_scales;
    void (*repack)(const Stored& from, int64_t tile, const Tiles& to);
    void (*decode_row)(const Tiles& from, int64_t row, int64_t columns, float* out);
};

// In the order of `Storage`.
constexpr Packing kPackings[] = {
    {q3g::kBlockBytes, 1, q3g::repack, q3g::decode_row},    {q4g::kBlockBytes, 1, q4g::repack, q4g::decode_row},
    {q8g::kBlockBytes, 1, q8g::repack, q8g::decode_row},    {q4_k::kBlockBytes, 2, q4_k::repack, q4_k::decode_row},
    {q6_k::kBlockBytes, 1, q6_k::repack, q6_k::decode_row},
};

const Packing& packing(Storage storage) { return kPackings[static_cast<int>(storage) - static_cast<int>(Storage::q3g)]; }

int64_t item_bytes(Storage storage) { return storage == Storage::f32 ? 4 : 2; }

float dense_value(Storage storage, const std::byte* at) {
    if (storage == Storage::f32) {
        float value;
        std::memcpy(&value, at, sizeof value);
        return value;
    }
    uint16_t bits;
    std::memcpy(&bits, at, sizeof bits);
    return storage == Storage::f16 ? half_to_float(bits) : bfloat_to_float(bits);
}

}  // namespace

Matrix::Matrix(const std::byte* values, Storage storage, int64_t rows, int64_t columns)
    : view_{storage, rows, columns, values, {}} {}

Matrix::Matrix(const Stored& stored, Storage storage, Pool& pool, Arena& arena) : view_{storage, stored.rows, stored.columns, nullptr, {}} {
    Tiles& packed = view_.packed;
    packed.tiles = view_.tiles();
    packed.block_bytes = packing(storage).block_bytes;
    packed.group_scales = packing(storage).group_scales;
    packed.blocks = (stored.columns + kBlock - 1) / kBlock;
    packed.groups = stored.groups();
    packed.blocks_per_group = stored.group / kBlock;
    packed.zeros = stored.zeros != nullptr;
    memory_ = arena.take(packed.tiles * packed.tile_bytes());
    packed.data = reinterpret_cast<uint8_t*>(memory_.get());
    const auto repack = packing(storage).repack;
    pool.run([&](const Worker& worker) {
        const Range tiles = worker.share(packed.tiles);
        for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) repack(stored, tile, packed);
    });
}

int64_t Matrix::nbytes() const {
    if (is_packed(view_.storage)) return view_.packed.tiles * view_.packed.tile_bytes();
    return view_.rows * view_.columns * item_bytes(view_.storage);
}

void Matrix::row(int64_t index, float* out) const {
    if (is_packed(view_.storage)) return packing(view_.storage).decode_row(view_.packed, index, view_.columns, out);
    const int64_t item = item_bytes(view_.storage);
    const std::byte* values = view_.dense + index * view_.columns * item;
    for (int64_t k = 0; k < view_.columns; ++k) out[k] = dense_value(view_.storage, values + k * item);
}

}  // namespace halfbyte
