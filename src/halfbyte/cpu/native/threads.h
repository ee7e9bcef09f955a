// A team of threads that runs one job at a time: the caller is thread 0, the others wait for it.
//
// Waiting threads spin, for tens of microseconds between two steps and for hundreds between two tokens, and then sleep
// until they are woken. Where there are more threads than processors they sleep at once: another one needs the processor.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
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
    Barrier(int threads, bool spin) : threads_(threads), spin_(spin) {}
    void wait();

private:
    const int threads_;
    const bool spin_;
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

// Work that a team shares out while it runs: each thread has a range of items of its own and, when that is done, takes
// what is left of the others', so that none waits for one that was held up.
class Shares {
public:
    explicit Shares(int threads) : shares_(threads) {}

    // Lays down a thread's range. All threads must have done so, and met at a barrier, before any takes.
    void give(const Worker& worker, Range own) {
        Share& mine = shares_[worker.index];
        mine.end = own.end;
        mine.next.store(own.begin, std::memory_order_relaxed);
    }
    // Calls use(range) until nothing is left. Ranges get smaller towards the end, down to `least` items.
    template <class Use>
    void take(const Worker& worker, int64_t least, const Use& use) {
        for (int i = 0; i < worker.count; ++i) {
            Share& share = shares_[(worker.index + i) % worker.count];
            for (Range range = share.part(least); range.size() > 0; range = share.part(least)) use(range);
        }
    }

private:
    struct alignas(64) Share {
        std::atomic<int64_t> next{0};
        int64_t end = 0;

        Range part(int64_t least) {
            constexpr int64_t kParts = 4;  // of what is left
            int64_t begin = next.load(std::memory_order_relaxed), past = begin;
            do {
                if (begin >= end) return {};
                const int64_t size = (end - begin) / kParts / least * least;
                past = begin + (size > least ? size : least);
                if (past > end) past = end;
            } while (!next.compare_exchange_weak(begin, past, std::memory_order_relaxed));
            return {begin, past};
        }
    };

    std::vector<Share> shares_;
};

class Pool {
public:
    using Job = std::function<void(const Worker&)>;

    // Starts `threads` - 1 threads; `spin` where each has a processor to itself.
    Pool(int threads, bool spin);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int size() const { return size_; }
    // The right to call `run`, which one caller has at a time.
    std::unique_lock<std::mutex> turn() { return std::unique_lock(team().turn); }
    // Runs `job` once on every thread and returns when all are done. The job must not throw.
    void run(const Job& job) { team().run(job); }

private:
    // The threads of one process. A process that was forked has none of them, and makes a team of its own.
    struct Team {
        Team(int size, bool spin);
        ~Team();
        void run(const Job& job);
        void serve(int index);
        void stop();

        const int64_t process;
        const int size;
        const bool spin;
        std::mutex turn;
        Barrier barrier;
        const Job* job = nullptr;  // null tells the threads to end
        alignas(64) std::atomic<uint32_t> calls{0};
        std::vector<std::thread> threads;
    };

    Team& team();

    const int size_;
    const bool spin_;
    std::atomic<Team*> team_;
};

}  // namespace halfbyte
