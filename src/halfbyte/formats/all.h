// Every weight format of the CPU core, in one list from which the rest follows: names, packings, products.
//
// A plain format has a tag (storage.h). A packed one has a namespace that is called as the format is and holds `Format`
// (see tiles.h and q4g.h).
#pragma once

#include "ggml.h"
#include "ggml_k.h"
#include "ggml_table.h"
#include "q3g.h"
#include "q4g.h"
#include "q8g.h"
#include "storage.h"

#define HB_PLAIN_FORMATS(X) X(f32, F32) X(f16, F16) X(bf16, BF16)
#define HB_PACKED_FORMATS(X)                                                       \
    X(q3g) X(q4g) X(q8g) X(q4_1) X(q5_0) X(q5_1) X(q2_k) X(q3_k) X(q4_k) X(q5_k) X(q6_k) \
    X(iq4_nl) X(iq4_xs)

namespace halfbyte {

#define HB_NAME(name, ...) name,
enum class Storage { HB_PLAIN_FORMATS(HB_NAME) HB_PACKED_FORMATS(HB_NAME) };
#undef HB_NAME

#define HB_ONE(...) +1
constexpr int kPlainFormats = 0 HB_PLAIN_FORMATS(HB_ONE);
constexpr int kPackedFormats = 0 HB_PACKED_FORMATS(HB_ONE);
constexpr int kStorages = kPlainFormats + kPackedFormats;
#undef HB_ONE

constexpr bool is_packed(Storage storage) { return static_cast<int>(storage) >= kPlainFormats; }

}  // namespace halfbyte
