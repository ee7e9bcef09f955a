// A plan lowered to native steps, and the threads that run it.
#pragma once

#include <memory>
#include <vector>

#include "buffer.h"
#include "inputs.h"
#include "kernels.h"
#include "threads.h"

namespace halfbyte {

// Scratch memory, in floats: for each thread, and for all together.
struct Scratch {
    int64_t local = 0, shared = 0;
};

// What a step has when it runs on one thread.
struct Context {
    int64_t count;  // tokens, or rows of logits, that it is to work on
    Worker worker;
    const Kernels* kernels;
    float* local;
    float* shared;
    Shares* shares;
    const Int8Kernels* int8;  // where activations are rounded to 8 bits for packed weights, or null
};

// One op with its arrays. Every thread calls `run`; the steps of a program are separated by barriers.
class Step {
public:
    explicit Step(Axis axis) : axis(axis) {}
    virtual ~Step() = default;
    virtual Scratch scratch(int /*threads*/) const { return {}; }
    virtual void run(const Context& context) const = 0;

    const Axis axis;
};

class Program {
public:
    // Runs on `threads` threads, positions being below `context`; `int8` rounds activations to 8 bits for packed
    // weights; `spin` where each thread has a processor to itself.
    Program(int threads, Isa isa, int64_t context, bool int8, bool spin);

    Pool& pool() { return pool_; }
    // Memory for matrices.
    Arena& arena() { return arena_; }
    Isa isa() const { return isa_; }
    Inputs& inputs() { return inputs_; }
    void add(std::unique_ptr<Step> step);
    // Runs all steps for this many tokens and rows of logits, those of the axis `hidden` if that is wanted; a second caller waits. Throws
    // `std::invalid_argument` for bad state, before anything is written.
    void run(int64_t tokens, int64_t rows, bool hidden = false);
    // How long each step took in the last run, in nanoseconds; 0 for steps that had nothing to do.
    const std::vector<int64_t>& step_ns() const { return step_ns_; }
    // Nanoseconds of the last run from the call to its first step: checking the state and waking the threads.
    int64_t start_ns() const { return start_ns_; }

private:
    void run_steps(const Worker& worker);

    Isa isa_;
    const Kernels& kernels_;
    const Int8Kernels* int8_;
    Pool pool_;
    Arena arena_;
    Shares shares_;
    Inputs inputs_;
    std::vector<std::unique_ptr<Step>> steps_;
    std::vector<int64_t> step_ns_;
    int64_t called_ns_ = 0, start_ns_ = 0;
    Buffer local_, shared_;
    int64_t local_floats_ = 0;
    Batch batch_;
};

}  // namespace halfbyte
