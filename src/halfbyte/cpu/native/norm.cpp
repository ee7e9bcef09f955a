// RMS norms: of whole rows, and of each head of q and k.
#include <cstring>

#include "steps.h"

namespace halfbyte {
namespace {

class RmsNorm final : public Step {
public:
    RmsNorm(Axis axis, Floats x, Weights weight, Floats out, Norm norm, Floats residual)
        : Step(axis), x_(x), weight_(weight), out_(out), norm_(norm), residual_(residual) {}

    void run(const Context& c) const override {
        const Range tokens = c.worker.share(c.count);
        for (int64_t t = tokens.begin; t < tokens.end; ++t) {
            const float* residual = residual_.data ? residual_.row(t) : nullptr;
            c.kernels->rms_norm(x_.row(t), weight_.data(), residual, norm_.eps, norm_.offset, out_.row(t), x_.columns);
        }
    }

private:
    Floats x_;
    Weights weight_;
    Floats out_;
    Norm norm_;
    Floats residual_;
};

class QkNorm final : public Step {
public:
    QkNorm(Heads heads, Floats qkv, Weights q_weight, Weights k_weight, Norm norm, Floats out)
        : Step(Axis::tokens), heads_(heads), qkv_(qkv), q_weight_(q_weight), k_weight_(k_weight), norm_(norm), out_(out) {}

    void run(const Context& c) const override {
        const Range items = c.worker.share(c.count * heads_.total());
        for (int64_t i = items.begin; i < items.end; ++i) head(c, i / heads_.total(), i % heads_.total());
    }

private:
    void head(const Context& c, int64_t token, int64_t head) const {
        const int64_t n = heads_.head_dim;
        const float* x = qkv_.row(token) + head * n;
        float* out = out_.row(token) + head * n;
        if (head >= heads_.heads + heads_.kv_heads) {
            std::memmove(out, x, n * sizeof(float));
            return;
        }
        const float* weight = (head < heads_.heads ? q_weight_ : k_weight_).data();
        c.kernels->rms_norm(x, weight, nullptr, norm_.eps, norm_.offset, out, n);
    }

    Heads heads_;
    Floats qkv_;
    Weights q_weight_, k_weight_;
    Norm norm_;
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
    return std::make_unique<RmsNorm>(f.axis(), x, weight, out, f.norm(), residual);
}

StepPtr make_qk_norm(const Fields& f, Inputs&) {
    const Heads heads = f.heads();
    const Floats qkv = f.floats("qkv"), out = f.floats("out");
    const Weights q_weight = f.weights("q_weight"), k_weight = f.weights("k_weight");
    require_equal(qkv.columns, heads.width(), "width of qkv");
    require_equal(out.columns, heads.width(), "width of the output");
    require_equal(out.rows, qkv.rows, "rows of the output");
    require_equal(q_weight.size(), heads.head_dim, "length of the norm's weight for q");
    require_equal(k_weight.size(), heads.head_dim, "length of the norm's weight for k");
    return std::make_unique<QkNorm>(heads, qkv, q_weight, k_weight, f.norm(), out);
}

}  // namespace halfbyte
