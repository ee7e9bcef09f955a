// Ops that move rows or treat values one by one.
#include <cstring>

#include "steps.h"

namespace halfbyte {
namespace {

class Embed final : public Step {
public:
    Embed(State ids, MatrixPtr table, Floats out, float scale)
        : Step(Axis::tokens), ids_(ids), table_(std::move(table)), out_(out), scale_(scale) {}

    void run(const Context& c) const override {
        const Range tokens = c.worker.share(c.count);
        for (int64_t t = tokens.begin; t < tokens.end; ++t) {
            table_->row(ids_[t], out_.row(t));
            for (int64_t i = 0; i < out_.columns; ++i) out_.row(t)[i] *= scale_;
        }
    }

private:
    State ids_;
    MatrixPtr table_;
    Floats out_;
    float scale_;
};

class Rows final : public Step {
public:
    Rows(Floats x, State rows, Floats out) : Step(Axis::rows), x_(x), rows_(rows), out_(out) {}

    void run(const Context& c) const override {
        const Range rows = c.worker.share(c.count);
        for (int64_t r = rows.begin; r < rows.end; ++r) std::memcpy(out_.row(r), x_.row(rows_[r]), x_.columns * sizeof(float));
    }

private:
    Floats x_;
    State rows_;
    Floats out_;
};

class Add final : public Step {
public:
    Add(Axis axis, Floats x, Floats y, Floats out) : Step(axis), x_(x), y_(y), out_(out) {}

    void run(const Context& c) const override {
        const auto [begin, end] = c.worker.share(c.count * x_.columns);
        c.kernels->add(x_.data + begin, y_.data + begin, out_.data + begin, end - begin);
    }

private:
    Floats x_, y_, out_;
};

class GatedActivation final : public Step {
public:
    GatedActivation(Axis axis, Floats x, Floats out, Activation activation)
        : Step(axis), x_(x), out_(out), activation_(activation) {}

    void run(const Context& c) const override {
        const Range tokens = c.worker.share(c.count);
        for (int64_t t = tokens.begin; t < tokens.end; ++t)
            c.kernels->gate(x_.row(t), x_.row(t) + out_.columns, activation_, out_.row(t), out_.columns);
    }

private:
    Floats x_, out_;
    Activation activation_;
};

class GateColumns final : public Step {
public:
    GateColumns(Axis axis, Floats x, Floats y, int64_t at, Activation activation, Floats out)
        : Step(axis), x_(x), y_(y), at_(at), activation_(activation), out_(out) {}

    void run(const Context& c) const override {
        const Range tokens = c.worker.share(c.count);
        for (int64_t t = tokens.begin; t < tokens.end; ++t)
            c.kernels->gate(x_.row(t), y_.row(t) + at_, activation_, out_.row(t), out_.columns);
    }

private:
    Floats x_, y_;
    int64_t at_;
    Activation activation_;
    Floats out_;
};

class Scale final : public Step {
public:
    Scale(Axis axis, Floats x, float factor, Floats out) : Step(axis), x_(x), factor_(factor), out_(out) {}

    void run(const Context& c) const override {
        const auto [begin, end] = c.worker.share(c.count * x_.columns);
        for (int64_t i = begin; i < end; ++i) out_.data[i] = x_.data[i] * factor_;
    }

private:
    Floats x_;
    float factor_;
    Floats out_;
};

class Softcap final : public Step {
public:
    Softcap(Axis axis, Floats x, Floats out, float cap) : Step(axis), x_(x), out_(out), cap_(cap) {}

    void run(const Context& c) const override {
        const auto [begin, end] = c.worker.share(c.count * x_.columns);
        c.kernels->softcap(x_.data + begin, cap_, out_.data + begin, end - begin);
    }

private:
    Floats x_, out_;
    float cap_;
};

void require_same_shape(Floats x, Floats out) {
    require_equal(out.rows, x.rows, "rows of the output");
    require_equal(out.columns, x.columns, "width of the output");
}

}  // namespace

StepPtr make_embed(const Fields& f, Inputs& inputs) {
    const State ids = f.state("ids");
    MatrixPtr table = f.matrix("table");
    const Floats out = f.floats("out");
    require_equal(out.columns, table->view().columns, "width of the embedding");
    require_equal(out.rows, ids.size(), "rows of the embedding");
    inputs.limit(ids, Axis::tokens, table->view().rows, "token id");
    return std::make_unique<Embed>(ids, std::move(table), out, f.number("scale"));
}

StepPtr make_rows(const Fields& f, Inputs& inputs) {
    const Floats x = f.floats("x"), out = f.floats("out");
    const State rows = f.state("rows");
    require_equal(out.columns, x.columns, "width of the chosen rows");
    require_equal(out.rows, rows.size(), "number of chosen rows");
    inputs.rows(rows);
    return std::make_unique<Rows>(x, rows, out);
}

StepPtr make_add(const Fields& f, Inputs&) {
    const Floats x = f.floats("x"), y = f.floats("y"), out = f.floats("out");
    require_same_shape(x, y);
    require_same_shape(x, out);
    return std::make_unique<Add>(f.axis(), x, y, out);
}

StepPtr make_gated_activation(const Fields& f, Inputs&) {
    const Floats x = f.floats("x"), out = f.floats("out");
    require_equal(out.rows, x.rows, "rows of the output");
    require_equal(x.columns, 2 * out.columns, "width of gate and up values");
    return std::make_unique<GatedActivation>(f.axis(), x, out, f.activation());
}

StepPtr make_gate_columns(const Fields& f, Inputs&) {
    const Floats x = f.floats("x"), y = f.floats("y"), out = f.floats("out");
    const int64_t at = f.whole("at");
    require_same_shape(x, out);
    require_equal(y.rows, x.rows, "rows of what is gated");
    require_room(y, at, x.columns, "columns");
    return std::make_unique<GateColumns>(f.axis(), x, y, at, f.activation(), out);
}

StepPtr make_scale(const Fields& f, Inputs&) {
    const Floats x = f.floats("x"), out = f.floats("out");
    const Weights factor = f.weights("factor");
    require_same_shape(x, out);
    require_equal(factor.size(), 1, "length of the factor");
    return std::make_unique<Scale>(f.axis(), x, factor[0], out);
}

StepPtr make_softcap(const Fields& f, Inputs&) {
    const Floats x = f.floats("x"), out = f.floats("out");
    const float cap = f.number("cap");
    require_same_shape(x, out);
    require(cap > 0, "the cap of the logits is " + std::to_string(cap) + ", expected more than 0");
    return std::make_unique<Softcap>(f.axis(), x, out, cap);
}

}  // namespace halfbyte
