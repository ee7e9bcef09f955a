// Products of packed weights with activations rounded to 8 bits, 16 interleaved rows at a time. Part of int8_impl.h.
//
// Codes are unpacked to bytes and multiplied four to a lane by the instruction set's integer dot product. In a block of 32,
// or in each half of it, weights are scale · code − offset, and their product with x is scale · Σ code·x + offset · (−Σ x).
//
// Register tiles are kInt8Tiles · 16 rows and kInt8Tokens tokens. Formats that few models use have a loop of their own for a
// single token only. For several, their blocks are unpacked to bytes that stay in cache, and one loop multiplies these.
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

// What the codes of a block or of its halves are multiplied by, and what is taken off then: of the last part, and of the
// first how much more.
template <int Parts>
struct Factors {
    Lanes scales[Parts], offsets[Parts];
};

// What a code is in `dot` that stands for zero, where the format's groups have no zero points.
template <class Format>
constexpr int zero_code() { return Format::kMiddle + (Format::kSigned ? Lanes::kSignedBias : 0); }

// `Zero`: the code that offsets make stand for zero, beside what the format takes off with `Offsets`.
template <class Format, int Zero, bool Offsets>
static HB_INLINE Factors<Format::kParts> factors_of(const uint8_t* group, const uint8_t* block) {
    const Lanes whole = Lanes::load(F16{}, group);
    Factors<Format::kParts> f;
    unrolled<Format::kParts>([&](auto part) HB_LAMBDA {
        f.scales[part] = Format::template scaled<Lanes, part>(block, whole);
        f.offsets[part] = f.scales[part] * Lanes::broadcast(Zero);
        if constexpr (Offsets)
            f.offsets[part] = Lanes::fma(Format::template offset<Lanes, part>(group, block), Format::template offset_scale<Lanes>(group), f.offsets[part]);
    });
    if constexpr (Format::kParts > 1) f.offsets[0] = f.offsets[0] - f.offsets[1];
    return f;
}

// Blocks of a format as the loop over blocks reads them; `Zeros` where groups have zero points. Formats that are unpacked for
// several tokens are computed alike for a single one, so that a token has the same products in any company.
template <class Format, bool Zeros>
struct Packed {
    static constexpr int kParts = Format::kParts, kStart = Zeros || Format::kLean ? 0 : zero_code<Format>();
    static constexpr bool kSigned = Format::kSigned, kOffsets = Zeros || Format::kBlockOffsets || Format::kLean;
    static constexpr bool kAhead = true;  // whether later blocks come from memory

    template <int K>
    static HB_INLINE typename Lanes::Bits bytes(const uint8_t* block) { return Format::template bytes<Lanes, K>(block); }
    static HB_INLINE Factors<kParts> factors(const uint8_t* group, const uint8_t* block) {
        return factors_of<Format, zero_code<Format>() - kStart, Zeros || Format::kBlockOffsets>(group, block);
    }
};

// Unpacked blocks: codes as bytes, then their factors.
template <bool Signed, int Parts>
struct Unpacked {
    static constexpr int kParts = Parts, kStart = 0;
    static constexpr bool kSigned = Signed, kOffsets = true, kAhead = false;
    static constexpr int64_t kBlockBytes = kBlock * kTileRows + 2 * Parts * kTileRows * sizeof(float);
    static constexpr int64_t kMost = 16;  // blocks of a tile: two tiles of them stay in a first-level cache

    template <int K>
    static HB_INLINE typename Lanes::Bits bytes(const uint8_t* block) { return Lanes::bits(block + K * kTileRows); }
    static HB_INLINE Factors<kParts> factors(const uint8_t*, const uint8_t* block) {
        Factors<kParts> f;
        std::memcpy(&f, block + kBlock * kTileRows, sizeof f);
        return f;
    }
};

template <bool Signed>
static HB_INLINE typename Lanes::Ints dot(typename Lanes::Ints sum, typename Lanes::Bits codes, const int8_t* x) {
    if constexpr (Signed) return Lanes::dot_signed(sum, codes, x);
    else return Lanes::dot(sum, codes, x);
}

// The share of a block's part in a sum, of which the first half is known.
template <int Parts>
static HB_INLINE int32_t part_of(int part, int32_t sum, int32_t first) {
    return Parts == 1 ? sum : part == 0 ? first : sum - first;
}

// factor · x on all lanes; the factor is zero or a power of two.
template <int Factor>
static HB_INLINE typename Lanes::Ints multiple(int32_t x) {
    if constexpr (Factor == 0) return Lanes::ints(0);
    else return Lanes::ints(x) << std::countr_zero(static_cast<unsigned>(Factor));
}

// total + the products of a block with a token: `sums` are those of its parts' codes, `at` is where the token's block lies.
template <class Blocks>
static HB_INLINE Lanes add_block(Lanes total, const typename Lanes::Ints* sums, const Factors<Blocks::kParts>& f, const Quantized& x, int64_t at) {
    Lanes value = Lanes::from(sums[0]) * f.scales[0];
    if constexpr (Blocks::kParts > 1) value = Lanes::fma(Lanes::from(sums[1]), f.scales[1], value);
    if constexpr (Blocks::kOffsets) {
        if constexpr (Blocks::kParts > 1) value = Lanes::fma(f.offsets[0], Lanes::from(Lanes::ints(x.minus_firsts[at])), value);
        value = Lanes::fma(f.offsets[Blocks::kParts - 1], Lanes::from(Lanes::ints(x.minus_sums[at])), value);
    }
    return Lanes::fma(value, Lanes::broadcast(x.scales[at]), total);
}

constexpr int64_t kLine = 64;  // bytes of a cache line

// Where the products of some tiles with a few tokens begin: tiles at `tile`, each `next` bytes after the one before; the
// tokens' blocks at `x_at`; out[tiles][stride], of which [tokens][16] is filled or added to.
struct TilesJob {
    int64_t tile, next, x_at;
    float* out;
    int64_t stride;
    bool add, ahead;  // `ahead`: fetch what comes after these tiles
};

template <class Blocks, int Count, int Tokens>
static void multiply_tiles(const Tiles& w, const Quantized& x, const TilesJob& job) {
    constexpr int kParts = Blocks::kParts, kSteps = kBlock / kParts / 4;
    Lanes total[Count][Tokens];
    for (int i = 0; i < Count; ++i)
        for (int t = 0; t < Tokens; ++t)
            total[i][t] = job.add ? Lanes::load(F32{}, job.out + i * job.stride + t * kTileRows) : Lanes::broadcast(0);
    const int64_t next = job.next;
    int64_t at = job.x_at;
    for (int64_t b = 0, g = 0; b < w.blocks; ++g) {
        const uint8_t *group = w.group(job.tile, g), *block = w.codes(job.tile, g);
        for (const int64_t end = w.group_end(g); b < end; ++b, block += w.block_bytes, at += Tokens) {
            // Several tokens leave time between one block and the next, in which memory would rest. A single token only waits
            // for memory, and is slower with it.
            if (Blocks::kAhead && Tokens > 1 && job.ahead)
                for (int i = 0; i < Count; ++i)
                    for (int64_t line = 0; line <= w.block_bytes; line += kLine) prefetch_early(block + (Count + i) * next + line);
            typename Lanes::Ints sums[Count][Tokens][kParts];
            unrolled<kParts>([&](auto part) HB_LAMBDA {
                for (int t = 0; t < Tokens; ++t)
                    for (int i = 0; i < Count; ++i)
                        sums[i][t][part] = multiple<Blocks::kStart>(part_of<kParts>(part, x.minus_sums[at + t], x.minus_firsts[at + t]));
                unrolled<kSteps>([&](auto step) HB_LAMBDA {
                    constexpr int k = 4 * (part * kSteps + step);
                    typename Lanes::Bits bytes[Count];
                    for (int i = 0; i < Count; ++i) bytes[i] = Blocks::template bytes<k>(block + i * next);
                    for (int t = 0; t < Tokens; ++t)
                        for (int i = 0; i < Count; ++i)
                            sums[i][t][part] = dot<Blocks::kSigned>(sums[i][t][part], bytes[i], x.codes + (at + t) * kBlock + k);
                });
            });
            for (int i = 0; i < Count; ++i) {
                const Factors<kParts> factors = Blocks::factors(group + i * next, block + i * next);
                for (int t = 0; t < Tokens; ++t) total[i][t] = add_block<Blocks>(total[i][t], sums[i][t], factors, x, at + t);
            }
        }
    }
    for (int i = 0; i < Count; ++i)
        for (int t = 0; t < Tokens; ++t) total[i][t].store(job.out + i * job.stride + t * kTileRows);
}

using MultiplyTiles = void (*)(const Tiles&, const Quantized&, const TilesJob&);

// The instance of `multiply_tiles` for a number of tokens. A single token is read one tile at a time: fewer streams.
template <class Blocks, int... Less>
static HB_INLINE MultiplyTiles multiply_tiles_for(int64_t tokens, std::integer_sequence<int, Less...>) {
    static constexpr MultiplyTiles instances[] = {multiply_tiles<Blocks, Less == 0 ? 1 : Lanes::kInt8Tiles, Less + 1>...};
    return instances[tokens - 1];
}

// Multiplies `count` tiles with all tokens, from block `done` of the activations on. A last tile without company is multiplied
// as often as there are tiles, each time to the same place.
template <class Blocks>
static HB_INLINE void multiply_all(const Tiles& w, int64_t tile, int64_t count, int64_t done, int64_t blocks, const ProductJob& job, float* out) {
    const TokenBlocks tokens{job.x.tokens, Lanes::kInt8Tokens};
    const bool whole = count == Lanes::kInt8Tiles;
    for (int64_t block = 0; block < tokens.count(); ++block) {
        const int64_t first = tokens.start(block), size = tokens.start(block + 1) - first;
        const auto multiply = multiply_tiles_for<Blocks>(size, std::make_integer_sequence<int, Lanes::kInt8Tokens>{});
        multiply(w, *job.x.quantized,
                 {tile, whole ? w.tile_bytes() : 0, first * blocks + done * size, out + first * kTileRows, whole ? tokens.tokens * kTileRows : 0,
                  done > 0, block == 0});
    }
}

// Unpacks some blocks of a tile, and has those that come `ahead` bytes later fetched meanwhile.
template <class Format, class Blocks>
static void unpack(const Tiles& w, int64_t tile, Range blocks, int64_t ahead, uint8_t* to) {
    int64_t b = blocks.begin, g = b / w.blocks_per_group;
    for (const uint8_t* block = w.block(tile, b); b < blocks.end; block = w.codes(tile, ++g)) {
        const int64_t end = w.group_end(g) < blocks.end ? w.group_end(g) : blocks.end;
        for (; b < end; ++b, block += w.block_bytes, to += Blocks::kBlockBytes) {
            for (int64_t line = 0; line <= w.block_bytes; line += kLine) prefetch_early(block + ahead + line);
            unrolled<8>([&](auto word) HB_LAMBDA {
                const typename Lanes::Bits codes = Format::template bytes<Lanes, 4 * word>(block);
                std::memcpy(to + 4 * word * kTileRows, &codes, sizeof codes);
            });
            const auto factors = factors_of<Format, zero_code<Format>(), Format::kBlockOffsets>(w.group(tile, g), block);
            std::memcpy(to + kBlock * kTileRows, &factors, sizeof factors);
        }
    }
}

template <class Blocks>
static void unpacked_product(const ProductJob& job, void (*unpack)(const Tiles&, int64_t, Range, int64_t, uint8_t*)) {
    constexpr int64_t kTiles = Lanes::kInt8Tiles, kMost = Blocks::kMost;
    const Tiles& w = job.weights->packed;
    alignas(64) uint8_t unpacked[kTiles * kMost * Blocks::kBlockBytes];
    for (int64_t i = 0; i < job.tiles; i += kTiles) {
        const int64_t count = job.tiles - i < kTiles ? job.tiles - i : kTiles;
        for (int64_t b = 0; b < w.blocks; b += kMost) {
            const Range blocks{b, b + kMost < w.blocks ? b + kMost : w.blocks};
            const Tiles view{unpacked, count, blocks.size(), 1, blocks.size(), Blocks::kBlockBytes, 0, false};
            for (int64_t j = 0; j < count; ++j)
                unpack(w, job.first_tile + i + j, blocks, count * w.tile_bytes(), view.codes(j, 0));
            multiply_all<Blocks>(view, 0, count, b, w.blocks, job, job.out + i * job.x.tokens * kTileRows);
        }
    }
}

template <class Format, bool Zeros>
static void packed_tiles(const ProductJob& job) {
    using Blocks = Packed<Format, Zeros>;
    const Tiles& w = job.weights->packed;
    if (job.x.tokens == 1) {
        for (int64_t i = 0; i < job.tiles; ++i)
            multiply_tiles<Blocks, 1, 1>(w, *job.x.quantized, {job.first_tile + i, 0, 0, job.out + i * kTileRows, 0, false, false});
    } else if constexpr (Format::kLean) {
        using Bytes = Unpacked<Format::kSigned, Format::kParts>;
        unpacked_product<Bytes>(job, unpack<Format, Bytes>);
    } else {
        for (int64_t i = 0; i < job.tiles; i += Lanes::kInt8Tiles) {
            const int64_t count = job.tiles - i < Lanes::kInt8Tiles ? job.tiles - i : Lanes::kInt8Tiles;
            multiply_all<Blocks>(w, job.first_tile + i, count, 0, w.blocks, job, job.out + i * job.x.tokens * kTileRows);
        }
    }
}

template <class Format>
static void int8_product(const ProductJob& job) {
    if (Format::kZeros && job.weights->packed.zeros) packed_tiles<Format, Format::kZeros>(job);
    else packed_tiles<Format, false>(job);
}

}  // namespace halfbyte::HB_ISA
