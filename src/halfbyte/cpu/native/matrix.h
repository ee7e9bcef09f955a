// A weight matrix [rows, columns] in the form that kernels stream.
//
// Plain formats are read where they lie, usually in a memory map, at any alignment; packed ones are repacked into
// memory of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "buffer.h"
#include "formats/all.h"
#include "threads.h"

namespace halfbyte {

struct MatrixView {
    Storage storage = Storage::f32;
    int64_t rows = 0, columns = 0;
    const std::byte* dense = nullptr;  // row-major, of plain formats
    Tiles packed;                      // of packed formats

    int64_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
};

// A matrix as it lies on disk: its values, or codes, scales and zero points as far as the format stores them apart.
struct StoredMatrix {
    std::span<const uint8_t> codes, scales, zeros;
    int64_t rows, columns;
    int64_t group;  // columns of a group, of formats that have a choice
};

class Matrix {
public:
    // Reads a plain matrix in place; makes a repacked copy of groups in memory of `arena` on all threads of `pool`.
    // Throws `std::invalid_argument` where the parts do not fit the shape.
    Matrix(Storage storage, const StoredMatrix& stored, Pool& pool, Arena& arena);

    const MatrixView& view() const { return view_; }
    // Bytes that a product reads.
    int64_t nbytes() const;
    // Decodes one row into out[columns].
    void row(int64_t index, float* out) const;

private:
    void repack(const Stored& stored, Pool& pool, Arena& arena);

    MatrixView view_;
    std::shared_ptr<std::byte> memory_;
};

using MatrixPtr = std::shared_ptr<const Matrix>;

// The names of all formats, in the order of `Storage`.
const std::vector<std::string>& format_names();
// Throws `std::invalid_argument` if no format has that name.
Storage find_format(const std::string& name);

}  // namespace halfbyte
