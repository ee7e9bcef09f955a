// The arithmetic of 8-bit products and nothing else: how fast could they be? Part of int8_impl.h.
#pragma once

namespace halfbyte::HB_ISA {

// As many sums as the register tile of `int8_tiles` has, over operands that stay in the first cache; `rounds` is a multiple of
// 4. Returns how many products of two bytes were added; `out` [16] only keeps the compiler from leaving them out.
static int64_t peak(int64_t rounds, float* out) {
    constexpr int kCodes = 4, kTiles = Lanes::kInt8Tiles, kTokens = Lanes::kInt8Tokens;
    alignas(64) uint8_t codes[kCodes][kTiles][64];
    int8_t x[kCodes][kTokens * 4];
    for (int k = 0; k < kCodes; ++k) {
        for (int i = 0; i < 64; ++i)
            for (auto& tile : codes[k]) tile[i] = static_cast<uint8_t>((i + k) % 16);
        for (int i = 0; i < kTokens * 4; ++i) x[k][i] = static_cast<int8_t>((3 * i + k) % 17 - 8);
    }
    typename Lanes::Ints sums[kTiles][kTokens];
    for (auto& tile : sums)
        for (auto& sum : tile) sum = Lanes::ints(0);
    for (int64_t round = 0; round < rounds; round += kCodes) {
        unrolled<kCodes>([&](auto i) HB_LAMBDA {
            const int64_t k = (round / kCodes + i) % kCodes;  // not known at compile time, or products would be made only once
            typename Lanes::Bits bits[kTiles];
            for (int tile = 0; tile < kTiles; ++tile) bits[tile] = Lanes::bits(codes[k][tile]);
            for (int t = 0; t < kTokens; ++t)
                for (int tile = 0; tile < kTiles; ++tile) sums[tile][t] = Lanes::dot(sums[tile][t], bits[tile], x[k] + 4 * t);
        });
    }
    Lanes total = Lanes::broadcast(0);
    for (const auto& tile : sums)
        for (const auto& sum : tile) total = total + Lanes::from(sum);
    total.store(out);
    return rounds * kTiles * kTokens * 64;
}

}  // namespace halfbyte::HB_ISA
