// What the state tensors of a batch may hold, checked before a run so that no step needs to.
#pragma once

#include <string>
#include <vector>

#include "tensor.h"
#include "threads.h"

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

// The states of sequences, a row each, and which of them a batch goes on from and leaves.
struct Stateful {
    State positions, sequences;
    Table<const int32_t> table;  // [sequences, 2]
    Floats states;

    // Calls each(tokens, before, after) for each sequence that has some of the batch's tokens; `before` is null where it
    // begins with them.
    template <class Each>
    void each(int64_t tokens, const Each& each) const {
        for (int64_t begin = 0, end; begin < tokens; begin = end) {
            for (end = begin + 1; end < tokens && sequences[end] == sequences[begin];) ++end;
            const int32_t* numbers = table.row(sequences[begin]);
            each(Range{begin, end}, positions[begin] == 0 ? nullptr : states.row(numbers[0]), states.row(numbers[1]));
        }
    }
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
    // Each sequence's tokens must be neighbours, at most so many in all, and the numbers of its states those of some.
    void stateful(const Stateful& stateful, int64_t tokens);
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
    void check_stateful(const Stateful& stateful, int64_t tokens) const;

    int64_t context_;
    std::vector<Limit> limits_;
    std::vector<Paged> paged_;
    std::vector<Stateful> stateful_;
    State rows_;
};

}  // namespace halfbyte
