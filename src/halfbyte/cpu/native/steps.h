// One function an op of the plan: checks its arrays against each other and gives the step that runs it.
//
// Shapes are capacities. Each throws `std::invalid_argument` where arrays disagree. What ops compute is defined in
// halfbyte/plan/ops.py.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "matrix.h"
#include "program.h"
#include "tensor.h"

namespace halfbyte {

using StepPtr = std::unique_ptr<Step>;
using MatrixPtr = std::shared_ptr<const Matrix>;
using Weights = std::span<const float>;

struct Norm {
    float eps, offset;
};

// How q and k are normed, each by its weight [head_dim].
struct QkNorms {
    Weights q, k;
    Norm norm;
};

// elementwise.cpp
StepPtr make_embed(Inputs&, State ids, MatrixPtr table, Floats out, float scale);
StepPtr make_rows(Inputs&, Floats x, State rows, Floats out);
StepPtr make_add(Axis, Floats x, Floats y, Floats out);
StepPtr make_gated_activation(Axis, Floats x, Floats out, Activation);
StepPtr make_softcap(Axis, Floats x, Floats out, float cap);

// linear.cpp; `bias` is empty and `residual.data` null where there is none
StepPtr make_linear(Axis, Floats x, std::vector<MatrixPtr> weights, Weights bias, Floats out, Floats residual);
StepPtr make_gated_linear(Axis, Floats x, std::vector<MatrixPtr> weights, Floats out, Activation);

// norm.cpp
StepPtr make_rms_norm(Axis, Floats x, Weights weight, Floats out, Norm, Floats residual);
StepPtr make_qk_norm(Heads, Floats qkv, QkNorms, Floats out);

// rope.cpp; a rope table's row holds D/2 cosines, then D/2 sines
StepPtr make_rope_table(Inputs&, State positions, State sets, Table<const float> inv_freq, Floats out, float factor);
StepPtr make_rope(Heads, Floats qkv, Floats table, Floats out);
StepPtr make_kv_write(Inputs&, Heads, Floats qkv, Paging, Cache k, Cache v);
StepPtr make_rope_kv_write(Inputs&, Heads, Floats qkv, Floats table, std::optional<QkNorms>, Paging, Cache k, Cache v, Floats out);

// attention.cpp
struct AttentionScores {
    float scale;
    int64_t window;  // 0 for all positions
    float softcap;   // 0 for none
};
StepPtr make_attention(Inputs&, Heads, Floats q, Cache k, Cache v, Paging, Floats out, AttentionScores);

}  // namespace halfbyte
