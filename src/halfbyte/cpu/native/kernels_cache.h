// The cache in 8 and 4 bits: rounding, and attention to blocks that are widened to float first. Part of kernels_impl.h.
#pragma once

namespace halfbyte::HB_ISA {

// Rounds up to 32 values, those that are missing being zeros, to codes from `lowest` to -lowest - 1; their scale, which is
// the value of largest magnitude over the lowest code. What is not finite makes all of them NaN.
static uint16_t to_codes(const float* x, int64_t n, int lowest, int8_t* codes) {
    const Lanes low = load_some<F32>(x, n), high = n > 16 ? load_some<F32>(x + 16, n - 16) : Lanes::broadcast(0);
    const Lanes zero = Lanes::broadcast(0);
    const bool finite = Lanes::largest_magnitude(low, high) < 0x7f800000u;
    const float top = Lanes::max(low, high).largest(), bottom = -Lanes::max(zero - low, zero - high).largest();
    const float extreme = finite ? (top > -bottom ? top : bottom) : std::bit_cast<float>(0x7fc00000u);
    const uint16_t stored = float_to_half(extreme / static_cast<float>(lowest));
    const float scale = half_to_float(stored);
    const Lanes by = Lanes::broadcast(scale == 0 ? 1 : scale);
    const Lanes least = Lanes::broadcast(static_cast<float>(lowest)), most = Lanes::broadcast(static_cast<float>(-lowest - 1));
    const auto store = [&](Lanes values, int8_t* to) HB_LAMBDA {
        const bool none = !finite || scale == 0;
        (none ? Lanes::ints(0) : Lanes::whole(Lanes::min(most, Lanes::max(least, values / by)))).store_bytes(to);
    };
    store(low, codes);
    store(high, codes + 16);
    return stored;
}

// How codes of a run become numbers: 16 lanes of its first half and 16 of its second. `at` are the codes of the first
// half, which in 8 bits those of the second follow `apart` bytes later.
struct Q8 {
    static constexpr int64_t kRunBytes = 32;
    static HB_INLINE void halves(const uint8_t* at, int64_t apart, Lanes scale, Lanes& low, Lanes& high) {
        low = Lanes::from(Lanes::ints(reinterpret_cast<const int8_t*>(at))) * scale;
        high = Lanes::from(Lanes::ints(reinterpret_cast<const int8_t*>(at + apart))) * scale;
    }
};
struct Q4 {
    static constexpr int64_t kRunBytes = 16;
    static HB_INLINE void halves(const uint8_t* at, int64_t, Lanes scale, Lanes& low, Lanes& high) {
        // byte / 16 less 15 / 32 is nearest to the upper code
        const Lanes bytes = Lanes::load(U8{}, at), eight = scale * Lanes::broadcast(-8);
        const Lanes upper = Lanes::round(Lanes::fma(bytes, Lanes::broadcast(1.0f / 16), Lanes::broadcast(-15.0f / 32)));
        low = Lanes::fma(Lanes::fma(upper, Lanes::broadcast(-16), bytes), scale, eight);
        high = Lanes::fma(upper, scale, eight);
    }
};

// to[rows of a run, of which `left` are there][size] for 16 positions of keys, or `count` where they are not `Whole`.
template <class Q, bool Whole>
static HB_INLINE void widen_positions(const uint8_t* codes, int64_t size, Lanes scale, int64_t left, int64_t count, float* to) {
    for (int64_t i = 0; i < (left < 16 ? left : 16); ++i, codes += size, to += size) {
        Lanes low, high;
        if constexpr (Whole) {
            prefetch(codes + kAhead);
            Q::halves(codes, 16 * size, scale, low, high);
            low.store(to);
            if (i + 16 < left) high.store(to + 16 * size);
        } else {
            uint8_t some[32] = {};
            std::memcpy(some, codes, count);
            if (Q::kRunBytes == 32) std::memcpy(some + 16, codes + 16 * size, count);
            Q::halves(some, 16, scale, low, high);
            store_some(low, to, count);
            if (i + 16 < left) store_some(high, to + 16 * size, count);
        }
    }
}

// panel[head_dim][block_size] from keys of one head: codes [runs][bytes of a run][block_size], scales [runs][block_size].
template <class Q>
static void widen_keys(const AttendJob& job, const std::byte* keys) {
    const int64_t size = job.block_size, runs = (job.head_dim + Cache::kRun - 1) / Cache::kRun;
    const uint8_t* codes = reinterpret_cast<const uint8_t*>(keys);
    const std::byte* scales = keys + runs * Q::kRunBytes * size;
    for (int64_t run = 0; run < runs; ++run, codes += Q::kRunBytes * size, scales += 2 * size) {
        float* to = job.panel + run * Cache::kRun * size;
        const int64_t left = job.head_dim - run * Cache::kRun;
        int64_t p = 0;
        for (; p + 16 <= size; p += 16)
            widen_positions<Q, true>(codes + p, size, Lanes::load(F16{}, scales + 2 * p), left, 16, to + p);
        if (p < size)
            widen_positions<Q, false>(codes + p, size, load_some<F16>(scales + 2 * p, size - p), left, size - p, to + p);
    }
}

// panel[count][head_dim] from values of one head: codes [block_size][runs][bytes of a run], scales [block_size][runs].
// Each row is written in whole runs: what reaches beyond it belongs to the next, which comes after it.
template <class Q>
static void widen_values(const AttendJob& job, const std::byte* values, int64_t count) {
    const int64_t runs = (job.head_dim + Cache::kRun - 1) / Cache::kRun;
    const uint8_t* codes = reinterpret_cast<const uint8_t*>(values);
    const std::byte* scales = values + runs * Q::kRunBytes * job.block_size;
    for (int64_t j = 0; j < count; ++j)
        for (int64_t run = 0; run < runs; ++run, codes += Q::kRunBytes, scales += 2) {
            uint16_t scale;
            std::memcpy(&scale, scales, sizeof scale);
            float* to = job.panel + j * job.head_dim + run * Cache::kRun;
            Lanes low, high;
            prefetch(codes + kAhead);
            Q::halves(codes, 16, Lanes::broadcast(half_to_float(scale)), low, high);
            low.store(to);
            high.store(to + 16);
        }
}

template <class Q>
static void score_codes(const AttendJob& job, const std::byte* keys, int64_t at) {
    widen_keys<Q>(job, keys);
    score<F32>(job, reinterpret_cast<const std::byte*>(job.panel), at);
}

template <class Q>
static void add_codes(const AttendJob& job, const std::byte* values, int64_t at, int64_t count) {
    widen_values<Q>(job, values, count);
    add_values<F32>(job, reinterpret_cast<const std::byte*>(job.panel), at, count);
}

}  // namespace halfbyte::HB_ISA
