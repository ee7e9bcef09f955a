#include "machine.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "buffer.h"

namespace halfbyte {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Reads all values; the sum only keeps the compiler from leaving that out.
uint64_t read(const uint64_t* values, int64_t count) {
    uint64_t sums[32] = {};
    for (int64_t i = 0; i + 32 <= count; i += 32)
        for (int j = 0; j < 32; ++j) sums[j] ^= values[i + j];
    uint64_t all = 0;
    for (const uint64_t sum : sums) all ^= sum;
    return all;
}

}  // namespace

double read_bandwidth(Pool& pool, int64_t nbytes, double seconds) {
    const Buffer buffer(nbytes);
    uint64_t* values = buffer.as<uint64_t>();
    const int64_t count = nbytes / static_cast<int64_t>(sizeof(uint64_t));
    std::atomic<uint64_t> result{0};
    pool.run([&](const Worker& worker) {
        const auto [begin, end] = worker.share(count);
        std::memset(values + begin, 1, (end - begin) * sizeof(uint64_t));
    });
    double best = 0;
    const auto start = Clock::now();
    do {
        const auto pass = Clock::now();
        pool.run([&](const Worker& worker) {
            const auto [begin, end] = worker.share(count);
            result.fetch_xor(read(values + begin, end - begin), std::memory_order_relaxed);
        });
        best = std::max(best, static_cast<double>(nbytes) / seconds_since(pass));
    } while (seconds_since(start) < seconds);
    return best;
}

}  // namespace halfbyte
