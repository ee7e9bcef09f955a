// Attention of a few queries to some blocks of the cache, with a running softmax. Part of kernels_impl.h.
//
// A block holds its keys by column, so that scores are sums down the columns for 16 positions at a time, and its values
// by position, so that their weighted sums are made for 16 columns at a time: neither adds across a register.
#pragma once

namespace halfbyte::HB_ISA {

// scores[q][first …] of Queries queries from `query` on, for at most 32 positions of block b from `first` on. Blocks lie
// apart: the values of this one and the keys of the next are fetched on the way.
template <class S, int Queries, bool Whole>
static HB_INLINE void score_positions(const AttendJob& job, int64_t query, int64_t b, int64_t first, float* scores) {
    const int64_t left = job.block_size - first;
    const std::byte* keys = job.keys[b];
    const std::byte* next = job.keys[b + 1 < job.blocks ? b + 1 : b];
    Lanes sums[Queries][2];
    for (auto& pair : sums) pair[0] = pair[1] = Lanes::broadcast(0);
    for (int64_t d = 0; d < job.head_dim; ++d) {
        const int64_t place = (d * job.block_size + first) * S::kBytes;
        prefetch(job.values[b] + place);
        prefetch(next + place);
        const std::byte* at = keys + place;
        const Lanes low = Whole ? Lanes::load(S{}, at) : load_some<S>(at, left);
        const Lanes high = Whole ? Lanes::load(S{}, at + 16 * S::kBytes)
                         : left > 16 ? load_some<S>(at + 16 * S::kBytes, left - 16) : Lanes::broadcast(0);
        for (int q = 0; q < Queries; ++q) {
            const Lanes x = Lanes::broadcast(job.query[query + q][d]);
            sums[q][0] = Lanes::fma(x, low, sums[q][0]);
            sums[q][1] = Lanes::fma(x, high, sums[q][1]);
        }
    }
    for (int q = 0; q < Queries; ++q) {
        float* to = scores + q * job.scores_stride + first;
        if constexpr (Whole) {
            sums[q][0].store(to);
            sums[q][1].store(to + 16);
        } else {
            store_some(sums[q][0], to, left);
            if (left > 16) store_some(sums[q][1], to + 16, left - 16);
        }
    }
}

template <class S, int Queries>
static void score(const AttendJob& job, int64_t query) {
    float* scores = job.scores + query * job.scores_stride;
    for (int64_t b = 0; b < job.blocks; ++b, scores += job.block_size) {
        int64_t first = 0;
        for (; first + 32 <= job.block_size; first += 32) score_positions<S, Queries, true>(job, query, b, first, scores);
        if (first < job.block_size) score_positions<S, Queries, false>(job, query, b, first, scores);
    }
}

// sums[q] = sums[q] · keep[q] + Σ_j weights[q][j] · values[j], for Vectors · 16 columns, or fewer at the end of a head.
template <class S, int Queries, int Vectors, bool Whole>
static HB_INLINE void add_values(const AttendJob& job, int64_t query, int64_t column, const float* keep) {
    const int64_t left = job.head_dim - column;
    Lanes sums[Queries][Vectors];
    for (int q = 0; q < Queries; ++q)
        for (int v = 0; v < Vectors; ++v) {
            const float* from = job.sums + (query + q) * job.head_dim + column + 16 * v;
            sums[q][v] = (Whole ? Lanes::load(F32{}, from) : load_some<F32>(from, left)) * Lanes::broadcast(keep[query + q]);
        }
    const float* weights = job.scores + query * job.scores_stride;
    for (int64_t b = 0, seen = 0; b < job.blocks; ++b, seen += job.block_size) {
        const int64_t count = job.positions - seen < job.block_size ? job.positions - seen : job.block_size;
        for (int64_t j = 0; j < count; ++j) {
            const std::byte* at = job.values[b] + (j * job.head_dim + column) * S::kBytes;
            Lanes value[Vectors];
            for (int v = 0; v < Vectors; ++v)
                value[v] = Whole ? Lanes::load(S{}, at + 16 * v * S::kBytes) : load_some<S>(at, left);
            for (int q = 0; q < Queries; ++q) {
                const Lanes weight = Lanes::broadcast(weights[q * job.scores_stride + seen + j]);
                for (int v = 0; v < Vectors; ++v) sums[q][v] = Lanes::fma(weight, value[v], sums[q][v]);
            }
        }
    }
    for (int q = 0; q < Queries; ++q)
        for (int v = 0; v < Vectors; ++v)
            if constexpr (Whole) sums[q][v].store(job.sums + (query + q) * job.head_dim + column + 16 * v);
            else store_some(sums[q][v], job.sums + (query + q) * job.head_dim + column, left);
}

template <class S, int Queries>
static void add_all_values(const AttendJob& job, int64_t query, const float* keep) {
    constexpr int kVectors = Lanes::kValueVectors;
    int64_t column = 0;
    for (; column + 16 * kVectors <= job.head_dim; column += 16 * kVectors)
        add_values<S, Queries, kVectors, true>(job, query, column, keep);
    for (; column < job.head_dim; column += 16) add_values<S, Queries, 1, false>(job, query, column, keep);
}

// Turns scores[positions] into weights and updates the running maximum and total; what earlier sums keep of their weight.
static float weigh(const AttendJob& job, int64_t query) {
    float* scores = job.scores + query * job.scores_stride;
    const Range sees = job.sees[query];
    const int64_t last = job.first_position + job.positions, all = (job.positions + 15) / 16 * 16;
    const int64_t begin = (sees.begin > job.first_position ? sees.begin : job.first_position) - job.first_position;
    const int64_t end = (sees.end < last ? sees.end : last) - job.first_position;
    if (begin >= end) {
        std::memset(scores, 0, job.positions * sizeof(float));
        return 1;
    }
    const Lanes scale = Lanes::broadcast(job.scale), cap = Lanes::broadcast(job.softcap);
    map(scores, all, [&](Lanes x) { return job.softcap != 0 ? capped(x * scale, cap) : x * scale; }, scores);
    constexpr float kLowest = -3.4e38f;
    for (int64_t j = 0; j < begin; ++j) scores[j] = kLowest;
    for (int64_t j = end; j < all; ++j) scores[j] = kLowest;
    Lanes highest = Lanes::broadcast(job.maximum[query]);
    for (int64_t j = 0; j < all; j += 16) highest = Lanes::max(Lanes::load(F32{}, scores + j), highest);
    float lanes[16], maximum = job.maximum[query];
    highest.store(lanes);
    for (const float lane : lanes) maximum = lane > maximum ? lane : maximum;
    Lanes total = Lanes::broadcast(0);
    const Lanes shift = Lanes::broadcast(maximum);
    for (int64_t j = 0; j < all; j += 16) {
        const Lanes weight = exp(Lanes::load(F32{}, scores + j) - shift);
        weight.store(scores + j);
        total = total + weight;
    }
    std::memset(scores, 0, begin * sizeof(float));
    std::memset(scores + end, 0, (all - end) * sizeof(float));
    const float keep = std::exp(job.maximum[query] - maximum);
    job.total[query] = job.total[query] * keep + total.sum();
    job.maximum[query] = maximum;
    return keep;
}

template <class S>
static void attend(const AttendJob& job) {
    float* keep = job.scores + job.queries * job.scores_stride;
    int64_t q = 0;
    for (; q + 4 <= job.queries; q += 4) score<S, 4>(job, q);
    for (; q < job.queries; ++q) score<S, 1>(job, q);
    for (q = 0; q < job.queries; ++q) keep[q] = weigh(job, q);
    for (q = 0; q + 4 <= job.queries; q += 4) add_all_values<S, 4>(job, q, keep);
    for (; q < job.queries; ++q) add_all_values<S, 1>(job, q, keep);
}

}  // namespace halfbyte::HB_ISA
