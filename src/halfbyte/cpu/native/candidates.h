// The tokens that are left to choose from, fewer after each filter, and the draw from them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels.h"
#include "noise.h"

namespace halfbyte {

// A vocabulary's scores, the largest of each run of kRun of them, and weights: e^(score - highest).
struct Scores {
    std::span<const float> scores, weights, maxima;
    float highest;
    double total;  // of all weights
};

class Candidates {
public:
    // Takes the memory for a vocabulary of n tokens; nothing else takes any.
    void resize(int64_t n);
    // Starts with those tokens that the first filter may keep, each setting meaning what it does in `ChoiceSettings`.
    void start(const Scores& from, int64_t top_k, double typical_p, double top_p, float min_p);

    // The k with the largest scores, and any equal to the k-th.
    void keep_largest(int64_t k);
    // Those whose information is nearest the entropy, until they reach a share of all weights, and any as near as the last.
    void keep_typical(double share);
    // The fewest with the largest weights that reach a share of all weights.
    void keep_nucleus(double share);
    // Those that are at least this many times as likely as the most likely one.
    void keep_likely(float least);

    // The token with the largest sum of score and noise.
    int64_t draw(const Kernels& kernels, const Noise& noise) const;

private:
    void collect(const Scores& from, float least_score, float least_weight);
    template <class Keep>
    void retain(const Keep& keep);

    // Sets keys_[i] = key(i) for all.
    template <class Key>
    void set_keys(const Key& key);
    double mass(int64_t i) const { return weights_[i]; }
    void sum_up();
    std::span<const uint32_t> keys() const { return {keys_.data(), static_cast<size_t>(size_)}; }

    int64_t size_ = 0;  // of the vectors, what is in use
    std::vector<int32_t> ids_;
    std::vector<float> scores_, weights_;
    std::vector<uint32_t> keys_;
    float highest_ = 0;
    double total_ = 0;  // of all weights, those included that are left out because they are too small to be kept
};

// The token of `ids` with the largest sum of score and noise; `start` is the place of a likely one.
int64_t draw(const Kernels& kernels, const Noise& noise, std::span<const int32_t> ids, std::span<const float> scores,
             std::span<const float> weights, float highest, int64_t start);

// What may be lost between a score and its weight, or a score and its sum with noise.
float rounding(float highest);

}  // namespace halfbyte
