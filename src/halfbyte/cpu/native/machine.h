// What the memory of this machine can do.
#pragma once

#include "threads.h"

namespace halfbyte {

// Bytes a second that all threads of the pool together read from a buffer of `nbytes`, the best of as many passes as
// `seconds` allow.
double read_bandwidth(Pool& pool, int64_t nbytes, double seconds);

}  // namespace halfbyte
