// Packed weights as the CPU core streams them, whatever their codes: rows interleaved in tiles of 16, so that a vector
// of 16 lanes holds one value of each row. For each tile and each group of its columns there are, one after another:
//
//   scales  [group_scales][16] f16
//   zeros   [16] u8, absent for formats without zero points
//   codes   [blocks of the group][block_bytes]: 32 codes of 16 rows, in the order of the format
//
// So a product reads one run of memory from end to end, which hardware prefetchers follow better than three. Rows that
// fill up the last tile are zero. Blocks past the last column are left out.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "compiler.h"
#include "half.h"
#include "storage.h"

namespace halfbyte {

constexpr int kBlock = 32;
constexpr int kTileRows = 16;

// The arrays on disk, row by row; they may lie at odd addresses.
struct Stored {
    const uint8_t* codes = nullptr;
    const uint8_t* scales = nullptr;
    const uint8_t* zeros = nullptr;
    int64_t rows = 0, columns = 0, group = 0;

    int64_t groups() const { return (columns + group - 1) / group; }
};

struct Tiles {
    uint8_t* data = nullptr;
    int64_t tiles = 0, blocks = 0, groups = 0, blocks_per_group = 0, block_bytes = 0, group_scales = 1;
    bool zeros = false;

    HB_INLINE int64_t scale_bytes() const { return group_scales * kTileRows * 2; }
    HB_INLINE int64_t head_bytes() const { return scale_bytes() + (zeros ? kTileRows : 0); }
    HB_INLINE int64_t tile_bytes() const { return groups * head_bytes() + blocks * block_bytes; }
    HB_INLINE uint8_t* group(int64_t tile, int64_t g) const {
        return data + tile * tile_bytes() + g * (head_bytes() + blocks_per_group * block_bytes);
    }
    HB_INLINE uint16_t* scale(int64_t tile, int64_t g) const { return reinterpret_cast<uint16_t*>(group(tile, g)); }
    HB_INLINE uint8_t* zero(int64_t tile, int64_t g) const { return group(tile, g) + scale_bytes(); }
    // The first block of a group; the others follow.
    HB_INLINE uint8_t* codes(int64_t tile, int64_t g) const { return group(tile, g) + head_bytes(); }
    HB_INLINE uint8_t* block(int64_t tile, int64_t b) const {
        return codes(tile, b / blocks_per_group) + b % blocks_per_group * block_bytes;
    }
    HB_INLINE int64_t group_end(int64_t g) const { return (g + 1) * blocks_per_group < blocks ? (g + 1) * blocks_per_group : blocks; }
};

// Interleaves the codes of one tile, taken as words of 4 bytes; `filler` stands in rows that there are not.
inline void interleave(const Stored& from, int64_t tile, const Tiles& to, uint8_t filler) {
    const int64_t words = to.block_bytes / (kTileRows * 4), row_bytes = from.groups() * from.group / kBlock * words * 4;
    const int64_t rows = from.rows - tile * kTileRows;
    const uint8_t* codes = from.codes + tile * kTileRows * row_bytes;
    for (int64_t g = 0, b = 0; g < to.groups; ++g) {
        uint8_t* at = to.codes(tile, g);
        for (; b < to.group_end(g); ++b, at += to.block_bytes) {
            if (rows < kTileRows) std::memset(at, filler, to.block_bytes);
            for (int64_t word = 0; word < words; ++word)
                for (int64_t lane = 0; lane < kTileRows && lane < rows; ++lane)
                    std::memcpy(at + (word * kTileRows + lane) * 4, codes + lane * row_bytes + (b * words + word) * 4, 4);
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

// Interleaves the zero points of one tile, which are stored in 4 bits each; `filler` stands in rows that there are not.
inline void interleave_zeros(const Stored& from, int64_t tile, const Tiles& to, uint8_t filler) {
    for (int lane = 0; to.zeros && lane < kTileRows; ++lane) {
        const int64_t row = tile * kTileRows + lane;
        for (int64_t g = 0; g < to.groups; ++g) {
            const uint8_t* pairs = from.zeros + row * ((to.groups + 1) / 2);
            to.zero(tile, g)[lane] = row < from.rows ? pairs[g / 2] >> (g % 2 * 4) & 15 : filler;
        }
    }
}

// The byte of a block that is byte `i` of a row's word.
HB_INLINE int64_t byte_at(int64_t word, int64_t lane, int64_t i) { return (word * kTileRows + lane) * 4 + i; }

// Calls use(k, code) for the four codes k … k+3 of a block as floats, from their bytes; see `codes` in q4g.h.
template <class Lanes, class Use>
static HB_INLINE void use_bytes(typename Lanes::Bits bytes, int k, const Use& use) {
    use(std::integral_constant<int, 0>{}, k, Lanes::template signed_byte<0>(bytes));
    use(std::integral_constant<int, 1>{}, k + 1, Lanes::template signed_byte<8>(bytes));
    use(std::integral_constant<int, 2>{}, k + 2, Lanes::template signed_byte<16>(bytes));
    use(std::integral_constant<int, 3>{}, k + 3, Lanes::template signed_byte<24>(bytes));
}

// Calls use(0), use(1) and so on, the numbers known at compile time.
template <int Count, class Use>
static HB_INLINE void unrolled(const Use& use) {
    [&]<int... I>(std::integer_sequence<int, I...>) HB_LAMBDA { (use(std::integral_constant<int, I>{}), ...); }(std::make_integer_sequence<int, Count>{});
}

// How the 32 codes of a block lie in words of 32 bits a row: first the words of their low bits, then those of their high
// ones. Bits Low·(t / Low) … of each byte of word t % Low are the low bits of codes 4t … 4t+3, bits High·(t / High) … of
// each byte of word Low + t % High the high ones. A code stands for what it is above `Middle`.
template <int Low, int High = 0, int Middle = 0>
struct Planes {
    static constexpr int kLow = Low, kHigh = High, kMiddle = Middle;
    static constexpr bool kSigned = false;
    static constexpr int64_t kBytes = (Low + High) * kTileRows * 4;

    // The codes K … K+3 as bytes.
    template <class Lanes, int K>
    static HB_INLINE typename Lanes::Bits bytes(const uint8_t* block) {
        constexpr int t = K / 4;
        const typename Lanes::Bits low = Lanes::template fields<t / Low * Low>(Lanes::bits(block + t % Low * 64), kLowMask);
        if constexpr (High == 0) {
            return low;
        } else {
            const typename Lanes::Bits high = Lanes::bits(block + (Low + t % High) * 64);
            return Lanes::either(low, Lanes::template fields<t / High * High - Low>(high, kHighMask << Low));
        }
    }
    // What code `k` of a row stands for.
    static int value(const uint8_t* block, int64_t lane, int64_t k) {
        const int64_t t = k / 4;
        int code = block[byte_at(t % Low, lane, k % 4)] >> (t / Low * Low) & kLowMask;
        if constexpr (High > 0) code |= (block[byte_at(Low + t % High, lane, k % 4)] >> (t / High * High) & kHighMask) << Low;
        return code - Middle;
    }
    // Puts in the 32 codes of a row.
    static void put(uint8_t* block, int64_t lane, const uint8_t* codes) {
        uint32_t words[Low + High] = {};
        for (int t = 0; t < 8; ++t) {
            uint32_t four;
            std::memcpy(&four, codes + 4 * t, sizeof four);
            words[t % Low] |= (four & kLowMask * 0x01010101u) << (t / Low * Low);
            if constexpr (High > 0) words[Low + t % High] |= (four >> Low & kHighMask * 0x01010101u) << (t / High * High);
        }
        for (int word = 0; word < Low + High; ++word) std::memcpy(block + byte_at(word, lane, 0), &words[word], 4);
    }

private:
    static constexpr int kLowMask = (1 << Low) - 1, kHighMask = (1 << High) - 1;
};

// A format as the loops over tiles see it. `Lanes` holds 16 floats; see kernels_impl.h. This is what formats have in
// common whose groups have one scale, and maybe a zero point; the others say what is different.
template <class Codes>
struct Grouped {
    static constexpr int kMiddle = Codes::kMiddle;
    static constexpr int kParts = 1;               // runs of codes of a block that have a scale of their own
    static constexpr bool kZeros = true;           // whether groups can have zero points
    static constexpr bool kLean = false;           // whether few variants of the loops are compiled, as few models use it
    static constexpr bool kBlockOffsets = false;   // whether blocks say themselves what is to be taken off
    static constexpr bool kSigned = Codes::kSigned;  // whether codes are signed bytes; else they are below 128
    static constexpr int64_t kGroup = 0;           // columns of a group; 0 where each matrix has its own size of group
    static constexpr int64_t kGroupScales = 1;     // scales of a group
    static constexpr bool kStoredScales = true;    // whether scales are stored apart from the codes
    static constexpr int64_t kBlockBytes = Codes::kBytes;

    // Calls use(chain, k, values) for the 32 codes of a block, each less the middle and times the scale of its part.
    // `chain` counts 0 … 3 or 0 … 7 at compile time.
    template <class Lanes, class Use>
    static HB_INLINE void codes(const uint8_t* block, const Use& use) {
        unrolled<8>([&](auto t) HB_LAMBDA {
            use_bytes<Lanes>(Codes::template bytes<Lanes, 4 * t>(block), 4 * t, [&](auto chain, int at, Lanes code) HB_LAMBDA {
                use(chain, at, above_middle(code));
            });
        });
    }
    template <class Lanes>
    static HB_INLINE Lanes above_middle(Lanes code) {
        if constexpr (kMiddle == 0) return code;
        else return code - Lanes::broadcast(kMiddle);
    }
    // The codes K … K+3 of a block as bytes.
    template <class Lanes, int K>
    static HB_INLINE typename Lanes::Bits bytes(const uint8_t* block) {
        return Codes::template bytes<Lanes, K>(block);
    }

    // Whether something is taken off the sum of the codes: `offset` times the sum of the activations, for each part. What a
    // group begins with, its scales, is at `group`.
    static HB_INLINE bool has_offsets(const Tiles& w) { return w.zeros; }
    template <class Lanes, int Part>
    static HB_INLINE Lanes offset(const uint8_t* group, const uint8_t*) {
        return Lanes::load(U8{}, group + kTileRows * 2) - Lanes::broadcast(kMiddle);
    }
    // What the offsets are multiplied with.
    template <class Lanes>
    static HB_INLINE Lanes offset_scale(const uint8_t* group) {
        return Lanes::load(F16{}, group);
    }
    // What the codes of a part of a block are multiplied by, from what all of the group are.
    template <class Lanes, int Part>
    static HB_INLINE Lanes scaled(const uint8_t*, Lanes scale) {
        return scale;
    }
};

// The values of one row of a format whose groups have one scale, and maybe a zero point.
template <class Codes>
inline void decode_grouped_row(const Tiles& from, int64_t row, int64_t columns, float* out) {
    const int64_t tile = row / kTileRows, lane = row % kTileRows;
    for (int64_t b = 0; b < from.blocks; ++b) {
        const int64_t g = b / from.blocks_per_group, left = columns - b * kBlock;
        const int zero = from.zeros ? from.zero(tile, g)[lane] - Codes::kMiddle : 0;
        const float scale = half_to_float(from.scale(tile, g)[lane]);
        for (int64_t k = 0; k < kBlock && k < left; ++k)
            out[b * kBlock + k] = static_cast<float>(Codes::value(from.block(tile, b), lane, k) - zero) * scale;
    }
}

}  // namespace halfbyte
