// What this machine could do at most, measured by doing nothing else.
#pragma once

#include "isa.h"
#include "threads.h"

namespace halfbyte {

// Bytes a second that all threads of the pool together read and write when copying a buffer of `nbytes`, the best of as
// many passes as `seconds` allow.
double copy_bandwidth(Pool& pool, int64_t nbytes, double seconds);

// Products of two 8-bit integers a second that all threads of the pool together add up with an instruction set.
double int8_rate(Pool& pool, Isa isa, double seconds);

}  // namespace halfbyte
