#include "buffer.h"

#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace halfbyte {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kCacheLine = 64;

size_t alignment(size_t nbytes) { return nbytes >= 2 * kHugePage ? kHugePage : kCacheLine; }

}  // namespace

Buffer::Buffer(size_t nbytes) : nbytes_(nbytes) {
    if (nbytes == 0) return;
    data_ = ::operator new(nbytes, std::align_val_t{alignment(nbytes)});
#if defined(__linux__)
    if (alignment(nbytes) == kHugePage) madvise(data_, nbytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), nbytes_(std::exchange(other.nbytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(nbytes_, other.nbytes_);
    return *this;
}

Buffer::~Buffer() {
    if (data_) ::operator delete(data_, std::align_val_t{alignment(nbytes_)});
}

}  // namespace halfbyte
