// Which instruction sets this processor and its operating system offer.
#pragma once

#include <string>
#include <vector>

#include "compiler.h"

namespace halfbyte {

// `neon_dot` and `avx_vnni` are neon and avx2 with an integer dot product; avx512 always has one.
enum class Isa { generic, neon, neon_dot, avx2, avx_vnni, avx512 };

// Those that kernels exist for, the best one last.
std::vector<Isa> available_isas();
const char* isa_name(Isa isa);
// Throws `std::invalid_argument` if there is no such name or it is not available here; empty means the best.
Isa find_isa(const std::string& name);
// The processor's own name for itself, or an empty string.
std::string processor_name();
// Instruction sets worth knowing about, by their usual names, kernels or not.
std::vector<std::string> processor_features();

}  // namespace halfbyte
