// Products of packed weights with activations rounded to 8 bits, 16 interleaved rows at a time. Part of int8_impl.h.
//
// Codes are unpacked to bytes and multiplied four to a lane by the instruction set's integer dot product. In a block of 32,
// or in each half of it, weights are scale · code − offset, and their product with x is scale · Σ code·x + offset · (−Σ x).
//
// A single token is multiplied straight from the codes. Several are multiplied from unpacked blocks that stay in cache, by
// register tiles of kInt8Tiles · 16 rows and kInt8Tokens tokens: one loop for all formats.
#pragma once

namespace halfbyte::HB_ISA {

// Rounds 32 activations: x ≈ scale · code, scale = largest magnitude / 127. What is not finite makes the block NaN.
static HB_INLINE void quantize_block(const float* x, int8_t* codes, float& scale, float& minus_sum, float& minus_first) {
    Lanes low = Lanes::load(F32{}, x), high = Lanes::load(F32{}, x + 16);
    const uint32_t top = Lanes::largest_magnitude(low, high);
    const bool finite = top < 0x7f800000u;
    const float largest = std::bit_cast<float>(top);
    if (!finite) low = high = Lanes::broadcast(0);
    const Lanes inverse = Lanes::broadcast(largest > 1e-30f ? 127 / largest : 0);
    const typename Lanes::Ints first = Lanes::whole(low * inverse), second = Lanes::whole(high * inverse);
    first.store_bytes(codes);
    second.store_bytes(codes + 16);
    scale = finite ? largest / 127 : std::bit_cast<float>(0x7fc00000u);
    minus_first = static_cast<float>(-first.sum());
    minus_sum = minus_first - static_cast<float>(second.sum());
}

static void quantize(const Activations& x, Range blocks, const Quantized& to) {
    const TokenBlocks tokens{x.tokens, Lanes::kInt8Tokens};
    const int64_t all = (x.columns + kBlock - 1) / kBlock;
    for (int64_t group = 0; group < tokens.count(); ++group) {
        const int64_t first = tokens.start(group), size = tokens.start(group + 1) - first;
        for (int64_t t = 0; t < size; ++t) {
            for (int64_t b = blocks.begin; b < blocks.end; ++b) {
                const float* values = x.data + (first + t) * x.columns + b * kBlock;
                const int64_t left = x.columns - b * kBlock, at = first * all + b * size + t;
                float last[kBlock] = {};
                if (left < kBlock) values = static_cast<const float*>(std::memcpy(last, values, left * sizeof(float)));
                quantize_block(values, to.codes + at * kBlock, to.scales[at], to.minus_sums[at], to.minus_firsts[at]);
            }
        }
    }
}

// What the codes of a block or of its halves are multiplied by, and what is taken off then: of the last part, and of the
// first how much more.
template <class Format>
static HB_INLINE void factors_of(const Tiles& w, int64_t tile, int64_t g, const uint8_t* block, Lanes* scales, Lanes* offsets) {
    constexpr int kZero = Format::kMiddle + (Format::kSigned ? Lanes::kSignedBias : 0), kLast = Format::kParts - 1;
    const Lanes whole = Lanes::load(F16{}, w.scale(tile, g));
    unrolled<Format::kParts>([&](auto part) HB_LAMBDA {
        scales[part] = Format::template scaled<Lanes, part>(block, whole);
        offsets[part] = scales[part] * Lanes::broadcast(kZero);
        if (Format::has_offsets(w))
            offsets[part] = Lanes::fma(Format::template offset<Lanes, part>(w, tile, g, block), Format::template offset_scale<Lanes>(w, tile, g), offsets[part]);
    });
    if constexpr (kLast > 0) offsets[0] = offsets[0] - offsets[kLast];
}

template <bool Signed>
static HB_INLINE typename Lanes::Ints dot(typename Lanes::Ints sum, typename Lanes::Bits codes, const int8_t* x) {
    if constexpr (Signed) return Lanes::dot_signed(sum, codes, x);
    else return Lanes::dot(sum, codes, x);
}

// Adds the products of a block with a token: `sums` are those of its parts' codes, `at` is where the token's block lies.
template <int Parts>
static HB_INLINE Lanes add_block(Lanes total, const typename Lanes::Ints* sums, const Lanes* scales, const Lanes* offsets, const Quantized& x, int64_t at) {
    Lanes value = Lanes::from(sums[0]) * scales[0];
    if constexpr (Parts > 1) {
        value = Lanes::fma(Lanes::from(sums[1]), scales[1], value);
        value = Lanes::fma(offsets[0], Lanes::broadcast(x.minus_firsts[at]), value);
    }
    value = Lanes::fma(offsets[Parts - 1], Lanes::broadcast(x.minus_sums[at]), value);
    return Lanes::fma(value, Lanes::broadcast(x.scales[at]), total);
}

// out[16]: one tile times one token.
template <class Format>
static HB_INLINE void int8_tile(const Tiles& w, int64_t tile, const Quantized& x, float* out) {
    constexpr int kParts = Format::kParts, kSteps = kBlock / kParts / 4;
    Lanes total = Lanes::broadcast(0);
    for (int64_t b = 0, g = 0; b < w.blocks; ++g) {
        const uint8_t* block = w.codes(tile, g);
        for (const int64_t end = w.group_end(g); b < end; ++b, block += w.block_bytes) {
            Lanes scales[kParts], offsets[kParts];
            factors_of<Format>(w, tile, g, block, scales, offsets);
            typename Lanes::Ints sums[kParts];
            unrolled<kParts>([&](auto part) HB_LAMBDA {
                sums[part] = Lanes::ints(0);
                unrolled<kSteps>([&](auto step) HB_LAMBDA {
                    constexpr int k = 4 * (part * kSteps + step);
                    sums[part] = dot<Format::kSigned>(sums[part], Format::template bytes<Lanes, k>(block), x.codes + b * kBlock + k);
                });
            });
            total = add_block<kParts>(total, sums, scales, offsets, x, b);
        }
    }
    total.store(out);
}

// Some blocks of a tile: what `factors_of` gives, and the codes as bytes.
template <int Parts>
struct Unpacked {
    struct Block {
        alignas(64) uint8_t codes[kBlock * kTileRows];
        float scales[Parts][kTileRows], offsets[Parts][kTileRows];
    };
    static constexpr int64_t kMost = 16;  // two tiles of them stay in a first-level cache

    Block blocks[kMost];
};

constexpr int64_t kLine = 64;  // bytes of a cache line

// Unpacks some blocks of a tile. What comes `ahead` bytes later is fetched meanwhile, or memory would rest while these blocks
// are multiplied.
template <class Format>
static void unpack(const Tiles& w, int64_t tile, Range blocks, int64_t ahead, Unpacked<Format::kParts>& to) {
    typename Unpacked<Format::kParts>::Block* into = to.blocks;
    int64_t b = blocks.begin, g = b / w.blocks_per_group;
    for (const uint8_t* block = w.block(tile, b); b < blocks.end; block = w.codes(tile, ++g)) {
        const int64_t end = w.group_end(g) < blocks.end ? w.group_end(g) : blocks.end;
        for (; b < end; ++b, block += w.block_bytes, ++into) {
            for (int64_t at = 0; at <= w.block_bytes; at += kLine) prefetch_early(block + ahead + at);
            Lanes scales[Format::kParts], offsets[Format::kParts];
            factors_of<Format>(w, tile, g, block, scales, offsets);
            for (int part = 0; part < Format::kParts; ++part) {
                scales[part].store(into->scales[part]);
                offsets[part].store(into->offsets[part]);
            }
            unrolled<8>([&](auto word) HB_LAMBDA {
                const typename Lanes::Bits codes = Format::template bytes<Lanes, 4 * word>(block);
                std::memcpy(into->codes + 64 * word, &codes, sizeof codes);
            });
        }
    }
}

template <int Parts>
using Unpack = void (*)(const Tiles&, int64_t tile, Range blocks, int64_t ahead, Unpacked<Parts>& to);

// out[Count][stride], of which [Tokens][16] is filled or, from the second blocks on, added to: Count tiles times a few tokens.
template <bool Signed, int Parts, int Count, int Tokens>
static void unpacked_tiles(const Unpacked<Parts>* const* tiles, Range blocks, const Quantized& x, int64_t first, float* out, int64_t stride) {
    constexpr int kSteps = kBlock / Parts / 4;
    Lanes total[Count][Tokens];
    for (int i = 0; i < Count; ++i)
        for (int t = 0; t < Tokens; ++t)
            total[i][t] = blocks.begin == 0 ? Lanes::broadcast(0) : Lanes::load(F32{}, out + i * stride + t * kTileRows);
    for (int64_t b = blocks.begin; b < blocks.end; ++b) {
        typename Lanes::Ints sums[Count][Tokens][Parts];
        const int64_t at = first + b * Tokens;
        unrolled<Parts>([&](auto part) HB_LAMBDA {
            for (auto& tokens : sums)
                for (auto& sum : tokens) sum[part] = Lanes::ints(0);
            unrolled<kSteps>([&](auto step) HB_LAMBDA {
                constexpr int word = part * kSteps + step;
                typename Lanes::Bits codes[Count];
                for (int i = 0; i < Count; ++i) codes[i] = Lanes::bits(tiles[i]->blocks[b - blocks.begin].codes + 64 * word);
                for (int t = 0; t < Tokens; ++t)
                    for (int i = 0; i < Count; ++i)
                        sums[i][t][part] = dot<Signed>(sums[i][t][part], codes[i], x.codes + (at + t) * kBlock + 4 * word);
            });
        });
        for (int i = 0; i < Count; ++i) {
            const auto& block = tiles[i]->blocks[b - blocks.begin];
            Lanes scales[Parts], offsets[Parts];
            for (int part = 0; part < Parts; ++part) {
                scales[part] = Lanes::load(F32{}, block.scales[part]);
                offsets[part] = Lanes::load(F32{}, block.offsets[part]);
            }
            for (int t = 0; t < Tokens; ++t) total[i][t] = add_block<Parts>(total[i][t], sums[i][t], scales, offsets, x, at + t);
        }
    }
    for (int i = 0; i < Count; ++i)
        for (int t = 0; t < Tokens; ++t) total[i][t].store(out + i * stride + t * kTileRows);
}

template <int Parts>
using UnpackedTiles = void (*)(const Unpacked<Parts>* const*, Range blocks, const Quantized&, int64_t first, float* out, int64_t stride);

// The instance of `unpacked_tiles` for a number of tokens.
template <bool Signed, int Parts, int... Less>
static HB_INLINE UnpackedTiles<Parts> unpacked_tiles_for(int64_t tokens, std::integer_sequence<int, Less...>) {
    static constexpr UnpackedTiles<Parts> instances[] = {unpacked_tiles<Signed, Parts, Lanes::kInt8Tiles, Less + 1>...};
    return instances[tokens - 1];
}

template <bool Signed, int Parts>
static void unpacked_product(const ProductJob& job, Unpack<Parts> unpack) {
    constexpr int kTiles = Lanes::kInt8Tiles;
    const Tiles& w = job.weights->packed;
    const TokenBlocks tokens{job.x.tokens, Lanes::kInt8Tokens};
    Unpacked<Parts> unpacked[kTiles];
    for (int64_t i = 0; i < job.tiles; i += kTiles) {
        // A last tile without company is multiplied as often as there are tiles, each time to the same place.
        const int64_t count = job.tiles - i < kTiles ? job.tiles - i : kTiles;
        const int64_t stride = count < kTiles ? 0 : tokens.tokens * kTileRows;
        const Unpacked<Parts>* tiles[kTiles];
        for (int64_t j = 0; j < kTiles; ++j) tiles[j] = unpacked + (count < kTiles ? 0 : j);
        for (int64_t b = 0; b < w.blocks; b += Unpacked<Parts>::kMost) {
            const Range blocks{b, b + Unpacked<Parts>::kMost < w.blocks ? b + Unpacked<Parts>::kMost : w.blocks};
            for (int64_t j = 0; j < count; ++j) unpack(w, job.first_tile + i + j, blocks, count * w.tile_bytes(), unpacked[j]);
            for (int64_t block = 0; block < tokens.count(); ++block) {
                const int64_t first = tokens.start(block), size = tokens.start(block + 1) - first;
                const auto multiply = unpacked_tiles_for<Signed, Parts>(size, std::make_integer_sequence<int, Lanes::kInt8Tokens>{});
                multiply(tiles, blocks, *job.x.quantized, first * w.blocks, job.out + (i * tokens.tokens + first) * kTileRows, stride);
            }
        }
    }
}

template <class Format>
static void int8_product(const ProductJob& job) {
    if (job.x.tokens > 1) return unpacked_product<Format::kSigned, Format::kParts>(job, unpack<Format>);
    for (int64_t i = 0; i < job.tiles; ++i)
        int8_tile<Format>(job.weights->packed, job.first_tile + i, *job.x.quantized, job.out + i * kTileRows);
}

}  // namespace halfbyte::HB_ISA
