#include "compiler.h"

#if defined(HB_ARM)

#define HB_ISA neon_dot
#define HB_DOT_PRODUCT

#include "lanes_neon.h"

#include "kernels_impl.h"

constinit const halfbyte::Kernels halfbyte::kernels_neon_dot = halfbyte::neon_dot::table();

#endif
