// 4-bit groups in tiles (tiles.h). q4g.py defines the values and the layout on disk.
//
// A block of 32 codes is 4 words of 32 bits a row: word i holds codes 4i … 4i+3 in its bytes' low nibbles and codes
// 16+4i … 19+4i in the high ones. The zero point of symmetric groups is 8.
#pragma once

#include "tiles.h"

namespace halfbyte::q4g {

constexpr int kMiddle = 8;
constexpr int64_t kBlockBytes = kTileRows * kBlock / 2;

// Bytes on disk of the codes of a group, of one row.
constexpr int64_t stored_bytes(int64_t group) { return group / 2; }

// Fills one tile from the 16 rows it holds.
inline void repack(const Stored& from, int64_t tile, const Tiles& to) {
    interleave(from, tile, to, kMiddle << 4 | kMiddle);
    interleave_scales(from, tile, to);
    interleave_zeros(from, tile, to, kMiddle);
}

// The values of one row.
inline void decode_row(const Tiles& from, int64_t row, int64_t columns, float* out) {
    const int64_t tile = row / kTileRows, lane = row % kTileRows;
    for (int64_t b = 0; b < from.blocks; ++b) {
        const int64_t g = b / from.blocks_per_group, left = columns - b * kBlock;
        const int zero = from.zeros ? from.zero(tile, g)[lane] : kMiddle;
        const float scale = half_to_float(from.scale(tile, g)[lane]);
        const uint8_t* words = from.block(tile, b) + lane * 4;
        for (int64_t i = 0; i < kBlock && i < left; ++i) {
            const uint8_t pair = words[i % 16 / 4 * kTileRows * 4 + i % 4];
            out[b * kBlock + i] = static_cast<float>((pair >> (i / 16 * 4) & 15) - zero) * scale;
        }
    }
}

// The format as the loops over tiles see it. `Lanes` holds 16 floats; see kernels_impl.h.
struct Format : Grouped<kMiddle> {
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

    // The codes K … K+3 of a block as bytes.
    template <class Lanes, int K>
    static HB_INLINE typename Lanes::Bits bytes(const uint8_t* block) {
        return Lanes::template fields<K / 16 * 4>(Lanes::bits(block + K % 16 * 16), 15);
    }

private:
    template <class Lanes, int Byte, class Use>
    static HB_INLINE void pair(typename Lanes::Bits bits, int first, const Use& use) {
        use(std::integral_constant<int, 2 * Byte>{}, first + Byte, Lanes::template nibble<8 * Byte>(bits));
        use(std::integral_constant<int, 2 * Byte + 1>{}, first + Byte + 16, Lanes::template nibble<8 * Byte + 4>(bits));
    }
};

}  // namespace halfbyte::q4g
