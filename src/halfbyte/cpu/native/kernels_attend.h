// Attention of a few queries to one block of the cache, with a running softmax. Part of kernels_impl.h.
#pragma once

namespace halfbyte::HB_ISA {

// sums[q] = sums[q] · keep[q] + Σ_j weights[q][j] · values[j], for 16 columns, or fewer at the end of a head.
template <class S, int Queries>
static HB_INLINE void add_values(const AttendJob& job, int64_t query, int64_t column, const float* keep) {
    const int64_t left = job.head_dim - column;
    Lanes sums[Queries];
    for (int q = 0; q < Queries; ++q) {
        const float* from = job.sums + (query + q) * job.head_dim + column;
        sums[q] = load_some<F32>(from, left) * Lanes::broadcast(keep[query + q]);
    }
    const float* weights = job.scores + query * job.scores_stride;
    for (int64_t j = 0; j < job.positions; ++j) {
        const std::byte* at = job.values + (j * job.head_dim + column) * S::kBytes;
        const Lanes value = load_some<S>(at, left);
        for (int q = 0; q < Queries; ++q) sums[q] = Lanes::fma(Lanes::broadcast(weights[q * job.scores_stride + j]), value, sums[q]);
    }
    for (int q = 0; q < Queries; ++q) store_some(sums[q], job.sums + (query + q) * job.head_dim + column, left);
}

template <class S, int Queries>
static void add_all_values(const AttendJob& job, int64_t query, const float* keep) {
    for (int64_t column = 0; column < job.head_dim; column += 16) add_values<S, Queries>(job, query, column, keep);
}

// Turns scores[positions] into weights and updates the running maximum and total; what earlier sums keep of their weight.
static float weigh(const AttendJob& job, int64_t query) {
    float* scores = job.scores + query * job.scores_stride;
    const Range sees = job.sees[query];
    const int64_t last = job.first_position + job.positions;
    const int64_t begin = (sees.begin > job.first_position ? sees.begin : job.first_position) - job.first_position;
    const int64_t end = (sees.end < last ? sees.end : last) - job.first_position;
    if (begin >= end) {
        std::memset(scores, 0, job.positions * sizeof(float));
        return 1;
    }
    const Lanes scale = Lanes::broadcast(job.scale), cap = Lanes::broadcast(job.softcap);
    map(scores + begin, end - begin, [&](Lanes x) { return job.softcap != 0 ? capped(x * scale, cap) : x * scale; }, scores + begin);
    float maximum = job.maximum[query];
    for (int64_t j = begin; j < end; ++j) maximum = scores[j] > maximum ? scores[j] : maximum;
    map(scores + begin, end - begin, [m = Lanes::broadcast(maximum)](Lanes x) { return exp(x - m); }, scores + begin);
    std::memset(scores, 0, begin * sizeof(float));
    std::memset(scores + end, 0, (job.positions - end) * sizeof(float));
    const float keep = std::exp(job.maximum[query] - maximum);
    float total = 0;
    for (int64_t j = begin; j < end; ++j) total += scores[j];
    job.total[query] = job.total[query] * keep + total;
    job.maximum[query] = maximum;
    return keep;
}

template <class S>
static void attend(const AttendJob& job) {
    const DenseRows keys{job.keys, job.head_dim * S::kBytes, job.positions};
    const int64_t rows = (job.positions + 3) / 4 * 4;
    dots<S>(keys, 0, rows, job.query, job.queries, 0, job.head_dim, job.scores, job.scores_stride);
    float* keep = job.scores + job.queries * job.scores_stride;
    for (int64_t q = 0; q < job.queries; ++q) keep[q] = weigh(job, q);
    int64_t q = 0;
    for (; q + Lanes::kValueRows <= job.queries; q += Lanes::kValueRows) add_all_values<S, Lanes::kValueRows>(job, q, keep);
    for (; q + 2 <= job.queries; q += 2) add_all_values<S, 2>(job, q, keep);
    for (; q < job.queries; ++q) add_all_values<S, 1>(job, q, keep);
}

}  // namespace halfbyte::HB_ISA
