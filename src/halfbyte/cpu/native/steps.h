// One function for each op of the plan: checks its fields against each other and gives the step that runs it.
//
// Shapes are capacities. Each throws `std::invalid_argument` where fields disagree. What ops compute is defined in
// halfbyte/plan/ops.py. A new op is its function here and its line in steps.cpp.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "fields.h"
#include "program.h"

namespace halfbyte {

using StepPtr = std::unique_ptr<Step>;

// The step of the op called `name`; `inputs` gets to know what its state may hold.
StepPtr make_step(const std::string& name, const Fields&, Inputs& inputs);
// The names of all ops.
std::vector<std::string> op_names();

// elementwise.cpp
StepPtr make_add(const Fields&, Inputs&);
StepPtr make_embed(const Fields&, Inputs&);
StepPtr make_gate_columns(const Fields&, Inputs&);
StepPtr make_gated_activation(const Fields&, Inputs&);
StepPtr make_rows(const Fields&, Inputs&);
StepPtr make_scale(const Fields&, Inputs&);
StepPtr make_softcap(const Fields&, Inputs&);

// linear.cpp
StepPtr make_gated_linear(const Fields&, Inputs&);
StepPtr make_linear(const Fields&, Inputs&);

// low_rank.cpp
StepPtr make_low_rank(const Fields&, Inputs&);

// norm.cpp
StepPtr make_qk_norm(const Fields&, Inputs&);
StepPtr make_rms_norm(const Fields&, Inputs&);

// rope.cpp; a rope table's row holds D/2 cosines, then D/2 sines
StepPtr make_kv_write(const Fields&, Inputs&);
StepPtr make_rope(const Fields&, Inputs&);
StepPtr make_rope_kv_write(const Fields&, Inputs&);
StepPtr make_rope_table(const Fields&, Inputs&);

// conv.cpp
StepPtr make_causal_conv(const Fields&, Inputs&);

// delta.cpp
StepPtr make_gate_heads(const Fields&, Inputs&);
StepPtr make_gated_delta_rule(const Fields&, Inputs&);
StepPtr make_gated_norm(const Fields&, Inputs&);
StepPtr make_split_gates(const Fields&, Inputs&);

// attention.cpp
StepPtr make_attention(const Fields&, Inputs&);

}  // namespace halfbyte
