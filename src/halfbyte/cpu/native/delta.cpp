// The gated delta rule, the gated norm after it, and the gates of attention's heads.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "steps.h"

namespace halfbyte {
namespace {

float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }
float softplus(float x) { return x > 20 ? x : std::log1p(std::exp(x)); }

struct DeltaShape {
    int64_t k_heads, v_heads, k_dim, v_dim;
    bool tiled;

    int64_t keys() const { return k_heads * k_dim; }
    int64_t width() const { return 2 * keys() + v_heads * v_dim; }
    int64_t key_head(int64_t head) const { return tiled ? head % k_heads : head / (v_heads / k_heads); }
};

// Threads share the heads of all sequences. Each goes through the tokens of one in order.
class GatedDeltaRule final : public Step {
public:
    GatedDeltaRule(DeltaShape shape, Stateful stateful, Floats qkv, Floats gates, int64_t gates_at, Weights a_log, Weights dt_bias, Floats out)
        : Step(Axis::tokens), shape_(shape), stateful_(stateful), qkv_(qkv), gates_(gates), gates_at_(gates_at), a_log_(a_log), dt_bias_(dt_bias),
          out_(out) {}

    Scratch scratch(int) const override { return {2 * shape_.k_dim + shape_.v_dim, 0}; }

    void run(const Context& c) const override {
        int64_t sequences = 0;
        stateful_.each(c.count, [&](Range, const float*, float*) { ++sequences; });
        const Range own = c.worker.share(sequences * shape_.v_heads);
        int64_t first = 0;
        stateful_.each(c.count, [&](Range tokens, const float* before, float* after) {
            const int64_t end = std::min(own.end - first, shape_.v_heads);
            for (int64_t h = std::max<int64_t>(own.begin - first, 0); h < end; ++h) head(c, h, tokens, before, after);
            first += shape_.v_heads;
        });
    }

private:
    void head(const Context& c, int64_t head, Range tokens, const float* before, float* after) const {
        const int64_t size = shape_.k_dim * shape_.v_dim;
        float* state = after + head * size;
        if (!before) std::fill_n(state, size, 0.0f);
        else if (before != after) std::memcpy(state, before + head * size, size * sizeof(float));
        const float rate = std::exp(a_log_[head]);
        for (int64_t t = tokens.begin; t < tokens.end; ++t) {
            const float* gates = gates_.row(t) + gates_at_ + head;
            const float fade = std::exp(-rate * softplus(gates[shape_.v_heads] + dt_bias_[head]));
            token(c, t, head, fade, sigmoid(gates[0]), state);
        }
    }

    void token(const Context& c, int64_t t, int64_t head, float fade, float beta, float* state) const {
        const auto [k_dim, v_dim] = std::pair{shape_.k_dim, shape_.v_dim};
        float *q = c.local, *k = q + k_dim, *change = k + k_dim;
        unit(qkv_.row(t) + shape_.key_head(head) * k_dim, 1 / std::sqrt(static_cast<float>(k_dim)), q);
        unit(qkv_.row(t) + shape_.keys() + shape_.key_head(head) * k_dim, 1, k);
        const float* v = qkv_.row(t) + 2 * shape_.keys() + head * v_dim;
        float* out = out_.row(t) + head * v_dim;
        std::fill_n(change, v_dim, 0.0f);
        std::fill_n(out, v_dim, 0.0f);
        for (int64_t i = 0; i < k_dim; ++i) c.kernels->blend(state + i * v_dim, k[i], 1, change, v_dim);
        for (int64_t j = 0; j < v_dim; ++j) change[j] = (v[j] - fade * change[j]) * beta;
        for (int64_t i = 0; i < k_dim; ++i) {
            float* row = state + i * v_dim;
            c.kernels->blend(change, k[i], fade, row, v_dim);
            c.kernels->blend(row, q[i], 1, out, v_dim);
        }
    }

    // to = x over its length, times `scale`.
    void unit(const float* x, float scale, float* to) const {
        float squares = 0;
        for (int64_t i = 0; i < shape_.k_dim; ++i) squares += x[i] * x[i];
        const float factor = scale / std::sqrt(squares + 1e-6f);
        for (int64_t i = 0; i < shape_.k_dim; ++i) to[i] = x[i] * factor;
    }

    DeltaShape shape_;
    Stateful stateful_;
    Floats qkv_, gates_;
    int64_t gates_at_;
    Weights a_log_, dt_bias_;
    Floats out_;
};

class GatedNorm final : public Step {
public:
    GatedNorm(Floats x, Floats gate, int64_t gate_at, Weights weight, float eps, Floats out)
        : Step(Axis::tokens), x_(x), gate_(gate), gate_at_(gate_at), weight_(weight), eps_(eps), out_(out) {}

    void run(const Context& c) const override {
        const int64_t size = static_cast<int64_t>(weight_.size()), heads = x_.columns / size;
        const Range items = c.worker.share(c.count * heads);
        for (int64_t item = items.begin; item < items.end; ++item) {
            const int64_t t = item / heads, at = item % heads * size;
            float* out = out_.row(t) + at;
            c.kernels->rms_norm(x_.row(t) + at, weight_.data(), nullptr, eps_, 0, out, size);
            c.kernels->gate(gate_.row(t) + gate_at_ + at, out, Activation::silu, out, size);
        }
    }

private:
    Floats x_, gate_;
    int64_t gate_at_;
    Weights weight_;
    float eps_;
    Floats out_;
};

// Rows in which each head of q is followed by its gate.
class SplitGates final : public Step {
public:
    SplitGates(Heads heads, Floats x, Floats out) : Step(Axis::tokens), heads_(heads), x_(x), out_(out) {}

    void run(const Context& c) const override {
        const int64_t n = heads_.head_dim;
        const Range tokens = c.worker.share(c.count);
        for (int64_t t = tokens.begin; t < tokens.end; ++t) {
            for (int64_t h = 0; h < heads_.heads; ++h) std::memcpy(out_.row(t) + h * n, x_.row(t) + 2 * h * n, n * sizeof(float));
            std::memcpy(out_.row(t) + heads_.heads * n, x_.row(t) + 2 * heads_.heads * n, 2 * heads_.kv_heads * n * sizeof(float));
        }
    }

private:
    Heads heads_;
    Floats x_, out_;
};

class GateHeads final : public Step {
public:
    GateHeads(Heads heads, Floats x, Floats gates, Floats out) : Step(Axis::tokens), heads_(heads), x_(x), gates_(gates), out_(out) {}

    void run(const Context& c) const override {
        const int64_t n = heads_.head_dim;
        const Range items = c.worker.share(c.count * heads_.heads);
        for (int64_t item = items.begin; item < items.end; ++item) {
            const int64_t t = item / heads_.heads, h = item % heads_.heads;
            const float *x = x_.row(t) + h * n, *gate = gates_.row(t) + (2 * h + 1) * n;
            for (int64_t i = 0; i < n; ++i) out_.row(t)[h * n + i] = x[i] * sigmoid(gate[i]);
        }
    }

private:
    Heads heads_;
    Floats x_, gates_, out_;
};

int64_t positive(const Fields& f, const char* name) {
    const int64_t value = f.whole(name);
    require(value > 0 && value <= 1 << 16, std::string("the field '") + name + "' is " + std::to_string(value) + ", expected 1 to 2^16");
    return value;
}

}  // namespace

StepPtr make_gated_delta_rule(const Fields& f, Inputs& inputs) {
    const DeltaShape shape{positive(f, "k_heads"), positive(f, "v_heads"), positive(f, "k_dim"), positive(f, "v_dim"), f.whole("tiled") != 0};
    const Stateful stateful = f.stateful();
    const Floats qkv = f.floats("qkv"), gates = f.floats("gates"), out = f.floats("out");
    const Weights a_log = f.weights("a_log"), dt_bias = f.weights("dt_bias");
    const int64_t gates_at = f.whole("gates_at");
    require(shape.v_heads % shape.k_heads == 0, "the value heads are no multiple of the key heads");
    require_equal(qkv.columns, shape.width(), "width of q, k and v");
    require_equal(out.columns, shape.v_heads * shape.v_dim, "width of the output");
    require_equal(qkv.rows, out.rows, "rows of q, k and v");
    require_equal(gates.rows, out.rows, "rows of the gates");
    require_room(gates, gates_at, 2 * shape.v_heads, "gates");
    require_equal(a_log.size(), shape.v_heads, "number of decays");
    require_equal(dt_bias.size(), shape.v_heads, "number of biases of decays");
    require_equal(stateful.states.columns, shape.v_heads * shape.k_dim * shape.v_dim, "size of a state");
    inputs.stateful(stateful, out.rows);
    return std::make_unique<GatedDeltaRule>(shape, stateful, qkv, gates, gates_at, a_log, dt_bias, out);
}

StepPtr make_gated_norm(const Fields& f, Inputs&) {
    const Floats x = f.floats("x"), gate = f.floats("gate"), out = f.floats("out");
    const Weights weight = f.weights("weight");
    const int64_t gate_at = f.whole("gate_at");
    require(!weight.empty() && x.columns % static_cast<int64_t>(weight.size()) == 0, "the norm's weight does not fit the heads");
    require_equal(out.columns, x.columns, "width of the output");
    require_equal(out.rows, x.rows, "rows of the output");
    require_equal(gate.rows, x.rows, "rows of the gate");
    require_room(gate, gate_at, x.columns, "gates");
    return std::make_unique<GatedNorm>(x, gate, gate_at, weight, f.number("eps"), out);
}

StepPtr make_split_gates(const Fields& f, Inputs&) {
    const Heads heads = f.heads();
    const Floats x = f.floats("x"), out = f.floats("out");
    require_equal(x.columns, heads.width() + heads.heads * heads.head_dim, "width of queries with gates, keys and values");
    require_equal(out.columns, heads.width(), "width of the output");
    require_equal(out.rows, x.rows, "rows of the output");
    return std::make_unique<SplitGates>(heads, x, out);
}

StepPtr make_gate_heads(const Fields& f, Inputs&) {
    const Heads heads = f.heads();
    const Floats x = f.floats("x"), gates = f.floats("gates"), out = f.floats("out");
    require_equal(x.columns, heads.heads * heads.head_dim, "width of the heads");
    require_equal(gates.columns, heads.width() + heads.heads * heads.head_dim, "width of queries with gates, keys and values");
    require_equal(out.columns, x.columns, "width of the output");
    require_equal(out.rows, x.rows, "rows of the output");
    require_equal(gates.rows, x.rows, "rows of the gates");
    return std::make_unique<GateHeads>(heads, x, gates, out);
}

}  // namespace halfbyte
