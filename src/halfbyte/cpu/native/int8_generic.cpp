#define HB_ISA generic

#include "lanes_generic.h"

#include "int8_impl.h"

constinit const halfbyte::Int8Kernels halfbyte::int8_generic = halfbyte::generic::int8_table();
