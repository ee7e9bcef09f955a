// Packed weights as the CPU core streams them, whatever their codes: rows interleaved in tiles of 16, so that a vector
// of 16 lanes holds one value of each row. Three arrays:
//
//   codes   [tiles][blocks][block_bytes]: 32 codes of 16 rows, in the order of the format
//   scales  [tiles][groups][16] f16
//   zeros   [tiles][groups][16] u8, absent for formats without zero points
//
// Rows that fill up the last tile are zero. Blocks past the last column are left out.
#pragma once

#include <cstdint>
#include <cstring>

#include "compiler.h"

namespace halfbyte {

constexpr int kBlock = 32;
constexpr int kTileRows = 16;

// The arrays on disk, row by row; scales may lie at odd addresses.
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
    int64_t tiles = 0, blocks = 0, groups = 0, blocks_per_group = 0, block_bytes = 0;

    HB_INLINE uint8_t* block(int64_t tile, int64_t b) const { return codes + (tile * blocks + b) * block_bytes; }
    HB_INLINE uint16_t* scale(int64_t tile, int64_t g) const { return scales + (tile * groups + g) * kTileRows; }
    HB_INLINE uint8_t* zero(int64_t tile, int64_t g) const { return zeros + (tile * groups + g) * kTileRows; }

    int64_t code_bytes() const { return tiles * blocks * block_bytes; }
    int64_t scale_bytes() const { return tiles * groups * kTileRows * 2; }
    int64_t zero_bytes() const { return tiles * groups * kTileRows; }
};

// Interleaves the codes of one tile, taken as words of 4 bytes; `filler` stands in rows that there are not.
inline void interleave(const Stored& from, int64_t tile, const Tiles& to, uint8_t filler) {
    const int64_t words = to.block_bytes / (kTileRows * 4), row_bytes = from.groups() * from.group / kBlock * words * 4;
    for (int lane = 0; lane < kTileRows; ++lane) {
        const int64_t row = tile * kTileRows + lane;
        const uint8_t* codes = from.codes + row * row_bytes;
        for (int64_t b = 0; b < to.blocks; ++b) {
            for (int64_t word = 0; word < words; ++word) {
                uint8_t* at = to.block(tile, b) + (word * kTileRows + lane) * 4;
                if (row < from.rows) std::memcpy(at, codes + (b * words + word) * 4, 4);
                else std::memset(at, filler, 4);
            }
        }
    }
}

// Interleaves the scales of one tile.
inline void interleave_scales(const Stored& from, int64_t tile, const Tiles& to) {
    for (int lane = 0; lane < kTileRows; ++lane) {
        const int64_t row = tile * kTileRows + lane;
        for (int64_t g = 0; g < to.groups; ++g) {
            to.scale(tile, g)[lane] = 0;
            if (row < from.rows) std::memcpy(to.scale(tile, g) + lane, from.scales + (row * to.groups + g) * 2, 2);
        }
    }
}

}  // namespace halfbyte
