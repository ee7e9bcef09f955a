#include "threads.h"

#include <chrono>

#include "compiler.h"

namespace halfbyte {
namespace {

// Between steps little time passes, unless the others have no core to run on; between tokens the caller samples.
constexpr auto kSpinBetweenSteps = std::chrono::microseconds(50), kSpinBetweenCalls = std::chrono::microseconds(300);
constexpr int kPausesBetweenLooks = 16;

// Waits until `value` is no longer `old`: spinning first, then asleep.
void wait_for_change(const std::atomic<uint32_t>& value, uint32_t old, std::chrono::microseconds spin) {
    const auto deadline = std::chrono::steady_clock::now() + spin;
    do {
        for (int i = 0; i < kPausesBetweenLooks; ++i) {
            if (value.load(std::memory_order_acquire) != old) return;
            pause();
        }
    } while (std::chrono::steady_clock::now() < deadline);
    while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

void Barrier::wait() {
    if (threads_ == 1) return;
    const uint32_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < threads_) return wait_for_change(phase_, phase, kSpinBetweenSteps);
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
}

Pool::Pool(int threads) : size_(threads), barrier_(threads) {
    threads_.reserve(threads - 1);
    try {
        for (int index = 1; index < threads; ++index) threads_.emplace_back([this, index] { serve(index); });
    } catch (...) {
        stop();
        throw;
    }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
    job_ = nullptr;
    calls_.fetch_add(1, std::memory_order_release);
    calls_.notify_all();
    for (auto& thread : threads_) thread.join();
}

void Pool::run(const Job& job) {
    job_ = &job;
    calls_.fetch_add(1, std::memory_order_release);
    calls_.notify_all();
    job({0, size(), &barrier_});
    barrier_.wait();
}

void Pool::serve(int index) {
    for (uint32_t seen = 0;; ++seen) {
        wait_for_change(calls_, seen, kSpinBetweenCalls);
        if (!job_) return;
        (*job_)({index, size_, &barrier_});
        barrier_.wait();
    }
}

}  // namespace halfbyte
