// ggml's formats of 32 values a block in tiles (tiles.h), and what all of ggml's formats share. ggml.py defines the values
// and the layout on disk.
//
// A group is one of ggml's blocks, its scales are that block's float16 numbers. Of each block of 32 the codes come first,
// as `Planes` has them, then bytes of its own, if the format has any: [extras][16].
#pragma once

#include "tiles.h"

namespace halfbyte {

// `Self` says where its numbers are in a block of ggml's: `kStoredBytes` of it, `half_at(i)` of its float16 numbers, and
// `unpack(block, j, codes, extras)`, which takes the j-th 32 codes and their extras out of it. `value(scales, extras, k,
// code)` is what code k of a row stands for.
template <class Self, class Codes, int Extras>
struct Ggml : Grouped<Codes> {
    static constexpr bool kZeros = false, kLean = true, kStoredScales = false;
    static constexpr int64_t kBlockBytes = Codes::kBytes + Extras * kTileRows;

    static constexpr int64_t stored_bytes(int64_t) { return Self::kStoredBytes; }
    static void repack(const Stored& from, int64_t tile, const Tiles& to) {
        std::memset(to.group(tile, 0), 0, to.tile_bytes());
        for (int lane = 0; lane < kTileRows && tile * kTileRows + lane < from.rows; ++lane) {
            const uint8_t* stored = from.codes + (tile * kTileRows + lane) * to.groups * Self::kStoredBytes;
            for (int64_t g = 0, b = 0; g < to.groups; ++g, stored += Self::kStoredBytes) {
                for (int i = 0; i < Self::kGroupScales; ++i)
                    std::memcpy(to.scale(tile, g) + i * kTileRows + lane, stored + Self::half_at(i), 2);
                for (; b < to.group_end(g); ++b) {
                    uint8_t codes[kBlock], extras[Extras + 1];
                    Self::unpack(stored, b % to.blocks_per_group, codes, extras);
                    uint8_t* block = to.block(tile, b);
                    Codes::put(block, lane, codes);
                    for (int i = 0; i < Extras; ++i) block[Codes::kBytes + i * kTileRows + lane] = extras[i];
                }
            }
        }
    }
    static void decode_row(const Tiles& from, int64_t row, int64_t columns, float* out) {
        const int64_t tile = row / kTileRows, lane = row % kTileRows;
        for (int64_t i = 0; i < columns; ++i) {
            const int64_t b = i / kBlock, k = i % kBlock;
            const uint8_t* block = from.block(tile, b);
            const uint16_t* scales = from.scale(tile, b / from.blocks_per_group) + lane;
            out[i] = Self::value(scales, block + Codes::kBytes + lane, k, static_cast<float>(Codes::value(block, lane, k)));
        }
    }
};

// Sixteen bytes as 32 codes: the low nibbles, then the high ones.
inline void unpack_nibbles(const uint8_t* pairs, uint8_t* codes) {
    for (int i = 0; i < kBlock / 2; ++i) {
        codes[i] = pairs[i] & 15;
        codes[i + 16] = pairs[i] >> 4;
    }
}

// d, m if codes are above a minimum, then 32 high bits if codes have five, then 16 nibble pairs.
template <class Codes, bool Minimum>
struct GgmlSmall : Ggml<GgmlSmall<Codes, Minimum>, Codes, 0> {
    static constexpr int64_t kGroup = kBlock, kGroupScales = Minimum ? 2 : 1;
    static constexpr bool kBlockOffsets = Minimum;

    static constexpr int64_t kHead = 2 * kGroupScales, kStoredBytes = kHead + 4 * Codes::kHigh + kBlock / 2;
    static constexpr int64_t half_at(int i) { return 2 * i; }
    static void unpack(const uint8_t* from, int64_t, uint8_t* codes, uint8_t*) {
        unpack_nibbles(from + kHead + 4 * Codes::kHigh, codes);
        for (int k = 0; Codes::kHigh > 0 && k < kBlock; ++k) codes[k] |= (from[kHead + k / 8] >> k % 8 & 1) << 4;
    }
    static float value(const uint16_t* scales, const uint8_t*, int64_t, float code) {
        const float value = half_to_float(scales[0]) * code;
        return Minimum ? value + half_to_float(scales[kTileRows]) : value;
    }

    // The minimum is taken off -1 times, so to speak.
    static HB_INLINE bool has_offsets(const Tiles&) { return Minimum; }
    template <class Lanes, int Part>
    static HB_INLINE Lanes offset(const uint8_t*, const uint8_t*) {
        return Lanes::broadcast(-1);
    }
    template <class Lanes>
    static HB_INLINE Lanes offset_scale(const uint8_t* group) {
        return Lanes::load(F16{}, group + kTileRows * 2);
    }
};

namespace q4_1 {
using Format = GgmlSmall<Planes<4>, true>;
}
namespace q5_0 {
using Format = GgmlSmall<Planes<4, 1, 16>, false>;
}
namespace q5_1 {
using Format = GgmlSmall<Planes<4, 1>, true>;
}

}  // namespace halfbyte
