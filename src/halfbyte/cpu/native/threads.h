// A team of threads that runs one job at a time: the caller is thread 0, the others wait for it.
//
// Waiting threads spin for a few tens of microseconds, which covers the gap between two steps or two tokens, and then
// sleep until they are woken.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace halfbyte {

struct Range {
    int64_t begin = 0, end = 0;

    int64_t size() const { return end - begin; }
};

// Holds every thread of a team until all have arrived.
class Barrier {
public:
    explicit Barrier(int threads) : threads_(threads) {}
    void wait();

private:
    const int threads_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

// One thread's place in the team.
struct Worker {
    int index;
    int count;
    Barrier* barrier;

    // Waits until every thread of the team is here.
    void sync() const { barrier->wait(); }
    // This thread's part of `items` equal items.
    Range share(int64_t items) const { return {items * index / count, items * (index + 1) / count}; }
};

class Pool {
public:
    using Job = std::function<void(const Worker&)>;

    // Starts `threads` - 1 threads.
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int size() const { return size_; }
    // Runs `job` once on every thread and returns when all are done. The job must not throw.
    void run(const Job& job);

private:
    void serve(int index);
    void stop();

    const int size_;
    Barrier barrier_;
    const Job* job_ = nullptr;  // null tells the threads to end
    alignas(64) std::atomic<uint32_t> calls_{0};
    std::vector<std::thread> threads_;
};

}  // namespace halfbyte
