// 16 floats in two AVX registers. What each function means is said in lanes_generic.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "storage.h"

namespace halfbyte::HB_ISA {

struct Lanes {
    struct Bits {
        __m256i low, high;
    };
    static constexpr int kTokenBlock = 6, kDotRows = 2, kDotTokens = 3, kAttendQueries = 3;
    static constexpr int kInt8Tiles = 1, kInt8Tokens = 4, kSignedBias = 0;

    struct Ints {
        __m256i low, high;
        friend HB_INLINE Ints operator<<(Ints a, int bits) { return {_mm256_slli_epi32(a.low, bits), _mm256_slli_epi32(a.high, bits)}; }
        friend HB_INLINE Ints operator>>(Ints a, int bits) { return {_mm256_srai_epi32(a.low, bits), _mm256_srai_epi32(a.high, bits)}; }
        friend HB_INLINE Ints operator&(Ints a, int32_t mask) {
            const __m256i eight = _mm256_set1_epi32(mask);
            return {_mm256_and_si256(a.low, eight), _mm256_and_si256(a.high, eight)};
        }
        HB_INLINE int32_t sum() const {
            const __m256i eight = _mm256_add_epi32(low, high);
            const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
            const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
            return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
        }
        HB_INLINE void store_bytes(int8_t* p) const {
            const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
        }
    };

    __m256 low, high;

    static HB_INLINE Lanes broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
    static HB_INLINE Lanes load(F32, const void* p) {
        const float* x = static_cast<const float*>(p);
        return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)};
    }
    static HB_INLINE Lanes load(F16, const void* p) {
        const __m128i* x = static_cast<const __m128i*>(p);
        return {_mm256_cvtph_ps(_mm_loadu_si128(x)), _mm256_cvtph_ps(_mm_loadu_si128(x + 1))};
    }
    static HB_INLINE Lanes load(BF16, const void* p) {
        const __m128i* x = static_cast<const __m128i*>(p);
        return {widen(_mm_loadu_si128(x)), widen(_mm_loadu_si128(x + 1))};
    }
    static HB_INLINE Lanes load(U8, const void* p) {
        const __m128i x = _mm_loadu_si128(static_cast<const __m128i*>(p));
        return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)))};
    }
    HB_INLINE void store(float* p) const {
        _mm256_storeu_ps(p, low);
        _mm256_storeu_ps(p + 8, high);
    }
    HB_INLINE void store_half(uint16_t* p) const {
        __m128i* out = reinterpret_cast<__m128i*>(p);
        _mm_storeu_si128(out, _mm256_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT));
        _mm_storeu_si128(out + 1, _mm256_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT));
    }

    friend HB_INLINE Lanes operator+(Lanes a, Lanes b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
    friend HB_INLINE Lanes operator-(Lanes a, Lanes b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
    friend HB_INLINE Lanes operator*(Lanes a, Lanes b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
    friend HB_INLINE Lanes operator/(Lanes a, Lanes b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
    static HB_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) {
        return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
    }
    static HB_INLINE Lanes max(Lanes a, Lanes b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
    static HB_INLINE Lanes min(Lanes a, Lanes b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
    static HB_INLINE Lanes round(Lanes a) {
        constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        return {_mm256_round_ps(a.low, nearest), _mm256_round_ps(a.high, nearest)};
    }
    static HB_INLINE Lanes scale(Lanes a, Lanes n) { return a * Lanes{power_of_two(n.low), power_of_two(n.high)}; }
    HB_INLINE float sum() const {
        const __m256 eight = _mm256_add_ps(low, high);
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    HB_INLINE float largest() const {
        const __m256 eight = _mm256_max_ps(low, high);
        const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
    }

    static HB_INLINE Bits bits(const void* p) {
        const __m256i* x = static_cast<const __m256i*>(p);
        return {_mm256_loadu_si256(x), _mm256_loadu_si256(x + 1)};
    }
    template <int Shift>
    static HB_INLINE Lanes nibble(Bits bits) {
        return {nibble<Shift>(bits.low), nibble<Shift>(bits.high)};
    }
    template <int Shift>
    static HB_INLINE Lanes signed_byte(Bits bits) {
        return {signed_byte<Shift>(bits.low), signed_byte<Shift>(bits.high)};
    }

    static HB_INLINE Ints ints(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
    static HB_INLINE Ints ints(const uint8_t* p) {
        const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return {_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))};
    }
    static HB_INLINE Ints ints(const int8_t* p) {
        const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return {_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))};
    }
    static HB_INLINE Ints whole(Lanes a) { return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)}; }
    static HB_INLINE uint32_t largest_magnitude(Lanes a, Lanes b) {
        const __m256i eight = _mm256_max_epi32(_mm256_max_epi32(magnitude(a.low), magnitude(a.high)),
                                               _mm256_max_epi32(magnitude(b.low), magnitude(b.high)));
        const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
        const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
        return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1))));
    }
    static HB_INLINE Lanes from(Ints x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
    template <int Shift>
    static HB_INLINE Bits fields(Bits bits, uint8_t mask) {
        return {fields<Shift>(bits.low, mask), fields<Shift>(bits.high, mask)};
    }
    static HB_INLINE Bits either(Bits a, Bits b) { return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)}; }
    static HB_INLINE Bits lookup(Bits bits, const int8_t (&table)[16]) {
        const __m256i entries = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
        return {_mm256_shuffle_epi8(entries, bits.low), _mm256_shuffle_epi8(entries, bits.high)};
    }
    static HB_INLINE Ints dot(Ints sum, Bits codes, const int8_t* x) {
        const __m256i four = broadcast_four(x);
        return {dot(sum.low, codes.low, four), dot(sum.high, codes.high, four)};
    }
    // |code| · (x with the code's sign): pairs of products then fit 16 bits.
    static HB_INLINE Ints dot_signed(Ints sum, Bits codes, const int8_t* x) {
        const __m256i four = broadcast_four(x);
        return {dot(sum.low, _mm256_abs_epi8(codes.low), _mm256_sign_epi8(four, codes.low)),
                dot(sum.high, _mm256_abs_epi8(codes.high), _mm256_sign_epi8(four, codes.high))};
    }

private:
    static HB_INLINE __m256i magnitude(__m256 x) { return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff)); }
    template <int Shift>
    static HB_INLINE __m256i fields(__m256i bits, uint8_t mask) {
        const __m256i moved = Shift < 0 ? _mm256_slli_epi32(bits, -Shift & 31) : _mm256_srli_epi32(bits, Shift & 31);
        return _mm256_and_si256(moved, _mm256_set1_epi8(static_cast<char>(mask)));
    }
    static HB_INLINE __m256i broadcast_four(const int8_t* x) {
        int32_t bytes;
        std::memcpy(&bytes, x, sizeof bytes);
        return _mm256_set1_epi32(bytes);
    }
    static HB_INLINE __m256i dot(__m256i sum, __m256i codes, __m256i x) {
#if defined(HB_DOT_PRODUCT)
        return _mm256_dpbusd_avx_epi32(sum, codes, x);
#else
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)));
#endif
    }
    template <int Shift>
    static HB_INLINE __m256 signed_byte(__m256i bits) {
        return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(bits, 24 - Shift), 24));
    }
    static HB_INLINE __m256 widen(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
    static HB_INLINE __m256 power_of_two(__m256 n) {
        const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
    }
    template <int Shift>
    static HB_INLINE __m256 nibble(__m256i bits) {
        const __m256i code = _mm256_and_si256(_mm256_srli_epi32(bits, Shift), _mm256_set1_epi32(15));
        return _mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(8)));
    }
};

}  // namespace halfbyte::HB_ISA
