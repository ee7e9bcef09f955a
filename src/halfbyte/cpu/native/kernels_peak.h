// The arithmetic of 8-bit products and nothing else: how fast could they be? Part of kernels_impl.h.
#pragma once

namespace halfbyte::HB_ISA {

// As many sums as the register tile of `int8_tile` has, over operands that stay in the first cache. Returns how many
// products of two bytes were added; `out` [16] only keeps the compiler from leaving them out.
static int64_t peak_int8(int64_t rounds, float* out) {
    constexpr int kCodes = 4;
    alignas(64) uint8_t codes[kCodes][64];
    int8_t x[kCodes][Lanes::kInt8Tokens * 4];
    for (int k = 0; k < kCodes; ++k) {
        for (int i = 0; i < 64; ++i) codes[k][i] = static_cast<uint8_t>((i + k) % 16);
        for (int i = 0; i < Lanes::kInt8Tokens * 4; ++i) x[k][i] = static_cast<int8_t>((3 * i + k) % 17 - 8);
    }
    typename Lanes::Ints sums[Lanes::kInt8Tokens];
    for (auto& sum : sums) sum = Lanes::ints(0);
    for (int64_t round = 0; round < rounds; ++round) {
        const int k = static_cast<int>(round % kCodes);
        const typename Lanes::Bits bits = Lanes::bits(codes[k]);
        for (int t = 0; t < Lanes::kInt8Tokens; ++t) sums[t] = Lanes::dot(sums[t], bits, x[k] + 4 * t);
    }
    Lanes total = Lanes::from(sums[0]);
    for (int t = 1; t < Lanes::kInt8Tokens; ++t) total = total + Lanes::from(sums[t]);
    total.store(out);
    return rounds * Lanes::kInt8Tokens * 64;
}

}  // namespace halfbyte::HB_ISA
