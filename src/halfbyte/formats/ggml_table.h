// ggml's formats whose codes point into a table, in tiles (tiles.h, ggml.h, ggml_k.h). ggml_table.py defines the values and
// the layout on disk.
#pragma once

#include "ggml_k.h"

namespace halfbyte {

alignas(16) constexpr int8_t kIq4Table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// Nibbles, which stand for values of the table.
struct Iq4Codes : Planes<4> {
    static constexpr bool kSigned = true;

    template <class Lanes, int K>
    static HB_INLINE typename Lanes::Bits bytes(const uint8_t* block) {
        return Lanes::lookup(Planes::bytes<Lanes, K>(block), kIq4Table);
    }
    static int value(const uint8_t* block, int64_t lane, int64_t k) { return kIq4Table[Planes::value(block, lane, k)]; }
};

namespace iq4_nl {
using Format = GgmlSmall<Iq4Codes, false>;
}

namespace iq4_xs {
struct Format : SuperBlocks<Format, Iq4Codes, SignedScales<1>> {
    static constexpr int64_t kStoredBytes = 136;
    static constexpr int64_t half_at(int) { return 0; }
    static void unpack(const uint8_t* from, int64_t j, uint8_t* codes, uint8_t* extras) {
        unpack_nibbles(from + 8 + j * kBlock / 2, codes);
        extras[0] = static_cast<uint8_t>(((from[4 + j / 2] >> (j % 2 * 4) & 15) | (from[2 + j / 4] >> (j % 4 * 2) & 3) << 4) - 32);
    }
};
}  // namespace iq4_xs

}  // namespace halfbyte
