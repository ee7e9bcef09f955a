// The inner loops, compiled once for each instruction set as tables of functions: those with float activations from
// kernels_impl.h, those with activations rounded to 8 bits from int8_impl.h.
#pragma once

#include <cstdint>

#include "isa.h"
#include "matrix.h"
#include "noise.h"

namespace halfbyte {

enum class Activation { silu, gelu_tanh };

// Most tiles of one product job, and most columns of it that are decoded to a panel at a time.
constexpr int64_t kJobTiles = 4;
constexpr int64_t kPanelColumns = 256;
constexpr int64_t kPanelFloats = kJobTiles * kTileRows * kPanelColumns;
// Most tiles of a job without a panel and with at most kFewTokens tokens: long runs, because every start from another place
// in memory takes time.
constexpr int64_t kFewTokens = 4, kFewTokensTiles = 64;
// Logits of which the largest is noted, so that few have to be looked at again.
constexpr int64_t kRun = 64;

// Activations rounded to 8 bits in blocks of 32 columns, the last one zero-filled: x ≈ scale · code. Tokens that a kernel
// multiplies together lie together: [token blocks][blocks][tokens of the block].
struct Quantized {
    int8_t* codes;          // 32 at each place
    float* scales;
    int32_t* minus_sums;    // the negated sum of a block's codes
    int32_t* minus_firsts;  // that of the first half of them
};

// Activations x[tokens, columns] on the right of a product.
struct Activations {
    const float* data;
    int64_t tokens, columns;
    const float* packed = nullptr;         // as `Kernels::pack` leaves them, or null
    const Quantized* quantized = nullptr;  // rounded to 8 bits, for `Int8Kernels`; or null
};

// Products of some tiles of 16 rows with all tokens: out[tiles][tokens][16]; rows past the last hold anything.
struct ProductJob {
    const MatrixView* weights;
    int64_t first_tile, tiles;
    Activations x;
    float* out;
    float* panel;  // scratch of kPanelFloats
};

// What the queries of one kv head have seen so far, and a run of consecutive positions that they are to see.
struct AttendJob {
    int64_t queries, head_dim, block_size;
    const float* const* query;  // [queries] → [head_dim]
    const Range* sees;          // [queries], positions
    float scale;
    float softcap;  // 0 for none
    float* maximum;  // [queries], of the scores · log2(e)
    float* total;    // [queries]
    float* sums;     // [queries][head_dim]
    float* scores;   // scratch [queries][scores_stride]
    int64_t scores_stride;
    float* panel;    // scratch of a block's numbers of one head
    int64_t first_position = 0, positions = 0;
};

// Attention to a run of positions: scores of each block, then their weights, then what each block adds to the sums.
// `at` is where a block starts in the run.
struct Attend {
    void (*score)(const AttendJob&, const std::byte* keys, int64_t at);  // keys [head_dim][block_size]
    void (*weigh)(const AttendJob&);
    void (*add_values)(const AttendJob&, const std::byte* values, int64_t at, int64_t count);  // values [count][head_dim]
};

struct Kernels {
    // Lays activations out for products of several tokens with packed weights: [token blocks][columns, to whole blocks of
    // 32, zero-filled][tokens of the block]. `blocks` are the blocks of 32 columns to write.
    void (*pack)(const Activations& x, Range blocks, float* packed);
    void (*product[kStorages])(const ProductJob&);

    void (*rms_norm)(const float* x, const float* weight, const float* residual, float eps, float offset, float* out, int64_t n);
    void (*gate)(const float* gate, const float* up, Activation activation, float* out, int64_t n);
    void (*add)(const float* x, const float* y, float* out, int64_t n);
    void (*softcap)(const float* x, float cap, float* out, int64_t n);
    // out = x with its first values rotated; table holds `half` cosines, then as many sines. x and out may be the same.
    void (*rotate)(const float* x, const float* table, int64_t half, int64_t head_dim, float* out);
    void (*to_half)(const float* x, uint16_t* out, int64_t n);
    // Rounds up to 32 values, those that are missing being zeros, to codes from `lowest` to -lowest - 1; their f16 scale.
    uint16_t (*to_codes)(const float* x, int64_t n, int lowest, int8_t* codes);

    Attend attend[4];  // by CacheType
    // into = into · keep + from · add
    void (*blend)(const float* from, float add, float keep, float* into, int64_t n);

    // The largest of x[n], and that of each run of kRun of them; anything where one is NaN.
    float (*run_maxima)(const float* x, int64_t n, float* maxima);
    // Σ e^(x - shift); NaN where any is.
    double (*exp_sum)(const float* x, float shift, int64_t n);
    // scores = x / temperature, weights = e^(scores - highest); the sum of the weights.
    double (*weigh_scores)(const float* x, float temperature, float highest, int64_t n, float* scores, float* weights);
    // The places of those of n tokens that noise may lift above a best sum, `factor` being e^(highest - best) or a little more.
    int64_t (*may_win)(const Noise& noise, const float* weights, const int32_t* ids, int64_t n, float factor, int32_t* found);
};

// Products of packed weights with activations rounded to 8 bits. Sets with and without a dot product differ in these only.
struct Int8Kernels {
    // Rounds activations to 8 bits; `blocks` are the columns to do, in blocks of 32.
    void (*quantize)(const Activations& x, Range blocks, const Quantized& to);
    void (*product[kPackedFormats])(const ProductJob&);
    // Products alone, from registers: how many were added in so many rounds.
    int64_t (*peak)(int64_t rounds, float* out);
};

extern const Kernels kernels_generic;
extern const Int8Kernels int8_generic;
#if defined(HB_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Int8Kernels int8_avx2, int8_avx_vnni, int8_avx512;
#elif defined(HB_ARM)
extern const Kernels kernels_neon;
extern const Int8Kernels int8_neon, int8_neon_dot;
#endif

const Kernels& kernels_for(Isa isa);
const Int8Kernels& int8_kernels_for(Isa isa);

}  // namespace halfbyte
