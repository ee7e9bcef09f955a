// 16 floats in plain C++, for compilers to vectorize with whatever is the platform's baseline.
//
// This is the interface that every instruction set implements and kernels_impl.h is written in. Loads take any
// address. The constants size register tiles: tokens of a panel product, rows and tokens of a block of dot products,
// queries that attend together, tiles and tokens of a product with 8-bit activations.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"
#include "storage.h"

namespace halfbyte::HB_ISA {

struct Lanes {
    struct Bits {
        uint32_t v[16];
    };
    static constexpr int kTokenBlock = 2, kDotRows = 2, kDotTokens = 1, kAttendQueries = 4;
    static constexpr int kInt8Tiles = 1, kInt8Tokens = 2;
    // What `dot_signed` adds to each code, and a sum must therefore start without.
    static constexpr int kSignedBias = 0;

    // 16 whole numbers.
    struct Ints {
        int32_t v[16];
        friend HB_INLINE Ints operator*(Ints a, Ints b) {
            for (int i = 0; i < 16; ++i) a.v[i] *= b.v[i];
            return a;
        }
        friend HB_INLINE Ints operator+(Ints a, Ints b) {
            for (int i = 0; i < 16; ++i) a.v[i] += b.v[i];
            return a;
        }
        friend HB_INLINE Ints operator<<(Ints a, int bits) {
            for (int32_t& lane : a.v) lane <<= bits;
            return a;
        }
        HB_INLINE int32_t sum() const {
            int32_t total = 0;
            for (const int32_t x : v) total += x;
            return total;
        }
        // As signed bytes, which hold them.
        HB_INLINE void store_bytes(int8_t* p) const {
            for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(v[i]);
        }
    };

    float v[16];

    template <class Make>
    static HB_INLINE Lanes make(const Make& lane) {
        Lanes result;
        for (int i = 0; i < 16; ++i) result.v[i] = lane(i);
        return result;
    }
    static HB_INLINE Lanes broadcast(float x) {
        return make([&](int) { return x; });
    }
    static HB_INLINE Lanes load(F32, const void* p) {
        Lanes result;
        std::memcpy(result.v, p, sizeof result.v);
        return result;
    }
    static HB_INLINE Lanes load(F16, const void* p) {
        uint16_t x[16];
        std::memcpy(x, p, sizeof x);
        return make([&](int i) { return half_to_float(x[i]); });
    }
    static HB_INLINE Lanes load(BF16, const void* p) {
        uint16_t x[16];
        std::memcpy(x, p, sizeof x);
        return make([&](int i) { return bfloat_to_float(x[i]); });
    }
    static HB_INLINE Lanes load(U8, const void* p) {
        const uint8_t* x = static_cast<const uint8_t*>(p);
        return make([&](int i) { return static_cast<float>(x[i]); });
    }
    HB_INLINE void store(float* p) const { std::memcpy(p, v, sizeof v); }
    HB_INLINE void store_half(uint16_t* p) const {
        for (int i = 0; i < 16; ++i) p[i] = float_to_half(v[i]);
    }

    friend HB_INLINE Lanes operator+(Lanes a, Lanes b) {
        return make([&](int i) { return a.v[i] + b.v[i]; });
    }
    friend HB_INLINE Lanes operator-(Lanes a, Lanes b) {
        return make([&](int i) { return a.v[i] - b.v[i]; });
    }
    friend HB_INLINE Lanes operator*(Lanes a, Lanes b) {
        return make([&](int i) { return a.v[i] * b.v[i]; });
    }
    friend HB_INLINE Lanes operator/(Lanes a, Lanes b) {
        return make([&](int i) { return a.v[i] / b.v[i]; });
    }
    // a · b + c
    static HB_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) {
        return make([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
    }
    // The larger, the smaller; NaN where b is NaN, not always where a is.
    static HB_INLINE Lanes max(Lanes a, Lanes b) {
        return make([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
    }
    static HB_INLINE Lanes min(Lanes a, Lanes b) {
        return make([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
    }
    // To the nearest whole number, for magnitudes below 2^22.
    static HB_INLINE Lanes round(Lanes a) {
        const float shift = 0x1.8p23f;
        return make([&](int i) { return (a.v[i] + shift) - shift; });
    }
    // a · 2^n for whole n in -126 … 127.
    static HB_INLINE Lanes scale(Lanes a, Lanes n) {
        return make([&](int i) { return a.v[i] * std::bit_cast<float>((static_cast<int32_t>(n.v[i]) + 127) << 23); });
    }
    HB_INLINE float sum() const {
        float total = 0;
        for (int i = 0; i < 16; ++i) total += v[i];
        return total;
    }
    HB_INLINE float largest() const {
        float top = v[0];
        for (int i = 1; i < 16; ++i) top = v[i] > top ? v[i] : top;
        return top;
    }

    // 16 words of 32 bits, and the 4-bit code at bit `Shift` of each, less 8.
    static HB_INLINE Bits bits(const void* p) {
        Bits result;
        std::memcpy(result.v, p, sizeof result.v);
        return result;
    }
    template <int Shift>
    static HB_INLINE Lanes nibble(Bits bits) {
        return make([&](int i) { return static_cast<float>(static_cast<int>(bits.v[i] >> Shift & 15) - 8); });
    }
    // The signed byte at bit `Shift` of each word.
    template <int Shift>
    static HB_INLINE Lanes signed_byte(Bits bits) {
        return make([&](int i) { return static_cast<float>(static_cast<int8_t>(bits.v[i] >> Shift)); });
    }

    static HB_INLINE Ints ints(int32_t x) {
        Ints result;
        for (int32_t& lane : result.v) lane = x;
        return result;
    }
    template <class Byte>
    static HB_INLINE Ints ints(const Byte* p) {
        Ints result;
        for (int i = 0; i < 16; ++i) result.v[i] = p[i];
        return result;
    }
    // The nearest whole numbers, for magnitudes below 2^22.
    static HB_INLINE Ints whole(Lanes a) {
        a = round(a);
        Ints result;
        for (int i = 0; i < 16; ++i) result.v[i] = static_cast<int32_t>(a.v[i]);
        return result;
    }
    // The bits of the largest magnitude of both; infinity is larger than any number, and NaN than infinity.
    static HB_INLINE uint32_t largest_magnitude(Lanes a, Lanes b) {
        uint32_t top = 0;
        for (int i = 0; i < 16; ++i) {
            const uint32_t x = std::bit_cast<uint32_t>(a.v[i]) & 0x7fffffffu, y = std::bit_cast<uint32_t>(b.v[i]) & 0x7fffffffu;
            const uint32_t larger = x > y ? x : y;
            top = larger > top ? larger : top;
        }
        return top;
    }
    static HB_INLINE Lanes from(Ints x) {
        return make([&](int i) { return static_cast<float>(x.v[i]); });
    }
    // Each byte's bits under `mask` after a shift to the right, or to the left if `Shift` is negative.
    template <int Shift>
    static HB_INLINE Bits fields(Bits bits, uint8_t mask) {
        for (uint32_t& word : bits.v) word = (Shift < 0 ? word << (Shift < 0 ? -Shift : 0) : word >> (Shift < 0 ? 0 : Shift)) & mask * 0x01010101u;
        return bits;
    }
    static HB_INLINE Bits either(Bits a, Bits b) {
        for (int i = 0; i < 16; ++i) a.v[i] |= b.v[i];
        return a;
    }
    // sum + the four products of each word's bytes, below 128 if unsigned, and the four codes at x
    static HB_INLINE Ints dot(Ints sum, Bits codes, const int8_t* x) { return dot_signed(sum, codes, x); }
    static HB_INLINE Ints dot_signed(Ints sum, Bits codes, const int8_t* x) {
        for (int i = 0; i < 16; ++i)
            for (int byte = 0; byte < 4; ++byte) sum.v[i] += static_cast<int8_t>(codes.v[i] >> 8 * byte) * x[byte];
        return sum;
    }
};

}  // namespace halfbyte::HB_ISA
