// Element by element: norms, activations, sums, conversions. Part of kernels_impl.h.
#pragma once

namespace halfbyte::HB_ISA {

// The first `count` values at p, then zeros; all 16 where there are more.
template <class S>
static HB_INLINE Lanes load_some(const void* p, int64_t count) {
    if (count >= 16) return Lanes::load(S{}, p);
    alignas(64) std::byte values[16 * S::kBytes] = {};
    std::memcpy(values, p, count * S::kBytes);
    return Lanes::load(S{}, values);
}

static HB_INLINE void store_some(Lanes x, float* p, int64_t count) {
    if (count >= 16) return x.store(p);
    alignas(64) float values[16];
    x.store(values);
    std::memcpy(p, values, count * sizeof(float));
}

// out[i] = f(inputs[i]…) for n values.
template <class F, class... Inputs>
static HB_INLINE void map(float* out, int64_t n, const F& f, const Inputs*... inputs) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) f(Lanes::load(F32{}, inputs + i)...).store(out + i);
    if (i < n) store_some(f(load_some<F32>(inputs + i, n - i)...), out + i, n - i);
}

// e^x to about 1e-7, relative; x is clamped to what float can hold, and NaN stays NaN. Polynomial of the Cephes library's expf.
static HB_INLINE Lanes exp(Lanes x) {
    const auto constant = [](float value) { return Lanes::broadcast(value); };
    x = Lanes::min(constant(88.37f), Lanes::max(constant(-87.33f), x));
    const Lanes n = Lanes::round(x * constant(1.44269504f));
    Lanes r = Lanes::fma(n, constant(-0.693359375f), x);
    r = Lanes::fma(n, constant(2.12194440e-4f), r);
    Lanes p = constant(1.9875691500e-4f);
    for (const float coefficient : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f, 1.0f, 1.0f})
        p = Lanes::fma(p, r, constant(coefficient));
    return Lanes::scale(p, n);
}

// 2^x for x up to 126, to about 1e-7, relative; 2^-126 for less than -126, and NaN stays NaN. Polynomial of the Cephes library's exp2f.
static HB_INLINE Lanes exp2(Lanes x) {
    x = Lanes::max(Lanes::broadcast(-126), x);
    const Lanes n = Lanes::round(x), r = x - n;
    Lanes p = Lanes::broadcast(1.535336188e-4f);
    for (const float coefficient : {1.339887440e-3f, 9.618437357e-3f, 5.550332471e-2f, 2.402264791e-1f, 6.931472028e-1f, 1.0f})
        p = Lanes::fma(p, r, Lanes::broadcast(coefficient));
    return Lanes::scale(p, n);
}

static HB_INLINE Lanes sigmoid(Lanes x) {
    const Lanes one = Lanes::broadcast(1);
    return one / (one + exp(Lanes::broadcast(0) - x));
}

static void gate(const float* gate, const float* up, Activation activation, float* out, int64_t n) {
    if (activation == Activation::silu) {
        return map(out, n, [](Lanes g, Lanes u) { return g * sigmoid(g) * u; }, gate, up);
    }
    // 0.5 (1 + tanh y) = sigmoid(2 y), with y = sqrt(2/pi) (g + 0.044715 g^3)
    const Lanes linear = Lanes::broadcast(2 * 0.7978845608f), cubic = Lanes::broadcast(2 * 0.7978845608f * 0.044715f);
    map(out, n, [&](Lanes g, Lanes u) { return g * sigmoid(g * Lanes::fma(g * g, cubic, linear)) * u; }, gate, up);
}

static void add(const float* x, const float* y, float* out, int64_t n) {
    map(out, n, [](Lanes a, Lanes b) { return a + b; }, x, y);
}

static void blend(const float* from, float add, float keep, float* into, int64_t n) {
    const Lanes other = Lanes::broadcast(add), own = Lanes::broadcast(keep);
    map(into, n, [&](Lanes a, Lanes b) { return Lanes::fma(a, own, b * other); }, into, from);
}

static HB_INLINE Lanes capped(Lanes x, Lanes cap) {
    const Lanes two = Lanes::broadcast(2);
    return cap * (two * sigmoid(two * x / cap) - Lanes::broadcast(1));
}

static void softcap(const float* x, float cap, float* out, int64_t n) {
    map(out, n, [cap = Lanes::broadcast(cap)](Lanes a) { return capped(a, cap); }, x);
}

static void rotate(const float* x, const float* table, int64_t half, int64_t head_dim, float* out) {
    for (int64_t i = 0; i < half; i += 16) {
        const int64_t left = half - i;
        const Lanes first = load_some<F32>(x + i, left), second = load_some<F32>(x + half + i, left);
        const Lanes cos = load_some<F32>(table + i, left), sin = load_some<F32>(table + half + i, left);
        store_some(first * cos - second * sin, out + i, left);
        store_some(Lanes::fma(first, sin, second * cos), out + half + i, left);
    }
    if (out != x) std::memcpy(out + 2 * half, x + 2 * half, (head_dim - 2 * half) * sizeof(float));
}

static void to_half(const float* x, uint16_t* out, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) Lanes::load(F32{}, x + i).store_half(out + i);
    if (i == n) return;
    uint16_t rest[16];
    load_some<F32>(x + i, n - i).store_half(rest);
    std::memcpy(out + i, rest, (n - i) * sizeof(uint16_t));
}

static HB_INLINE float sum_of_squares(const float* x, int64_t n) {
    Lanes sums[4] = {Lanes::broadcast(0), Lanes::broadcast(0), Lanes::broadcast(0), Lanes::broadcast(0)};
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        for (int j = 0; j < 4; ++j) {
            const Lanes value = Lanes::load(F32{}, x + i + 16 * j);
            sums[j] = Lanes::fma(value, value, sums[j]);
        }
    }
    for (; i < n; i += 16) {
        const Lanes value = load_some<F32>(x + i, n - i);
        sums[0] = Lanes::fma(value, value, sums[0]);
    }
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
}

static void rms_norm(const float* x, const float* weight, const float* residual, float eps, float offset, float* out, int64_t n) {
    const float mean = sum_of_squares(x, n) / static_cast<float>(n);
    const Lanes factor = Lanes::broadcast(1 / std::sqrt(mean + eps)), shift = Lanes::broadcast(offset);
    if (!residual) return map(out, n, [&](Lanes a, Lanes w) { return a * factor * (shift + w); }, x, weight);
    map(out, n, [&](Lanes a, Lanes w, Lanes r) { return Lanes::fma(a * factor, shift + w, r); }, x, weight, residual);
}

}  // namespace halfbyte::HB_ISA
