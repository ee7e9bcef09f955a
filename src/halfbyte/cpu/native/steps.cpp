#include "steps.h"

#include <map>

namespace halfbyte {
namespace {

using Make = StepPtr (*)(const Fields&, Inputs&);

// By the names of the classes in halfbyte/plan/ops.py.
const std::map<std::string, Make> kOps{
    {"Add", make_add},
    {"Attention", make_attention},
    {"CausalConv", make_causal_conv},
    {"Embed", make_embed},
    {"GateColumns", make_gate_columns},
    {"GateHeads", make_gate_heads},
    {"GatedActivation", make_gated_activation},
    {"GatedDeltaRule", make_gated_delta_rule},
    {"GatedLinear", make_gated_linear},
    {"GatedNorm", make_gated_norm},
    {"KvWrite", make_kv_write},
    {"Linear", make_linear},
    {"LowRank", make_low_rank},
    {"QkNorm", make_qk_norm},
    {"RmsNorm", make_rms_norm},
    {"Rope", make_rope},
    {"RopeKvWrite", make_rope_kv_write},
    {"RopeTable", make_rope_table},
    {"Rows", make_rows},
    {"Scale", make_scale},
    {"Softcap", make_softcap},
    {"SplitGates", make_split_gates},
};

}  // namespace

StepPtr make_step(const std::string& name, const Fields& fields, Inputs& inputs) {
    const auto found = kOps.find(name);
    require(found != kOps.end(), "the CPU core has no op '" + name + "'");
    return found->second(fields, inputs);
}

std::vector<std::string> op_names() {
    std::vector<std::string> names;
    for (const auto& [name, make] : kOps) names.push_back(name);
    return names;
}

}  // namespace halfbyte
