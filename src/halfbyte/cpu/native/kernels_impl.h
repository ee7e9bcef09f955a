// The inner loops with floats, written once in terms of `Lanes`, the 16 floats of the instruction set being compiled.
//
// Included by one file an instruction set, after its lanes. Nothing here may have a name outside the namespace of that
// instruction set: the linker would be free to give its code to processors that cannot run it. The table is made at
// compile time for the same reason.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "half.h"
#include "kernels.h"
#include "tensor.h"

// Parts, in the order in which they build on each other.
#include "kernels_math.h"
#include "kernels_dense.h"
#include "kernels_tokens.h"
#include "kernels_packed.h"
#include "kernels_attend.h"
#include "kernels_cache.h"
#include "kernels_choose.h"

namespace halfbyte::HB_ISA {

#define HB_PLAIN_PRODUCT(name, Tag) dense_product<Tag>,
#define HB_PACKED_PRODUCT(name) packed_product<name::Format>,

static constexpr Kernels table() {
    return {
        .pack = pack,
        .product = {HB_PLAIN_FORMATS(HB_PLAIN_PRODUCT) HB_PACKED_FORMATS(HB_PACKED_PRODUCT)},
        .rms_norm = rms_norm,
        .gate = gate,
        .add = add,
        .softcap = softcap,
        .rotate = rotate,
        .to_half = to_half,
        .to_codes = to_codes,
        .attend = {{score<F32>, weigh, add_values<F32>},
                   {score<F16>, weigh, add_values<F16>},
                   {score_codes<Q8>, weigh, add_codes<Q8>},
                   {score_codes<Q4>, weigh, add_codes<Q4>}},
        .blend = blend,
        .run_maxima = run_maxima,
        .exp_sum = exp_sum,
        .weigh_scores = weigh_scores,
        .may_win = may_win,
    };
}

}  // namespace halfbyte::HB_ISA
