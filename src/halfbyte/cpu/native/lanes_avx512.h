// 16 floats in one AVX-512 register. What each function means is said in lanes_generic.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "storage.h"

namespace halfbyte::HB_ISA {

struct Lanes {
    using Bits = __m512i;
    static constexpr int kTokenBlock = 14, kDotRows = 4, kDotTokens = 6, kAttendQueries = 12;
    static constexpr int kInt8Tiles = 2, kInt8Tokens = 8, kSignedBias = 128;

    struct Ints {
        __m512i v;
        friend HB_INLINE Ints operator<<(Ints a, int bits) { return {_mm512_slli_epi32(a.v, bits)}; }
        friend HB_INLINE Ints operator>>(Ints a, int bits) { return {_mm512_srai_epi32(a.v, static_cast<unsigned>(bits))}; }
        friend HB_INLINE Ints operator&(Ints a, int32_t mask) { return {_mm512_and_si512(a.v, _mm512_set1_epi32(mask))}; }
        HB_INLINE int32_t sum() const { return _mm512_reduce_add_epi32(v); }
        HB_INLINE void store_bytes(int8_t* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v)); }
    };

    __m512 v;

    static HB_INLINE Lanes broadcast(float x) { return {_mm512_set1_ps(x)}; }
    static HB_INLINE Lanes load(F32, const void* p) { return {_mm512_loadu_ps(p)}; }
    static HB_INLINE Lanes load(F16, const void* p) {
        return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))};
    }
    static HB_INLINE Lanes load(BF16, const void* p) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
    }
    static HB_INLINE Lanes load(U8, const void* p) {
        return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))))};
    }
    HB_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
    HB_INLINE void store_half(uint16_t* p) const {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }

    friend HB_INLINE Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
    friend HB_INLINE Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
    friend HB_INLINE Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
    friend HB_INLINE Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
    static HB_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
    static HB_INLINE Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
    static HB_INLINE Lanes min(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
    static HB_INLINE Lanes round(Lanes a) {
        return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
    }
    static HB_INLINE Lanes scale(Lanes a, Lanes n) { return {_mm512_scalef_ps(a.v, n.v)}; }
    HB_INLINE float sum() const { return _mm512_reduce_add_ps(v); }
    HB_INLINE float largest() const { return _mm512_reduce_max_ps(v); }

    static HB_INLINE Bits bits(const void* p) { return _mm512_loadu_si512(p); }
    // The permutation looks at the lowest four bits of each lane only, so no mask is needed.
    template <int Shift>
    static HB_INLINE Lanes nibble(Bits bits) {
        const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
        return {_mm512_permutexvar_ps(_mm512_srli_epi32(bits, Shift), values)};
    }
    template <int Shift>
    static HB_INLINE Lanes signed_byte(Bits bits) {
        return {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(bits, 24 - Shift), 24))};
    }

    static HB_INLINE Ints ints(int32_t x) { return {_mm512_set1_epi32(x)}; }
    static HB_INLINE Ints ints(const uint8_t* p) {
        return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
    }
    static HB_INLINE Ints ints(const int8_t* p) {
        return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
    }
    static HB_INLINE Ints whole(Lanes a) { return {_mm512_cvtps_epi32(a.v)}; }
    static HB_INLINE uint32_t largest_magnitude(Lanes a, Lanes b) {
        const __m512i positive = _mm512_set1_epi32(0x7fffffff);
        const __m512i x = _mm512_and_si512(_mm512_castps_si512(a.v), positive), y = _mm512_and_si512(_mm512_castps_si512(b.v), positive);
        return _mm512_reduce_max_epu32(_mm512_max_epu32(x, y));
    }
    static HB_INLINE Lanes from(Ints x) { return {_mm512_cvtepi32_ps(x.v)}; }
    template <int Shift>
    static HB_INLINE Bits fields(Bits bits, uint8_t mask) {
        const __m512i moved = Shift < 0 ? _mm512_slli_epi32(bits, -Shift & 31) : _mm512_srli_epi32(bits, Shift & 31);
        return _mm512_and_si512(moved, _mm512_set1_epi8(static_cast<char>(mask)));
    }
    static HB_INLINE Bits either(Bits a, Bits b) { return _mm512_or_si512(a, b); }
    static HB_INLINE Bits lookup(Bits bits, const int8_t (&table)[16]) {
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table))), bits);
    }
    static HB_INLINE Ints dot(Ints sum, Bits codes, const int8_t* x) { return {_mm512_dpbusd_epi32(sum.v, codes, four(x))}; }
    // The unsigned operand gets 128 more than the code; `kSignedBias` takes it back.
    static HB_INLINE Ints dot_signed(Ints sum, Bits codes, const int8_t* x) {
        return dot(sum, _mm512_xor_si512(codes, _mm512_set1_epi8(-128)), x);
    }

private:
    static HB_INLINE __m512i four(const int8_t* x) {
        int32_t bytes;
        std::memcpy(&bytes, x, sizeof bytes);
        return _mm512_set1_epi32(bytes);
    }
};

}  // namespace halfbyte::HB_ISA
