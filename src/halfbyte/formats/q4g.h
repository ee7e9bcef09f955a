// 4-bit groups in tiles (tiles.h). q4g.py defines the values and the layout on disk, which is that of `Planes` for each
// block: word i holds codes 4i … 4i+3 in its bytes' low nibbles and codes 16+4i … 19+4i in the high ones. The zero point
// of symmetric groups is 8.
#pragma once

#include "tiles.h"

namespace halfbyte::q4g {

using Codes = Planes<4, 0, 8>;

// The format as the loops over tiles see it.
struct Format : Grouped<Codes> {
    // Bytes on disk of the codes of a group, of one row.
    static constexpr int64_t stored_bytes(int64_t group) { return group / 2; }
    // Fills one tile from the 16 rows it holds.
    static void repack(const Stored& from, int64_t tile, const Tiles& to) {
        interleave(from, tile, to, kMiddle << 4 | kMiddle);
        interleave_scales(from, tile, to);
        interleave_zeros(from, tile, to, kMiddle);
    }
    // The values of one row.
    static void decode_row(const Tiles& from, int64_t row, int64_t columns, float* out) {
        decode_grouped_row<Codes>(from, row, columns, out);
    }

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
