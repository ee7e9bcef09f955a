#include "interpreter.h"

#if defined(__GLIBC__) && defined(__GLIBCXX__)
#include <cxxabi.h>
#include <unistd.h>
#define HB_FORCED_UNWIND 1
#endif

namespace halfbyte {

// A daemon thread that asks for the lock after the interpreter has ended is stopped by Python with `pthread_exit`. In
// glibc that unwinds the stack as an exception does, through functions that must not throw, and so ends the process.
// Such a thread sleeps here instead, until the process has ended by itself.
void take_lock(PyThreadState* thread) {
#if defined(HB_FORCED_UNWIND)
    try {
        PyEval_RestoreThread(thread);
    } catch (const abi::__forced_unwind&) {
        for (;;) ::pause();
    }
#else
    PyEval_RestoreThread(thread);
#endif
}

}  // namespace halfbyte
