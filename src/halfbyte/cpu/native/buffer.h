// Memory that kernels stream: aligned to cache lines, in huge pages where the system grants them, not initialized.
#pragma once

#include <cstddef>
#include <memory>

namespace halfbyte {

class Buffer {
public:
    Buffer() = default;
    explicit Buffer(size_t nbytes);
    Buffer(Buffer&& other) noexcept;
    Buffer& operator=(Buffer&& other) noexcept;
    ~Buffer();

    template <class T>
    T* as() const {
        return static_cast<T*>(data_);
    }
    size_t nbytes() const { return nbytes_; }

private:
    void* data_ = nullptr;
    size_t nbytes_ = 0;
};

// Hands out memory behind each other from large buffers, so that small arrays lie in huge pages too. A buffer lives as
// long as anything in it does.
class Arena {
public:
    std::shared_ptr<std::byte> take(size_t nbytes);

private:
    std::shared_ptr<Buffer> buffer_;
    size_t used_ = 0;
};

}  // namespace halfbyte
