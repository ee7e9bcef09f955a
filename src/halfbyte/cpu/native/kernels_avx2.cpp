#include "compiler.h"

#if defined(HB_X86)

#define HB_ISA avx2

#include "lanes_avx2.h"

#include "kernels_impl.h"

constinit const halfbyte::Kernels halfbyte::kernels_avx2 = halfbyte::avx2::table();

#endif
