#include "program.h"

#include <chrono>

namespace halfbyte {
namespace {

// Floats from one thread's scratch to the next: whole cache lines, and not the same cache sets.
int64_t spaced(int64_t floats) { return (floats + 15) / 16 * 16 + 80; }

int64_t now_ns() { return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1); }

}  // namespace

Program::Program(int threads, Isa isa, int64_t context, bool int8, bool spin)
    : isa_(isa), kernels_(kernels_for(isa)), int8_(int8 ? &int8_kernels_for(isa) : nullptr), pool_(threads, spin), shares_(threads), inputs_(context) {}

void Program::add(std::unique_ptr<Step> step) {
    const Scratch needed = step->scratch(pool_.size());
    if (spaced(needed.local) > local_floats_) {
        local_floats_ = spaced(needed.local);
        local_ = Buffer(pool_.size() * local_floats_ * sizeof(float));
    }
    if (needed.shared * sizeof(float) > shared_.nbytes()) shared_ = Buffer(needed.shared * sizeof(float));
    steps_.push_back(std::move(step));
    step_ns_.push_back(0);
}

void Program::run(int64_t tokens, int64_t rows, bool hidden) {
    const auto turn = pool_.turn();
    called_ns_ = now_ns();
    batch_ = {tokens, rows, hidden};
    inputs_.check(batch_);
    pool_.run([this](const Worker& worker) { run_steps(worker); });
}

void Program::run_steps(const Worker& worker) {
    Context context{0, worker, &kernels_, local_.as<float>() + worker.index * local_floats_, shared_.as<float>(), &shares_, int8_};
    int64_t before = now_ns();
    if (worker.index == 0) start_ns_ = before - called_ns_;
    for (size_t i = 0; i < steps_.size(); ++i) {
        context.count = batch_.count(steps_[i]->axis);
        if (context.count > 0) {
            steps_[i]->run(context);
            worker.sync();
        }
        if (worker.index > 0) continue;
        const int64_t after = now_ns();
        step_ns_[i] = context.count > 0 ? after - before : 0;
        before = after;
    }
}

}  // namespace halfbyte
