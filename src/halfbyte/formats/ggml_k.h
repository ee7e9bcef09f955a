// ggml's k-quants in tiles (tiles.h, ggml.h). ggml_k.py defines the values and the layout on disk.
//
// A group is ggml's block of 256 values; its scales are d and, where there are offsets, e. The extras of a block of 32 are
// the whole numbers s, and m, that its codes or each half of them have.
#pragma once

#include "ggml.h"

namespace halfbyte {

// The extras as s and m, of some lanes or of one: s, then m, of 32 codes.
struct WholeScales {
    static constexpr int kParts = 1, kExtras = 2;
    static constexpr bool kOffsets = true;

    template <class Lanes, int Part>
    static HB_INLINE typename Lanes::Ints scale(const uint8_t* at) {
        return Lanes::ints(at);
    }
    template <class Lanes, int Part>
    static HB_INLINE typename Lanes::Ints offset(const uint8_t* at) {
        return Lanes::ints(at + kTileRows);
    }
    static int scale_of(const uint8_t* at, int64_t) { return at[0]; }
    static int offset_of(const uint8_t* at, int64_t) { return at[kTileRows]; }
};

// A signed s of each of `Parts`, no m.
template <int Parts>
struct SignedScales {
    static constexpr int kParts = Parts, kExtras = Parts;
    static constexpr bool kOffsets = false;

    template <class Lanes, int Part>
    static HB_INLINE typename Lanes::Ints scale(const uint8_t* at) {
        return Lanes::ints(reinterpret_cast<const int8_t*>(at + Part * kTileRows));
    }
    static int scale_of(const uint8_t* at, int64_t part) { return static_cast<int8_t>(at[part * kTileRows]); }
    static int offset_of(const uint8_t*, int64_t) { return 0; }
};

// s and m of each half, in one byte.
struct NibbleScales {
    static constexpr int kParts = 2, kExtras = 2;
    static constexpr bool kOffsets = true;

    template <class Lanes, int Part>
    static HB_INLINE typename Lanes::Ints scale(const uint8_t* at) {
        return Lanes::ints(at + Part * kTileRows) & 15;
    }
    template <class Lanes, int Part>
    static HB_INLINE typename Lanes::Ints offset(const uint8_t* at) {
        return Lanes::ints(at + Part * kTileRows) >> 4;
    }
    static int scale_of(const uint8_t* at, int64_t part) { return at[part * kTileRows] & 15; }
    static int offset_of(const uint8_t* at, int64_t part) { return at[part * kTileRows] >> 4; }
};

// A format of 256 values a block. `Self` says where its numbers are, as `Ggml` wants it.
template <class Self, class Codes, class Scales>
struct SuperBlocks : Ggml<Self, Codes, Scales::kExtras> {
    static constexpr int kParts = Scales::kParts;
    static constexpr bool kBlockOffsets = Scales::kOffsets;
    static constexpr int64_t kGroup = 256, kGroupScales = Scales::kOffsets ? 2 : 1;

    static float value(const uint16_t* scales, const uint8_t* extras, int64_t k, float code) {
        const int64_t part = k * kParts / kBlock;
        const float value = half_to_float(scales[0]) * Scales::scale_of(extras, part) * code;
        if constexpr (Scales::kOffsets) return value - half_to_float(scales[kTileRows]) * Scales::offset_of(extras, part);
        else return value;
    }

    static HB_INLINE bool has_offsets(const Tiles&) { return Scales::kOffsets; }
    template <class Lanes, int Part>
    static HB_INLINE Lanes offset(const uint8_t*, const uint8_t* block) {
        if constexpr (Scales::kOffsets) return Lanes::from(Scales::template offset<Lanes, Part>(block + Codes::kBytes));
        else return Lanes::broadcast(0);
    }
    template <class Lanes>
    static HB_INLINE Lanes offset_scale(const uint8_t* group) {
        return Lanes::load(F16{}, group + (Scales::kOffsets ? kTileRows * 2 : 0));
    }
    template <class Lanes, class Use>
    static HB_INLINE void codes(const uint8_t* block, const Use& use) {
        unrolled<kParts>([&](auto part) HB_LAMBDA {
            const Lanes scale = Lanes::from(Scales::template scale<Lanes, part>(block + Codes::kBytes));
            unrolled<8 / kParts>([&](auto word) HB_LAMBDA {
                constexpr int k = kBlock / kParts * part + 4 * word;
                use_bytes<Lanes>(Codes::template bytes<Lanes, k>(block), k, [&](auto chain, int at, Lanes code) HB_LAMBDA {
                    use(chain, at, Self::above_middle(code) * scale);
                });
            });
        });
    }
    template <class Lanes, int Part>
    static HB_INLINE Lanes scaled(const uint8_t* block, Lanes scale) {
        return scale * Lanes::from(Scales::template scale<Lanes, Part>(block + Codes::kBytes));
    }
};

// s and m of 32 codes from the 12 bytes of q4_k and q5_k.
inline void unpack_six_bits(const uint8_t* six, int64_t j, uint8_t* extras) {
    extras[0] = static_cast<uint8_t>(j < 4 ? six[j] & 63 : (six[j + 4] & 15) | six[j - 4] >> 6 << 4);
    extras[1] = static_cast<uint8_t>(j < 4 ? six[j + 4] & 63 : six[j + 4] >> 4 | six[j] >> 6 << 4);
}

namespace q2_k {
struct Format : SuperBlocks<Format, Planes<2>, NibbleScales> {
    static constexpr int64_t kStoredBytes = 84;
    static constexpr int64_t half_at(int i) { return 80 + 2 * i; }
    static void unpack(const uint8_t* from, int64_t j, uint8_t* codes, uint8_t* extras) {
        for (int64_t i = 0; i < kBlock; ++i) codes[i] = from[16 + j / 4 * kBlock + i] >> (j % 4 * 2) & 3;
        for (int half = 0; half < 2; ++half) extras[half] = from[2 * j + half];
    }
};
}  // namespace q2_k

namespace q3_k {
struct Format : SuperBlocks<Format, Planes<2, 1, 4>, SignedScales<2>> {
    static constexpr int64_t kStoredBytes = 110;
    static constexpr int64_t half_at(int) { return 108; }
    static void unpack(const uint8_t* from, int64_t j, uint8_t* codes, uint8_t* extras) {
        for (int64_t i = 0; i < kBlock; ++i)
            codes[i] = static_cast<uint8_t>((from[32 + j / 4 * kBlock + i] >> (j % 4 * 2) & 3) | (from[i] >> j & 1) << 2);
        const uint8_t* six = from + 96;
        for (int64_t half = 0; half < 2; ++half) {
            const int64_t i = 2 * j + half;
            extras[half] = static_cast<uint8_t>(((six[i % 8] >> (i / 8 * 4) & 15) | (six[8 + i % 4] >> (i / 4 * 2) & 3) << 4) - 32);
        }
    }
};
}  // namespace q3_k

namespace q4_k {
struct Format : SuperBlocks<Format, Planes<4>, WholeScales> {
    static constexpr bool kLean = false;
    static constexpr int64_t kStoredBytes = 144;
    static constexpr int64_t half_at(int i) { return 2 * i; }
    static void unpack(const uint8_t* from, int64_t j, uint8_t* codes, uint8_t* extras) {
        for (int64_t i = 0; i < kBlock; ++i) codes[i] = from[16 + j / 2 * kBlock + i] >> (j % 2 * 4) & 15;
        unpack_six_bits(from + 4, j, extras);
    }
};
}  // namespace q4_k

namespace q5_k {
struct Format : SuperBlocks<Format, Planes<4, 1>, WholeScales> {
    static constexpr int64_t kStoredBytes = 176;
    static constexpr int64_t half_at(int i) { return 2 * i; }
    static void unpack(const uint8_t* from, int64_t j, uint8_t* codes, uint8_t* extras) {
        for (int64_t i = 0; i < kBlock; ++i)
            codes[i] = static_cast<uint8_t>((from[48 + j / 2 * kBlock + i] >> (j % 2 * 4) & 15) | (from[16 + i] >> j & 1) << 4);
        unpack_six_bits(from + 4, j, extras);
    }
};
}  // namespace q5_k

namespace q6_k {
struct Format : SuperBlocks<Format, Planes<4, 2, 32>, SignedScales<2>> {
    static constexpr bool kLean = false;
    static constexpr int64_t kStoredBytes = 210;
    static constexpr int64_t half_at(int) { return 208; }
    static void unpack(const uint8_t* from, int64_t j, uint8_t* codes, uint8_t* extras) {
        const uint8_t *pairs = from + j / 4 * 64 + j % 2 * kBlock, *fields = from + 128 + j / 4 * kBlock;
        for (int64_t i = 0; i < kBlock; ++i)
            codes[i] = static_cast<uint8_t>((pairs[i] >> (j % 4 / 2 * 4) & 15) | (fields[i] >> (j % 4 * 2) & 3) << 4);
        for (int half = 0; half < 2; ++half) extras[half] = from[192 + 2 * j + half];
    }
};
}  // namespace q6_k

}  // namespace halfbyte
