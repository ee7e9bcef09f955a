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

// What a cache keeps of a head: its values, or codes of 8 or 4 bits in runs of 32 with one f16 scale each, the last run
// filled up with zeros. In 4 bits a byte holds code i of a run and, above it, code i + 16, each plus 8.
enum class CacheType { f32, f16, q8, q4 };

// A paged cache [blocks, kv_heads, block_size, head_dim]. One of keys holds each head's part of a block as
// [head_dim, block_size] instead. In 8 and 4 bits a head's part of a block is its codes, then its scales.
struct Cache {
    std::byte* data = nullptr;
    CacheType type = CacheType::f32;
    int64_t blocks = 0, kv_heads = 0, block_size = 0, head_dim = 0;

    static constexpr int64_t kRun = 32;

    bool rounded() const { return type == CacheType::q8 || type == CacheType::q4; }
    bool half() const { return type == CacheType::f16; }
    // Bytes of a plain value.
    int64_t item() const { return half() ? 2 : 4; }
    int64_t runs() const { return (head_dim + kRun - 1) / kRun; }
    int lowest() const { return type == CacheType::q8 ? -128 : -8; }
    // Bytes of a run's codes.
    int64_t run_bytes() const { return type == CacheType::q8 ? kRun : kRun / 2; }
    // Bytes of a position of one head.
    int64_t row_bytes() const { return rounded() ? runs() * (run_bytes() + 2) : head_dim * item(); }
    // One head of one block, and where its scales begin.
    std::byte* head(int64_t block, int64_t kv_head) const {
        return data + (block * kv_heads + kv_head) * block_size * row_bytes();
    }
    int64_t scales_at() const { return block_size * runs() * run_bytes(); }
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

// Throws where `count` values from `at` on do not fit a row.
inline void require_room(Floats rows, int64_t at, int64_t count, const char* what) {
    require(at <= rows.columns && count <= rows.columns - at,
            std::to_string(count) + " " + what + " from " + std::to_string(at) + " on do not fit rows of " + std::to_string(rows.columns));
}

}  // namespace halfbyte
