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

std::shared_ptr<std::byte> Arena::take(size_t nbytes) {
    constexpr size_t kBuffer = size_t{64} << 20;
    nbytes = (nbytes + kCacheLine - 1) / kCacheLine * kCacheLine;
    if (!buffer_ || nbytes > buffer_->nbytes() - used_) {
        buffer_ = std::make_shared<Buffer>(nbytes > kBuffer ? nbytes : kBuffer);
        used_ = 0;
    }
    const std::shared_ptr<std::byte> taken(buffer_, buffer_->as<std::byte>() + used_);
    used_ += nbytes;
    return taken;
}

Buffer::~Buffer() {
    if (data_) ::operator delete(data_, std::align_val_t{alignment(nbytes_)});
}

}  // namespace halfbyte
