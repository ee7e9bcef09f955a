// The Python module `halfbyte._mapped`: keeps a process alive when a file that it has mapped is cut short.
//
// A read of a page that the file no longer has raises SIGBUS, in whatever thread and code the read is. The handler here
// puts zeros in the place of the rest of the map, so that the read goes on, and notes that the map is lost; whoever read
// then asks for that. Faults outside the ranges that are guarded go to the handler that was there before. On Windows a
// mapped file cannot be cut.
#include <nanobind/nanobind.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

#if !defined(_WIN32)
#include <csignal>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#endif

namespace nb = nanobind;
using namespace nb::literals;

namespace halfbyte {
namespace {

// A range of memory that is guarded, free while `end` is 0. The handler reads the list without a lock, so ranges are
// used again but never freed.
struct Range {
    std::atomic<uintptr_t> begin{0}, end{0};
    std::atomic<bool> lost{false};
    Range* next = nullptr;
};

std::atomic<Range*> ranges{nullptr};
std::mutex changes;

#if !defined(_WIN32)
struct sigaction previous;
std::atomic<bool> passed_on{false};
uintptr_t page_size = 0;

// Has the signal handled by whoever did so before, or as the system does where that one hands it back.
void pass_on(bool sent) {
    struct sigaction next = previous;
    if (passed_on.exchange(true)) {
        next = {};
        next.sa_handler = SIG_DFL;
    }
    sigaction(SIGBUS, &next, nullptr);
    if (sent) raise(SIGBUS);  // a fault comes again by itself
}

void on_bus_error(int, siginfo_t* info, void*) {
    const int error = errno;
    const auto at = reinterpret_cast<uintptr_t>(info->si_addr);
    const bool sent = info->si_code <= 0;
    for (Range* range = ranges.load(); range && !sent; range = range->next) {
        const uintptr_t end = range->end.load();
        if (at < range->begin.load() || at >= end) continue;
        const uintptr_t first = at / page_size * page_size;
        void* zeros = mmap(reinterpret_cast<void*>(first), end - first, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANON, -1, 0);
        if (zeros == MAP_FAILED) break;
        range->lost = true;
        errno = error;
        return;
    }
    pass_on(sent);
    errno = error;
}

// Installs the handler, before those that others have installed meanwhile.
void arm() {
    struct sigaction current;
    sigaction(SIGBUS, nullptr, &current);
    if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == on_bus_error) return;
    const std::lock_guard lock(changes);
    page_size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    previous = current;
    passed_on = false;
    struct sigaction ours{};
    ours.sa_sigaction = on_bus_error;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, nullptr);
}
#else
void arm() {}
#endif

// Guards the bytes of a map while it exists.
class Guard {
public:
    Guard(uintptr_t address, size_t nbytes) {
        arm();
        const std::lock_guard lock(changes);
        for (range_ = ranges; range_ && range_->end != 0; range_ = range_->next) {}
        if (!range_) {
            range_ = new Range;
            range_->next = ranges;
            ranges = range_;
        }
        range_->lost = false;
        range_->begin = address;
        range_->end = address + nbytes;
    }
    ~Guard() {
        const std::lock_guard lock(changes);
        range_->end = 0;
    }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

    bool lost() const {
        arm();
        return range_->lost;
    }

private:
    Range* range_;
};

}  // namespace
}  // namespace halfbyte

NB_MODULE(_mapped, module) {
    using halfbyte::Guard;
    nb::set_leak_warnings(false);  // what a running thread holds when the interpreter ends is no leak
    nb::class_<Guard>(module, "Guard")
        .def(nb::init<uintptr_t, size_t>(), "address"_a, "nbytes"_a)
        .def("lost", &Guard::lost);
}
