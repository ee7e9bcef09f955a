// 8-bit groups in tiles (tiles.h). q8g.py defines the values and the layout on disk.
//
// A block of 32 codes is 8 words of 32 bits a row: word i holds the signed codes 4i … 4i+3.
#pragma once

#include "tiles.h"

namespace halfbyte::q8g {

struct Codes : Planes<8> {
    static constexpr bool kSigned = true;
    static int value(const uint8_t* block, int64_t lane, int64_t k) { return static_cast<int8_t>(Planes::value(block, lane, k)); }
};

// The format as the loops over tiles see it; members as in q4g.h.
struct Format : Grouped<Codes> {
    static constexpr bool kZeros = false;

    static constexpr int64_t stored_bytes(int64_t group) { return group; }
    static void repack(const Stored& from, int64_t tile, const Tiles& to) {
        interleave(from, tile, to, 0);
        interleave_scales(from, tile, to);
    }
    static void decode_row(const Tiles& from, int64_t row, int64_t columns, float* out) {
        decode_grouped_row<Codes>(from, row, columns, out);
    }
};

}  // namespace halfbyte::q8g
