#include "candidates.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

namespace halfbyte {
namespace {

// Rises as the value falls.
uint32_t falling(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);  // zero has one sign
    return bits >> 31 ? bits : ~(bits | 0x80000000u);
}

// A place in the order of keys, the first of equal ones first.
struct Place {
    uint32_t key = std::numeric_limits<uint32_t>::max();
    int64_t index = std::numeric_limits<int64_t>::max();
};

// Where the masses of those with the smallest keys reach `wanted`; the end if they never do. A radix sort's passes, of
// which only the digit that reaches it goes on.
template <class Mass>
Place reach(std::span<const uint32_t> keys, const Mass& mass, double wanted) {
    constexpr int kDigits[] = {11, 11, 10};
    const int64_t n = static_cast<int64_t>(keys.size());
    wanted = std::max(wanted, std::numeric_limits<double>::min());  // one at least
    uint64_t prefix = 0;
    double before = 0;
    int shift = 32;
    for (const int bits : kDigits) {
        double sums[1 << 11] = {};
        const int above = shift;
        shift -= bits;
        for (int64_t i = 0; i < n; ++i)
            if (uint64_t{keys[i]} >> above == prefix) sums[keys[i] >> shift & ((1u << bits) - 1)] += mass(i);
        int64_t digit = 0;
        for (; digit < 1 << bits && before + sums[digit] < wanted; ++digit) before += sums[digit];
        if (digit == 1 << bits) return {static_cast<uint32_t>((prefix + 1) << above) - 1};
        prefix = prefix << bits | static_cast<uint64_t>(digit);
    }
    const uint32_t key = static_cast<uint32_t>(prefix);
    for (int64_t i = 0; i < n; ++i) {
        if (keys[i] != key) continue;
        before += mass(i);
        if (before >= wanted) return {key, i};
    }
    return {key};
}

double one_each(int64_t) { return 1; }

// -log(1 - tail): by its series up to 1/16, where 1 - tail loses digits.
float exponential(float tail) {
    if (tail >= 0.0625f) return -std::log(1.0f - tail);
    float series = 1.0f / 6;
    for (const float divisor : {5.0f, 4.0f, 3.0f, 2.0f, 1.0f}) series = series * tail + 1 / divisor;
    return tail * series;
}

}  // namespace

float Noise::gumbel(int32_t id) const { return -std::log(exponential(tail(id))); }

float rounding(float highest) { return 0.01f + 1e-6f * std::abs(highest); }

int64_t draw(const Kernels& kernels, const Noise& noise, std::span<const int32_t> ids, std::span<const float> scores,
             std::span<const float> weights, float highest, int64_t start) {
    constexpr int64_t kFirst = 64, kMost = 4096;
    int32_t found[kMost];
    int64_t chosen = ids[start];
    float best = scores[start] + noise.gumbel(ids[start]);
    const int64_t n = static_cast<int64_t>(ids.size());
    // The more have been looked at, the fewer of the next can be better.
    for (int64_t at = 0, size = kFirst; at < n; at += size, size = std::min(2 * size, kMost)) {
        const float factor = std::exp(highest - best + rounding(highest));
        const int64_t hits = kernels.may_win(noise, weights.data() + at, ids.data() + at, std::min(size, n - at), factor, found);
        for (int64_t i = 0; i < hits; ++i) {
            const int64_t place = at + found[i];
            const float sum = scores[place] + noise.gumbel(ids[place]);
            if (sum > best || (sum == best && ids[place] < chosen)) best = sum, chosen = ids[place];
        }
    }
    return chosen;
}

void Candidates::resize(int64_t n) {
    ids_.resize(n), scores_.resize(n), weights_.resize(n), keys_.resize(n);
}

void Candidates::start(const Scores& from, int64_t top_k, double typical_p, double top_p, float min_p) {
    constexpr float kAny = -std::numeric_limits<float>::infinity();
    const int64_t n = static_cast<int64_t>(from.scores.size()), runs = static_cast<int64_t>(from.maxima.size());
    highest_ = from.highest;
    total_ = from.total;
    if (top_k > 0 && top_k <= runs) {
        // The k-th largest of the runs' maxima is a bound that at least k scores reach.
        std::transform(from.maxima.begin(), from.maxima.end(), keys_.begin(), falling);
        const uint32_t bound = reach({keys_.data(), static_cast<size_t>(runs)}, one_each, static_cast<double>(top_k)).key;
        float least = std::numeric_limits<float>::infinity();
        for (int64_t run = 0; run < runs; ++run)
            if (keys_[run] <= bound) least = std::min(least, from.maxima[run]);
        return collect(from, least, 0);
    }
    if (top_k > 0 || typical_p < 1) return collect(from, kAny, 0);
    // All tokens below this together weigh less than what the nucleus leaves out.
    constexpr double kSafely = 0.999;
    const double least = top_p < 1 ? kSafely * (1 - top_p) * from.total / static_cast<double>(n) : min_p;
    collect(from, from.highest + std::log(static_cast<float>(least)) - rounding(from.highest), static_cast<float>(least));
}

void Candidates::collect(const Scores& from, float least_score, float least_weight) {
    size_ = 0;
    const int64_t n = static_cast<int64_t>(from.scores.size());
    for (int64_t first = 0; first < n; first += kRun) {
        if (!(from.maxima[first / kRun] >= least_score)) continue;
        for (int64_t i = first; i < std::min(first + kRun, n); ++i) {
            ids_[size_] = static_cast<int32_t>(i), scores_[size_] = from.scores[i], weights_[size_] = from.weights[i];
            size_ += from.scores[i] >= least_score && from.weights[i] >= least_weight;
        }
    }
}

template <class Keep>
void Candidates::retain(const Keep& keep) {
    int64_t kept = 0;
    for (int64_t i = 0; i < size_; ++i) {
        const bool kept_too = keep(i);
        ids_[kept] = ids_[i], scores_[kept] = scores_[i], weights_[kept] = weights_[i];
        kept += kept_too;
    }
    size_ = kept;
}

template <class Key>
void Candidates::set_keys(const Key& key) {
    for (int64_t i = 0; i < size_; ++i) keys_[i] = key(i);
}

void Candidates::sum_up() { total_ = std::accumulate(weights_.begin(), weights_.begin() + size_, 0.0); }

void Candidates::keep_largest(int64_t k) {
    if (k < size_) {
        set_keys([&](int64_t i) { return falling(scores_[i]); });
        const Place last = reach(keys(), one_each, static_cast<double>(k));
        retain([&](int64_t i) { return keys_[i] <= last.key; });
    }
    sum_up();
}

void Candidates::keep_typical(double share) {
    const double log_total = std::log(total_);
    const auto information = [&](int64_t i) { return log_total - (double{scores_[i]} - highest_); };
    double entropy = 0;
    for (int64_t i = 0; i < size_; ++i)
        if (std::isfinite(scores_[i])) entropy += weights_[i] / total_ * information(i);
    set_keys([&](int64_t i) { return ~falling(static_cast<float>(std::abs(information(i) - entropy))); });
    const Place last = reach(keys(), [&](int64_t i) { return mass(i); }, share * total_);
    retain([&](int64_t i) { return keys_[i] <= last.key; });
    highest_ = *std::max_element(scores_.begin(), scores_.begin() + size_);
    for (int64_t i = 0; i < size_; ++i) weights_[i] = std::exp(scores_[i] - highest_);
    sum_up();
}

void Candidates::keep_nucleus(double share) {
    set_keys([&](int64_t i) { return falling(weights_[i]); });
    const Place last = reach(keys(), [&](int64_t i) { return mass(i); }, share * total_);
    retain([&](int64_t i) { return keys_[i] < last.key || (keys_[i] == last.key && i <= last.index); });
}

void Candidates::keep_likely(float least) {
    retain([&](int64_t i) { return weights_[i] >= least; });
}

int64_t Candidates::draw(const Kernels& kernels, const Noise& noise) const {
    const size_t n = static_cast<size_t>(size_);
    const int64_t start = std::max_element(scores_.begin(), scores_.begin() + size_) - scores_.begin();
    return halfbyte::draw(kernels, noise, {ids_.data(), n}, {scores_.data(), n}, {weights_.data(), n}, highest_, start);
}

}  // namespace halfbyte
