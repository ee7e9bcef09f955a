// 8-bit groups in tiles (tiles.h). q8g.py defines the values and the layout on disk.
//
// A block of 32 codes is 8 words of 32 bits a row: word i holds the signed codes 4i … 4i+3.
#pragma once

#include "tiles.h"

namespace halfbyte::q8g {

constexpr int64_t kBlockBytes = kTileRows * kBlock;

// Bytes on disk of the codes of a group, of one row.
constexpr int64_t stored_bytes(int64_t group) { return group; }

// Fills one tile from the 16 rows it holds.
inline void repack(const Stored& from, int64_t tile, const Tiles& to) {
    interleave(from, tile, to, 0);
    interleave_scales(from, tile, to);
}

// The values of one row.
inline void decode_row(const Tiles& from, int64_t row, int64_t columns, float* out) {
    const int64_t tile = row / kTileRows, lane = row % kTileRows;
    for (int64_t k = 0; k < columns; ++k) {
        const int64_t b = k / kBlock, i = k % kBlock;
        const auto code = static_cast<int8_t>(from.block(tile, b)[(i / 4 * kTileRows + lane) * 4 + i % 4]);
        out[k] = static_cast<float>(code) * half_to_float(from.scale(tile, b / from.blocks_per_group)[lane]);
    }
}

// The format as the loops over tiles see it; members as in q4g.h.
struct Format : Grouped<0> {
    static constexpr bool kZeros = false;

    template <class Lanes, class Use>
    static HB_INLINE void codes(const uint8_t* block, const Use& use) {
        for (int word = 0; word < 8; ++word) use_bytes<Lanes>(Lanes::bits(block + word * 64), 4 * word, use);
    }
    template <class Lanes, int K>
    static HB_INLINE typename Lanes::Bits bytes(const uint8_t* block) {
        return Lanes::bits(block + K * 16);
    }
    template <class Lanes>
    static HB_INLINE typename Lanes::Ints dot(typename Lanes::Ints sum, typename Lanes::Bits codes, const int8_t* x) {
        return Lanes::dot_signed(sum, codes, x);
    }
    template <class Lanes, bool>
    static HB_INLINE typename Lanes::Ints start(const Tiles&, int64_t, int64_t, int32_t minus) {
        return multiple<Lanes, Lanes::kSignedBias>(minus);
    }
};

}  // namespace halfbyte::q8g
