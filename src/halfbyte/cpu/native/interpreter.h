// Work without the interpreter's lock.
#pragma once

#include <Python.h>

#include <exception>

namespace halfbyte {

// Takes the lock back for a thread that gave it up. Where the interpreter has ended meanwhile this does not return.
void take_lock(PyThreadState* thread);

// Calls work() without the lock.
template <class Work>
void without_lock(const Work& work) {
    PyThreadState* const thread = PyEval_SaveThread();
    std::exception_ptr thrown;
    try {
        work();
    } catch (...) {
        thrown = std::current_exception();
    }
    take_lock(thread);
    if (thrown) std::rethrow_exception(thrown);
}

}  // namespace halfbyte
