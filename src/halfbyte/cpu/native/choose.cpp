// Rows of logits become tokens. Where there are as many rows as threads, each thread has rows of its own; the rest are taken
// one after another by all threads together, each with its part of the vocabulary.
#include "choose.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "candidates.h"
#include "tensor.h"

namespace halfbyte {
namespace {

// Logits whose sum is taken at once. It is the same for any number of threads, and so are the sums.
constexpr int64_t kChunk = 2048;
static_assert(kChunk % kRun == 0);
constexpr int64_t kWord = 32;
static_assert(kChunk % kWord == 0);

int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

// The largest values of runs and of chunks.
struct Maxima {
    std::vector<float> runs, chunks;

    void resize(int64_t n) { runs.resize(parts(n, kRun)), chunks.resize(parts(n, kChunk)); }
    float highest() const { return *std::max_element(chunks.begin(), chunks.end()); }
};

// The first place of the largest of x[n].
int64_t place_of(const float* x, int64_t n, const Maxima& maxima, float highest) {
    for (size_t run = 0; run < maxima.runs.size(); ++run) {
        if (maxima.runs[run] != highest) continue;
        const int64_t first = static_cast<int64_t>(run) * kRun, end = std::min(first + kRun, n);
        return std::find(x + first, x + end, highest) - x;
    }
    return 0;
}

// The first NaN of x[n], or else the first of its largest.
int64_t place_of_fault(const float* x, int64_t n) {
    const float* nan = std::find_if(x, x + n, [](float value) { return std::isnan(value); });
    return nan < x + n ? nan - x : std::max_element(x, x + n) - x;
}

// Four bits as masks of four floats.
constexpr auto kSpread = [] {
    std::array<std::array<uint32_t, 4>, 16> masks{};
    for (uint32_t bits = 0; bits < 16; ++bits)
        for (uint32_t i = 0; i < 4; ++i) masks[bits][i] = bits >> i & 1 ? ~uint32_t{0} : 0;
    return masks;
}();

// to[count] = the tokens of x that may come; the others are ruled out.
void copy_allowed(const float* x, const uint32_t* words, int64_t count, float* to) {
    constexpr uint32_t kRuledOut = std::bit_cast<uint32_t>(-std::numeric_limits<float>::infinity());
    const auto copy = [&](int64_t first, int64_t some) {
        const auto& keep = kSpread[words[first / kWord] >> first % kWord & 15];
        for (int64_t i = 0; i < some; ++i)
            to[first + i] = std::bit_cast<float>((std::bit_cast<uint32_t>(x[first + i]) & keep[i]) | (kRuledOut & ~keep[i]));
    };
    int64_t first = 0;
    for (; first + 4 <= count; first += 4) copy(first, 4);
    if (first < count) copy(first, count - first);
}

float penalized(const ChoiceSettings& s, float score, float count) {
    if (s.repetition != 1) score = score < 0 ? score * s.repetition : score / s.repetition;
    const float present = s.presence * (count > 0 ? 1.0f : 0.0f), repeated = s.frequency * count;
    return (score - present) - repeated;
}

// The largest of x[n] and their log-probabilities, earlier ones first among equals.
std::vector<std::pair<int64_t, double>> most_likely(const float* x, int64_t n, const Maxima& maxima, int64_t count, double log_sum) {
    std::vector<std::pair<float, int64_t>> best;
    count = std::min(count, n);
    const auto above = [](float value, const auto& other) { return value > other.first; };
    const auto full = [&] { return static_cast<int64_t>(best.size()) == count; };
    for (int64_t first = 0; first < n && count > 0; first += kRun) {
        if (full() && maxima.runs[first / kRun] <= best.back().first) continue;
        for (int64_t i = first; i < std::min(first + kRun, n); ++i) {
            if (full() && x[i] <= best.back().first) continue;
            if (full()) best.pop_back();
            best.emplace(std::upper_bound(best.begin(), best.end(), x[i], above), x[i], i);
        }
    }
    std::vector<std::pair<int64_t, double>> top;
    for (const auto& [value, id] : best) top.emplace_back(id, value - log_sum);
    return top;
}

void check(const ChoiceRow& row, int64_t vocabulary) {
    require_equal(static_cast<int64_t>(row.counts.size()), static_cast<int64_t>(row.ids.size()), "number of counts");
    require_equal(static_cast<int64_t>(row.settings->bias.size()), static_cast<int64_t>(row.settings->bias_ids.size()), "number of biases");
    if (!row.allowed.empty()) require_equal(static_cast<int64_t>(row.allowed.size()), parts(vocabulary, kWord), "number of words of a mask");
    require(row.settings->temperature >= 0, "the temperature is " + std::to_string(row.settings->temperature));
    for (const std::span<const int64_t> ids : {row.ids, std::span<const int64_t>(row.settings->bias_ids)})
        for (const int64_t id : ids)
            require(id >= 0 && id < vocabulary, "token " + std::to_string(id) + " is not in the vocabulary of " + std::to_string(vocabulary));
}

}  // namespace

// Memory for one row at a time, and what is done with it.
class Chooser::Desk {
public:
    explicit Desk(const Kernels& kernels) : kernels_(kernels) {}

    void resize(int64_t n) {
        if (n == n_) return;
        n_ = n;
        for (auto* values : {&changed_, &scores_, &weights_}) values->resize(n);
        for (Maxima* maxima : {&logits_maxima_, &changed_maxima_, &scaled_}) maxima->resize(n);
        candidates_.resize(n);
        sums_.resize(parts(n, kChunk));
        ids_.resize(n);
        std::iota(ids_.begin(), ids_.end(), 0);
    }

    // Every thread of the worker's team calls this.
    void choose(const Worker& worker, const ChoiceRow& row, Choice& choice) {
        find_maxima(worker, row.logits, logits_maxima_, &sums_);
        worker.sync();
        const float peak = logits_maxima_.highest();
        const double log_sum = peak + std::log(sum_over(peak));
        if (!std::isfinite(peak) || !std::isfinite(log_sum)) {
            if (worker.index == 0) report_fault(row, choice);
            return;
        }
        const bool changes = !row.ids.empty() || !row.settings->bias_ids.empty() || !row.allowed.empty();
        if (changes) change(worker, row);
        const float* logits = changes ? changed_.data() : row.logits;
        const Maxima& maxima = changes ? changed_maxima_ : logits_maxima_;
        const float highest = maxima.highest(), temperature = row.settings->temperature;
        const bool greedy = temperature == 0;
        if (!std::isfinite(highest)) {
            if (worker.index == 0) report_none_allowed(row, choice);
            return;
        }
        worker.sync();  // before sums are overwritten
        if (!greedy) weigh(worker, logits, temperature, highest / temperature);
        if (worker.index > 0) return;
        choice.likeliest = place_of(row.logits, n_, logits_maxima_, peak);
        choice.peak = peak;
        choice.id = greedy ? place_of(logits, n_, maxima, highest) : draw(row, maxima, highest / temperature);
        choice.logprob = row.logits[choice.id] - log_sum;
        choice.top = most_likely(row.logits, n_, logits_maxima_, row.settings->logprobs, log_sum);
    }

private:
    // Calls use(chunk, first, count) for this thread's chunks.
    template <class Use>
    void for_chunks(const Worker& worker, const Use& use) const {
        const Range mine = worker.share(parts(n_, kChunk));
        for (int64_t chunk = mine.begin; chunk < mine.end; ++chunk) use(chunk, chunk * kChunk, std::min(kChunk, n_ - chunk * kChunk));
    }

    static float shift_of(float maximum) { return std::max(maximum, std::numeric_limits<float>::lowest()); }

    // This thread's maxima and, if `sums`, the sum of e^(x - maximum) of each chunk.
    void find_maxima(const Worker& worker, const float* x, Maxima& maxima, std::vector<double>* sums) const {
        for_chunks(worker, [&](int64_t chunk, int64_t first, int64_t count) {
            const float highest = kernels_.run_maxima(x + first, count, maxima.runs.data() + first / kRun);
            maxima.chunks[chunk] = highest;
            if (sums) (*sums)[chunk] = kernels_.exp_sum(x + first, shift_of(highest), count);
        });
    }

    // Σ e^(logit - peak)
    double sum_over(float peak) const {
        double total = 0;
        for (size_t chunk = 0; chunk < sums_.size(); ++chunk)
            total += sums_[chunk] * std::exp(double{shift_of(logits_maxima_.chunks[chunk])} - peak);
        return total;
    }

    void report_fault(const ChoiceRow& row, Choice& choice) const {
        choice.likeliest = place_of_fault(row.logits, n_);
        choice.peak = row.logits[choice.likeliest];
    }

    void report_none_allowed(const ChoiceRow& row, Choice& choice) const {
        const auto word = std::find_if(row.allowed.begin(), row.allowed.end(), [](uint32_t bits) { return bits != 0; });
        const int64_t first = word == row.allowed.end() ? 0 : (word - row.allowed.begin()) * kWord + std::countr_zero(*word);
        choice.likeliest = std::min(first, n_ - 1);
        choice.peak = row.logits[choice.likeliest];
    }

    // What may come, with penalties and biases, on a copy of the logits, and its maxima.
    void change(const Worker& worker, const ChoiceRow& row) {
        for_chunks(worker, [&](int64_t, int64_t first, int64_t count) {
            if (row.allowed.empty())
                std::copy_n(row.logits + first, count, changed_.data() + first);
            else
                copy_allowed(row.logits + first, row.allowed.data() + first / kWord, count, changed_.data() + first);
        });
        worker.sync();
        if (worker.index == 0) {
            const ChoiceSettings& s = *row.settings;
            for (size_t i = 0; i < row.ids.size(); ++i) changed_[row.ids[i]] = penalized(s, changed_[row.ids[i]], row.counts[i]);
            for (size_t i = 0; i < s.bias.size(); ++i) changed_[s.bias_ids[i]] += s.bias[i];
        }
        worker.sync();
        find_maxima(worker, changed_.data(), changed_maxima_, nullptr);
        worker.sync();
    }

    void weigh(const Worker& worker, const float* logits, float temperature, float highest) {
        for_chunks(worker, [&](int64_t chunk, int64_t first, int64_t count) {
            sums_[chunk] = kernels_.weigh_scores(logits + first, temperature, highest, count, scores_.data() + first, weights_.data() + first);
        });
        worker.sync();
    }

    int64_t draw(const ChoiceRow& row, const Maxima& maxima, float highest) {
        const ChoiceSettings& s = *row.settings;
        const Noise noise(s.seed, row.position);
        if (s.top_k == 0 && s.typical_p >= 1 && s.top_p >= 1 && s.min_p <= 0) {
            const int64_t start = place_of(scores_.data(), n_, scaled(maxima, s.temperature), highest);
            return halfbyte::draw(kernels_, noise, ids_, scores_, weights_, highest, start);
        }
        const double total = std::accumulate(sums_.begin(), sums_.end(), 0.0);
        candidates_.start({scores_, weights_, scaled(maxima, s.temperature).runs, highest, total}, s.top_k, s.typical_p, s.top_p, s.min_p);
        if (s.top_k > 0) candidates_.keep_largest(s.top_k);
        if (s.typical_p < 1) candidates_.keep_typical(s.typical_p);
        if (s.top_p < 1) candidates_.keep_nucleus(s.top_p);
        if (s.min_p > 0) candidates_.keep_likely(s.min_p);
        return candidates_.draw(kernels_, noise);
    }

    // The maxima of scores, from those of logits.
    const Maxima& scaled(const Maxima& maxima, float temperature) {
        std::transform(maxima.runs.begin(), maxima.runs.end(), scaled_.runs.begin(), [&](float x) { return x / temperature; });
        return scaled_;
    }

    const Kernels& kernels_;
    int64_t n_ = 0;
    std::vector<float> changed_, scores_, weights_;
    std::vector<double> sums_;  // of each chunk
    std::vector<int32_t> ids_;  // of the whole vocabulary
    Maxima logits_maxima_, changed_maxima_, scaled_;
    Candidates candidates_;
};

Chooser::Chooser(Pool& pool, const Kernels& kernels) : pool_(pool), kernels_(kernels) {
    for (int i = 0; i < pool.size(); ++i) desks_.push_back(std::make_unique<Desk>(kernels));
}

Chooser::~Chooser() = default;

std::vector<Choice> Chooser::choose(std::span<const ChoiceRow> rows, int64_t vocabulary) {
    for (const ChoiceRow& row : rows) check(row, vocabulary);
    std::vector<Choice> choices(rows.size());
    const auto turn = pool_.turn();
    const int64_t threads = pool_.size(), all = static_cast<int64_t>(rows.size()), alone = all / threads * threads;
    for (int64_t i = 0; i < (alone > 0 ? threads : 1); ++i) desks_[i]->resize(vocabulary);
    Barrier nobody(1, false);
    pool_.run([&](const Worker& worker) {
        const Worker single{0, 1, &nobody};
        const Range mine = worker.share(alone);
        for (int64_t i = mine.begin; i < mine.end; ++i) desks_[worker.index]->choose(single, rows[i], choices[i]);
        for (int64_t i = alone; i < all; ++i) {
            worker.sync();
            desks_[0]->choose(worker, rows[i], choices[i]);
        }
    });
    return choices;
}

}  // namespace halfbyte
