// 16 floats in four NEON registers. What each function means is said in lanes_generic.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "storage.h"

namespace halfbyte::HB_ISA {

struct Lanes {
    struct Bits {
        uint32x4_t v[4];
    };
    static constexpr int kTokenBlock = 6, kDotRows = 2, kDotTokens = 3, kAttendQueries = 3;
    static constexpr int kInt8Tiles = 1, kInt8Tokens = 4, kSignedBias = 0;

    struct Ints {
        int32x4_t v[4];
        friend HB_INLINE Ints operator<<(Ints a, int bits) {
            for (int32x4_t& quarter : a.v) quarter = vshlq_s32(quarter, vdupq_n_s32(bits));
            return a;
        }
        friend HB_INLINE Ints operator>>(Ints a, int bits) {
            for (int32x4_t& quarter : a.v) quarter = vshlq_s32(quarter, vdupq_n_s32(-bits));
            return a;
        }
        friend HB_INLINE Ints operator&(Ints a, int32_t mask) {
            for (int32x4_t& quarter : a.v) quarter = vandq_s32(quarter, vdupq_n_s32(mask));
            return a;
        }
        HB_INLINE int32_t sum() const { return vaddvq_s32(vaddq_s32(vaddq_s32(v[0], v[1]), vaddq_s32(v[2], v[3]))); }
        HB_INLINE void store_bytes(int8_t* p) const {
            const int16x8_t low = vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1])), high = vcombine_s16(vmovn_s32(v[2]), vmovn_s32(v[3]));
            vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        }
    };

    float32x4_t v[4];

    template <class Make>
    static HB_INLINE Lanes make(const Make& quarter) {
        return {{quarter(0), quarter(1), quarter(2), quarter(3)}};
    }
    static HB_INLINE Lanes broadcast(float x) {
        return make([&](int) { return vdupq_n_f32(x); });
    }
    static HB_INLINE Lanes load(F32, const void* p) {
        return make([&](int i) { return vreinterpretq_f32_u8(bytes(p, i)); });
    }
    static HB_INLINE Lanes load(F16, const void* p) {
        return make([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u8(half_bytes(p, i))); });
    }
    static HB_INLINE Lanes load(BF16, const void* p) {
        return make([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(half_bytes(p, i)), 16)); });
    }
    static HB_INLINE Lanes load(U8, const void* p) {
        const uint8x16_t x = vld1q_u8(static_cast<const uint8_t*>(p));
        const uint16x8_t low = vmovl_u8(vget_low_u8(x)), high = vmovl_u8(vget_high_u8(x));
        return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(low))),
                 vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(high)))}};
    }
    HB_INLINE void store(float* p) const {
        for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, v[i]);
    }
    HB_INLINE void store_half(uint16_t* p) const {
        for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(v[i])));
    }

    friend HB_INLINE Lanes operator+(Lanes a, Lanes b) {
        return make([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
    }
    friend HB_INLINE Lanes operator-(Lanes a, Lanes b) {
        return make([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
    }
    friend HB_INLINE Lanes operator*(Lanes a, Lanes b) {
        return make([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
    }
    friend HB_INLINE Lanes operator/(Lanes a, Lanes b) {
        return make([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
    }
    static HB_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) {
        return make([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
    }
    static HB_INLINE Lanes max(Lanes a, Lanes b) {
        return make([&](int i) { return vmaxq_f32(a.v[i], b.v[i]); });
    }
    static HB_INLINE Lanes min(Lanes a, Lanes b) {
        return make([&](int i) { return vminq_f32(a.v[i], b.v[i]); });
    }
    static HB_INLINE Lanes round(Lanes a) {
        return make([&](int i) { return vrndnq_f32(a.v[i]); });
    }
    static HB_INLINE Lanes scale(Lanes a, Lanes n) {
        return make([&](int i) {
            const int32x4_t biased = vaddq_s32(vcvtq_s32_f32(n.v[i]), vdupq_n_s32(127));
            return vmulq_f32(a.v[i], vreinterpretq_f32_s32(vshlq_n_s32(biased, 23)));
        });
    }
    HB_INLINE float largest() const { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(v[0], v[1]), vmaxq_f32(v[2], v[3]))); }
    HB_INLINE float sum() const { return vaddvq_f32(vaddq_f32(vaddq_f32(v[0], v[1]), vaddq_f32(v[2], v[3]))); }

    static HB_INLINE Bits bits(const void* p) {
        return {{vreinterpretq_u32_u8(bytes(p, 0)), vreinterpretq_u32_u8(bytes(p, 1)), vreinterpretq_u32_u8(bytes(p, 2)),
                 vreinterpretq_u32_u8(bytes(p, 3))}};
    }
    template <int Shift>
    static HB_INLINE Lanes nibble(Bits bits) {
        return make([&](int i) {
            const uint32x4_t code = vandq_u32(vshlq_u32(bits.v[i], vdupq_n_s32(-Shift)), vdupq_n_u32(15));
            return vcvtq_f32_s32(vsubq_s32(vreinterpretq_s32_u32(code), vdupq_n_s32(8)));
        });
    }
    template <int Shift>
    static HB_INLINE Lanes signed_byte(Bits bits) {
        return make([&](int i) {
            const int32x4_t top = vreinterpretq_s32_u32(vshlq_u32(bits.v[i], vdupq_n_s32(24 - Shift)));
            return vcvtq_f32_s32(vshrq_n_s32(top, 24));
        });
    }

    static HB_INLINE Ints ints(int32_t x) { return {{vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x)}}; }
    static HB_INLINE Ints ints(const uint8_t* p) {
        const uint8x16_t x = vld1q_u8(p);
        const uint16x8_t low = vmovl_u8(vget_low_u8(x)), high = vmovl_u8(vget_high_u8(x));
        return {{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
                 vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high)))}};
    }
    static HB_INLINE Ints ints(const int8_t* p) {
        const int8x16_t x = vld1q_s8(p);
        const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_s8(vget_high_s8(x));
        return {{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)), vmovl_s16(vget_high_s16(high))}};
    }
    static HB_INLINE Ints whole(Lanes a) {
        return {{vcvtnq_s32_f32(a.v[0]), vcvtnq_s32_f32(a.v[1]), vcvtnq_s32_f32(a.v[2]), vcvtnq_s32_f32(a.v[3])}};
    }
    static HB_INLINE uint32_t largest_magnitude(Lanes a, Lanes b) {
        uint32x4_t top = vdupq_n_u32(0);
        for (int i = 0; i < 4; ++i) top = vmaxq_u32(top, vmaxq_u32(magnitude(a.v[i]), magnitude(b.v[i])));
        return vmaxvq_u32(top);
    }
    static HB_INLINE Lanes from(Ints x) {
        return make([&](int i) { return vcvtq_f32_s32(x.v[i]); });
    }
    template <int Shift>
    static HB_INLINE Bits fields(Bits bits, uint8_t mask) {
        for (uint32x4_t& word : bits.v) word = vandq_u32(vshlq_u32(word, vdupq_n_s32(-Shift)), vdupq_n_u32(mask * 0x01010101u));
        return bits;
    }
    static HB_INLINE Bits either(Bits a, Bits b) {
        for (int i = 0; i < 4; ++i) a.v[i] = vorrq_u32(a.v[i], b.v[i]);
        return a;
    }
    static HB_INLINE Bits lookup(Bits bits, const int8_t (&table)[16]) {
        const int8x16_t entries = vld1q_s8(table);
        for (uint32x4_t& word : bits.v) word = vreinterpretq_u32_s8(vqtbl1q_s8(entries, vreinterpretq_u8_u32(word)));
        return bits;
    }
    static HB_INLINE Ints dot(Ints sum, Bits codes, const int8_t* x) { return dot_signed(sum, codes, x); }
    static HB_INLINE Ints dot_signed(Ints sum, Bits codes, const int8_t* x) {
        int32_t bytes;
        std::memcpy(&bytes, x, sizeof bytes);
        const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(bytes));
        for (int i = 0; i < 4; ++i) sum.v[i] = dot(sum.v[i], vreinterpretq_s8_u32(codes.v[i]), four);
        return sum;
    }

private:
    static HB_INLINE uint32x4_t magnitude(float32x4_t x) { return vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0x7fffffffu)); }
    static HB_INLINE int32x4_t dot(int32x4_t sum, int8x16_t a, int8x16_t b) {
#if defined(HB_DOT_PRODUCT)
        return vdotq_s32(sum, a, b);
#else
        const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_s8(vget_high_s8(a), vget_high_s8(b));
        return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
    }
    // Byte loads have no alignment to respect.
    static HB_INLINE uint8x16_t bytes(const void* p, int i) { return vld1q_u8(static_cast<const uint8_t*>(p) + 16 * i); }
    static HB_INLINE uint8x8_t half_bytes(const void* p, int i) { return vld1_u8(static_cast<const uint8_t*>(p) + 8 * i); }
};

}  // namespace halfbyte::HB_ISA
