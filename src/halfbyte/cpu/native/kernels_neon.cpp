#include "compiler.h"

#if defined(HB_ARM)

#define HB_ISA neon

#include "lanes_neon.h"

#include "kernels_impl.h"

constinit const halfbyte::Kernels halfbyte::kernels_neon = halfbyte::neon::table();

#endif
