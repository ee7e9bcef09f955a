#include "compiler.h"

#if defined(HB_ARM)

#define HB_ISA neon_dot
#define HB_DOT_PRODUCT

#include "lanes_neon.h"

#include "int8_impl.h"

constinit const halfbyte::Int8Kernels halfbyte::int8_neon_dot = halfbyte::neon_dot::int8_table();

#endif
