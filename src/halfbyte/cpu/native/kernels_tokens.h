// How the tokens of a product are divided among register tiles. Part of kernels_impl.h and int8_impl.h.
#pragma once

namespace halfbyte::HB_ISA {

// Tokens in near-equal blocks of at most `most`.
struct TokenBlocks {
    int64_t tokens, most = Lanes::kTokenBlock;

    HB_INLINE int64_t count() const { return (tokens + most - 1) / most; }
    HB_INLINE int64_t start(int64_t block) const { return block * tokens / count(); }
};

}  // namespace halfbyte::HB_ISA
