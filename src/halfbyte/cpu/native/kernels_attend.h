// Attention of a few queries to blocks of the cache, with a running softmax. Part of kernels_impl.h.
//
// A block holds its keys by column, so that scores are sums down the columns for 16 positions at a time, and its values
// by position, so that their weighted sums are made for 16 columns at a time: neither adds across a register. Queries
// are multiplied kAttendQueries at a time; where there are more, a block is widened to float once for all of them.
#pragma once

namespace halfbyte::HB_ISA {

// How far ahead of what a few queries read to ask for more, in bytes: across pages, where hardware prefetchers stop.
constexpr int64_t kAhead = 8 << 10;

// scores[q][at + first …] of Queries queries from `query` on, for at most 32 positions of a block from `first` on.
template <class S, int Queries, bool Whole>
static HB_INLINE void score_positions(const AttendJob& job, int64_t query, const std::byte* keys, int64_t at, int64_t first) {
    const int64_t left = job.block_size - first;
    const float* x[Queries];
    for (int q = 0; q < Queries; ++q) x[q] = job.query[query + q];
    keys += first * S::kBytes;
    Lanes sums[Queries][2];
    for (auto& pair : sums) pair[0] = pair[1] = Lanes::broadcast(0);
    for (int64_t d = 0; d < job.head_dim; ++d, keys += job.block_size * S::kBytes) {
        if constexpr (S::kBytes == F16::kBytes) prefetch(keys + kAhead);
        const Lanes low = Whole ? Lanes::load(S{}, keys) : load_some<S>(keys, left);
        const Lanes high = Whole ? Lanes::load(S{}, keys + 16 * S::kBytes)
                         : left > 16 ? load_some<S>(keys + 16 * S::kBytes, left - 16) : Lanes::broadcast(0);
        for (int q = 0; q < Queries; ++q) {
            const Lanes value = Lanes::broadcast(x[q][d]);
            sums[q][0] = Lanes::fma(value, low, sums[q][0]);
            sums[q][1] = Lanes::fma(value, high, sums[q][1]);
        }
    }
    for (int q = 0; q < Queries; ++q) {
        float* to = job.scores + (query + q) * job.scores_stride + at + first;
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
static void score_block(const AttendJob& job, int64_t query, const std::byte* keys, int64_t at) {
    int64_t first = 0;
    for (; first + 32 <= job.block_size; first += 32) score_positions<S, Queries, true>(job, query, keys, at, first);
    if (first < job.block_size) score_positions<S, Queries, false>(job, query, keys, at, first);
}

// sums[q] += Σ_j weights[q][at + j] · values[j], for Vectors · 16 columns, or fewer at the end of a head.
template <class S, int Queries, int Vectors, bool Whole>
static HB_INLINE void add_columns(const AttendJob& job, int64_t query, const std::byte* values, int64_t at, int64_t count, int64_t column) {
    const int64_t left = job.head_dim - column;
    const float* weights = job.scores + query * job.scores_stride + at;
    float* to = job.sums + query * job.head_dim + column;
    values += column * S::kBytes;
    Lanes sums[Queries][Vectors];
    for (int q = 0; q < Queries; ++q)
        for (int v = 0; v < Vectors; ++v) {
            const float* from = to + q * job.head_dim + 16 * v;
            sums[q][v] = Whole ? Lanes::load(F32{}, from) : load_some<F32>(from, left);
        }
    for (int64_t j = 0; j < count; ++j, values += job.head_dim * S::kBytes) {
        if constexpr (S::kBytes == F16::kBytes)
            for (int v = 0; v < Vectors; v += 2) prefetch(values + kAhead + 16 * v * S::kBytes);
        Lanes value[Vectors];
        for (int v = 0; v < Vectors; ++v)
            value[v] = Whole ? Lanes::load(S{}, values + 16 * v * S::kBytes) : load_some<S>(values, left);
        for (int q = 0; q < Queries; ++q) {
            const Lanes weight = Lanes::broadcast(weights[q * job.scores_stride + j]);
            for (int v = 0; v < Vectors; ++v) sums[q][v] = Lanes::fma(weight, value[v], sums[q][v]);
        }
    }
    for (int q = 0; q < Queries; ++q)
        for (int v = 0; v < Vectors; ++v)
            if constexpr (Whole) sums[q][v].store(to + q * job.head_dim + 16 * v);
            else store_some(sums[q][v], to + q * job.head_dim, left);
}

template <class S, int Queries>
static void add_block(const AttendJob& job, int64_t query, const std::byte* values, int64_t at, int64_t count) {
    constexpr int kVectors = 2 * Queries <= Lanes::kAttendQueries ? 4 : 2;
    int64_t column = 0;
    for (; column + 16 * kVectors <= job.head_dim; column += 16 * kVectors)
        add_columns<S, Queries, kVectors, true>(job, query, values, at, count, column);
    for (; column < job.head_dim; column += 16) add_columns<S, Queries, 1, false>(job, query, values, at, count, column);
}

// Calls use(first query, how many) for all queries, the number known at compile time.
template <class Use, int... Less>
static HB_INLINE void for_queries(int64_t queries, const Use& use, std::integer_sequence<int, Less...>) {
    const TokenBlocks blocks{queries, Lanes::kAttendQueries};
    for (int64_t block = 0; block < blocks.count(); ++block) {
        const int64_t first = blocks.start(block), size = blocks.start(block + 1) - first;
        ((size == Less + 1 ? use(first, std::integral_constant<int, Less + 1>{}) : void()), ...);
    }
}

// Calls use(F32, job.panel) with `count` numbers widened, if that pays, or use(S, from).
template <class S, class Use>
static HB_INLINE void widened(const AttendJob& job, const std::byte* from, int64_t count, const Use& use) {
    if (std::is_same_v<S, F32> || job.queries <= Lanes::kAttendQueries) return use(S{}, from);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        prefetch(from + i * S::kBytes + kAhead);
        Lanes::load(S{}, from + i * S::kBytes).store(job.panel + i);
    }
    if (i < count) store_some(load_some<S>(from + i * S::kBytes, count - i), job.panel + i, count - i);
    use(F32{}, reinterpret_cast<const std::byte*>(job.panel));
}

static constexpr auto kAnyQueries = std::make_integer_sequence<int, Lanes::kAttendQueries>{};

template <class S>
static void score(const AttendJob& job, const std::byte* keys, int64_t at) {
    widened<S>(job, keys, job.block_size * job.head_dim, [&](auto stored, const std::byte* from) HB_LAMBDA {
        for_queries(job.queries, [&](int64_t first, auto some) HB_LAMBDA { score_block<decltype(stored), some>(job, first, from, at); }, kAnyQueries);
    });
}

template <class S>
static void add_values(const AttendJob& job, const std::byte* values, int64_t at, int64_t count) {
    widened<S>(job, values, count * job.head_dim, [&](auto stored, const std::byte* from) HB_LAMBDA {
        for_queries(job.queries, [&](int64_t first, auto some) HB_LAMBDA { add_block<decltype(stored), some>(job, first, from, at, count); }, kAnyQueries);
    });
}

// Turns a query's scores into weights and updates its running maximum, total and sums.
static void weigh_query(const AttendJob& job, int64_t query) {
    float* scores = job.scores + query * job.scores_stride;
    const Range sees = job.sees[query];
    const int64_t last = job.first_position + job.positions, all = (job.positions + 15) / 16 * 16;
    const int64_t begin = (sees.begin > job.first_position ? sees.begin : job.first_position) - job.first_position;
    const int64_t end = (sees.end < last ? sees.end : last) - job.first_position;
    if (begin >= end) {
        std::memset(scores, 0, job.positions * sizeof(float));
        return;
    }
    constexpr float kLog2e = 1.44269504f, kLowest = -3.4e38f;
    const float scale = kLog2e * (job.softcap == 0 ? job.scale : 1);
    if (job.softcap != 0) {
        const Lanes cap = Lanes::broadcast(job.softcap), factor = Lanes::broadcast(job.scale);
        map(scores, all, [&](Lanes x) { return capped(x * factor, cap); }, scores);
    }
    for (int64_t j = 0; j < begin; ++j) scores[j] = kLowest;
    for (int64_t j = end; j < all; ++j) scores[j] = kLowest;
    Lanes highest = Lanes::load(F32{}, scores);
    for (int64_t j = 16; j < all; j += 16) highest = Lanes::max(Lanes::load(F32{}, scores + j), highest);
    float& known = job.maximum[query];
    const float found = highest.largest() * scale, maximum = found > known ? found : known;
    Lanes total = Lanes::broadcast(0);
    const Lanes factor = Lanes::broadcast(scale), shift = Lanes::broadcast(-maximum);
    for (int64_t j = 0; j < all; j += 16) {
        const Lanes weight = exp2(Lanes::fma(Lanes::load(F32{}, scores + j), factor, shift));
        weight.store(scores + j);
        total = total + weight;
    }
    std::memset(scores, 0, begin * sizeof(float));
    std::memset(scores + end, 0, (all - end) * sizeof(float));
    if (maximum > known) {
        const float keep = std::exp2(known - maximum);
        float* sums = job.sums + query * job.head_dim;
        map(sums, job.head_dim, [keep = Lanes::broadcast(keep)](Lanes x) { return x * keep; }, sums);
        job.total[query] *= keep;
        known = maximum;
    }
    job.total[query] += total.sum();
}

static void weigh(const AttendJob& job) {
    for (int64_t q = 0; q < job.queries; ++q) weigh_query(job, q);
}

}  // namespace halfbyte::HB_ISA
