#include "threads.h"

#include <chrono>
#include <memory>

#include "compiler.h"

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace halfbyte {
namespace {

// Between steps little time passes, unless the others have no core to run on; between tokens the caller samples.
constexpr auto kSpinBetweenSteps = std::chrono::microseconds(50), kSpinBetweenCalls = std::chrono::microseconds(300);
constexpr auto kNoSpin = std::chrono::microseconds(0);
constexpr int kPausesBetweenLooks = 16;

// Waits until `value` is no longer `old`: spinning first, then asleep.
void wait_for_change(const std::atomic<uint32_t>& value, uint32_t old, std::chrono::microseconds spin) {
    const auto start = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() - start < spin) {
        for (int i = 0; i < kPausesBetweenLooks; ++i) {
            if (value.load(std::memory_order_acquire) != old) return;
            pause();
        }
    }
    while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

int64_t this_process() {
#if defined(_WIN32)
    return 0;
#else
    return getpid();
#endif
}

}  // namespace

void Barrier::wait() {
    if (threads_ == 1) return;
    const uint32_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < threads_) {
        return wait_for_change(phase_, phase, spin_ ? kSpinBetweenSteps : kNoSpin);
    }
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
}

Pool::Pool(int threads, bool spin) : size_(threads), spin_(spin), team_(new Team(threads, spin)) {}

Pool::~Pool() {
    Team* team = team_.load();
    if (team->process == this_process()) delete team;
}

// The team of the process that this one was forked from is left as it is: its threads are not here, and its lock may be
// held by one of them.
Pool::Team& Pool::team() {
    Team* known = team_.load(std::memory_order_acquire);
    if (known->process == this_process()) return *known;
    auto own = std::make_unique<Team>(size_, spin_);
    if (team_.compare_exchange_strong(known, own.get())) return *own.release();
    return *known;
}

Pool::Team::Team(int size, bool spin) : process(this_process()), size(size), spin(spin), barrier(size, spin) {
    threads.reserve(size - 1);
    try {
        for (int index = 1; index < size; ++index) threads.emplace_back([this, index] { serve(index); });
    } catch (...) {
        stop();
        throw;
    }
}

Pool::Team::~Team() { stop(); }

void Pool::Team::stop() {
    job = nullptr;
    calls.fetch_add(1, std::memory_order_release);
    calls.notify_all();
    for (auto& thread : threads) thread.join();
}

void Pool::Team::run(const Job& work) {
    job = &work;
    calls.fetch_add(1, std::memory_order_release);
    calls.notify_all();
    work({0, size, &barrier});
    barrier.wait();
}

void Pool::Team::serve(int index) {
    for (uint32_t seen = 0;; ++seen) {
        wait_for_change(calls, seen, spin ? kSpinBetweenCalls : kNoSpin);
        if (!job) return;
        (*job)({index, size, &barrier});
        barrier.wait();
    }
}

}  // namespace halfbyte
