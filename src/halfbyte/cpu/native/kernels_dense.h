// Products with plain rows, as dot products along the columns. Part of kernels_impl.h.
#pragma once

namespace halfbyte::HB_ISA {

// Rows of `stride` bytes. Those past the last stand in as the last, so that a whole register tile can be read.
struct DenseRows {
    const std::byte* first;
    int64_t stride, count;

    HB_INLINE const std::byte* row(int64_t i) const { return first + (i < count ? i : count - 1) * stride; }
};

// out[t · out_stride + r] = or += rows[r] · x[t], over n columns.
template <class S, int Rows, int Tokens>
static HB_INLINE void dot_tile(const std::byte* const (&rows)[Rows], const float* const* x, int64_t n, bool first, float* out, int64_t out_stride) {
    Lanes sums[Tokens][Rows];
    for (auto& token : sums)
        for (Lanes& sum : token) sum = Lanes::broadcast(0);
    const auto step = [&](const auto& load_row, const auto& load_x) HB_LAMBDA {
        Lanes w[Rows];
        for (int r = 0; r < Rows; ++r) w[r] = load_row(rows[r]);
        for (int t = 0; t < Tokens; ++t) {
            const Lanes value = load_x(x[t]);
            for (int r = 0; r < Rows; ++r) sums[t][r] = Lanes::fma(w[r], value, sums[t][r]);
        }
    };
    int64_t k = 0;
    for (; k + 16 <= n; k += 16)
        step([&](const std::byte* row) HB_LAMBDA { return Lanes::load(S{}, row + k * S::kBytes); },
             [&](const float* values) HB_LAMBDA { return Lanes::load(F32{}, values + k); });
    if (k < n)
        step([&](const std::byte* row) HB_LAMBDA { return load_some<S>(row + k * S::kBytes, n - k); },
             [&](const float* values) HB_LAMBDA { return load_some<F32>(values + k, n - k); });
    for (int t = 0; t < Tokens; ++t)
        for (int r = 0; r < Rows; ++r) {
            float& to = out[t * out_stride + r];
            to = sums[t][r].sum() + (first ? 0 : to);
        }
}

// rows[count] times a single token, one row after another: memory is then read from end to end, which hardware
// prefetchers follow better than several rows at once.
template <class S>
static void dot_each(const DenseRows& from, int64_t row, int64_t count, const float* x, int64_t k, int64_t n, float* out) {
    for (int64_t r = 0; r < count; ++r) {
        const std::byte* values = from.row(row + r) + k * S::kBytes;
        Lanes sums[4] = {Lanes::broadcast(0), Lanes::broadcast(0), Lanes::broadcast(0), Lanes::broadcast(0)};
        int64_t i = 0;
        for (; i + 64 <= n; i += 64)
            for (int j = 0; j < 4; ++j)
                sums[j] = Lanes::fma(Lanes::load(S{}, values + (i + 16 * j) * S::kBytes), Lanes::load(F32{}, x + k + i + 16 * j), sums[j]);
        for (; i < n; i += 16)
            sums[0] = Lanes::fma(load_some<S>(values + i * S::kBytes, n - i), load_some<F32>(x + k + i, n - i), sums[0]);
        out[r] = ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum() + (k == 0 ? 0 : out[r]);
    }
}

// The same for several tokens and `count` rows, a whole number of register tiles, from column `k` on.
template <class S, int Tokens>
static void dot_rows(const DenseRows& from, int64_t row, int64_t count, const float* const* x, int64_t k, int64_t n, float* out, int64_t out_stride) {
    if constexpr (Tokens == 1) return dot_each<S>(from, row, count, x[0], k, n, out);
    constexpr int kRows = Lanes::kDotRows;
    const float* at[Tokens];
    for (int t = 0; t < Tokens; ++t) at[t] = x[t] + k;
    for (int64_t r = 0; r < count; r += kRows) {
        const std::byte* rows[kRows];
        for (int i = 0; i < kRows; ++i) rows[i] = from.row(row + r + i) + k * S::kBytes;
        dot_tile<S, kRows, Tokens>(rows, at, n, k == 0, out + r, out_stride);
    }
}

template <class S>
using DotRows = void (*)(const DenseRows&, int64_t, int64_t, const float* const*, int64_t, int64_t, float*, int64_t);

// The instance of `dot_rows` for a number of tokens.
template <class S, int... Less>
static HB_INLINE DotRows<S> dot_rows_for(int64_t tokens, std::integer_sequence<int, Less...>) {
    static constexpr DotRows<S> instances[] = {dot_rows<S, Less + 1>...};
    return instances[tokens - 1];
}

// Dot products of rows [row, row + count) with tokens x[tokens] over columns [k, k + n): out[tokens][out_stride].
template <class S>
static HB_INLINE void dots(const DenseRows& from, int64_t row, int64_t count, const float* const* x, int64_t tokens, int64_t k, int64_t n, float* out, int64_t out_stride) {
    const auto all = std::make_integer_sequence<int, Lanes::kDotTokens>{};
    for (int64_t t = 0; t < tokens; t += Lanes::kDotTokens) {
        const int64_t some = tokens - t < Lanes::kDotTokens ? tokens - t : Lanes::kDotTokens;
        dot_rows_for<S>(some, all)(from, row, count, x + t, k, n, out + t * out_stride, out_stride);
    }
}

// Columns are taken in parts whose rows and tokens stay in cache; a single pass over the weights needs no parts.
template <class S>
static void dense_product(const ProductJob& job) {
    constexpr int64_t kPart = 1024;
    const MatrixView& w = *job.weights;
    const DenseRows rows{w.dense, w.columns * S::kBytes, w.rows};
    const int64_t part = job.x.tokens <= Lanes::kDotTokens ? w.columns : kPart;
    for (int64_t k = 0; k < w.columns; k += part) {
        const int64_t n = w.columns - k < part ? w.columns - k : part;
        for (int64_t t = 0; t < job.x.tokens; t += Lanes::kDotTokens) {
            const float* x[Lanes::kDotTokens];
            const int64_t some = job.x.tokens - t < Lanes::kDotTokens ? job.x.tokens - t : Lanes::kDotTokens;
            for (int64_t i = 0; i < some; ++i) x[i] = job.x.data + (t + i) * w.columns;
            for (int64_t i = 0; i < job.tiles; ++i)
                dots<S>(rows, (job.first_tile + i) * kTileRows, kTileRows, x, some, k, n, job.out + (i * job.x.tokens + t) * kTileRows, kTileRows);
        }
    }
}

}  // namespace halfbyte::HB_ISA
