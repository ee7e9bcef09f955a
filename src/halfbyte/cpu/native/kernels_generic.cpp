#define HB_ISA generic

#include "lanes_generic.h"

#include "kernels_impl.h"

constinit const halfbyte::Kernels halfbyte::kernels_generic = halfbyte::generic::table();
