// What differs between compilers: forced inlining (of functions, of lambdas), a pause in a spin loop, prefetching.
#pragma once

#if defined(_MSC_VER)
#include <intrin.h>
#define HB_INLINE __forceinline
#define HB_LAMBDA
#else
#define HB_INLINE inline __attribute__((always_inline))
#define HB_LAMBDA __attribute__((always_inline))
#endif

#if defined(HB_GENERIC)
// Only the plain C++ kernels: all instruction sets share their loops, so that these are enough for sanitizers.
#elif defined(__x86_64__) || defined(_M_X64)
#define HB_X86 1
#elif defined(__aarch64__) || defined(_M_ARM64)
#define HB_ARM 1
#endif

namespace halfbyte {

// Tells the core that this is a spin loop.
static HB_INLINE void pause() {
#if defined(_MSC_VER) && defined(HB_X86)
    _mm_pause();
#elif defined(_MSC_VER)
    __yield();
#elif defined(HB_X86)
    __builtin_ia32_pause();
#elif defined(HB_ARM)
    __asm__ volatile("yield");
#endif
}

// Asks for a cache line that will be read soon; it need not exist.
static HB_INLINE void prefetch(const void* line) {
#if defined(_MSC_VER) && defined(HB_X86)
    _mm_prefetch(static_cast<const char*>(line), _MM_HINT_T0);
#elif defined(_MSC_VER)
    __prefetch(line);
#else
    __builtin_prefetch(line);
#endif
}

// Asks for a cache line that will be read after some time: into the second-level cache, so that nothing in use is displaced.
static HB_INLINE void prefetch_early(const void* line) {
#if defined(_MSC_VER) && defined(HB_X86)
    _mm_prefetch(static_cast<const char*>(line), _MM_HINT_T1);
#elif defined(_MSC_VER)
    __prefetch2(line, 2);
#else
    __builtin_prefetch(line, 0, 2);
#endif
}

}  // namespace halfbyte
