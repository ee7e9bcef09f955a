#include "compiler.h"

#if defined(HB_X86)

#define HB_ISA avx512

#include "lanes_avx512.h"

#include "kernels_impl.h"

constinit const halfbyte::Kernels halfbyte::kernels_avx512 = halfbyte::avx512::table();

#endif
