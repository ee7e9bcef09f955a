// 16 floats in four vectors of 4, which compilers map to whatever is the platform's baseline.
//
// This is the interface that every instruction set implements and kernels_impl.h is written in. Loads take any
// address. The constants size register tiles: tokens of a panel product, rows and tokens of a block of dot products,
// queries that attend together, tiles and tokens of a product with 8-bit activations.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "half.h"
#include "storage.h"

namespace halfbyte::HB_ISA {

// GCC and Clang compile vectors many times faster than the loops over lanes that would be unrolled and vectorized again.
#if defined(__GNUC__)
typedef float Floats4 __attribute__((vector_size(16)));
typedef int32_t Ints4 __attribute__((vector_size(16)));
typedef uint32_t Words4 __attribute__((vector_size(16)));

template <class To, class From>
static HB_INLINE To converted(From x) { return __builtin_convertvector(x, To); }
#else
template <class T>
struct Four {
    T v[4];
    HB_INLINE T& operator[](int i) { return v[i]; }
    HB_INLINE T operator[](int i) const { return v[i]; }
#define HB_LANEWISE(op) \
    friend HB_INLINE Four operator op(Four a, Four b) { return {a[0] op b[0], a[1] op b[1], a[2] op b[2], a[3] op b[3]}; } \
    friend HB_INLINE Four operator op(Four a, T b) { return {a[0] op b, a[1] op b, a[2] op b, a[3] op b}; }
    HB_LANEWISE(+) HB_LANEWISE(-) HB_LANEWISE(*) HB_LANEWISE(/) HB_LANEWISE(&) HB_LANEWISE(|) HB_LANEWISE(<<) HB_LANEWISE(>>)
#undef HB_LANEWISE
};
using Floats4 = Four<float>;
using Ints4 = Four<int32_t>;
using Words4 = Four<uint32_t>;

template <class To, class From>
static HB_INLINE To converted(From x) {
    To to;
    for (int i = 0; i < 4; ++i) to[i] = static_cast<std::remove_reference_t<decltype(to[i])>>(x[i]);
    return to;
}
#endif

struct Lanes {
    struct Bits {
        Words4 v[4];
    };
    static constexpr int kTokenBlock = 2, kDotRows = 2, kDotTokens = 1, kAttendQueries = 4;
    static constexpr int kInt8Tiles = 1, kInt8Tokens = 2;
    // What `dot_signed` adds to each code, and a sum must therefore start without.
    static constexpr int kSignedBias = 0;

    // 16 whole numbers.
    struct Ints {
        Ints4 v[4];
        friend HB_INLINE Ints operator<<(Ints a, int bits) {
            for (Ints4& four : a.v) four = four << bits;
            return a;
        }
        friend HB_INLINE Ints operator>>(Ints a, int bits) {
            for (Ints4& four : a.v) four = four >> bits;
            return a;
        }
        friend HB_INLINE Ints operator&(Ints a, int32_t mask) {
            for (Ints4& four : a.v) four = four & mask;
            return a;
        }
        HB_INLINE int32_t sum() const {
            int32_t total = 0;
            for (int i = 0; i < 16; ++i) total += v[i / 4][i % 4];
            return total;
        }
        // As signed bytes, which hold them.
        HB_INLINE void store_bytes(int8_t* p) const {
            for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(v[i / 4][i % 4]);
        }
    };

    Floats4 v[4];

    // The four vectors part(0) … part(3).
    template <class Part>
    static HB_INLINE Lanes make(const Part& part) {
        return {part(0), part(1), part(2), part(3)};
    }
    // The 16 numbers number(0) … number(15).
    template <class Number>
    static HB_INLINE Lanes each(const Number& number) {
        float values[16];
        for (int i = 0; i < 16; ++i) values[i] = number(i);
        return load(F32{}, values);
    }
    static HB_INLINE Lanes broadcast(float x) {
        return make([&](int) HB_LAMBDA { return Floats4{x, x, x, x}; });
    }
    static HB_INLINE Lanes load(F32, const void* p) {
        Lanes result;
        std::memcpy(result.v, p, sizeof result.v);
        return result;
    }
    static HB_INLINE Lanes load(F16, const void* p) {
        uint16_t x[16];
        std::memcpy(x, p, sizeof x);
        return each([&](int i) HB_LAMBDA { return half_to_float(x[i]); });
    }
    static HB_INLINE Lanes load(BF16, const void* p) {
        uint16_t x[16];
        std::memcpy(x, p, sizeof x);
        return each([&](int i) HB_LAMBDA { return bfloat_to_float(x[i]); });
    }
    static HB_INLINE Lanes load(U8, const void* p) { return from(ints(static_cast<const uint8_t*>(p))); }
    HB_INLINE void store(float* p) const { std::memcpy(p, v, sizeof v); }
    HB_INLINE void store_half(uint16_t* p) const {
        for (int i = 0; i < 16; ++i) p[i] = float_to_half(v[i / 4][i % 4]);
    }

    friend HB_INLINE Lanes operator+(Lanes a, Lanes b) {
        return make([&](int i) HB_LAMBDA { return a.v[i] + b.v[i]; });
    }
    friend HB_INLINE Lanes operator-(Lanes a, Lanes b) {
        return make([&](int i) HB_LAMBDA { return a.v[i] - b.v[i]; });
    }
    friend HB_INLINE Lanes operator*(Lanes a, Lanes b) {
        return make([&](int i) HB_LAMBDA { return a.v[i] * b.v[i]; });
    }
    friend HB_INLINE Lanes operator/(Lanes a, Lanes b) {
        return make([&](int i) HB_LAMBDA { return a.v[i] / b.v[i]; });
    }
    // a · b + c
    static HB_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) {
        return make([&](int i) HB_LAMBDA { return a.v[i] * b.v[i] + c.v[i]; });
    }
    // The larger, the smaller; NaN where b is NaN, not always where a is.
    static HB_INLINE Lanes max(Lanes a, Lanes b) {
        return each([&](int i) HB_LAMBDA { return a.at(i) > b.at(i) ? a.at(i) : b.at(i); });
    }
    static HB_INLINE Lanes min(Lanes a, Lanes b) {
        return each([&](int i) HB_LAMBDA { return a.at(i) < b.at(i) ? a.at(i) : b.at(i); });
    }
    // To the nearest whole number, for magnitudes below 2^22.
    static HB_INLINE Lanes round(Lanes a) {
        const float shift = 0x1.8p23f;
        return make([&](int i) HB_LAMBDA { return (a.v[i] + shift) - shift; });
    }
    // a · 2^n for whole n in -126 … 127.
    static HB_INLINE Lanes scale(Lanes a, Lanes n) {
        return make([&](int i) HB_LAMBDA { return a.v[i] * std::bit_cast<Floats4>((converted<Ints4>(n.v[i]) + 127) << 23); });
    }
    HB_INLINE float sum() const {
        float total = 0;
        for (int i = 0; i < 16; ++i) total += at(i);
        return total;
    }
    HB_INLINE float largest() const {
        float top = at(0);
        for (int i = 1; i < 16; ++i) top = at(i) > top ? at(i) : top;
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
        return make([&](int i) HB_LAMBDA { return converted<Floats4>(std::bit_cast<Ints4>(bits.v[i] >> Shift & 15) - 8); });
    }
    // The signed byte at bit `Shift` of each word.
    template <int Shift>
    static HB_INLINE Lanes signed_byte(Bits bits) {
        return make([&](int i) HB_LAMBDA { return converted<Floats4>(std::bit_cast<Ints4>(bits.v[i] << (24 - Shift)) >> 24); });
    }

    static HB_INLINE Ints ints(int32_t x) {
        const Ints4 four{x, x, x, x};
        return {{four, four, four, four}};
    }
    template <class Byte>
    static HB_INLINE Ints ints(const Byte* p) {
        int32_t values[16];
        for (int i = 0; i < 16; ++i) values[i] = p[i];
        Ints result;
        std::memcpy(result.v, values, sizeof values);
        return result;
    }
    // The nearest whole numbers, for magnitudes below 2^22.
    static HB_INLINE Ints whole(Lanes a) {
        a = round(a);
        Ints result;
        for (int i = 0; i < 4; ++i) result.v[i] = converted<Ints4>(a.v[i]);
        return result;
    }
    // The bits of the largest magnitude of both; infinity is larger than any number, and NaN than infinity.
    static HB_INLINE uint32_t largest_magnitude(Lanes a, Lanes b) {
        uint32_t top = 0;
        for (int i = 0; i < 16; ++i) {
            const uint32_t x = std::bit_cast<uint32_t>(a.at(i)) & 0x7fffffffu, y = std::bit_cast<uint32_t>(b.at(i)) & 0x7fffffffu;
            const uint32_t larger = x > y ? x : y;
            top = larger > top ? larger : top;
        }
        return top;
    }
    static HB_INLINE Lanes from(Ints x) {
        return make([&](int i) HB_LAMBDA { return converted<Floats4>(x.v[i]); });
    }
    // Each byte's bits under `mask` after a shift to the right, or to the left if `Shift` is negative.
    template <int Shift>
    static HB_INLINE Bits fields(Bits bits, uint8_t mask) {
        for (Words4& four : bits.v) four = (Shift < 0 ? four << (Shift < 0 ? -Shift : 0) : four >> (Shift < 0 ? 0 : Shift)) & mask * 0x01010101u;
        return bits;
    }
    static HB_INLINE Bits either(Bits a, Bits b) {
        for (int i = 0; i < 4; ++i) a.v[i] = a.v[i] | b.v[i];
        return a;
    }
    // The entry of a table for each byte, which are all below 16.
    static HB_INLINE Bits lookup(Bits bits, const int8_t (&table)[16]) {
        uint8_t bytes[64];
        std::memcpy(bytes, bits.v, sizeof bytes);
        for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(table[byte]);
        std::memcpy(bits.v, bytes, sizeof bytes);
        return bits;
    }
    // sum + the four products of each word's bytes, below 128 if unsigned, and the four codes at x
    static HB_INLINE Ints dot(Ints sum, Bits codes, const int8_t* x) { return dot_signed(sum, codes, x); }
    static HB_INLINE Ints dot_signed(Ints sum, Bits codes, const int8_t* x) {
        int32_t sums[16];
        uint32_t words[16];
        std::memcpy(sums, sum.v, sizeof sums);
        std::memcpy(words, codes.v, sizeof words);
        for (int i = 0; i < 16; ++i)
            for (int byte = 0; byte < 4; ++byte) sums[i] += static_cast<int8_t>(words[i] >> 8 * byte) * x[byte];
        std::memcpy(sum.v, sums, sizeof sums);
        return sum;
    }

private:
    HB_INLINE float at(int i) const { return v[i / 4][i % 4]; }
};

}  // namespace halfbyte::HB_ISA
