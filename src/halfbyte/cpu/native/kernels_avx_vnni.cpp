#include "compiler.h"

#if defined(HB_X86)

#define HB_ISA avx_vnni
#define HB_DOT_PRODUCT

#include "lanes_avx2.h"

#include "kernels_impl.h"

constinit const halfbyte::Kernels halfbyte::kernels_avx_vnni = halfbyte::avx_vnni::table();

#endif
