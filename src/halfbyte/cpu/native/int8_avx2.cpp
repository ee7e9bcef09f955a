#include "compiler.h"

#if defined(HB_X86)

#define HB_ISA avx2

#include "lanes_avx2.h"

#include "int8_impl.h"

constinit const halfbyte::Int8Kernels halfbyte::int8_avx2 = halfbyte::avx2::int8_table();

#endif
