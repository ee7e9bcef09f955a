// Logits on their way to a token: largest values, weights, and which tokens the noise may lift. Part of kernels_impl.h.
#pragma once

namespace halfbyte::HB_ISA {

// The first `count` values at p, then `filler`; all 16 where there are more.
static HB_INLINE Lanes load_or(const float* p, int64_t count, float filler) {
    if (count >= 16) return Lanes::load(F32{}, p);
    alignas(64) float values[16];
    for (float& value : values) value = filler;
    std::memcpy(values, p, count * sizeof(float));
    return Lanes::load(F32{}, values);
}

constexpr float kNothing = -std::numeric_limits<float>::infinity();

// Calls use(first, count) for runs of kRun values of n.
template <class Use>
static HB_INLINE void for_runs(int64_t n, const Use& use) {
    for (int64_t first = 0; first < n; first += kRun) use(first, n - first < kRun ? n - first : kRun);
}

static float run_maxima(const float* x, int64_t n, float* maxima) {
    Lanes all = Lanes::broadcast(kNothing);
    for_runs(n, [&](int64_t first, int64_t count) HB_LAMBDA {
        Lanes run = Lanes::broadcast(kNothing);
        for (int64_t i = 0; i < count; i += 16) run = Lanes::max(run, load_or(x + first + i, count - i, kNothing));
        maxima[first / kRun] = run.largest();
        all = Lanes::max(all, run);
    });
    return all.largest();
}

static double exp_sum(const float* x, float shift, int64_t n) {
    double total = 0;
    const Lanes down = Lanes::broadcast(shift);
    for_runs(n, [&](int64_t first, int64_t count) HB_LAMBDA {
        Lanes run = Lanes::broadcast(0);
        for (int64_t i = 0; i < count; i += 16) run = run + exp(load_or(x + first + i, count - i, kNothing) - down);
        total += run.sum();
    });
    return total;
}

static double weigh_scores(const float* x, float temperature, float highest, int64_t n, float* scores, float* weights) {
    const Lanes divisor = Lanes::broadcast(temperature), down = Lanes::broadcast(highest);
    for (int64_t i = 0; i < n; i += 16) {
        const Lanes score = load_or(x + i, n - i, kNothing) / divisor;
        store_some(score, scores + i, n - i);
        store_some(exp(score - down), weights + i, n - i);
    }
    double sums[16] = {};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; ++j) sums[j] += weights[i + j];
    double total = 0;
    for (; i < n; ++i) total += weights[i];
    for (const double sum : sums) total += sum;
    return total;
}

// Noise lifts a score above `best` if -log(1 - tail) < e^(score - best), and so only if tail < e^(score - best).
static int64_t may_win(const Noise& noise, const float* weights, const int32_t* ids, int64_t n, float factor, int32_t* found) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += 16) {
        float lead[16];
        const int64_t some = n - i < 16 ? n - i : 16;
        if (some == 16) {
            for (int j = 0; j < 16; ++j) lead[j] = weights[i + j] * factor - noise.tail(ids[i + j]);
        } else {
            for (int64_t j = 0; j < 16; ++j) lead[j] = j < some ? weights[i + j] * factor - noise.tail(ids[i + j]) : -1;
        }
        if (!(Lanes::load(F32{}, lead).largest() > 0)) continue;
        for (int j = 0; j < some; ++j)
            if (lead[j] > 0) found[count++] = static_cast<int32_t>(i + j);
    }
    return count;
}

}  // namespace halfbyte::HB_ISA
