// The causal convolution of each channel over its last inputs.
#include <algorithm>
#include <cstring>

#include "steps.h"

namespace halfbyte {
namespace {

// Threads share the channels. Each goes through the tokens of a sequence in order, its last inputs in scratch.
class CausalConv final : public Step {
public:
    CausalConv(Stateful stateful, Floats x, Table<const float> weight, Floats out, bool gated)
        : Step(Axis::tokens), stateful_(stateful), x_(x), out_(out), gated_(gated), taps_(weight.columns), ones_(out.columns, 1.0f) {
        for (int64_t j = 0; j < taps_; ++j)
            for (int64_t i = 0; i < weight.rows; ++i) weight_.push_back(weight.row(i)[j]);
    }

    Scratch scratch(int) const override { return {taps_ * out_.columns, 0}; }

    void run(const Context& c) const override {
        constexpr int64_t kTogether = 16;
        const int64_t all = out_.columns;
        const Range groups = c.worker.share((all + kTogether - 1) / kTogether);
        const int64_t first = groups.begin * kTogether, count = std::min(groups.end * kTogether, all) - first;
        if (count <= 0) return;
        stateful_.each(c.count, [&](Range tokens, const float* before, float* after) {
            for (int64_t j = 0; j + 1 < taps_; ++j) {
                if (before) std::memcpy(c.local + j * count, before + j * all + first, count * sizeof(float));
                else std::fill_n(c.local + j * count, count, 0.0f);
            }
            int64_t oldest = 0;
            for (int64_t t = tokens.begin; t < tokens.end; ++t) {
                token(c, t, first, count, oldest);
                oldest = (oldest + 1) % (taps_ - 1);
            }
            for (int64_t j = 0; j + 1 < taps_; ++j)
                std::memcpy(after + j * all + first, c.local + (oldest + j) % (taps_ - 1) * count, count * sizeof(float));
        });
    }

private:
    // Channels `first` and on of one token, whose input takes the place of the oldest in scratch.
    void token(const Context& c, int64_t t, int64_t first, int64_t count, int64_t oldest) const {
        const int64_t all = out_.columns;
        const float* x = x_.row(t) + first;
        float* out = out_.row(t) + first;
        float* sum = c.local + (taps_ - 1) * count;
        std::fill_n(sum, count, 0.0f);
        for (int64_t j = 0; j + 1 < taps_; ++j) {
            const float* input = c.local + (oldest + j) % (taps_ - 1) * count;
            const float* weight = weight_.data() + j * all + first;
            for (int64_t i = 0; i < count; ++i) sum[i] += input[i] * weight[i];
        }
        float* newest = c.local + oldest * count;
        const float* weight = weight_.data() + (taps_ - 1) * all + first;
        for (int64_t i = 0; i < count; ++i) {
            newest[i] = gated_ ? x[i] * x[2 * all + i] : x[i];
            sum[i] += newest[i] * weight[i];
        }
        if (!gated_) return c.kernels->gate(sum, ones_.data(), Activation::silu, out, count);
        for (int64_t i = 0; i < count; ++i) out[i] = x[all + i] * sum[i];
    }

    Stateful stateful_;
    Floats x_, out_;
    bool gated_;
    int64_t taps_;
    std::vector<float> weight_, ones_;  // weight_[taps][channels]
};

}  // namespace

StepPtr make_causal_conv(const Fields& f, Inputs& inputs) {
    const Stateful stateful = f.stateful();
    const Floats x = f.floats("x"), out = f.floats("out");
    const Table<const float> weight = f.constants("weight");
    const bool gated = f.whole("gated") != 0;
    require(weight.columns > 1, "a convolution over one input has no state");
    require_equal(weight.rows, out.columns, "number of convolution kernels");
    require_equal(stateful.states.columns, (weight.columns - 1) * out.columns, "size of a convolution's state");
    require(x.columns >= (gated ? 3 : 1) * out.columns, "a row of a convolution's input has " + std::to_string(x.columns) + " values");
    require_equal(x.rows, out.rows, "rows of the input");
    inputs.stateful(stateful, out.rows);
    return std::make_unique<CausalConv>(stateful, x, weight, out, gated);
}

}  // namespace halfbyte
