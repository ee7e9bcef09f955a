// The random numbers that tokens are drawn with: those of halfbyte/sampling/noise.py, which says where they come from.
#pragma once

#include <cstdint>

#include "compiler.h"

namespace halfbyte {

// The noise of one token of a sequence, for every id that it could be.
struct Noise {
    uint32_t x, y;

    Noise(uint64_t seed, uint64_t position)
        : x(mixed(static_cast<uint32_t>(seed) ^ static_cast<uint32_t>(position) * 0x9E3779B9u)),
          y(mixed(static_cast<uint32_t>(seed >> 32) + static_cast<uint32_t>(position))) {}

    // A uniform number between 0 and 1, a whole multiple of 2^-23 and one half more: the hash pcg3d.
    HB_INLINE float tail(int32_t id) const {
        uint32_t z = static_cast<uint32_t>(id) * 1664525u + 1013904223u;
        uint32_t first = x + y * z, second = y + z * first;
        z += first * second;
        first ^= first >> 16, second ^= second >> 16, z ^= z >> 16;
        first += second * z;
        second += z * first;
        z += first * second;
        return (static_cast<float>(static_cast<int32_t>(z >> 9)) + 0.5f) * 0x1p-23f;
    }
    // Gumbel noise: -log(-log(1 - tail)).
    float gumbel(int32_t id) const;

private:
    static uint32_t mixed(uint32_t word) { return word * 1664525u + 1013904223u; }
};

}  // namespace halfbyte
