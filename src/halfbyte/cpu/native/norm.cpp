// RMS norms: of whole rows, and of each head of q, k and v.
#include <cstring>
#include <utility>
#include <vector>

#include "steps.h"

namespace halfbyte {
namespace {

class RmsNorm final : public Step {
public:
    RmsNorm(Axis axis, Floats x, std::vector<float> weight, Floats out, float eps, Floats residual)
        : Step(axis), x_(x), weight_(std::move(weight)), out_(out), eps_(eps), residual_(residual) {}

    void run(const Context& c) const override {
        const Range tokens = c.worker.share(c.count);
        for (int64_t t = tokens.begin; t < tokens.end; ++t) {
            const float* residual = residual_.data ? residual_.row(t) : nullptr;
            c.kernels->rms_norm(x_.row(t), weight_.data(), residual, eps_, 0, out_.row(t), x_.columns);
        }
    }

private:
    Floats x_;
    std::vector<float> weight_;  // with offset and scale
    Floats out_;
    float eps_;
    Floats residual_;
};

class QkNorm final : public Step {
public:
    QkNorm(Heads heads, Floats qkv, Weights q_weight, Weights k_weight, Norm norm, bool whole, bool v_norm, Floats out)
        : Step(Axis::tokens), heads_(heads), qkv_(qkv), q_weight_(q_weight), k_weight_(k_weight), ones_(v_norm ? heads.head_dim : 0, 1.0f),
          norm_(norm), whole_(whole), out_(out) {}

    void run(const Context& c) const override {
        const int64_t each = whole_ ? 1 : heads_.total();
        const Range items = c.worker.share(c.count * each);
        for (int64_t i = items.begin; i < items.end; ++i) {
            if (whole_) {
                part(c, i, 0, heads_.heads);
                part(c, i, heads_.heads, heads_.kv_heads);
                part(c, i, heads_.heads + heads_.kv_heads, heads_.kv_heads);
            } else {
                part(c, i / each, i % each, 1);
            }
        }
    }

private:
    // Heads [first, first + count) of a token, normed together; those of v maybe as they are.
    void part(const Context& c, int64_t token, int64_t first, int64_t count) const {
        const int64_t n = count * heads_.head_dim;
        const float* x = qkv_.row(token) + first * heads_.head_dim;
        float* out = out_.row(token) + first * heads_.head_dim;
        if (first >= heads_.heads + heads_.kv_heads) {
            if (ones_.empty()) std::memmove(out, x, n * sizeof(float));
            else c.kernels->rms_norm(x, ones_.data(), nullptr, norm_.eps, 0, out, n);
            return;
        }
        const float* weight = (first < heads_.heads ? q_weight_ : k_weight_).data();
        c.kernels->rms_norm(x, weight, nullptr, norm_.eps, norm_.offset, out, n);
    }

    Heads heads_;
    Floats qkv_;
    Weights q_weight_, k_weight_;
    std::vector<float> ones_;  // the weight of v's norm; empty where v is not normed
    Norm norm_;
    bool whole_;
    Floats out_;
};

}  // namespace

StepPtr make_rms_norm(const Fields& f, Inputs&) {
    const Floats x = f.floats("x"), out = f.floats("out"), residual = f.optional_floats("residual");
    const Weights weight = f.weights("weight");
    require_equal(weight.size(), x.columns, "length of the norm's weight");
    require_equal(out.columns, x.columns, "width of the output");
    require_equal(out.rows, x.rows, "rows of the output");
    if (residual.data) {
        require_equal(residual.columns, x.columns, "width of the residual");
        require_equal(residual.rows, x.rows, "rows of the residual");
    }
    const Norm norm = f.norm();
    std::vector<float> factors(weight.begin(), weight.end());
    for (float& factor : factors) factor = (norm.offset + factor) * f.number("scale");
    return std::make_unique<RmsNorm>(f.axis(), x, std::move(factors), out, norm.eps, residual);
}

StepPtr make_qk_norm(const Fields& f, Inputs&) {
    const Heads heads = f.heads(0);
    const Floats qkv = f.floats("qkv"), out = f.floats("out");
    const Weights q_weight = f.weights("q_weight"), k_weight = f.weights("k_weight");
    require_equal(qkv.columns, heads.width(), "width of qkv");
    require_equal(out.columns, heads.width(), "width of the output");
    require_equal(out.rows, qkv.rows, "rows of the output");
    const bool whole = f.whole("whole") != 0, v_norm = f.whole("v_norm") != 0;
    require(!whole || !v_norm, "heads of v cannot be normed where those of q are normed together");
    require_equal(q_weight.size(), (whole ? heads.heads : 1) * heads.head_dim, "length of the norm's weight for q");
    require_equal(k_weight.size(), (whole ? heads.kv_heads : 1) * heads.head_dim, "length of the norm's weight for k");
    return std::make_unique<QkNorm>(heads, qkv, q_weight, k_weight, f.norm(), whole, v_norm, out);
}

}  // namespace halfbyte
