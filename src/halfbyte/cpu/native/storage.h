// Tags for the plain types that kernels load.
#pragma once

#include <cstdint>

#include "compiler.h"

namespace halfbyte {

struct F32 {
    static constexpr int kBytes = 4;
};
struct F16 {
    static constexpr int kBytes = 2;
};
struct BF16 {
    static constexpr int kBytes = 2;
};
struct U8 {
    static constexpr int kBytes = 1;
};

}  // namespace halfbyte
