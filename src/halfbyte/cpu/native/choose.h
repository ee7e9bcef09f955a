// From rows of logits to tokens, as halfbyte/sampling/sampler.py chooses them: it says what each setting means and is what
// this is tested against.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace halfbyte {

// What a sequence asks for; a temperature of zero takes the largest score.
struct ChoiceSettings {
    float temperature = 0;
    int64_t top_k = 0;
    double typical_p = 1, top_p = 1;
    float min_p = 0;
    float repetition = 1, presence = 0, frequency = 0;
    uint64_t seed = 0;
    int64_t logprobs = 0;
    std::vector<int64_t> bias_ids;
    std::vector<float> bias;
};

// A row of logits, and the tokens before it: their number, and which of them are penalized, with how often the answer has each.
// Of `allowed`, bit i % 32 of word i / 32 says whether token i may come; where there are no words any may.
struct ChoiceRow {
    const float* logits;
    const ChoiceSettings* settings;
    uint64_t position;
    std::span<const int64_t> ids;
    std::span<const float> counts;
    std::span<const uint32_t> allowed;
};

struct Choice {
    int64_t id = 0;
    double logprob = 0;
    int64_t likeliest = 0;  // the largest logit's token, or the first NaN's; where no allowed logit is finite, the first allowed
    float peak = 0;         // that logit; without a finite one nothing is chosen
    std::vector<std::pair<int64_t, double>> top{};
};

// Chooses the tokens of several rows on all threads. Scratch memory is kept from call to call.
class Chooser {
public:
    Chooser(Pool& pool, const Kernels& kernels);
    ~Chooser();

    // The choices of rows of `vocabulary` logits each. Throws `std::invalid_argument` for a token outside it.
    std::vector<Choice> choose(std::span<const ChoiceRow> rows, int64_t vocabulary);

private:
    class Desk;

    Pool& pool_;
    const Kernels& kernels_;
    std::vector<std::unique_ptr<Desk>> desks_;  // one for each thread
};

}  // namespace halfbyte
