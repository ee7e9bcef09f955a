#include "peak.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "buffer.h"
#include "kernels.h"

namespace halfbyte {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// The best rate of passes over `amount`, begun until `seconds` are over.
template <class Pass>
double best_rate(double seconds, Pass pass) {
    double best = 0;
    const auto start = Clock::now();
    do {
        const auto begin = Clock::now();
        const auto amount = static_cast<double>(pass());
        best = std::max(best, amount / seconds_since(begin));
    } while (seconds_since(start) < seconds);
    return best;
}

}  // namespace

double copy_bandwidth(Pool& pool, int64_t nbytes, double seconds) {
    const Buffer from(nbytes), to(nbytes);
    pool.run([&](const Worker& worker) {
        const auto [begin, end] = worker.share(nbytes);
        std::memset(from.as<char>() + begin, 1, end - begin);
        std::memset(to.as<char>() + begin, 2, end - begin);
    });
    return best_rate(seconds, [&] {
        pool.run([&](const Worker& worker) {
            const auto [begin, end] = worker.share(nbytes);
            std::memcpy(to.as<char>() + begin, from.as<char>() + begin, end - begin);
        });
        return 2 * nbytes;
    });
}

double int8_rate(Pool& pool, Isa isa, double seconds) {
    constexpr int64_t kRounds = 1 << 18;
    std::atomic<int64_t> added{0};
    return best_rate(seconds, [&] {
        added = 0;
        pool.run([&](const Worker&) {
            float out[kTileRows];
            added += int8_kernels_for(isa).peak(kRounds, out);
        });
        return added.load();
    });
}

}  // namespace halfbyte
