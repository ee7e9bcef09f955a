// A weight matrix [rows, columns] in the form that kernels stream.
//
// Plain formats are read where they lie, usually in a memory map, at any alignment; packed ones are repacked into
// memory of their own.
#pragma once

#include <cstddef>
#include <cstdint>

#include "buffer.h"
#include "formats/ggml_k.h"
#include "formats/q3g.h"
#include "formats/q4g.h"
#include "formats/q8g.h"
#include "threads.h"

namespace halfbyte {

enum class Storage { f32, f16, bf16, q3g, q4g, q8g, q4_k, q6_k };
constexpr int kStorages = 8;

constexpr bool is_packed(Storage storage) { return storage >= Storage::q3g; }

struct MatrixView {
    Storage storage = Storage::f32;
    int64_t rows = 0, columns = 0;
    const std::byte* dense = nullptr;  // row-major, of plain formats
    Tiles packed;                      // of packed formats

    int64_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
};

class Matrix {
public:
    // A plain matrix, read in place.
    Matrix(const std::byte* values, Storage storage, int64_t rows, int64_t columns);
    // A repacked copy of groups in memory of `arena`, made by all threads of `pool`.
    Matrix(const Stored& stored, Storage storage, Pool& pool, Arena& arena);

    const MatrixView& view() const { return view_; }
    // Bytes that a product reads.
    int64_t nbytes() const;
    // Decodes one row into out[columns].
    void row(int64_t index, float* out) const;

private:
    MatrixView view_;
    std::shared_ptr<std::byte> memory_;
};

}  // namespace halfbyte
