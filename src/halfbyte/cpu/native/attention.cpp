// Softmax attention over the paged cache.
//
// Work is cut into (a few neighbouring tokens of a sequence) × (kv head): all queries that read the same keys. Where
// that leaves threads idle, each piece is cut again along the context, and the partial results, each with its own
// softmax, are merged.
//
// A single token at the end of a long context waits for memory: its pieces are all heads together and are cut along the
// context alone, so that each thread reads whole blocks from end to end.
#include <algorithm>
#include <cmath>
#include <limits>

#include "steps.h"

namespace halfbyte {
namespace {

struct Scores {
    float scale;
    int64_t window;  // 0 for all positions
    float softcap;   // 0 for none
};

constexpr int64_t kQueries = 48;
constexpr int64_t kPartsPerThread = 4;
// Blocks whose scores are weighed together: of one head, and of all heads.
constexpr int64_t kBlocksAtOnce = 8, kBlocksOfAllHeads = 2;

// Sums over part of the context: maximum[queries] in powers of two, total[queries], sums[queries][head_dim] behind each
// other.
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
    Attention(Heads heads, Floats q, Cache k, Cache v, Paging paging, Floats out, Scores scores)
        : Step(Axis::tokens), heads_(heads), q_(q), k_(k), v_(v), paging_(paging), out_(out), scores_(scores),
          tile_tokens_(std::max<int64_t>(1, kQueries / heads.group())) {}

    Scratch scratch(int threads) const override {
        const int64_t all = tile_tokens_ * heads_.heads, one = tile_tokens_ * heads_.group();
        const int64_t scores = std::max(all * stride(kBlocksOfAllHeads), one * stride(kBlocksAtOnce));
        return {gathered_floats() + partial_floats(heads_.kv_heads) + block_floats() + scores, 2 * kPartsPerThread * threads * partial_floats(heads_.kv_heads)};
    }

    void run(const Context& c) const override {
        const Cut cut = plan(c.count, c.worker.count);
        c.shares->give(c.worker, c.worker.share(cut.items()));
        c.worker.sync();
        c.shares->take(c.worker, 1, [&](Range items) {
            for (int64_t item = items.begin; item < items.end; ++item) {
                const Piece piece = find(c.count, cut, item / cut.parts);
                const Partial partial = cut.parts > 1 ? at(c, cut, item) : Partial(c.local + gathered_floats(), queries(cut.heads));
                attend(c, piece, item % cut.parts, cut.parts, partial);
                if (cut.parts == 1) store(piece, piece.heads, partial);
            }
        });
        if (cut.parts == 1) return;
        c.worker.sync();
        const Range heads = c.worker.share(cut.items() / cut.parts * cut.heads);
        for (int64_t i = heads.begin; i < heads.end; ++i) merge(c, cut, i / cut.heads, i % cut.heads);
    }

private:
    // Tokens [begin, end) of one sequence, with some kv heads.
    struct Piece {
        int64_t begin, end;
        Range heads;

        int64_t tokens() const { return end - begin; }
    };

    // How work is cut: tiles of tokens, kv heads of a piece, parts of the context of each.
    struct Cut {
        int64_t tiles, heads, heads_pieces, parts;

        int64_t items() const { return tiles * heads_pieces * parts; }
    };

    // A thread's scratch: what its queries see, pointers to them, one partial result, a block's numbers, scores.
    int64_t gathered_floats() const { return queries(heads_.kv_heads) * static_cast<int64_t>((sizeof(Range) + sizeof(float*)) / sizeof(float)); }
    int64_t queries(int64_t kv_heads) const { return tile_tokens_ * heads_.group() * kv_heads; }
    int64_t partial_floats(int64_t kv_heads) const { return queries(kv_heads) * (heads_.head_dim + 2); }
    int64_t block_floats() const { return k_.block_size * heads_.head_dim; }
    int64_t stride(int64_t blocks) const { return (blocks * k_.block_size + 31) / 16 * 16; }
    Partial at(const Context& c, const Cut& cut, int64_t item) const { return {c.shared + item * partial_floats(cut.heads), queries(cut.heads)}; }

    // The end of the tile of tokens that starts at `begin`.
    int64_t tile_end(int64_t begin, int64_t tokens) const {
        int64_t end = begin + 1;
        const int64_t most = std::min(begin + tile_tokens_, tokens);
        while (end < most && paging_.sequences[end] == paging_.sequences[begin]) ++end;
        return end;
    }

    Cut plan(int64_t tokens, int64_t threads) const {
        int64_t tiles = 0, longest = 0;
        for (int64_t t = 0; t < tokens; t = tile_end(t, tokens), ++tiles) longest = std::max(longest, blocks(sees(t)).size());
        const int64_t wanted = kPartsPerThread * threads;
        if (tiles < wanted && longest >= wanted) return {tiles, heads_.kv_heads, 1, (wanted + tiles - 1) / tiles};
        const int64_t pieces = tiles * heads_.kv_heads;
        const bool enough = pieces % threads == 0 || pieces >= wanted;
        return {tiles, 1, heads_.kv_heads, enough ? 1 : (wanted + pieces - 1) / pieces};
    }

    Piece find(int64_t tokens, const Cut& cut, int64_t index) const {
        int64_t begin = 0;
        for (int64_t tile = index / cut.heads_pieces; tile > 0; --tile) begin = tile_end(begin, tokens);
        const int64_t head = index % cut.heads_pieces;
        return {begin, tile_end(begin, tokens), {head, head + cut.heads}};
    }

    // Positions that a token sees, and the blocks that hold some.
    Range sees(int64_t token) const {
        const int64_t position = paging_.positions[token];
        return {scores_.window == 0 ? 0 : std::max<int64_t>(0, position - scores_.window + 1), position + 1};
    }
    Range blocks(Range positions) const { return {positions.begin / k_.block_size, (positions.end - 1) / k_.block_size + 1}; }

    void attend(const Context& c, const Piece& piece, int64_t part, int64_t parts, const Partial& partial) const {
        const int64_t each = piece.tokens() * heads_.group(), n = piece.heads.size(), size = k_.block_size;
        const int64_t at_once = n > 1 ? kBlocksOfAllHeads : kBlocksAtOnce;
        Range* seen = reinterpret_cast<Range*>(c.local);
        const float** query = reinterpret_cast<const float**>(seen + queries(heads_.kv_heads));
        const Range all = gather(piece, query, seen), within = blocks(all);
        float* panel = c.local + gathered_floats() + partial_floats(heads_.kv_heads);
        partial.clear(each * n, heads_.head_dim);
        AttendJob job{
            .queries = each,
            .head_dim = heads_.head_dim,
            .block_size = size,
            .query = query,
            .sees = seen,
            .scale = scores_.scale,
            .softcap = scores_.softcap,
            .maximum = partial.maximum,
            .total = partial.total,
            .sums = partial.sums,
            .scores = panel + block_floats(),
            .scores_stride = stride(at_once),
            .panel = panel,
        };
        const Attend& kernels = k_.half ? c.kernels->attend_f16 : c.kernels->attend_f32;
        const int32_t* table = paging_.blocks.row(paging_.sequences[piece.begin]);
        const auto block = [&](int64_t b) { return table[b % paging_.blocks.columns]; };
        const int64_t last = within.begin + within.size() * (part + 1) / parts;
        for (int64_t b = within.begin + within.size() * part / parts; b < last; b += at_once) {
            const int64_t end = std::min(b + at_once, last);
            job.first_position = b * size;
            job.positions = std::min(end * size, all.end) - b * size;
            for (int64_t i = b; i < end; ++i)
                for (int64_t h = 0; h < n; ++h)
                    kernels.score(head(job, h), k_.head(block(i), piece.heads.begin + h), (i - b) * size);
            for (int64_t h = 0; h < n; ++h) kernels.weigh(head(job, h));
            for (int64_t i = b; i < end; ++i)
                for (int64_t h = 0; h < n; ++h)
                    kernels.add_values(head(job, h), v_.head(block(i), piece.heads.begin + h), (i - b) * size, std::min(size, all.end - i * size));
        }
    }

    // The part of a job that belongs to the `h`th of its heads.
    static AttendJob head(AttendJob job, int64_t h) {
        const int64_t first = h * job.queries;
        job.query += first;
        job.sees += first;
        job.maximum += first;
        job.total += first;
        job.sums += first * job.head_dim;
        job.scores += first * job.scores_stride;
        return job;
    }

    // Fills in the queries of a piece, head by head, and what each sees; the positions that any of them sees.
    Range gather(const Piece& piece, const float** query, Range* seen) const {
        Range all = sees(piece.begin);
        for (int64_t h = piece.heads.begin; h < piece.heads.end; ++h) {
            for (int64_t t = piece.begin; t < piece.end; ++t) {
                const Range own = sees(t);
                all = {std::min(all.begin, own.begin), std::max(all.end, own.end)};
                for (int64_t g = 0; g < heads_.group(); ++g) {
                    *query++ = q_.row(t) + (h * heads_.group() + g) * heads_.head_dim;
                    *seen++ = own;
                }
            }
        }
        return all;
    }

    // Merges and stores what the parts of the context found for one head of a piece.
    void merge(const Context& c, const Cut& cut, int64_t index, int64_t h) const {
        const Piece piece = find(c.count, cut, index);
        const Partial into = at(c, cut, index * cut.parts);
        const int64_t n = heads_.head_dim, each = piece.tokens() * heads_.group();
        for (int64_t part = 1; part < cut.parts; ++part) {
            const Partial from = at(c, cut, index * cut.parts + part);
            for (int64_t q = h * each; q < (h + 1) * each; ++q) {
                if (from.total[q] == 0) continue;
                const float maximum = std::max(from.maximum[q], into.maximum[q]);
                const float keep = std::exp2(into.maximum[q] - maximum), add = std::exp2(from.maximum[q] - maximum);
                into.maximum[q] = maximum;
                into.total[q] = into.total[q] * keep + from.total[q] * add;
                for (int64_t i = q * n; i < (q + 1) * n; ++i) into.sums[i] = into.sums[i] * keep + from.sums[i] * add;
            }
        }
        store(piece, {piece.heads.begin + h, piece.heads.begin + h + 1}, into);
    }

    // Writes the output of some heads of a piece.
    void store(const Piece& piece, Range heads, const Partial& from) const {
        const int64_t n = heads_.head_dim, group = heads_.group();
        for (int64_t h = heads.begin; h < heads.end; ++h) {
            int64_t q = (h - piece.heads.begin) * piece.tokens() * group;
            for (int64_t t = piece.begin; t < piece.end; ++t) {
                float* out = out_.row(t) + h * group * n;
                for (int64_t g = 0; g < group; ++g, ++q)
                    for (int64_t i = 0; i < n; ++i) *out++ = from.sums[q * n + i] / from.total[q];
            }
        }
    }

    Heads heads_;
    Floats q_;
    Cache k_, v_;
    Paging paging_;
    Floats out_;
    Scores scores_;
    int64_t tile_tokens_;
};

}  // namespace

StepPtr make_attention(const Fields& f, Inputs& inputs) {
    const Heads heads = f.heads();
    const Floats q = f.floats("q"), out = f.floats("out");
    const Cache k = f.cache("k_cache"), v = f.cache("v_cache");
    const Paging paging = f.paging();
    const Scores scores{f.number("scale"), f.optional_whole("window"), f.optional_number("softcap")};
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
    require(scores.scale > 0, "the scale of the scores is " + std::to_string(scores.scale) + ", expected more than 0");
    inputs.paged(paging, std::min(k.blocks, v.blocks), k.block_size, scores.window);
    return std::make_unique<Attention>(heads, q, k, v, paging, out, scores);
}

}  // namespace halfbyte
