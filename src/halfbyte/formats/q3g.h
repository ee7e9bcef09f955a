// 3-bit groups in tiles (tiles.h). q3g.py defines the values and the layout on disk, which is that of `Planes` for each
// block. The zero point of symmetric groups is 4.
#pragma once

#include "tiles.h"

namespace halfbyte::q3g {

using Codes = Planes<2, 1, 4>;

// The format as the loops over tiles see it; members as in q4g.h.
struct Format : Grouped<Codes> {
    static constexpr int64_t stored_bytes(int64_t group) { return group * 3 / 8; }
    static void repack(const Stored& from, int64_t tile, const Tiles& to) {
        interleave(from, tile, to, 0);
        interleave_scales(from, tile, to);
        interleave_zeros(from, tile, to, kMiddle);
    }
    static void decode_row(const Tiles& from, int64_t row, int64_t columns, float* out) {
        decode_grouped_row<Codes>(from, row, columns, out);
    }
};

}  // namespace halfbyte::q3g
