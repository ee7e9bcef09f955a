#include "compiler.h"

#if defined(HB_ARM)

#define HB_ISA neon

#include "lanes_neon.h"

#include "int8_impl.h"

constinit const halfbyte::Int8Kernels halfbyte::int8_neon = halfbyte::neon::int8_table();

#endif
