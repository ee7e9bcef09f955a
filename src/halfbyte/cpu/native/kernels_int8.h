// Products of packed weights with activations rounded to 8 bits, 16 interleaved rows at a time. Part of int8_impl.h.
//
// Weights are unpacked to bytes and multiplied four to a lane by the instruction set's integer dot product, for a
// register tile of kInt8Tiles · 16 rows and kInt8Tokens tokens. In a block of 32, Σ (q − zero)·x = Σ q·x − zero·Σ x: the second
// part is where the integer sum starts from. Halves of a block may have scales of their own.
#pragma once

namespace halfbyte::HB_ISA {

// Rounds 32 activations: x ≈ scale · code, scale = largest magnitude / 127. What is not finite makes the block NaN.
static HB_INLINE void quantize_block(const float* x, int8_t* codes, float& scale, int32_t& minus_sum, int32_t& minus_first) {
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
    minus_first = -first.sum();
    minus_sum = minus_first - second.sum();
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

// The share of a block's part in a sum, of which the first half is known.
template <int Parts>
static HB_INLINE int32_t part_of(int part, int32_t sum, int32_t first) {
    return Parts == 1 ? sum : part == 0 ? first : sum - first;
}

constexpr int64_t kLine = 64;  // bytes of a cache line

// out[Count][stride], of which [Tokens][16] is filled: Count tiles times a few tokens; `Zeros` where groups have zero points.
template <class Format, int Count, int Tokens, bool Zeros>
static void int8_tiles(const Tiles& w, int64_t tile, const Quantized& x, int64_t first, float* out, int64_t stride) {
    const int8_t* codes = x.codes + first * w.blocks * kBlock;
    const float* scales = x.scales + first * w.blocks;
    const int32_t* minus_sums = x.minus_sums + first * w.blocks;
    const int32_t* minus_firsts = x.minus_firsts + first * w.blocks;
    Lanes total[Count][Tokens];
    for (auto& row : total)
        for (Lanes& t : row) t = Lanes::broadcast(0);
    const int64_t next = w.tile_bytes();
    for (int64_t b = 0, g = 0; b < w.blocks; ++g) {
        const uint8_t *group = w.group(tile, g), *block = w.codes(tile, g);
        for (const int64_t end = w.group_end(g); b < end; ++b, block += w.block_bytes) {
            // Several tokens leave time between one block and the next, in which memory would rest: the tiles that come after
            // these are fetched meanwhile. A single token only waits for memory, and is slower with it.
            if (Tokens > 1 && first == 0)
                for (int i = 0; i < Count; ++i)
                    for (int64_t at = 0; at <= w.block_bytes; at += kLine) prefetch_early(block + (Count + i) * next + at);
            const auto minus = [&](int part, int t) HB_LAMBDA {
                return part_of<Format::kParts>(part, minus_sums[b * Tokens + t], minus_firsts[b * Tokens + t]);
            };
            typename Lanes::Ints sums[Count][Tokens];
            unrolled<Format::kParts>([&](auto part) HB_LAMBDA {
                typename Lanes::Ints sum[Count][Tokens];
                for (int i = 0; i < Count; ++i)
                    for (int t = 0; t < Tokens; ++t) sum[i][t] = Format::template start<Lanes, Zeros>(w, tile + i, g, minus(part, t));
                constexpr int kSteps = kBlock / Format::kParts / 4;
                unrolled<kSteps>([&](auto step) HB_LAMBDA {
                    constexpr int k = 4 * (part * kSteps + step);
                    typename Lanes::Bits bytes[Count];
                    for (int i = 0; i < Count; ++i) bytes[i] = Format::template bytes<Lanes, k>(block + i * next);
                    for (int t = 0; t < Tokens; ++t)
                        for (int i = 0; i < Count; ++i)
                            sum[i][t] = Format::template dot<Lanes>(sum[i][t], bytes[i], codes + (b * Tokens + t) * kBlock + k);
                });
                for (int i = 0; i < Count; ++i)
                    for (int t = 0; t < Tokens; ++t) {
                        sum[i][t] = Format::template scaled<Lanes, part>(block + i * next, sum[i][t]);
                        sums[i][t] = part == 0 ? sum[i][t] : sums[i][t] + sum[i][t];
                    }
            });
            for (int i = 0; i < Count; ++i) {
                const Lanes scale = Lanes::load(F16{}, group + i * next);
                for (int t = 0; t < Tokens; ++t) {
                    Lanes value = Lanes::from(sums[i][t]) * scale;
                    if constexpr (Format::kBlockOffsets) {
                        typename Lanes::Ints off = Lanes::ints(0);
                        unrolled<Format::kParts>([&](auto part) HB_LAMBDA {
                            off = off + Format::template block_offset<Lanes, part>(block + i * next) * Lanes::ints(minus(part, t));
                        });
                        value = Lanes::fma(Lanes::from(off), Format::template offset_scale<Lanes>(w, tile + i, g), value);
                    }
                    total[i][t] = Lanes::fma(value, Lanes::broadcast(scales[b * Tokens + t]), total[i][t]);
                }
            }
        }
    }
    for (int i = 0; i < Count; ++i)
        for (int t = 0; t < Tokens; ++t) total[i][t].store(out + i * stride + t * kTileRows);
}

using Int8Tiles = void (*)(const Tiles&, int64_t tile, const Quantized&, int64_t first, float* out, int64_t stride);

// The instance of `int8_tiles` for a number of tokens.
template <class Format, int Count, bool Zeros, int... Less>
static HB_INLINE Int8Tiles int8_tiles_for(int64_t tokens, std::integer_sequence<int, Less...>) {
    static constexpr Int8Tiles tiles[] = {int8_tiles<Format, Count, Less + 1, Zeros>...};
    return tiles[tokens - 1];
}

template <class Format, int Count>
static HB_INLINE Int8Tiles int8_tiles_for(const Tiles& w, int64_t tokens) {
    const auto all = std::make_integer_sequence<int, Lanes::kInt8Tokens>{};
    if (Format::kZeros && w.zeros) return int8_tiles_for<Format, Count, Format::kZeros>(tokens, all);
    return int8_tiles_for<Format, Count, false>(tokens, all);
}

// Where weights are read from memory, one token's, one tile at a time is faster: fewer streams.
template <class Format>
static void int8_product(const ProductJob& job) {
    const Tiles& w = job.weights->packed;
    const TokenBlocks tokens{job.x.tokens, Lanes::kInt8Tokens};
    const int64_t stride = tokens.tokens * kTileRows;
    constexpr int kTiles = Format::kLean ? 1 : Lanes::kInt8Tiles;
    for (int64_t block = 0; block < tokens.count(); ++block) {
        const int64_t first = tokens.start(block), size = tokens.start(block + 1) - first;
        const Int8Tiles several = int8_tiles_for<Format, kTiles>(w, size), one = int8_tiles_for<Format, 1>(w, size);
        float* out = job.out + first * kTileRows;
        int64_t i = 0;
        for (; tokens.tokens > 1 && i + kTiles <= job.tiles; i += kTiles)
            several(w, job.first_tile + i, *job.x.quantized, first, out + i * stride, stride);
        for (; i < job.tiles; ++i) one(w, job.first_tile + i, *job.x.quantized, first, out + i * stride, stride);
    }
}

}  // namespace halfbyte::HB_ISA
