#include "compiler.h"

#if defined(HB_X86)

#define HB_ISA avx_vnni
#define HB_DOT_PRODUCT

#include "lanes_avx2.h"

#include "int8_impl.h"

constinit const halfbyte::Int8Kernels halfbyte::int8_avx_vnni = halfbyte::avx_vnni::int8_table();

#endif
