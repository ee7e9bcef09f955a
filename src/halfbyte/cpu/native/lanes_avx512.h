// 16 floats in one AVX-512 register. What each function means is said in lanes_generic.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "storage.h"

namespace halfbyte::HB_ISA {

struct Lanes {
    using Bits = __m512i;
    static constexpr int kTokenBlock = 14, kDotRows = 4, kDotTokens = 6, kValueRows = 8;

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
    static HB_INLINE Lanes power_of_two(Lanes n) {
        const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
    }
    HB_INLINE float sum() const { return _mm512_reduce_add_ps(v); }

    static HB_INLINE Bits bits(const void* p) { return _mm512_loadu_si512(p); }
    // The permutation looks at the lowest four bits of each lane only, so no mask is needed.
    template <int Shift>
    static HB_INLINE Lanes nibble(Bits bits) {
        const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
        return {_mm512_permutexvar_ps(_mm512_srli_epi32(bits, Shift), values)};
    }
};

}  // namespace halfbyte::HB_ISA
