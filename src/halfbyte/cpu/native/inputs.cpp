#include "inputs.h"

#include <algorithm>

namespace halfbyte {

void Inputs::limit(State values, Axis axis, int64_t limit, std::string what) {
    for (Limit& known : limits_) {
        if (known.values.data() != values.data()) continue;
        known.limit = std::min(known.limit, limit);
        return;
    }
    limits_.push_back({values, axis, limit, std::move(what)});
}

void Inputs::rows(State values) { rows_ = values; }

void Inputs::paged(const Paging& paging, int64_t blocks, int64_t block_size, int64_t window) {
    limit(paging.positions, Axis::tokens, context_, "position");
    limit(paging.sequences, Axis::tokens, paging.blocks.rows, "sequence");
    for (Paged& known : paged_) {
        if (known.paging.blocks.data != paging.blocks.data || known.block_size != block_size) continue;
        known.blocks = std::min(known.blocks, blocks);
        known.window = known.window == 0 || window == 0 ? 0 : std::max(known.window, window);
        return;
    }
    paged_.push_back({paging, blocks, block_size, window});
}

void Inputs::stateful(const Stateful& stateful, int64_t tokens) {
    require_equal(stateful.positions.size(), tokens, "number of positions");
    require_equal(stateful.sequences.size(), tokens, "number of sequences");
    require_equal(stateful.table.columns, 2, "width of the table of states");
    limit(stateful.positions, Axis::tokens, context_, "position");
    limit(stateful.sequences, Axis::tokens, stateful.table.rows, "sequence");
    for (const Stateful& known : stateful_)
        if (known.table.data == stateful.table.data && known.states.rows <= stateful.states.rows) return;
    stateful_.push_back(stateful);
}

void Inputs::check(const Batch& batch) const {
    for (const Limit& limit : limits_) {
        const int64_t count = batch.count(limit.axis);
        require(count >= 0 && count <= static_cast<int64_t>(limit.values.size()),
                std::to_string(count) + " entries are more than the plan's " + std::to_string(limit.values.size()));
        check_limit(limit, count);
    }
    if (batch.rows > 0) {
        require(batch.rows <= static_cast<int64_t>(rows_.size()),
                std::to_string(batch.rows) + " rows of logits are more than the plan's " + std::to_string(rows_.size()));
        check_limit({rows_, Axis::rows, batch.tokens, "logit row"}, batch.rows);
    }
    for (const Paged& paged : paged_) check_paged(paged, batch.tokens);
    for (const Stateful& stateful : stateful_) check_stateful(stateful, batch.tokens);
}

void Inputs::check_limit(const Limit& limit, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
        const int64_t value = limit.values[i];
        require(value >= 0 && value < limit.limit, limit.what + " " + std::to_string(value) + " at " + std::to_string(i) +
                                                       " is not in 0 … " + std::to_string(limit.limit - 1));
    }
}

void Inputs::check_stateful(const Stateful& stateful, int64_t tokens) const {
    std::vector<bool> met(stateful.table.rows);
    for (int64_t t = 0; t < tokens; ++t) {
        const int32_t sequence = stateful.sequences[t];
        if (t > 0 && stateful.sequences[t - 1] == sequence) continue;
        require(!met[sequence], "the tokens of sequence " + std::to_string(sequence) + " are no neighbours");
        met[sequence] = true;
        for (const int64_t i : {0, 1}) {
            const int32_t number = stateful.table.row(sequence)[i];
            require(number >= 0 && number < stateful.states.rows, "state " + std::to_string(number) + " of sequence " + std::to_string(sequence) +
                                                                      " is not in 0 … " + std::to_string(stateful.states.rows - 1));
        }
    }
}

// Neighbouring tokens of a sequence see nearly the same blocks, so each run of them is looked at once.
void Inputs::check_paged(const Paged& paged, int64_t tokens) const {
    const auto& [positions, sequences, tables] = paged.paging;
    for (int64_t begin = 0, end; begin < tokens; begin = end) {
        int64_t first = positions[begin], last = first;
        for (end = begin; end < tokens && sequences[end] == sequences[begin]; ++end) {
            first = std::min<int64_t>(first, positions[end]);
            last = std::max<int64_t>(last, positions[end]);
        }
        first = paged.window == 0 ? 0 : std::max<int64_t>(0, first - paged.window + 1);
        const int64_t seen = std::min(last / paged.block_size - first / paged.block_size + 1, tables.columns);
        for (int64_t i = 0; i < seen; ++i) {
            const int64_t column = (first / paged.block_size + i) % tables.columns;
            const int32_t block = tables.row(sequences[begin])[column];
            require(block >= 0 && block < paged.blocks,
                    "block " + std::to_string(block) + " of sequence " + std::to_string(sequences[begin]) +
                        " is not in 0 … " + std::to_string(paged.blocks - 1));
        }
    }
}

}  // namespace halfbyte
