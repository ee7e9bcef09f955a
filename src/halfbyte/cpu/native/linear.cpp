// Products with weight matrices: plain, with a bias, onto a residual, and gated.
//
// Activations are laid out for the kernels by all threads together; then each thread streams the rows of the weights that
// it gets, once, and finishes its part of the output while it is at hand.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "steps.h"

namespace halfbyte {
namespace {

// Tokens that are multiplied in one pass over the weights.
constexpr int64_t kTokensAtOnce = 256;
constexpr int64_t kJobFloats = kJobTiles * kTileRows * kTokensAtOnce;

// Most tiles of a job; its products fit kJobFloats.
int64_t job_tiles(const Activations& x) { return x.tokens <= kFewTokens && !x.packed ? kFewTokensTiles : kJobTiles; }
// Fewest bytes of weights that a thread takes at a time, where it reads them only once: some microseconds' worth.
constexpr int64_t kLeastBytes = 128 << 10;
// Fewest tiles that it takes at a time of products with more tokens, because the last to finish is waited for.
constexpr int64_t kLeastTiles = 2;
static_assert(kFewTokensTiles * kTileRows * kFewTokens <= kJobFloats);

// Weight matrices of equal width, their rows one after another.
class Stack {
public:
    explicit Stack(Matrices matrices) {
        require(!matrices.empty(), "a product needs at least one weight");
        columns_ = matrices.front()->view().columns;
        for (auto& matrix : matrices) {
            require_equal(matrix->view().columns, columns_, "width of a weight");
            const int64_t first = rows_;
            rows_ += matrix->view().rows;
            nbytes_ += matrix->nbytes();
            packed_ |= is_packed(matrix->view().storage);
            parts_.push_back({std::move(matrix), first});
        }
    }

    int64_t rows() const { return rows_; }
    int64_t columns() const { return columns_; }
    // Whether products of many tokens read `Activations::packed`.
    bool packed() const { return packed_; }

    // Fewest rows that a thread takes at a time.
    int64_t least_rows(int64_t tokens) const {
        const int64_t tiles = tokens <= kFewTokens ? kLeastBytes * rows_ / kTileRows / nbytes_ : kLeastTiles;
        return std::max<int64_t>(1, tiles) * kTileRows;
    }

    // This thread's rows, to begin with: whole tiles, and an even part of the bytes.
    Range share(const Worker& worker) const { return {boundary(worker.index, worker.count), boundary(worker.index + 1, worker.count)}; }

    // Calls use(products, part) for consecutive parts of `rows`, none wider than a tile: token t's products are
    // products[t * 16] on.
    template <class Use>
    void multiply(const Context& c, Range rows, const Activations& x, const Use& use) const {
        for (const Part& part : parts_) {
            const Range mine{std::max(rows.begin, part.first), std::min(rows.end, part.first + part.matrix->view().rows)};
            if (mine.begin < mine.end) multiply_part(c, part, mine, x, use);
        }
    }

private:
    struct Part {
        MatrixPtr matrix;
        int64_t first;
    };

    int64_t boundary(int index, int count) const {
        int64_t before = nbytes_ * index / count;
        for (const Part& part : parts_) {
            const MatrixView& w = part.matrix->view();
            if (before < part.matrix->nbytes()) return part.first + std::min(before * w.tiles() / part.matrix->nbytes() * kTileRows, w.rows);
            before -= part.matrix->nbytes();
        }
        return rows_;
    }

    template <class Use>
    static void multiply_part(const Context& c, const Part& part, Range rows, const Activations& x, const Use& use) {
        const MatrixView& w = part.matrix->view();
        const int64_t begin = (rows.begin - part.first) / kTileRows, end = (rows.end - part.first + kTileRows - 1) / kTileRows;
        const int64_t most = job_tiles(x);
        for (int64_t tile = begin; tile < end; tile += most) {
            const ProductJob job{&w, tile, std::min(most, end - tile), x, c.local, c.local + kJobFloats};
            const int format = static_cast<int>(w.storage);
            if (x.quantized && is_packed(w.storage)) c.int8->product[format - kPlainFormats](job);
            else c.kernels->product[format](job);
            for (int64_t i = 0; i < job.tiles; ++i) {
                const int64_t first = part.first + (tile + i) * kTileRows;
                const Range wanted{std::max(first, rows.begin), std::min(first + kTileRows, rows.end)};
                use(job.out + i * x.tokens * kTileRows + (wanted.begin - first), wanted);
            }
        }
    }

    std::vector<Part> parts_;
    int64_t rows_ = 0, columns_ = 0, nbytes_ = 0;
    bool packed_ = false;
};

int64_t blocks_of(int64_t columns) { return (columns + kBlock - 1) / kBlock; }

// Calls use(x, first token, rows) for the tokens of a batch, some at a time, laid out as the weights want them, and for
// parts of the output's rows, of which `own` are this thread's to begin with.
template <class Use>
void for_parts(const Context& c, const Stack& weights, Floats x, Range own, const Use& use) {
    for (int64_t first = 0; first < c.count; first += kTokensAtOnce) {
        Activations part{x.row(first), std::min(kTokensAtOnce, c.count - first), x.columns};
        Quantized rounded{};
        if (first > 0) c.worker.sync();
        c.shares->give(c.worker, own);
        if (weights.packed() && (c.int8 || part.tokens > 1)) {
            if (c.int8) {
                const int64_t all = part.tokens * blocks_of(x.columns);
                auto* sums = reinterpret_cast<int32_t*>(c.shared + all);
                rounded = {reinterpret_cast<int8_t*>(sums + 2 * all), c.shared, sums, sums + all};
                c.int8->quantize(part, c.worker.share(blocks_of(x.columns)), rounded);
                part.quantized = &rounded;
            } else {
                c.kernels->pack(part, c.worker.share(blocks_of(x.columns)), c.shared);
                part.packed = c.shared;
            }
        }
        c.worker.sync();
        c.shares->take(c.worker, weights.least_rows(part.tokens), [&](Range rows) { use(part, first, rows); });
    }
}

Scratch product_scratch(const Stack& weights, int64_t tokens) {
    return {kJobFloats + kPanelFloats, weights.packed() ? std::min(tokens, kTokensAtOnce) * blocks_of(weights.columns()) * kBlock : 0};
}

// Calls use(count), the count known at compile time where it is a whole tile's, as nearly always.
template <class Use>
void for_row(int64_t count, const Use& use) {
    if (count == kTileRows) use(std::integral_constant<int64_t, kTileRows>{});
    else use(count);
}

class Linear final : public Step {
public:
    Linear(Axis axis, Floats x, Stack weights, Weights bias, Floats out, Floats residual)
        : Step(axis), x_(x), weights_(std::move(weights)), bias_(bias), out_(out), residual_(residual) {}

    Scratch scratch(int) const override { return product_scratch(weights_, x_.rows); }

    void run(const Context& c) const override {
        for_parts(c, weights_, x_, weights_.share(c.worker), [&](const Activations& x, int64_t first, Range some) {
            weights_.multiply(c, some, x, [&](const float* products, Range rows) {
                for (int64_t t = 0; t < x.tokens; ++t) store(products + t * kTileRows, first + t, rows);
            });
        });
    }

private:
    void store(const float* products, int64_t token, Range rows) const {
        float* out = out_.row(token) + rows.begin;
        const float* bias = bias_.empty() ? nullptr : bias_.data() + rows.begin;
        const float* residual = residual_.data ? residual_.row(token) + rows.begin : nullptr;
        for_row(rows.size(), [&](auto count) {
            if (!bias && !residual) {
                std::memcpy(out, products, count * sizeof(float));
            } else if (!bias) {
                for (int64_t i = 0; i < count; ++i) out[i] = residual[i] + products[i];
            } else if (!residual) {
                for (int64_t i = 0; i < count; ++i) out[i] = products[i] + bias[i];
            } else {
                for (int64_t i = 0; i < count; ++i) out[i] = residual[i] + (products[i] + bias[i]);
            }
        });
    }

    Floats x_;
    Stack weights_;
    Weights bias_;
    Floats out_, residual_;
};

// Gate rows i and up rows i are multiplied by the same thread, so that their values never leave its cache.
class GatedLinear final : public Step {
public:
    GatedLinear(Axis axis, Floats x, Stack weights, Floats out, Activation activation)
        : Step(axis), x_(x), weights_(std::move(weights)), out_(out), activation_(activation) {}

    Scratch scratch(int) const override {
        Scratch needed = product_scratch(weights_, x_.rows);
        needed.local += 2 * kJobFloats;
        return needed;
    }

    void run(const Context& c) const override {
        const Range tiles = c.worker.share((out_.columns + kTileRows - 1) / kTileRows);
        const Range own{tiles.begin * kTileRows, std::min(tiles.end * kTileRows, out_.columns)};
        for_parts(c, weights_, x_, own, [&](const Activations& x, int64_t first, Range rows) {
            const int64_t most = job_tiles(x) * kTileRows;
            for (int64_t row = rows.begin; row < rows.end; row += most) gate(c, x, first, {row, std::min(row + most, rows.end)});
        });
    }

private:
    void gate(const Context& c, const Activations& x, int64_t first, Range rows) const {
        float* gates = c.local + kJobFloats + kPanelFloats;
        float* ups = gates + kJobFloats;
        const int64_t stride = rows.size();
        collect(c, x, rows, gates);
        collect(c, x, {rows.begin + out_.columns, rows.end + out_.columns}, ups);
        for (int64_t t = 0; t < x.tokens; ++t)
            c.kernels->gate(gates + t * stride, ups + t * stride, activation_, out_.row(first + t) + rows.begin, rows.size());
    }

    // Products of some rows as out[tokens][rows].
    void collect(const Context& c, const Activations& x, Range rows, float* out) const {
        weights_.multiply(c, rows, x, [&](const float* products, Range part) {
            float* to = out + part.begin - rows.begin;
            for_row(part.size(), [&](auto count) {
                for (int64_t t = 0; t < x.tokens; ++t)
                    std::memcpy(to + t * rows.size(), products + t * kTileRows, count * sizeof(float));
            });
        });
    }

    Floats x_;
    Stack weights_;
    Floats out_;
    Activation activation_;
};

}  // namespace

StepPtr make_linear(const Fields& f, Inputs&) {
    const Floats x = f.floats("x"), out = f.floats("out"), residual = f.optional_floats("residual");
    const Weights bias = f.optional_weights("bias");
    Stack stack(f.matrices("weights"));
    require_equal(x.columns, stack.columns(), "width of the activations");
    require_equal(out.columns, stack.rows(), "width of the output");
    require_equal(out.rows, x.rows, "rows of the output");
    if (!bias.empty()) require_equal(bias.size(), stack.rows(), "length of the bias");
    if (residual.data) {
        require_equal(residual.columns, out.columns, "width of the residual");
        require_equal(residual.rows, out.rows, "rows of the residual");
    }
    return std::make_unique<Linear>(f.axis(), x, std::move(stack), bias, out, residual);
}

StepPtr make_gated_linear(const Fields& f, Inputs&) {
    const Floats x = f.floats("x"), out = f.floats("out");
    Stack stack(f.matrices("weights"));
    require_equal(x.columns, stack.columns(), "width of the activations");
    require_equal(2 * out.columns, stack.rows(), "rows of gate and up weights");
    require_equal(out.rows, x.rows, "rows of the output");
    return std::make_unique<GatedLinear>(f.axis(), x, std::move(stack), out, f.activation());
}

}  // namespace halfbyte
