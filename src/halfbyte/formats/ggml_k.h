// ggml's q4_k and q6_k in tiles (tiles.h). ggml_k.py defines the values and the layout on disk.
//
// A group is ggml's block of 256 values; its scales are d and, of q4_k, e. A block of 32 codes ends with what its codes
// are multiplied with before: of q4_k [16] s and [16] m, of q6_k [2][16] s, one for each half. Codes come first,
// 4 words of 32 bits a row as in q4g.h, of q6_k with 2 more that hold the high bits: bits 2·(t / 2) … of each byte of
// word 4 + t % 2 belong to codes 4t … 4t+3.
#pragma once

#include "q4g.h"
#include "tiles.h"

namespace halfbyte {

constexpr int kSuperBlock = 256;

// The blocks of ggml's that one tile holds: use(block of ggml's or null, lane, group), `nbytes` bytes each.
template <class Use>
static void for_super_blocks(const Stored& from, int64_t tile, int64_t nbytes, const Use& use) {
    for (int lane = 0; lane < kTileRows; ++lane) {
        const int64_t row = tile * kTileRows + lane;
        for (int64_t g = 0; g < from.groups(); ++g)
            use(row < from.rows ? from.codes + (row * from.groups() + g) * nbytes : nullptr, lane, g);
    }
}

namespace q4_k {

constexpr int64_t kStoredBytes = 144;
constexpr int64_t stored_bytes(int64_t) { return kStoredBytes; }
constexpr int64_t kScales = q4g::kBlockBytes;
constexpr int64_t kBlockBytes = kScales + 2 * kTileRows;

// One block of 32 of a row, the `j`th of ggml's block.
inline void repack_block(const uint8_t* from, int64_t j, uint8_t* to, int lane) {
    const uint8_t *six = from + 4, *pairs = from + 16 + j / 2 * kBlock;
    for (int64_t i = 0; i < kBlock / 2; ++i) {
        const auto code = [&](int64_t k) { return pairs[k] >> (j % 2 * 4) & 15; };
        to[byte_at(i / 4, lane, i % 4)] = static_cast<uint8_t>(code(i) | code(i + 16) << 4);
    }
    const bool mixed = j >= 4;
    to[kScales + lane] = static_cast<uint8_t>(mixed ? (six[j + 4] & 15) | six[j - 4] >> 6 << 4 : six[j] & 63);
    to[kScales + kTileRows + lane] = static_cast<uint8_t>(mixed ? six[j + 4] >> 4 | six[j] >> 6 << 4 : six[j + 4] & 63);
}

inline void repack(const Stored& from, int64_t tile, const Tiles& to) {
    std::memset(to.group(tile, 0), 0, to.tile_bytes());
    for_super_blocks(from, tile, kStoredBytes, [&](const uint8_t* stored, int lane, int64_t g) {
        if (!stored) return;
        for (int i = 0; i < 2; ++i) std::memcpy(to.scale(tile, g) + i * kTileRows + lane, stored + 2 * i, 2);
        for (int64_t b = g * 8; b < (g + 1) * 8 && b < to.blocks; ++b) repack_block(stored, b % 8, to.block(tile, b), lane);
    });
}

inline void decode_row(const Tiles& from, int64_t row, int64_t columns, float* out) {
    const int64_t tile = row / kTileRows, lane = row % kTileRows;
    for (int64_t k = 0; k < columns; ++k) {
        const int64_t b = k / kBlock, i = k % kBlock;
        const uint8_t* block = from.block(tile, b);
        const uint16_t* scales = from.scale(tile, b / 8) + lane;
        const int code = block[byte_at(i % 16 / 4, lane, i % 4)] >> (i / 16 * 4) & 15;
        const float scale = half_to_float(scales[0]) * block[kScales + lane];
        out[k] = scale * static_cast<float>(code) - half_to_float(scales[kTileRows]) * block[kScales + kTileRows + lane];
    }
}

// The format as the loops over tiles see it; members as in q4g.h and tiles.h. Codes are multiplied with s.
struct Format : Grouped<0> {
    static constexpr bool kZeros = false, kBlockOffsets = true, kStoredScales = false;
    static constexpr int64_t kGroup = kSuperBlock, kGroupScales = 2;

    static HB_INLINE bool has_offsets(const Tiles&) { return true; }
    template <class Lanes>
    static HB_INLINE Lanes offset(const Tiles&, int64_t, int64_t, const uint8_t* block) {
        return Lanes::load(U8{}, block + kScales + kTileRows);
    }
    template <class Lanes>
    static HB_INLINE Lanes offset_scale(const Tiles& w, int64_t tile, int64_t g) {
        return Lanes::load(F16{}, w.scale(tile, g) + kTileRows);
    }
    // `offset` as whole numbers.
    template <class Lanes>
    static HB_INLINE typename Lanes::Ints block_offset(const uint8_t* block) {
        return Lanes::ints(block + kScales + kTileRows);
    }
    template <class Lanes, class Use>
    static HB_INLINE void codes(const uint8_t* block, const Use& use) {
        const Lanes scale = Lanes::load(U8{}, block + kScales);
        unrolled<8>([&](auto t) HB_LAMBDA {
            use_bytes<Lanes>(bytes<Lanes, 4 * t>(block), 4 * t, [&](auto chain, int at, Lanes code) HB_LAMBDA { use(chain, at, code * scale); });
        });
    }
    template <class Lanes, int K>
    static HB_INLINE typename Lanes::Bits bytes(const uint8_t* block) {
        return q4g::Format::bytes<Lanes, K>(block);
    }
    template <class Lanes, int Part>
    static HB_INLINE typename Lanes::Ints scaled(const uint8_t* block, typename Lanes::Ints sum) {
        return sum * Lanes::ints(block + kScales);
    }
};

}  // namespace q4_k

namespace q6_k {

constexpr int kMiddle = 32;
constexpr int64_t kStoredBytes = 210;
constexpr int64_t stored_bytes(int64_t) { return kStoredBytes; }
constexpr int64_t kScales = kTileRows * kBlock * 6 / 8;
constexpr int64_t kBlockBytes = kScales + 2 * kTileRows;

inline void repack_block(const uint8_t* from, int64_t j, uint8_t* to, int lane) {
    const uint8_t *pairs = from + j / 4 * 64 + j % 2 * kBlock, *fields = from + 128 + j / 4 * kBlock;
    for (int64_t i = 0; i < kBlock; ++i) {
        const int64_t t = i / 4;
        to[byte_at(t % 4, lane, i % 4)] |= static_cast<uint8_t>((pairs[i] >> (j % 4 / 2 * 4) & 15) << (t / 4 * 4));
        to[byte_at(4 + t % 2, lane, i % 4)] |= static_cast<uint8_t>((fields[i] >> (j % 4 * 2) & 3) << (t / 2 * 2));
    }
    for (int half = 0; half < 2; ++half) to[kScales + half * kTileRows + lane] = from[192 + 2 * j + half];
}

inline void repack(const Stored& from, int64_t tile, const Tiles& to) {
    std::memset(to.group(tile, 0), 0, to.tile_bytes());
    for_super_blocks(from, tile, kStoredBytes, [&](const uint8_t* stored, int lane, int64_t g) {
        if (!stored) return;
        std::memcpy(to.scale(tile, g) + lane, stored + 208, 2);
        for (int64_t b = g * 8; b < (g + 1) * 8 && b < to.blocks; ++b) repack_block(stored, b % 8, to.block(tile, b), lane);
    });
}

inline void decode_row(const Tiles& from, int64_t row, int64_t columns, float* out) {
    const int64_t tile = row / kTileRows, lane = row % kTileRows;
    for (int64_t k = 0; k < columns; ++k) {
        const int64_t b = k / kBlock, i = k % kBlock, t = i / 4;
        const uint8_t* block = from.block(tile, b);
        const int low = block[byte_at(t % 4, lane, i % 4)] >> (t / 4 * 4) & 15;
        const int high = block[byte_at(4 + t % 2, lane, i % 4)] >> (t / 2 * 2) & 3;
        const auto scale = static_cast<int8_t>(block[kScales + i / 16 * kTileRows + lane]);
        out[k] = half_to_float(from.scale(tile, b / 8)[lane]) * scale * static_cast<float>((low | high << 4) - kMiddle);
    }
}

// The format as the loops over tiles see it; members as in q4g.h and tiles.h. Codes are multiplied with s.
struct Format : Grouped<kMiddle> {
    static constexpr int kParts = 2;
    static constexpr bool kZeros = false, kStoredScales = false;
    static constexpr int64_t kGroup = kSuperBlock;

    static HB_INLINE bool has_offsets(const Tiles&) { return false; }
    template <class Lanes, class Use>
    static HB_INLINE void codes(const uint8_t* block, const Use& use) {
        unrolled<kParts>([&](auto part) HB_LAMBDA {
            const Lanes scale = Lanes::from(part_scale<Lanes, part>(block));
            unrolled<4>([&](auto word) HB_LAMBDA {
                constexpr int k = 16 * part + 4 * word;
                use_bytes<Lanes>(bytes<Lanes, k>(block), k, [&](auto chain, int at, Lanes code) HB_LAMBDA {
                    use(chain, at, (code - Lanes::broadcast(kMiddle)) * scale);
                });
            });
        });
    }
    template <class Lanes, int K>
    static HB_INLINE typename Lanes::Bits bytes(const uint8_t* block) {
        constexpr int t = K / 4;
        const typename Lanes::Bits high = Lanes::bits(block + 256 + t % 2 * 64);
        return Lanes::either(q4g::Format::bytes<Lanes, K>(block), Lanes::template fields<t / 2 * 2 - 4>(high, 48));
    }
    template <class Lanes, int Part>
    static HB_INLINE typename Lanes::Ints scaled(const uint8_t* block, typename Lanes::Ints sum) {
        return sum * part_scale<Lanes, Part>(block);
    }

private:
    template <class Lanes, int Part>
    static HB_INLINE typename Lanes::Ints part_scale(const uint8_t* block) {
        return Lanes::ints(reinterpret_cast<const int8_t*>(block + kScales + Part * kTileRows));
    }
};

}  // namespace q6_k
}  // namespace halfbyte
