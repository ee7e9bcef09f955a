// Views of arrays that somebody else owns, and the complaint when they do not fit together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

namespace halfbyte {

// A row-major array [rows, columns].
template <class T>
struct Table {
    T* data = nullptr;
    int64_t rows = 0;
    int64_t columns = 0;

    T* row(int64_t i) const { return data + i * columns; }
};

using Floats = Table<float>;
using State = std::span<const int32_t>;
using Weights = std::span<const float>;

// A paged cache [blocks, kv_heads, block_size, head_dim] of f16 or f32. One of keys holds each head's part of a block as
// [head_dim, block_size] instead.
struct Cache {
    std::byte* data = nullptr;
    bool half = false;
    int64_t blocks = 0, kv_heads = 0, block_size = 0, head_dim = 0;

    int64_t item() const { return half ? 2 : 4; }
    // One head of one block.
    std::byte* head(int64_t block, int64_t kv_head) const {
        return data + (block * kv_heads + kv_head) * block_size * head_dim * item();
    }
};

// How attention is divided: queries of `heads`, in equal groups for each of `kv_heads`.
struct Heads {
    int64_t heads, kv_heads, head_dim;

    int64_t group() const { return heads / kv_heads; }
    int64_t total() const { return heads + 2 * kv_heads; }
    int64_t width() const { return total() * head_dim; }
};

// Throws `std::invalid_argument` with `message` where arrays or attributes disagree.
inline void require(bool fits, const std::string& message) {
    if (!fits) throw std::invalid_argument(message);
}

inline void require_equal(int64_t found, int64_t expected, const char* what) {
    require(found == expected, std::string(what) + " is " + std::to_string(found) + ", expected " + std::to_string(expected));
}

}  // namespace halfbyte
