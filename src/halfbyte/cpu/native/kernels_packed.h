// Products with packed weights, 16 interleaved rows at a time. Part of kernels_impl.h.
//
// A single token is multiplied straight from the codes. Several are multiplied from a panel [columns][16] of decoded weights
// that stays in cache, by register tiles of 16 rows and kTokenBlock tokens, from activations that `pack` has laid out in that
// order: one loop for all formats.
#pragma once

namespace halfbyte::HB_ISA {

static HB_INLINE int64_t blocks_of(int64_t columns) { return (columns + kBlock - 1) / kBlock; }

static void pack(const Activations& x, Range blocks, float* packed) {
    const TokenBlocks tokens{x.tokens};
    const int64_t padded = blocks_of(x.columns) * kBlock;
    const int64_t end = blocks.end * kBlock, filled = end < x.columns ? end : x.columns;
    for (int64_t block = 0; block < tokens.count(); ++block) {
        const int64_t first = tokens.start(block), size = tokens.start(block + 1) - first;
        const float* from = x.data + first * x.columns;
        float* to = packed + first * padded;
        for (int64_t k = blocks.begin * kBlock; k < filled; ++k)
            for (int64_t t = 0; t < size; ++t) to[k * size + t] = from[t * x.columns + k];
        if (filled < end) std::memset(to + filled * size, 0, (end - filled) * size * sizeof(float));
    }
}

// The sum of a block's activations, or of one of its halves.
template <int Parts>
static HB_INLINE float part_sum(const float* x, int part) {
    if constexpr (Parts == 1) return (Lanes::load(F32{}, x) + Lanes::load(F32{}, x + 16)).sum();
    else return Lanes::load(F32{}, x + 16 * part).sum();
}

// The activations of one token; the last block is zero-filled where the columns end within it.
struct DirectInput {
    const float* x;
    int64_t whole;  // blocks without a gap
    alignas(64) float last[kBlock] = {};

    explicit DirectInput(const Activations& from) : x(from.data), whole(from.columns / kBlock) {
        std::memcpy(last, x + whole * kBlock, (from.columns - whole * kBlock) * sizeof(float));
    }
    HB_INLINE const float* block(int64_t b) const { return b < whole ? x + b * kBlock : last; }
};

// out[16]: one tile times one token.
template <class Format>
static HB_INLINE void direct_tile(const Tiles& w, int64_t tile, const DirectInput& x, float* out) {
    constexpr int kChains = 4;  // independent sums that hide the latency of one
    Lanes total = Lanes::broadcast(0);
    for (int64_t g = 0, b = 0; g < w.groups; ++g) {
        Lanes sums[kChains];
        for (Lanes& sum : sums) sum = Lanes::broadcast(0);
        Lanes offsets = Lanes::broadcast(0);
        const uint8_t *group = w.group(tile, g), *block = w.codes(tile, g);
        for (const int64_t end = w.group_end(g); b < end; ++b, block += w.block_bytes) {
            const float* at = x.block(b);
            Format::template codes<Lanes>(block, [&](auto chain, int k, Lanes code) HB_LAMBDA {
                sums[chain % kChains] = Lanes::fma(code, Lanes::broadcast(at[k]), sums[chain % kChains]);
            });
            if (!Format::has_offsets(w)) continue;
            unrolled<Format::kParts>([&](auto part) HB_LAMBDA {
                const Lanes offset = Format::template offset<Lanes, part>(group, block);
                offsets = Lanes::fma(offset, Lanes::broadcast(part_sum<Format::kParts>(at, part)), offsets);
            });
        }
        total = Lanes::fma(Lanes::load(F16{}, group), (sums[0] + sums[1]) + (sums[2] + sums[3]), total);
        if (Format::has_offsets(w)) total = total - offsets * Format::template offset_scale<Lanes>(group);
    }
    total.store(out);
}

// panel[columns][16]: the weights of some blocks of a tile.
template <class Format>
static void decode(const Tiles& w, int64_t tile, Range blocks, float* panel) {
    for (int64_t b = blocks.begin; b < blocks.end; ++b, panel += kBlock * kTileRows) {
        const uint8_t *group = w.group(tile, b / w.blocks_per_group), *block = w.block(tile, b);
        const Lanes scale = Lanes::load(F16{}, group);
        Lanes minus[Format::kParts];
        unrolled<Format::kParts>([&](auto part) HB_LAMBDA {
            minus[part] = Lanes::broadcast(0);
            if (Format::has_offsets(w))
                minus[part] = minus[part] - Format::template offset<Lanes, part>(group, block) * Format::template offset_scale<Lanes>(group);
        });
        Format::template codes<Lanes>(block, [&](auto, int k, Lanes code) HB_LAMBDA {
            Lanes::fma(code, scale, minus[Format::kParts == 1 ? 0 : k / 16]).store(panel + k * kTileRows);
        });
    }
}

// out[Tokens][16] = or += panel[columns][16] · x[columns][Tokens]
template <int Tokens>
static void panel_tile(const float* panel, const float* x, int64_t columns, bool first, float* out) {
    Lanes sums[Tokens];
    for (int t = 0; t < Tokens; ++t) sums[t] = first ? Lanes::broadcast(0) : Lanes::load(F32{}, out + t * kTileRows);
    for (int64_t k = 0; k < columns; ++k, x += Tokens) {
        const Lanes weights = Lanes::load(F32{}, panel + k * kTileRows);
        for (int t = 0; t < Tokens; ++t) sums[t] = Lanes::fma(weights, Lanes::broadcast(x[t]), sums[t]);
    }
    for (int t = 0; t < Tokens; ++t) sums[t].store(out + t * kTileRows);
}

using PanelTile = void (*)(const float* panel, const float* x, int64_t columns, bool first, float* out);

// The instance of `panel_tile` for a number of tokens.
template <int... Less>
static HB_INLINE PanelTile panel_tile_for(int64_t tokens, std::integer_sequence<int, Less...>) {
    static constexpr PanelTile tiles[] = {panel_tile<Less + 1>...};
    return tiles[tokens - 1];
}

template <class Format>
static void panel_product(const ProductJob& job) {
    const Tiles& w = job.weights->packed;
    const TokenBlocks tokens{job.x.tokens};
    constexpr int64_t kStep = kPanelColumns / kBlock;
    for (int64_t b = 0; b < w.blocks; b += kStep) {
        const Range blocks{b, b + kStep < w.blocks ? b + kStep : w.blocks};
        const int64_t columns = blocks.size() * kBlock;
        for (int64_t i = 0; i < job.tiles; ++i)
            decode<Format>(w, job.first_tile + i, blocks, job.panel + i * kPanelColumns * kTileRows);
        for (int64_t block = 0; block < tokens.count(); ++block) {
            const int64_t first = tokens.start(block), size = tokens.start(block + 1) - first;
            const float* x = job.x.packed + first * w.blocks * kBlock + b * kBlock * size;
            const PanelTile multiply = panel_tile_for(size, std::make_integer_sequence<int, Lanes::kTokenBlock>{});
            for (int64_t i = 0; i < job.tiles; ++i)
                multiply(job.panel + i * kPanelColumns * kTileRows, x, columns, b == 0, job.out + (i * tokens.tokens + first) * kTileRows);
        }
    }
}

template <class Format>
static void packed_product(const ProductJob& job) {
    if (job.x.packed) return panel_product<Format>(job);
    const DirectInput x(job.x);
    for (int64_t i = 0; i < job.tiles; ++i)
        direct_tile<Format>(job.weights->packed, job.first_tile + i, x, job.out + i * kTileRows);
}

}  // namespace halfbyte::HB_ISA
