// 4-bit groups as the CPU core streams them. q4g.py defines the values and the layout on disk.
//
// Rows are interleaved in tiles of 16, so that a vector of 16 lanes holds one value of each row. Three arrays:
//
//   codes   [tiles][blocks][4][16] words of 32 bits: word i of a row's block of 32 codes holds codes 4i … 4i+3 in
//           its bytes' low nibbles and codes 16+4i … 19+4i in the high ones
//   scales  [tiles][groups][16] f16
//   zeros   [tiles][groups][16] u8, absent for symmetric groups, whose zero point is 8
//
// Rows that fill up the last tile are zero. Blocks past the last column are left out.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "compiler.h"
#include "half.h"

namespace halfbyte::q4g {

constexpr int kBlock = 32;
constexpr int kTile = 16;
constexpr int kMiddle = 8;
constexpr int64_t kBlockBytes = kTile * kBlock / 2;

// The arrays on disk; scales may lie at odd addresses.
struct Stored {
    const uint8_t* codes = nullptr;
    const uint8_t* scales = nullptr;
    const uint8_t* zeros = nullptr;
    int64_t rows = 0, columns = 0, group = 0;

    int64_t groups() const { return (columns + group - 1) / group; }
};

struct Tiles {
    uint8_t* codes = nullptr;
    uint16_t* scales = nullptr;
    uint8_t* zeros = nullptr;
    int64_t tiles = 0, blocks = 0, groups = 0, blocks_per_group = 0;

    HB_INLINE uint8_t* block(int64_t tile, int64_t b) const { return codes + (tile * blocks + b) * kBlockBytes; }
    HB_INLINE uint16_t* scale(int64_t tile, int64_t g) const { return scales + (tile * groups + g) * kTile; }
    HB_INLINE uint8_t* zero(int64_t tile, int64_t g) const { return zeros + (tile * groups + g) * kTile; }

    int64_t code_bytes() const { return tiles * blocks * kBlockBytes; }
    int64_t scale_bytes() const { return tiles * groups * kTile * 2; }
    int64_t zero_bytes() const { return tiles * groups * kTile; }
};

// Fills one tile from the 16 rows it holds.
inline void repack(const Stored& from, int64_t tile, const Tiles& to) {
    const int64_t groups = from.groups(), row_bytes = groups * from.group / 2;
    for (int lane = 0; lane < kTile; ++lane) {
        const int64_t row = tile * kTile + lane;
        const bool present = row < from.rows;
        for (int64_t b = 0; b < to.blocks; ++b) {
            const uint8_t* block = from.codes + row * row_bytes + b * kBlock / 2;
            for (int word = 0; word < 4; ++word) {
                uint8_t* at = to.block(tile, b) + (word * kTile + lane) * 4;
                if (present) std::memcpy(at, block + word * 4, 4);
                else std::memset(at, 0x88, 4);
            }
        }
        for (int64_t g = 0; g < groups; ++g) {
            to.scale(tile, g)[lane] = 0;
            if (present) std::memcpy(to.scale(tile, g) + lane, from.scales + (row * groups + g) * 2, 2);
            if (!to.zeros) continue;
            const uint8_t pair = present ? from.zeros[row * ((groups + 1) / 2) + g / 2] : kMiddle;
            to.zero(tile, g)[lane] = pair >> (g % 2 * 4) & 15;
        }
    }
}

// The values of one row.
inline void decode_row(const Tiles& from, int64_t row, int64_t columns, float* out) {
    const int64_t tile = row / kTile, lane = row % kTile;
    for (int64_t b = 0; b < from.blocks; ++b) {
        const int64_t g = b / from.blocks_per_group, left = columns - b * kBlock;
        const int zero = from.zeros ? from.zero(tile, g)[lane] : kMiddle;
        const float scale = half_to_float(from.scale(tile, g)[lane]);
        const uint8_t* words = from.block(tile, b) + lane * 4;
        for (int64_t i = 0; i < kBlock && i < left; ++i) {
            const uint8_t pair = words[i % 16 / 4 * kTile * 4 + i % 4];
            out[b * kBlock + i] = static_cast<float>((pair >> (i / 16 * 4) & 15) - zero) * scale;
        }
    }
}

// The format as the loops over packed tiles see it. `Lanes` holds 16 floats; see kernels_impl.h.
struct Format {
    // Calls use(chain, k, values) for the 32 codes of a block, less 8; `chain` counts 0 … 7 at compile time.
    template <class Lanes, class Use>
    static HB_INLINE void codes(const uint8_t* block, const Use& use) {
        for (int word = 0; word < 4; ++word) {
            const typename Lanes::Bits bits = Lanes::bits(block + word * 64);
            pair<Lanes, 0>(bits, 4 * word, use);
            pair<Lanes, 1>(bits, 4 * word, use);
            pair<Lanes, 2>(bits, 4 * word, use);
            pair<Lanes, 3>(bits, 4 * word, use);
        }
    }

private:
    template <class Lanes, int Byte, class Use>
    static HB_INLINE void pair(typename Lanes::Bits bits, int first, const Use& use) {
        use(std::integral_constant<int, 2 * Byte>{}, first + Byte, Lanes::template nibble<8 * Byte>(bits));
        use(std::integral_constant<int, 2 * Byte + 1>{}, first + Byte + 16, Lanes::template nibble<8 * Byte + 4>(bits));
    }
};

}  // namespace halfbyte::q4g
