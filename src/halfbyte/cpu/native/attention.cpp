// Softmax attention over the paged cache.
//
// Work is cut into (a few neighbouring tokens of a sequence) × (kv head): all queries that read the same keys. Where
// that leaves threads idle, as at decode with few kv heads, each piece is cut again along the context, and the partial
// results, each with its own softmax, are merged.
#include <algorithm>
#include <cmath>
#include <limits>

#include "steps.h"

namespace halfbyte {
namespace {

constexpr int64_t kQueries = 16;
constexpr int64_t kPartsPerThread = 4;

// Sums over part of the context: maximum[queries], total[queries], sums[queries][head_dim] behind each other.
struct Partial {
    float* maximum;
    float* total;
    float* sums;

    Partial(float* at, int64_t queries) : maximum(at), total(at + queries), sums(at + 2 * queries) {}

    void clear(int64_t queries, int64_t head_dim) const {
        std::fill_n(maximum, queries, -std::numeric_limits<float>::infinity());
        std::fill_n(total, queries, 0.0f);
        std::fill_n(sums, queries * head_dim, 0.0f);
    }
};

class Attention final : public Step {
public:
    Attention(Heads heads, Floats q, Cache k, Cache v, Paging paging, Floats out, AttentionScores scores)
        : Step(Axis::tokens), heads_(heads), q_(q), k_(k), v_(v), paging_(paging), out_(out), scores_(scores),
          tile_tokens_(std::max<int64_t>(1, kQueries / heads.group())), queries_(tile_tokens_ * heads.group()) {}

    Scratch scratch(int threads) const override {
        const int64_t scores = queries_ * (scores_stride() + 1);
        return {gathered_floats() + partial_floats() + scores, 2 * kPartsPerThread * threads * partial_floats()};
    }

    void run(const Context& c) const override {
        const int64_t pieces = count_pieces(c.count), parts = parts_of(pieces, c.worker.count);
        for_pieces(c, parts, [&](const Piece& piece, int64_t part, int64_t index) {
            const Partial partial(parts > 1 ? c.shared + index * partial_floats() : c.local + gathered_floats(), queries_);
            attend(c, piece, part, parts, partial);
            if (parts == 1) store(piece, partial);
        });
        if (parts == 1) return;
        c.worker.sync();
        for_pieces(c, 1, [&](const Piece& piece, int64_t, int64_t index) {
            const Partial first(c.shared + index * parts * partial_floats(), queries_);
            for (int64_t part = 1; part < parts; ++part)
                merge(piece, Partial(c.shared + (index * parts + part) * partial_floats(), queries_), first);
            store(piece, first);
        });
    }

private:
    // Tokens [begin, end) of one sequence, with one kv head.
    struct Piece {
        int64_t begin, end, kv_head;

        int64_t tokens() const { return end - begin; }
    };

    // A thread's scratch: what its queries see, pointers to them, one partial result, scores.
    int64_t gathered_floats() const { return queries_ * static_cast<int64_t>((sizeof(Range) + sizeof(float*)) / sizeof(float)); }
    int64_t partial_floats() const { return queries_ * (heads_.head_dim + 2); }
    int64_t scores_stride() const { return (kAttendBlocks * k_.block_size + 31) / 16 * 16; }

    // The end of the tile of tokens that starts at `begin`.
    int64_t tile_end(int64_t begin, int64_t tokens) const {
        int64_t end = begin + 1;
        const int64_t most = std::min(begin + tile_tokens_, tokens);
        while (end < most && paging_.sequences[end] == paging_.sequences[begin]) ++end;
        return end;
    }

    int64_t count_pieces(int64_t tokens) const {
        int64_t tiles = 0;
        for (int64_t t = 0; t < tokens; t = tile_end(t, tokens)) ++tiles;
        return tiles * heads_.kv_heads;
    }

    // Into how many parts of the context each piece is cut: below 2 · kPartsPerThread · threads in all.
    static int64_t parts_of(int64_t pieces, int64_t threads) {
        if (pieces % threads == 0 || pieces >= kPartsPerThread * threads) return 1;
        return (kPartsPerThread * threads + pieces - 1) / pieces;
    }

    // Calls use(piece, part, index) for this thread's share of all parts of all pieces, dealt out in turn.
    template <class Use>
    void for_pieces(const Context& c, int64_t parts, const Use& use) const {
        int64_t index = 0;
        for (int64_t begin = 0, end; begin < c.count; begin = end) {
            end = tile_end(begin, c.count);
            for (int64_t head = 0; head < heads_.kv_heads; ++head)
                for (int64_t part = 0; part < parts; ++part, ++index)
                    if (index % c.worker.count == c.worker.index) use(Piece{begin, end, head}, part, index);
        }
    }

    // Positions that a token sees.
    Range sees(int64_t token) const {
        const int64_t position = paging_.positions[token];
        return {scores_.window == 0 ? 0 : std::max<int64_t>(0, position - scores_.window + 1), position + 1};
    }

    void attend(const Context& c, const Piece& piece, int64_t part, int64_t parts, const Partial& partial) const {
        const int64_t queries = piece.tokens() * heads_.group(), size = k_.block_size;
        Range* seen = reinterpret_cast<Range*>(c.local);
        const float** query = reinterpret_cast<const float**>(seen + queries_);
        const Range all = gather(piece, query, seen);
        partial.clear(queries, heads_.head_dim);
        AttendJob job{
            .queries = queries,
            .head_dim = heads_.head_dim,
            .block_size = k_.block_size,
            .query = query,
            .sees = seen,
            .scale = scores_.scale,
            .softcap = scores_.softcap,
            .maximum = partial.maximum,
            .total = partial.total,
            .sums = partial.sums,
            .scores = c.local + gathered_floats() + partial_floats(),
            .scores_stride = scores_stride(),
        };
        const int32_t* table = paging_.blocks.row(paging_.sequences[piece.begin]);
        const int64_t first = all.begin / size, blocks = (all.end - 1) / size + 1 - first;
        const int64_t last = first + blocks * (part + 1) / parts;
        for (int64_t b = first + blocks * part / parts; b < last; b += job.blocks) {
            job.blocks = std::min(kAttendBlocks, last - b);
            for (int64_t i = 0; i < job.blocks; ++i) {
                const int64_t block = table[(b + i) % paging_.blocks.columns];
                job.keys[i] = k_.head(block, piece.kv_head);
                job.values[i] = v_.head(block, piece.kv_head);
            }
            job.first_position = b * size;
            job.positions = std::min(job.blocks * size, all.end - b * size);
            (k_.half ? c.kernels->attend_f16 : c.kernels->attend_f32)(job);
        }
    }

    // Fills in the queries of a piece and what each sees; the positions that any of them sees.
    Range gather(const Piece& piece, const float** query, Range* seen) const {
        Range all = sees(piece.begin);
        for (int64_t t = piece.begin; t < piece.end; ++t) {
            const Range own = sees(t);
            all = {std::min(all.begin, own.begin), std::max(all.end, own.end)};
            for (int64_t g = 0; g < heads_.group(); ++g) {
                *query++ = q_.row(t) + (piece.kv_head * heads_.group() + g) * heads_.head_dim;
                *seen++ = own;
            }
        }
        return all;
    }

    // into = into and from together.
    void merge(const Piece& piece, const Partial& from, const Partial& into) const {
        const int64_t n = heads_.head_dim;
        for (int64_t q = 0; q < piece.tokens() * heads_.group(); ++q) {
            if (from.total[q] == 0) continue;
            const float maximum = std::max(from.maximum[q], into.maximum[q]);
            const float keep = std::exp(into.maximum[q] - maximum), add = std::exp(from.maximum[q] - maximum);
            into.maximum[q] = maximum;
            into.total[q] = into.total[q] * keep + from.total[q] * add;
            for (int64_t i = q * n; i < (q + 1) * n; ++i) into.sums[i] = into.sums[i] * keep + from.sums[i] * add;
        }
    }

    void store(const Piece& piece, const Partial& from) const {
        const int64_t n = heads_.head_dim;
        for (int64_t t = piece.begin, q = 0; t < piece.end; ++t) {
            float* out = out_.row(t) + piece.kv_head * heads_.group() * n;
            for (int64_t g = 0; g < heads_.group(); ++g, ++q)
                for (int64_t i = 0; i < n; ++i) *out++ = from.sums[q * n + i] / from.total[q];
        }
    }

    Heads heads_;
    Floats q_;
    Cache k_, v_;
    Paging paging_;
    Floats out_;
    AttentionScores scores_;
    int64_t tile_tokens_, queries_;
};

}  // namespace

StepPtr make_attention(Inputs& inputs, Heads heads, Floats q, Cache k, Cache v, Paging paging, Floats out, AttentionScores scores) {
    require(heads.kv_heads > 0 && heads.heads % heads.kv_heads == 0,
            std::to_string(heads.heads) + " heads cannot share " + std::to_string(heads.kv_heads) + " kv heads");
    require(q.columns >= heads.heads * heads.head_dim, "queries of " + std::to_string(q.columns) + " values are too narrow");
    require_equal(out.columns, heads.heads * heads.head_dim, "width of the output");
    require_equal(out.rows, q.rows, "rows of the output");
    require_equal(paging.positions.size(), q.rows, "number of positions");
    require_equal(paging.sequences.size(), q.rows, "number of sequences");
    for (const Cache& cache : {k, v}) {
        require_equal(cache.kv_heads, heads.kv_heads, "kv heads of the cache");
        require_equal(cache.head_dim, heads.head_dim, "head_dim of the cache");
    }
    require(k.half == v.half && k.block_size == v.block_size, "the caches of k and v differ in type or block size");
    inputs.paged(paging, std::min(k.blocks, v.blocks), k.block_size, scores.window);
    return std::make_unique<Attention>(heads, q, k, v, paging, out, scores);
}

}  // namespace halfbyte
