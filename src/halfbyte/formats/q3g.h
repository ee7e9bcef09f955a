// 3-bit groups in tiles (tiles.h). q3g.py defines the values and the layout on disk.
//
// A block of 32 codes is 3 words of 32 bits a row. Bits 2·(t / 2) … of each byte of word t % 2 are the two low bits of
// codes 4t … 4t+3, bit t of each byte of word 2 is their high bit. The zero point of symmetric groups is 4.
#pragma once

#include "tiles.h"

namespace halfbyte::q3g {

constexpr int kMiddle = 4;
constexpr int64_t kBlockBytes = kTileRows * kBlock * 3 / 8;

// Bytes on disk of the codes of a group, of one row.
constexpr int64_t stored_bytes(int64_t group) { return group * 3 / 8; }

// Fills one tile from the 16 rows it holds.
inline void repack(const Stored& from, int64_t tile, const Tiles& to) {
    interleave(from, tile, to, 0);
    interleave_scales(from, tile, to);
    interleave_zeros(from, tile, to, kMiddle);
}

// The values of one row.
inline void decode_row(const Tiles& from, int64_t row, int64_t columns, float* out) {
    const int64_t tile = row / kTileRows, lane = row % kTileRows;
    for (int64_t k = 0; k < columns; ++k) {
        const int64_t b = k / kBlock, g = b / from.blocks_per_group, t = k % kBlock / 4;
        const uint8_t* block = from.block(tile, b);
        const int low = block[byte_at(t % 2, lane, k % 4)] >> (t / 2 * 2) & 3, high = block[byte_at(2, lane, k % 4)] >> t & 1;
        const int zero = from.zeros ? from.zero(tile, g)[lane] : kMiddle;
        out[k] = static_cast<float>((low | high << 2) - zero) * half_to_float(from.scale(tile, g)[lane]);
    }
}

// The format as the loops over tiles see it; members as in q4g.h.
struct Format : Grouped<kMiddle> {
    template <class Lanes, class Use>
    static HB_INLINE void codes(const uint8_t* block, const Use& use) {
        unrolled<8>([&](auto t) HB_LAMBDA {
            use_bytes<Lanes>(bytes<Lanes, 4 * t>(block), 4 * t, [&](auto chain, int at, Lanes code) HB_LAMBDA {
                use(chain, at, code - Lanes::broadcast(kMiddle));
            });
        });
    }
    template <class Lanes, int K>
    static HB_INLINE typename Lanes::Bits bytes(const uint8_t* block) {
        constexpr int t = K / 4;
        const typename Lanes::Bits low = Lanes::bits(block + t % 2 * 64), high = Lanes::bits(block + 128);
        return Lanes::either(Lanes::template fields<t / 2 * 2>(low, 3), Lanes::template fields<t - 2>(high, 4));
    }
};

}  // namespace halfbyte::q3g
