#include "compiler.h"

#if defined(HB_X86)

#define HB_ISA avx512

#include "lanes_avx512.h"

#include "int8_impl.h"

constinit const halfbyte::Int8Kernels halfbyte::int8_avx512 = halfbyte::avx512::int8_table();

#endif
