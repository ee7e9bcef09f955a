// Rotary embeddings, and the writing of keys and values to the cache.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "steps.h"

namespace halfbyte {
namespace {

// The product of position and frequency is rounded to float, as in the reference implementations; what is then taken
// of it is exact, however large it is.
class RopeTable final : public Step {
public:
    RopeTable(State positions, State sets, Table<const float> inv_freq, Floats out, float factor)
        : Step(Axis::tokens), positions_(positions), sets_(sets), inv_freq_(inv_freq), out_(out), factor_(factor) {}

    void run(const Context& c) const override {
        const int64_t half = inv_freq_.columns;
        const Range items = c.worker.share(c.count * half);
        for (int64_t item = items.begin; item < items.end; ++item) {
            const int64_t t = item / half, i = item % half;
            const float product = static_cast<float>(positions_[t]) * inv_freq_.row(sets_[t])[i];
            const double angle = product;
            out_.row(t)[i] = static_cast<float>(std::cos(angle)) * factor_;
            out_.row(t)[half + i] = static_cast<float>(std::sin(angle)) * factor_;
        }
    }

private:
    State positions_, sets_;
    Table<const float> inv_freq_;
    Floats out_;
    float factor_;
};

// Multiplies every `size` of n values by the Hadamard matrix of that size, divided by its root.
void mix(float* x, int64_t n, int64_t size) {
    if (size == 1) return;
    for (int64_t half = 1; half < size; half *= 2)
        for (int64_t first = 0; first < n; first += 2 * half)
            for (int64_t i = first; i < first + half; ++i) {
                const float sum = x[i] + x[i + half], difference = x[i] - x[i + half];
                x[i] = sum;
                x[i + half] = difference;
            }
    const float factor = 1 / std::sqrt(static_cast<float>(size));
    for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

// Multiplies queries by 1 + beta · ln(1 + ⌊position / length⌋), where beta is not zero.
struct Growth {
    State positions;
    float beta;
    int64_t length;

    void apply(int64_t token, float* x, int64_t n) const {
        if (beta == 0) return;
        const float factor = 1 + beta * std::log1p(static_cast<float>(positions[token] / length));
        for (int64_t i = 0; i < n; ++i) x[i] *= factor;
    }
};

class Rope final : public Step {
public:
    Rope(Heads heads, Floats qkv, Floats table, Floats out, int64_t hadamard, Growth growth)
        : Step(Axis::tokens), heads_(heads), qkv_(qkv), table_(table), out_(out), hadamard_(hadamard), growth_(growth) {}

    void run(const Context& c) const override {
        const int64_t n = heads_.head_dim;
        const Range items = c.worker.share(c.count * heads_.total());
        for (int64_t item = items.begin; item < items.end; ++item) {
            const int64_t t = item / heads_.total(), head = item % heads_.total();
            const bool rotated = head < heads_.heads + heads_.kv_heads;
            float* out = out_.row(t) + head * n;
            c.kernels->rotate(qkv_.row(t) + head * n, table_.row(t), rotated ? table_.columns / 2 : 0, n, out);
            if (rotated) mix(out, n, hadamard_);
            if (head < heads_.heads) growth_.apply(t, out, n);
        }
    }

private:
    Heads heads_;
    Floats qkv_, table_, out_;
    int64_t hadamard_;
    Growth growth_;
};

// Stores one head of one token in a paged cache.
struct CacheWriter {
    Paging paging;
    Cache cache;

    void store_value(const Kernels& kernels, int64_t token, int64_t kv_head, const float* x) const {
        const int64_t row = cache.runs() * cache.run_bytes();
        if (cache.rounded()) return store_codes(kernels, head(token, kv_head), offset(token) * row, offset(token) * cache.runs(), 1, x);
        std::byte* to = head(token, kv_head) + offset(token) * cache.head_dim * cache.item();
        if (cache.half()) kernels.to_half(x, reinterpret_cast<uint16_t*>(to), cache.head_dim);
        else std::memcpy(to, x, cache.head_dim * sizeof(float));
    }

    // Each value of a key goes to a row of its own.
    void store_key(const Kernels& kernels, int64_t token, int64_t kv_head, const float* x) const {
        if (cache.rounded()) return store_codes(kernels, head(token, kv_head), offset(token), offset(token), cache.block_size, x);
        constexpr int64_t kAtOnce = 64;
        uint16_t half[kAtOnce];
        std::byte* to = head(token, kv_head) + offset(token) * cache.item();
        for (int64_t first = 0; first < cache.head_dim; first += kAtOnce) {
            const int64_t count = std::min(kAtOnce, cache.head_dim - first);
            if (cache.half()) kernels.to_half(x + first, half, count);
            for (int64_t i = 0; i < count; ++i, to += cache.block_size * cache.item()) {
                if (cache.half()) std::memcpy(to, half + i, sizeof *half);
                else std::memcpy(to, x + first + i, sizeof *x);
            }
        }
    }

private:
    // Stores a head's codes from byte `code` on and its scales from number `scale` on, each `stride` from the one before.
    void store_codes(const Kernels& kernels, std::byte* head, int64_t code, int64_t scale, int64_t stride, const float* x) const {
        for (int64_t first = 0; first < cache.head_dim; first += Cache::kRun, scale += stride) {
            int8_t codes[Cache::kRun];
            const uint16_t stored = kernels.to_codes(x + first, std::min(Cache::kRun, cache.head_dim - first), cache.lowest(), codes);
            std::memcpy(head + cache.scales_at() + scale * sizeof stored, &stored, sizeof stored);
            for (int64_t i = 0; i < cache.run_bytes(); ++i, code += stride)
                head[code] = static_cast<std::byte>(cache.type == CacheType::q8 ? codes[i] : codes[i] + 8 + 16 * (codes[i + Cache::kRun / 2] + 8));
        }
    }
    std::byte* head(int64_t token, int64_t kv_head) const {
        const int64_t column = paging.positions[token] / cache.block_size % paging.blocks.columns;
        return cache.head(paging.blocks.row(paging.sequences[token])[column], kv_head);
    }
    int64_t offset(int64_t token) const { return paging.positions[token] % cache.block_size; }
};

class KvWrite final : public Step {
public:
    KvWrite(Heads heads, Floats qkv, CacheWriter k, CacheWriter v)
        : Step(Axis::tokens), heads_(heads), qkv_(qkv), k_(k), v_(v) {}

    void run(const Context& c) const override {
        const int64_t n = heads_.head_dim;
        const Range items = c.worker.share(c.count * heads_.kv_heads);
        for (int64_t item = items.begin; item < items.end; ++item) {
            const int64_t t = item / heads_.kv_heads, head = item % heads_.kv_heads;
            const float* k = qkv_.row(t) + (heads_.heads + head) * n;
            k_.store_key(*c.kernels, t, head, k);
            v_.store_value(*c.kernels, t, head, k + heads_.kv_heads * n);
        }
    }

private:
    Heads heads_;
    Floats qkv_;
    CacheWriter k_, v_;
};

// Many tokens are divided among the threads, few by their heads. Keys go to the cache a head at a time, so that the tokens
// that share its lines come one after another.
class RopeKvWrite final : public Step {
public:
    RopeKvWrite(Heads heads, Floats qkv, Floats table, Weights q_weight, Weights k_weight, Norm norm, bool v_norm, int64_t hadamard,
                Growth growth, CacheWriter k, CacheWriter v, Floats out)
        : Step(Axis::tokens), heads_(heads), qkv_(qkv), table_(table), q_weight_(q_weight), k_weight_(k_weight),
          ones_(v_norm ? heads.head_dim : 0, 1.0f), norm_(norm), hadamard_(hadamard), growth_(growth), k_(k), v_(v), out_(out) {}

    Scratch scratch(int) const override { return {heads_.head_dim, 0}; }

    void run(const Context& c) const override {
        constexpr int64_t kTokens = 32;
        const bool many = c.count >= kTokens * c.worker.count;
        const Range all = many ? c.worker.share(c.count) : Range{0, c.count};
        const Range heads = many ? Range{0, heads_.total()} : c.worker.share(heads_.total());
        const int64_t keys = heads_.heads, values = heads_.heads + heads_.kv_heads;
        for (int64_t first = all.begin; first < all.end; first += kTokens) {
            const Range tokens{first, std::min(first + kTokens, all.end)};
            for (int64_t t = tokens.begin; t < tokens.end; ++t)
                for (int64_t h = heads.begin; h < heads.end; ++h)
                    if (h < keys || h >= values) head(c, t, h);
            for (int64_t h = std::max(heads.begin, keys); h < std::min(heads.end, values); ++h)
                for (int64_t t = tokens.begin; t < tokens.end; ++t) head(c, t, h);
        }
    }

private:
    void head(const Context& c, int64_t t, int64_t head) const {
        const int64_t kv_head = head - heads_.heads;
        const float* x = qkv_.row(t) + head * heads_.head_dim;
        if (kv_head < 0) {
            float* out = out_.row(t) + head * heads_.head_dim;
            transform(c, t, x, q_weight_, out);
            growth_.apply(t, out, heads_.head_dim);
        } else if (kv_head < heads_.kv_heads) {
            transform(c, t, x, k_weight_, c.local);
            k_.store_key(*c.kernels, t, kv_head, c.local);
        } else {
            if (!ones_.empty()) {
                c.kernels->rms_norm(x, ones_.data(), nullptr, norm_.eps, 0, c.local, heads_.head_dim);
                x = c.local;
            }
            v_.store_value(*c.kernels, t, kv_head - heads_.kv_heads, x);
        }
    }

    // out = x normed, where there is a weight, rotated and mixed.
    void transform(const Context& c, int64_t t, const float* x, Weights weight, float* out) const {
        if (!weight.empty()) {
            c.kernels->rms_norm(x, weight.data(), nullptr, norm_.eps, norm_.offset, out, heads_.head_dim);
            x = out;
        }
        c.kernels->rotate(x, table_.row(t), table_.columns / 2, heads_.head_dim, out);
        mix(out, heads_.head_dim, hadamard_);
    }

    Heads heads_;
    Floats qkv_, table_;
    Weights q_weight_, k_weight_;  // empty where heads are not normed
    std::vector<float> ones_;      // the weight of v's norm; empty where v is not normed
    Norm norm_;
    int64_t hadamard_;
    Growth growth_;
    CacheWriter k_, v_;
    Floats out_;
};

void require_rope(Heads heads, Floats qkv, Floats table) {
    require_equal(qkv.columns, heads.width(), "width of qkv");
    require_equal(table.rows, qkv.rows, "rows of the rope table");
    require(table.columns % 2 == 0 && table.columns <= heads.head_dim,
            "a rope table of " + std::to_string(table.columns) + " values does not fit heads of " + std::to_string(heads.head_dim));
}

// How many values a Hadamard rotation mixes.
int64_t hadamard(const Fields& f, Heads heads) {
    const int64_t size = f.whole("hadamard");
    require(size > 0 && (size & (size - 1)) == 0 && heads.head_dim % size == 0,
            "a Hadamard rotation of " + std::to_string(size) + " values does not fit heads of " + std::to_string(heads.head_dim));
    return size;
}

Growth growth(const Fields& f, Floats qkv) {
    const State positions = f.state("positions");
    const int64_t length = f.whole("beta_length");
    require_equal(positions.size(), qkv.rows, "number of positions");
    require(length > 0, "queries cannot grow every " + std::to_string(length) + " positions");
    return {positions, f.number("beta"), length};
}

CacheWriter cache_writer(const Fields& f, Inputs& inputs, Heads heads, Floats qkv, const char* name) {
    const Cache cache = f.cache(name);
    const Paging paging = f.paging();
    require_equal(qkv.columns, heads.width(), "width of qkv");
    require_equal(cache.kv_heads, heads.kv_heads, "kv heads of the cache");
    require_equal(cache.head_dim, heads.head_dim, "head_dim of the cache");
    require_equal(paging.positions.size(), qkv.rows, "number of positions");
    require_equal(paging.sequences.size(), qkv.rows, "number of sequences");
    inputs.paged(paging, cache.blocks, cache.block_size, 1);
    return {paging, cache};
}

}  // namespace

StepPtr make_rope_table(const Fields& f, Inputs& inputs) {
    const State positions = f.state("positions"), sets = f.state("sets");
    const Table<const float> inv_freq = f.constants("inv_freq");
    const Floats out = f.floats("out");
    require_equal(out.columns, 2 * inv_freq.columns, "width of the rope table");
    require_equal(out.rows, positions.size(), "rows of the rope table");
    require_equal(sets.size(), positions.size(), "number of rope sets");
    inputs.limit(positions, Axis::tokens, inputs.context(), "position");
    inputs.limit(sets, Axis::tokens, inv_freq.rows, "rope set");
    return std::make_unique<RopeTable>(positions, sets, inv_freq, out, f.number("factor"));
}

StepPtr make_rope(const Fields& f, Inputs&) {
    const Heads heads = f.heads(0);
    const Floats qkv = f.floats("qkv"), table = f.floats("table"), out = f.floats("out");
    require_rope(heads, qkv, table);
    require_equal(out.columns, qkv.columns, "width of the output");
    require_equal(out.rows, qkv.rows, "rows of the output");
    return std::make_unique<Rope>(heads, qkv, table, out, hadamard(f, heads), growth(f, qkv));
}

StepPtr make_kv_write(const Fields& f, Inputs& inputs) {
    const Heads heads = f.heads();
    const Floats qkv = f.floats("qkv");
    return std::make_unique<KvWrite>(heads, qkv, cache_writer(f, inputs, heads, qkv, "k_cache"),
                                     cache_writer(f, inputs, heads, qkv, "v_cache"));
}

StepPtr make_rope_kv_write(const Fields& f, Inputs& inputs) {
    const Heads heads = f.heads();
    const Floats qkv = f.floats("qkv"), table = f.floats("table"), out = f.floats("out");
    const Weights q_weight = f.optional_weights("q_weight"), k_weight = f.optional_weights("k_weight");
    require_rope(heads, qkv, table);
    require_equal(out.columns, heads.heads * heads.head_dim, "width of the queries");
    require_equal(out.rows, qkv.rows, "rows of the queries");
    if (!q_weight.empty() || !k_weight.empty()) {
        require_equal(q_weight.size(), heads.head_dim, "length of the norm's weight for q");
        require_equal(k_weight.size(), heads.head_dim, "length of the norm's weight for k");
    }
    return std::make_unique<RopeKvWrite>(heads, qkv, table, q_weight, k_weight, f.norm(), f.whole("v_norm") != 0, hadamard(f, heads),
                                         growth(f, qkv), cache_writer(f, inputs, heads, qkv, "k_cache"),
                                         cache_writer(f, inputs, heads, qkv, "v_cache"), out);
}

}  // namespace halfbyte
