#include "matrix.h"

#include <algorithm>
#include <cstring>

#include "half.h"
#include "tensor.h"

namespace halfbyte {
namespace {

// What is known of a packed format without looking at values.
struct Packing {
    int64_t group, block_bytes, group_scales;
    bool stored_scales, stored_zeros;
    int64_t (*stored_bytes)(int64_t group);
    void (*repack)(const Stored& from, int64_t tile, const Tiles& to);
    void (*decode_row)(const Tiles& from, int64_t row, int64_t columns, float* out);
};

template <class Format>
constexpr Packing packing_of() {
    return {Format::kGroup, Format::kBlockBytes, Format::kGroupScales, Format::kStoredScales,
            Format::kZeros, Format::stored_bytes, Format::repack, Format::decode_row};
}

#define HB_PACKING(name) packing_of<name::Format>(),
constexpr Packing kPackings[] = {HB_PACKED_FORMATS(HB_PACKING)};
#undef HB_PACKING

#define HB_BYTES(name, Tag) Tag::kBytes,
constexpr int64_t kItemBytes[] = {HB_PLAIN_FORMATS(HB_BYTES)};
#undef HB_BYTES

const Packing& packing(Storage storage) { return kPackings[static_cast<int>(storage) - kPlainFormats]; }

int64_t item_bytes(Storage storage) { return kItemBytes[static_cast<int>(storage)]; }

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

// The parts of a packed matrix, each of the size that its shape asks for.
Stored checked(const Packing& known, const StoredMatrix& from) {
    const int64_t group = known.group > 0 ? known.group : from.group;
    require(group > 0 && group % kBlock == 0, "groups of " + std::to_string(group) + " are no multiple of 32");
    const Stored stored{from.codes.data(), from.scales.data(), from.zeros.data(), from.rows, from.columns, group};
    const int64_t groups = stored.groups();
    require_equal(from.codes.size(), from.rows * groups * known.stored_bytes(group), "bytes of the codes");
    require_equal(from.scales.size(), known.stored_scales ? from.rows * groups * 2 : 0, "bytes of the scales");
    if (!from.zeros.empty()) {
        require_equal(from.zeros.size(), known.stored_zeros ? from.rows * ((groups + 1) / 2) : 0, "bytes of the zero points");
    }
    return stored;
}

}  // namespace

Matrix::Matrix(Storage storage, const StoredMatrix& stored, Pool& pool, Arena& arena) : view_{storage, stored.rows, stored.columns, nullptr, {}} {
    require(stored.rows > 0 && stored.columns > 0, "a matrix must have rows and columns");
    if (is_packed(storage)) {
        repack(checked(packing(storage), stored), pool, arena);
    } else {
        require_equal(stored.codes.size(), stored.rows * stored.columns * item_bytes(storage), "bytes of the matrix");
        view_.dense = reinterpret_cast<const std::byte*>(stored.codes.data());
    }
}

void Matrix::repack(const Stored& stored, Pool& pool, Arena& arena) {
    const Packing& known = packing(view_.storage);
    Tiles& packed = view_.packed;
    packed.tiles = view_.tiles();
    packed.block_bytes = known.block_bytes;
    packed.group_scales = known.group_scales;
    packed.blocks = (stored.columns + kBlock - 1) / kBlock;
    packed.groups = stored.groups();
    packed.blocks_per_group = stored.group / kBlock;
    packed.zeros = stored.zeros != nullptr;
    memory_ = arena.take(packed.tiles * packed.tile_bytes());
    packed.data = reinterpret_cast<uint8_t*>(memory_.get());
    const auto turn = pool.turn();
    pool.run([&](const Worker& worker) {
        const Range tiles = worker.share(packed.tiles);
        for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) known.repack(stored, tile, packed);
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

const std::vector<std::string>& format_names() {
#define HB_TEXT(name, ...) #name,
    static const std::vector<std::string> names{HB_PLAIN_FORMATS(HB_TEXT) HB_PACKED_FORMATS(HB_TEXT)};
#undef HB_TEXT
    return names;
}

Storage find_format(const std::string& name) {
    const auto& names = format_names();
    const auto found = std::find(names.begin(), names.end(), name);
    require(found != names.end(), "unknown format '" + name + "'");
    return static_cast<Storage>(found - names.begin());
}

}  // namespace halfbyte
