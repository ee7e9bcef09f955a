// Memory that kernels stream: aligned to cache lines, in huge pages where the system grants them, not initialized.
#pragma once

#include <cstddef>

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

}  // namespace halfbyte
