// What the state tensors of a batch may hold, checked before a run so that no step needs to.
#pragma once

#include <string>
#include <vector>

#include "tensor.h"

namespace halfbyte {

// What the first dimension of a tensor counts.
enum class Axis { tokens, rows, hidden };

struct Batch {
    int64_t tokens = 0, rows = 0;
    bool hidden = false;

    // The axis `hidden` has all tokens where their hidden states are wanted, else none.
    int64_t count(Axis axis) const {
        if (axis == Axis::rows) return rows;
        return axis == Axis::tokens || hidden ? tokens : 0;
    }
};

// Where the cache slots of a token are found.
struct Paging {
    State positions, sequences;
    Table<const int32_t> blocks;  // [sequences, columns]
};

class Inputs {
public:
    explicit Inputs(int64_t context) : context_(context) {}

    int64_t context() const { return context_; }
    // values[i] must be 0 … limit - 1 for each token or row.
    void limit(State values, Axis axis, int64_t limit, std::string what);
    // values[i] must be a token of the batch, for each row.
    void rows(State values);
    // Positions, sequences and the block of each of the last `window` positions (0: of all) that a token sees must lie
    // in a cache of that many blocks of that size.
    void paged(const Paging& paging, int64_t blocks, int64_t block_size, int64_t window);
    // Throws `std::invalid_argument` with the first value that is out of range.
    void check(const Batch& batch) const;

private:
    struct Limit {
        State values;
        Axis axis;
        int64_t limit;
        std::string what;
    };
    struct Paged {
        Paging paging;
        int64_t blocks, block_size, window;
    };

    void check_limit(const Limit& limit, int64_t count) const;
    void check_paged(const Paged& paged, int64_t tokens) const;

    int64_t context_;
    std::vector<Limit> limits_;
    std::vector<Paged> paged_;
    State rows_;
};

}  // namespace halfbyte
