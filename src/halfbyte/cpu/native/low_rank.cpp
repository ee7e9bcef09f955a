// What the adapters of tokens add to the output of a product: scale · B · (A · x), B and A being small.
//
// Consecutive tokens with the same adapter are taken together. All threads make A · x of all tokens first, then each adds
// its rows of B times that.
#include <algorithm>
#include <cstring>

#include "steps.h"

namespace halfbyte {
namespace {

// Most tokens of a job, and products that it makes.
constexpr int64_t kTokensAtOnce = 64;
constexpr int64_t kProducts = 4 * kTileRows * kTokensAtOnce;

// The matrices of all adapters for some columns of the output.
struct Part {
    MatrixPtr a, b;
    Weights scales;
    int64_t column;

    int64_t adapters() const { return static_cast<int64_t>(scales.size()); }
    int64_t rank() const { return b->view().columns; }
    int64_t rows() const { return b->view().rows / adapters(); }
};

// One adapter's rows of a plain matrix.
MatrixView rows_of(const MatrixView& all, int64_t adapter, int64_t rows) {
    MatrixView view = all;
    view.rows = rows;
    view.dense += adapter * rows * all.columns * (all.storage == Storage::f32 ? sizeof(float) : sizeof(uint16_t));
    return view;
}

class LowRank final : public Step {
public:
    LowRank(Axis axis, Floats x, Floats y, std::vector<Part> parts, State adapters, Floats out)
        : Step(axis), x_(x), y_(y), parts_(std::move(parts)), adapters_(adapters), out_(out) {
        for (const Part& part : parts_) ranks_ += part.rank();
    }

    Scratch scratch(int) const override { return {kProducts, x_.rows * ranks_}; }

    void run(const Context& c) const override {
        if (out_.data != y_.data) {
            const auto [begin, end] = c.worker.share(c.count * y_.columns);
            std::memcpy(out_.data + begin, y_.data + begin, (end - begin) * sizeof(float));
        }
        if (std::all_of(adapters_.begin(), adapters_.begin() + c.count, [](int32_t adapter) { return adapter == 0; })) return;
        for_jobs(c, [&](int64_t first, int64_t tokens, int64_t adapter) { shrink(c, first, tokens, adapter); });
        c.worker.sync();
        for_jobs(c, [&](int64_t first, int64_t tokens, int64_t adapter) { expand(c, first, tokens, adapter); });
    }

private:
    // Calls use(first token, tokens, adapter) for tokens that share one.
    template <class Use>
    void for_jobs(const Context& c, const Use& use) const {
        for (int64_t first = 0, end; first < c.count; first = end) {
            const int32_t adapter = adapters_[first];
            for (end = first + 1; end < c.count && end - first < kTokensAtOnce && adapters_[end] == adapter;) ++end;
            if (adapter > 0) use(first, end - first, adapter - 1);
        }
    }

    // scale · A · x, for part p as shared[p][token][rank]. Threads take tiles of all parts in turn.
    void shrink(const Context& c, int64_t first, int64_t tokens, int64_t adapter) const {
        float* shrunk = c.shared;
        int64_t turn = first;
        for (const Part& part : parts_) {
            const int64_t rank = part.rank();
            const MatrixView a = rows_of(part.a->view(), adapter, rank);
            for (int64_t tile = 0; tile < a.tiles(); ++tile, ++turn) {
                if (turn % c.worker.count != c.worker.index) continue;
                multiply(c, a, tile, 1, {x_.row(first), tokens, x_.columns});
                const int64_t count = std::min<int64_t>(kTileRows, rank - tile * kTileRows);
                for (int64_t t = 0; t < tokens; ++t)
                    for (int64_t r = 0; r < count; ++r)
                        shrunk[(first + t) * rank + tile * kTileRows + r] = part.scales[adapter] * c.local[t * kTileRows + r];
            }
            shrunk += x_.rows * rank;
        }
    }

    // Adds B · shrunk: each thread its own rows of every part.
    void expand(const Context& c, int64_t first, int64_t tokens, int64_t adapter) const {
        const float* shrunk = c.shared;
        const int64_t most = kProducts / (kTileRows * tokens);
        for (const Part& part : parts_) {
            const int64_t rank = part.rank();
            const MatrixView b = rows_of(part.b->view(), adapter, part.rows());
            const Range mine = c.worker.share(b.tiles());
            for (int64_t tile = mine.begin; tile < mine.end; tile += most) {
                const int64_t tiles = std::min(most, mine.end - tile);
                multiply(c, b, tile, tiles, {shrunk + first * rank, tokens, rank});
                for (int64_t i = 0; i < tiles; ++i) {
                    const int64_t row = (tile + i) * kTileRows;
                    for (int64_t t = 0; t < tokens; ++t) {
                        float* to = out_.row(first + t) + part.column + row;
                        c.kernels->add(to, c.local + (i * tokens + t) * kTileRows, to, std::min<int64_t>(kTileRows, b.rows - row));
                    }
                }
            }
            shrunk += x_.rows * rank;
        }
    }

    static void multiply(const Context& c, const MatrixView& w, int64_t tile, int64_t tiles, const Activations& x) {
        c.kernels->product[static_cast<int>(w.storage)]({&w, tile, tiles, x, c.local, nullptr});
    }

    Floats x_, y_;
    std::vector<Part> parts_;
    State adapters_;
    Floats out_;
    int64_t ranks_ = 0;
};

}  // namespace

StepPtr make_low_rank(const Fields& f, Inputs& inputs) {
    const Floats x = f.floats("x"), y = f.floats("y"), out = f.floats("out");
    const State adapters = f.state("adapters"), columns = f.state("columns");
    const Matrices a = f.matrices("a"), b = f.matrices("b");
    const Weights scales = f.weights("scales");
    require(!columns.empty(), "adapters must change something");
    require_equal(a.size(), columns.size(), "number of matrices A");
    require_equal(b.size(), columns.size(), "number of matrices B");
    require(!scales.empty() && scales.size() % columns.size() == 0, "the scales are not as many for each part");
    require_equal(out.columns, y.columns, "width of the output");
    require_equal(y.rows, x.rows, "rows of the product");
    require_equal(out.rows, x.rows, "rows of the output");
    require_equal(adapters.size(), x.rows, "number of adapters");
    const size_t count = scales.size() / columns.size();
    std::vector<Part> parts;
    for (size_t p = 0; p < columns.size(); ++p) {
        const MatrixView &shrinks = a[p]->view(), &expands = b[p]->view();
        require(!is_packed(shrinks.storage) && !is_packed(expands.storage), "matrices of adapters are packed");
        require_equal(shrinks.columns, x.columns, "width of a matrix A");
        require_equal(shrinks.rows, expands.columns * count, "rows of a matrix A");
        require_equal(expands.rows % count, 0, "rows of a matrix B beyond those of its adapters");
        parts.push_back({a[p], b[p], scales.subspan(p * count, count), columns[p]});
        require(columns[p] >= 0 && columns[p] + parts.back().rows() <= out.columns, "a matrix B ends behind the output");
    }
    inputs.limit(adapters, Axis::tokens, count + 1, "adapter");
    return std::make_unique<LowRank>(f.axis(), x, y, std::move(parts), adapters, out);
}

}  // namespace halfbyte
