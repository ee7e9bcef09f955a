#include "matrix.h"

#include <cstring>

#include "half.h"

namespace halfbyte {
namespace {

int64_t item_bytes(Storage storage) { return storage == Storage::f32 ? 4 : 2; }

int64_t padded(int64_t nbytes) { return (nbytes + 63) / 64 * 64; }

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

Matrix::Matrix(const Stored& stored, Storage storage, Pool& pool) : view_{storage, stored.rows, stored.columns, nullptr, {}} {
    Tiles& packed = view_.packed;
    packed.tiles = view_.tiles();
    packed.block_bytes = storage == Storage::q4g ? q4g::kBlockBytes : q8g::kBlockBytes;
    packed.blocks = (stored.columns + kBlock - 1) / kBlock;
    packed.groups = stored.groups();
    packed.blocks_per_group = stored.group / kBlock;
    const int64_t codes = padded(packed.code_bytes()), scales = padded(packed.scale_bytes());
    buffer_ = Buffer(codes + scales + (stored.zeros ? packed.zero_bytes() : 0));
    packed.codes = buffer_.as<uint8_t>();
    packed.scales = reinterpret_cast<uint16_t*>(packed.codes + codes);
    packed.zeros = stored.zeros ? packed.codes + codes + scales : nullptr;
    const auto repack = storage == Storage::q4g ? q4g::repack : q8g::repack;
    pool.run([&](const Worker& worker) {
        const Range tiles = worker.share(packed.tiles);
        for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) repack(stored, tile, packed);
    });
}

int64_t Matrix::nbytes() const {
    if (is_packed(view_.storage)) return static_cast<int64_t>(buffer_.nbytes());
    return view_.rows * view_.columns * item_bytes(view_.storage);
}

void Matrix::row(int64_t index, float* out) const {
    if (view_.storage == Storage::q4g) return q4g::decode_row(view_.packed, index, view_.columns, out);
    if (view_.storage == Storage::q8g) return q8g::decode_row(view_.packed, index, view_.columns, out);
    const int64_t item = item_bytes(view_.storage);
    const std::byte* values = view_.dense + index * view_.columns * item;
    for (int64_t k = 0; k < view_.columns; ++k) out[k] = dense_value(view_.storage, values + k * item);
}

}  // namespace halfbyte
