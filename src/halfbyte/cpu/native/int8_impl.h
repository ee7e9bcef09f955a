// The inner loops with activations rounded to 8 bits, written once in terms of `Lanes`; the rules of kernels_impl.h hold.
#pragma once

#include <bit>
#include <cstring>
#include <utility>

#include "kernels.h"

#include "kernels_tokens.h"
#include "kernels_int8.h"
#include "kernels_peak.h"

namespace halfbyte::HB_ISA {

#define HB_INT8_PRODUCT(name) int8_product<name::Format>,

static constexpr Int8Kernels int8_table() {
    return {
        .quantize = quantize,
        .product = {HB_PACKED_FORMATS(HB_INT8_PRODUCT)},
        .peak = peak,
    };
}

}  // namespace halfbyte::HB_ISA
