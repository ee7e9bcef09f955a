// Softmax attention over the paged cache.
//
// Tokens of prompts are cut into (a few neighbouring tokens of a sequence) × (kv head): all queries that read the same keys.
// A token that is alone in its sequence, as in decode, waits for memory: it is cut into some or all of its kv heads × parts
// of the context, so that a thread reads whole blocks from end to end.
//
// A query's sums are made in one way only, wherever it is computed: of kBlocksAtOnce blocks at a time, begun anew in each
// part of kPartPositions, and the parts merged from the first to the last. So neither other sequences nor the number of
// threads change a digit.
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
constexpr int64_t kItemsPerThread = 4;
constexpr int64_t kBlocksAtOnce = 4;
constexpr int64_t kPartPositions = 512;

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
    // Without the first queries.
    Partial from(int64_t first, int64_t head_dim) const {
        Partial rest = *this;
        rest.maximum += first, rest.total += first, rest.sums += first * head_dim;
        return rest;
    }
};

class Attention final : public Step {
public:
    Attention(Heads heads, Floats q, Cache k, Cache v, Paging paging, Floats out, Scores scores, int64_t context)
        : Step(Axis::tokens), heads_(heads), q_(q), k_(k), v_(v), paging_(paging), out_(out), scores_(scores),
          tile_tokens_(std::max<int64_t>(1, kQueries / heads.group())),
          part_blocks_(std::max<int64_t>(1, kPartPositions / k.block_size / kBlocksAtOnce) * kBlocksAtOnce),
          context_parts_(context / (part_blocks_ * k.block_size) + 2) {}

    Scratch scratch(int threads) const override {
        return {gathered_floats() + 2 * partial_floats() + block_floats() + most_queries() * stride(), most_partials(threads) * partial_floats()};
    }

    void run(const Context& c) const override {
        int64_t alone = 0;
        while (alone < c.count && tile_end(alone, c.count) == alone + 1) ++alone;
        if (alone > 0) attend_alone(c, alone);
        if (alone > 0 && alone < c.count) c.worker.sync();
        if (alone < c.count) attend_together(c, alone);
    }

private:
    // Tokens [begin, end) of one sequence, with some kv heads.
    struct Piece {
        int64_t begin, end;
        Range heads;

        int64_t tokens() const { return end - begin; }
    };

    // A thread's scratch: what its queries see, pointers to them, two partial results, a block's numbers, scores.
    int64_t most_queries() const { return std::max(heads_.heads, tile_tokens_ * heads_.group()); }
    int64_t gathered_floats() const { return most_queries() * static_cast<int64_t>((sizeof(Range) + sizeof(float*)) / sizeof(float)); }
    int64_t partial_floats() const { return most_queries() * (heads_.head_dim + 2); }
    // Rows of whole runs may reach beyond the last position.
    int64_t block_floats() const { return k_.block_size * heads_.head_dim + Cache::kRun; }
    int64_t stride() const { return (kBlocksAtOnce * k_.block_size + 31) / 16 * 16; }
    Partial local(const Context& c, int64_t index) const { return {c.local + gathered_floats() + index * partial_floats(), most_queries()}; }

    // Partial results that threads hand to each other: enough for one sequence of any length.
    int64_t most_partials(int threads) const { return std::max(context_parts_, 2 * kItemsPerThread * threads); }
    Partial shared(const Context& c, int64_t index) const { return {c.shared + index * partial_floats(), most_queries()}; }

    // The end of the tile of tokens that starts at `begin`.
    int64_t tile_end(int64_t begin, int64_t tokens) const {
        int64_t end = begin + 1;
        const int64_t most = std::min(begin + tile_tokens_, tokens);
        while (end < most && paging_.sequences[end] == paging_.sequences[begin]) ++end;
        return end;
    }

    // Positions that a token sees, the blocks that hold some, and the parts that hold some of these.
    Range sees(int64_t token) const {
        const int64_t position = paging_.positions[token];
        return {scores_.window == 0 ? 0 : std::max<int64_t>(0, position - scores_.window + 1), position + 1};
    }
    static Range cut(Range range, int64_t size) { return {range.begin / size, (range.end - 1) / size + 1}; }
    Range blocks(Range positions) const { return cut(positions, k_.block_size); }
    Range parts(Range positions) const { return cut(blocks(positions), part_blocks_); }

    // How tokens that are alone in their sequences are cut: `pieces` of `heads` kv heads each and, if `split`, parts of the context.
    struct Cut {
        int64_t heads, pieces, parts;
        bool split;

        int64_t items(int64_t tokens) const { return pieces * (split ? parts : tokens); }
    };

    Cut cut_alone(const Context& c, int64_t tokens) const {
        int64_t all = 0;
        for (int64_t t = 0; t < tokens; ++t) all += parts(sees(t)).size();
        const bool split = all > tokens && all <= most_partials(c.worker.count);
        const int64_t wanted = kItemsPerThread * c.worker.count, there = split ? all : tokens;
        const int64_t heads = std::max<int64_t>(1, heads_.kv_heads * there / std::max(there, wanted));
        return {heads, (heads_.kv_heads + heads - 1) / heads, all, split};
    }

    // Tokens [0, tokens), each the only one of its sequence.
    void attend_alone(const Context& c, int64_t tokens) const {
        const Cut cut = cut_alone(c, tokens);
        take(c, cut.items(tokens), [&](int64_t item) {
            int64_t token = item / cut.pieces, part = token;
            const int64_t first = item % cut.pieces * cut.heads;
            if (cut.split) token = token_of(part);
            const Piece piece{token, token + 1, {first, std::min(first + cut.heads, heads_.kv_heads)}};
            if (!cut.split) return attend(c, piece);
            attend(c, piece, part, shared(c, item / cut.pieces).from(first * heads_.group(), heads_.head_dim));
        });
        if (!cut.split) return;
        c.worker.sync();
        const Range mine = c.worker.share(tokens * heads_.kv_heads);
        for (int64_t i = mine.begin; i < mine.end; ++i) merge_parts(c, i / heads_.kv_heads, i % heads_.kv_heads);
    }

    // The token whose part has this number among the parts of all; `part` becomes its own.
    int64_t token_of(int64_t& part) const {
        int64_t token = 0;
        for (int64_t size; part >= (size = parts(sees(token)).size()); ++token) part -= size;
        part += parts(sees(token)).begin;
        return token;
    }

    // Tokens [first, c.count), some at a time of one sequence.
    void attend_together(const Context& c, int64_t first) const {
        int64_t tiles = 0;
        for (int64_t t = first; t < c.count; t = tile_end(t, c.count)) ++tiles;
        take(c, tiles * heads_.kv_heads, [&](int64_t item) {
            int64_t begin = first;
            for (int64_t tile = item / heads_.kv_heads; tile > 0; --tile) begin = tile_end(begin, c.count);
            const int64_t head = item % heads_.kv_heads;
            attend(c, {begin, tile_end(begin, c.count), {head, head + 1}});
        });
    }

    // Calls use(item) for each of some items, on whichever thread is free.
    template <class Use>
    static void take(const Context& c, int64_t items, const Use& use) {
        c.shares->give(c.worker, c.worker.share(items));
        c.worker.sync();
        c.shares->take(c.worker, 1, [&](Range some) {
            for (int64_t item = some.begin; item < some.end; ++item) use(item);
        });
    }

    // A piece's output, part after part.
    void attend(const Context& c, const Piece& piece) const {
        const Partial all = local(c, 0), one = local(c, 1);
        const int64_t queries = piece.tokens() * piece.heads.size() * heads_.group();
        const Range own = parts(seen_by(piece));
        for (int64_t part = own.begin; part < own.end; ++part) {
            attend(c, piece, part, part == own.begin ? all : one);
            if (part > own.begin) merge(c, one, all, queries);
        }
        store(piece, all);
    }

    // What a piece finds in one part of the context.
    void attend(const Context& c, const Piece& piece, int64_t part, const Partial& partial) const {
        const int64_t each = piece.tokens() * heads_.group(), n = piece.heads.size(), size = k_.block_size;
        Range* seen = reinterpret_cast<Range*>(c.local);
        const float** query = reinterpret_cast<const float**>(seen + most_queries());
        gather(piece, query, seen);
        float* panel = c.local + gathered_floats() + 2 * partial_floats();
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
            .scores_stride = stride(),
            .panel = panel,
        };
        const Attend& kernels = c.kernels->attend[static_cast<int>(k_.type)];
        const int32_t* table = paging_.blocks.row(paging_.sequences[piece.begin]);
        const auto block = [&](int64_t b) { return table[b % paging_.blocks.columns]; };
        const Range all = seen_by(piece);
        const int64_t last = std::min(blocks(all).end, (part + 1) * part_blocks_);
        for (int64_t b = std::max(blocks(all).begin, part * part_blocks_), end; b < last; b = end) {
            end = std::min((b / kBlocksAtOnce + 1) * kBlocksAtOnce, last);
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

    // Positions that any token of a piece sees.
    Range seen_by(const Piece& piece) const { return {sees(piece.begin).begin, sees(piece.end - 1).end}; }

    // Fills in the queries of a piece, head by head, and what each sees.
    void gather(const Piece& piece, const float** query, Range* seen) const {
        for (int64_t h = piece.heads.begin; h < piece.heads.end; ++h) {
            for (int64_t t = piece.begin; t < piece.end; ++t) {
                for (int64_t g = 0; g < heads_.group(); ++g) {
                    *query++ = q_.row(t) + (h * heads_.group() + g) * heads_.head_dim;
                    *seen++ = sees(t);
                }
            }
        }
    }

    // Adds what some queries found in another part of the context.
    void merge(const Context& c, const Partial& from, const Partial& into, int64_t queries) const {
        const int64_t n = heads_.head_dim;
        for (int64_t q = 0; q < queries; ++q) {
            if (from.total[q] == 0) continue;
            const float maximum = std::max(from.maximum[q], into.maximum[q]);
            const float keep = std::exp2(into.maximum[q] - maximum), add = std::exp2(from.maximum[q] - maximum);
            into.maximum[q] = maximum;
            into.total[q] = into.total[q] * keep + from.total[q] * add;
            c.kernels->blend(from.sums + q * n, add, keep, into.sums + q * n, n);
        }
    }

    // Merges and stores what the parts of the context found for one kv head of a token.
    void merge_parts(const Context& c, int64_t token, int64_t head) const {
        int64_t first = 0;
        for (int64_t t = 0; t < token; ++t) first += parts(sees(t)).size();
        const auto found = [&](int64_t part) { return shared(c, first + part).from(head * heads_.group(), heads_.head_dim); };
        for (int64_t part = 1; part < parts(sees(token)).size(); ++part) merge(c, found(part), found(0), heads_.group());
        store({token, token + 1, {head, head + 1}}, found(0));
    }

    // Writes the output of a piece.
    void store(const Piece& piece, const Partial& from) const {
        const int64_t n = heads_.head_dim, group = heads_.group();
        int64_t q = 0;
        for (int64_t h = piece.heads.begin; h < piece.heads.end; ++h) {
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
    int64_t tile_tokens_, part_blocks_, context_parts_;
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
    require(k.type == v.type && k.block_size == v.block_size, "the caches of k and v differ in type or block size");
    require(scores.scale > 0, "the scale of the scores is " + std::to_string(scores.scale) + ", expected more than 0");
    inputs.paged(paging, std::min(k.blocks, v.blocks), k.block_size, scores.window);
    return std::make_unique<Attention>(heads, q, k, v, paging, out, scores, inputs.context());
}

}  // namespace halfbyte
