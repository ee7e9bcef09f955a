// The Python module `halfbyte.cpu._native`: programs, matrices, and facts about the processor.
//
// Arrays are taken as views, never converted, and kept alive by the program or matrix that uses them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>

#include "isa.h"
#include "machine.h"
#include "peak.h"
#include "steps.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace halfbyte {
namespace {

using FloatTable = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ConstFloatTable = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ConstFloats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using IntTable = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using CacheArray = nb::ndarray<nb::ndim<4>, nb::c_contig, nb::device::cpu>;

using HeadCounts = std::tuple<int64_t, int64_t, int64_t>;
using PagingArrays = std::tuple<Ints, Ints, IntTable>;
using CacheArrays = std::tuple<CacheArray, CacheArray>;

// An argument that is an array, or holds arrays.
auto operator""_v(const char* name, size_t) { return nb::arg(name).noconvert(); }

template <class T, class Array>
Table<T> table(const Array& array) {
    return {array.data(), static_cast<int64_t>(array.shape(0)), static_cast<int64_t>(array.shape(1))};
}

Floats floats(const FloatTable& array) { return table<float>(array); }
Floats floats(const std::optional<FloatTable>& array) { return array ? floats(*array) : Floats{}; }
State state(const Ints& array) { return {array.data(), array.size()}; }
Weights weights(const ConstFloats& array) { return {array.data(), array.size()}; }
Weights weights(const std::optional<ConstFloats>& array) { return array ? weights(*array) : Weights{}; }

Cache cache(const CacheArray& array) {
    const bool half = array.dtype() == nb::dlpack::dtype{static_cast<uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};
    require(half || array.dtype() == nb::dtype<float>(), "a cache is neither f16 nor f32");
    const auto dim = [&](size_t i) { return static_cast<int64_t>(array.shape(i)); };
    return {static_cast<std::byte*>(array.data()), half, dim(0), dim(1), dim(2), dim(3)};
}

Paging paging(const PagingArrays& arrays) {
    const auto& [positions, sequences, blocks] = arrays;
    require(blocks.shape(1) > 0, "a block table has no columns");
    return {state(positions), state(sequences), table<const int32_t>(blocks)};
}

Heads heads(const HeadCounts& counts) {
    const auto [heads, kv_heads, head_dim] = counts;
    require(heads > 0 && kv_heads > 0 && head_dim > 0, "the numbers of heads and their size must be positive");
    return {heads, kv_heads, head_dim};
}

Axis axis(bool over_rows) { return over_rows ? Axis::rows : Axis::tokens; }

Activation activation(const std::string& name) {
    require(name == "silu" || name == "gelu_tanh", "unknown activation '" + name + "'");
    return name == "silu" ? Activation::silu : Activation::gelu_tanh;
}

Storage storage(const std::string& name) {
    require(name == "f32" || name == "f16" || name == "bf16", "unknown plain format '" + name + "'");
    return name == "f32" ? Storage::f32 : name == "f16" ? Storage::f16 : Storage::bf16;
}

// A plain matrix and the array that it reads.
MatrixPtr dense_matrix(Bytes values, const std::string& format, int64_t rows, int64_t columns) {
    const Storage stored = storage(format);
    require(rows > 0 && columns > 0, "a matrix must have rows and columns");
    require_equal(values.size(), rows * columns * (stored == Storage::f32 ? 4 : 2), "bytes of the matrix");
    const auto* data = reinterpret_cast<const std::byte*>(values.data());
    return {new Matrix(data, stored, rows, columns), [values](Matrix* matrix) { delete matrix; }};
}

// The program and the arrays that its steps use.
class PyProgram {
public:
    PyProgram(int threads, int64_t context, const std::string& isa, bool int8) : program_(threads, find_isa(isa), context, int8) {}

    template <class... Arrays>
    void add(StepPtr step, const Arrays&... arrays) {
        program_.add(std::move(step));
        (keep(arrays), ...);
    }
    Program& operator*() { return program_; }
    Program* operator->() { return &program_; }

private:
    template <class... Kind>
    void keep(const nb::ndarray<Kind...>& array) {
        arrays_.emplace_back(array);
    }
    template <class T>
    void keep(const std::optional<T>& array) {
        if (array) keep(*array);
    }
    template <class... T>
    void keep(const std::tuple<T...>& arrays) {
        std::apply([this](const auto&... each) { (keep(each), ...); }, arrays);
    }

    Program program_;
    std::vector<nb::ndarray<>> arrays_;
};

MatrixPtr packed_matrix(PyProgram& program, Bytes codes, Bytes scales, std::optional<Bytes> zeros, int64_t rows, int64_t columns,
                        int64_t group, int bits) {
    require(bits == 3 || bits == 4 || bits == 8, "codes of " + std::to_string(bits) + " bits");
    require(bits < 8 || !zeros, "8-bit groups have no zero points");
    require(rows > 0 && columns > 0, "a matrix must have rows and columns");
    require(group > 0 && group % kBlock == 0, "groups of " + std::to_string(group) + " are no multiple of 32");
    const Stored stored{codes.data(), scales.data(), zeros ? zeros->data() : nullptr, rows, columns, group};
    require_equal(codes.size(), rows * stored.groups() * group * bits / 8, "bytes of the codes");
    require_equal(scales.size(), rows * stored.groups() * 2, "bytes of the scales");
    if (zeros) require_equal(zeros->size(), rows * ((stored.groups() + 1) / 2), "bytes of the zero points");
    const nb::gil_scoped_release release;
    const Storage storage = bits == 3 ? Storage::q3g : bits == 4 ? Storage::q4g : Storage::q8g;
    return std::make_shared<Matrix>(stored, storage, program->pool(), program->arena());
}

// A matrix in a format of ggml's.
MatrixPtr block_matrix(PyProgram& program, Bytes blocks, const std::string& format, int64_t rows, int64_t columns) {
    require(format == "q4_k" || format == "q6_k", "unknown block format '" + format + "'");
    require(rows > 0 && columns > 0, "a matrix must have rows and columns");
    const Storage storage = format == "q4_k" ? Storage::q4_k : Storage::q6_k;
    const Stored stored{blocks.data(), nullptr, nullptr, rows, columns, kSuperBlock};
    require_equal(blocks.size(), rows * stored.groups() * (storage == Storage::q4_k ? q4_k::kStoredBytes : q6_k::kStoredBytes), "bytes of the blocks");
    const nb::gil_scoped_release release;
    return std::make_shared<Matrix>(stored, storage, program->pool(), program->arena());
}

void bind_elementwise(nb::class_<PyProgram>& program) {
    program.def("embed", [](PyProgram& p, Ints ids, MatrixPtr table, FloatTable out, float scale) {
        p.add(make_embed(p->inputs(), state(ids), std::move(table), floats(out), scale), ids, out);
    }, "ids"_v, "table"_a, "out"_v, "scale"_a);
    program.def("rows", [](PyProgram& p, FloatTable x, Ints rows, FloatTable out) {
        p.add(make_rows(p->inputs(), floats(x), state(rows), floats(out)), x, rows, out);
    }, "x"_v, "rows"_v, "out"_v);
    program.def("add", [](PyProgram& p, bool over_rows, FloatTable x, FloatTable y, FloatTable out) {
        p.add(make_add(axis(over_rows), floats(x), floats(y), floats(out)), x, y, out);
    }, "over_rows"_a, "x"_v, "y"_v, "out"_v);
    program.def("gated_activation", [](PyProgram& p, bool over_rows, FloatTable x, FloatTable out, const std::string& name) {
        p.add(make_gated_activation(axis(over_rows), floats(x), floats(out), activation(name)), x, out);
    }, "over_rows"_a, "x"_v, "out"_v, "activation"_a);
    program.def("softcap", [](PyProgram& p, bool over_rows, FloatTable x, FloatTable out, float cap) {
        p.add(make_softcap(axis(over_rows), floats(x), floats(out), cap), x, out);
    }, "over_rows"_a, "x"_v, "out"_v, "cap"_a);
}

void bind_products(nb::class_<PyProgram>& program) {
    program.def("packed_matrix", packed_matrix, "codes"_v, "scales"_v, "zeros"_v.none(), "rows"_a, "columns"_a, "group"_a, "bits"_a);
    program.def("block_matrix", block_matrix, "blocks"_v, "format"_a, "rows"_a, "columns"_a);
    program.def("linear", [](PyProgram& p, bool over_rows, FloatTable x, std::vector<MatrixPtr> w,
                             std::optional<ConstFloats> bias, FloatTable out, std::optional<FloatTable> residual) {
        p.add(make_linear(axis(over_rows), floats(x), std::move(w), weights(bias), floats(out), floats(residual)),
              x, bias, out, residual);
    }, "over_rows"_a, "x"_v, "weights"_a, "bias"_v.none(), "out"_v, "residual"_v.none());
    program.def("gated_linear", [](PyProgram& p, bool over_rows, FloatTable x, std::vector<MatrixPtr> w, FloatTable out,
                                   const std::string& name) {
        p.add(make_gated_linear(axis(over_rows), floats(x), std::move(w), floats(out), activation(name)), x, out);
    }, "over_rows"_a, "x"_v, "weights"_a, "out"_v, "activation"_a);
}

using NormArrays = std::tuple<ConstFloats, ConstFloats>;

QkNorms qk_norms(const NormArrays& arrays, float eps, float offset) {
    return {weights(std::get<0>(arrays)), weights(std::get<1>(arrays)), {eps, offset}};
}

void bind_norms(nb::class_<PyProgram>& program) {
    program.def("rms_norm", [](PyProgram& p, bool over_rows, FloatTable x, ConstFloats weight, FloatTable out, float eps,
                               float offset, std::optional<FloatTable> residual) {
        const Norm norm{eps, offset};
        p.add(make_rms_norm(axis(over_rows), floats(x), weights(weight), floats(out), norm, floats(residual)),
              x, weight, out, residual);
    }, "over_rows"_a, "x"_v, "weight"_v, "out"_v, "eps"_a, "offset"_a, "residual"_v.none());
    program.def("qk_norm", [](PyProgram& p, HeadCounts h, FloatTable qkv, NormArrays w, FloatTable out, float eps, float offset) {
        p.add(make_qk_norm(heads(h), floats(qkv), qk_norms(w, eps, offset), floats(out)), qkv, w, out);
    }, "heads"_a, "qkv"_v, "norm_weights"_v, "out"_v, "eps"_a, "offset"_a);
}

void bind_attention(nb::class_<PyProgram>& program) {
    program.def("rope_table", [](PyProgram& p, Ints positions, Ints sets, ConstFloatTable inv_freq, FloatTable out, float factor) {
        const auto frequencies = table<const float>(inv_freq);
        p.add(make_rope_table(p->inputs(), state(positions), state(sets), frequencies, floats(out), factor),
              positions, sets, inv_freq, out);
    }, "positions"_v, "sets"_v, "inv_freq"_v, "out"_v, "factor"_a);
    program.def("rope", [](PyProgram& p, HeadCounts h, FloatTable qkv, FloatTable table, FloatTable out) {
        p.add(make_rope(heads(h), floats(qkv), floats(table), floats(out)), qkv, table, out);
    }, "heads"_a, "qkv"_v, "table"_v, "out"_v);
    program.def("kv_write", [](PyProgram& p, HeadCounts h, FloatTable qkv, PagingArrays at, CacheArrays caches) {
        const auto& [k, v] = caches;
        p.add(make_kv_write(p->inputs(), heads(h), floats(qkv), paging(at), cache(k), cache(v)), qkv, at, caches);
    }, "heads"_a, "qkv"_v, "paging"_v, "caches"_v);
    program.def("rope_kv_write", [](PyProgram& p, HeadCounts h, FloatTable qkv, FloatTable table, std::optional<NormArrays> w,
                                    float eps, float offset, PagingArrays at, CacheArrays caches, FloatTable out) {
        const auto& [k, v] = caches;
        const std::optional<QkNorms> norms = w ? std::optional(qk_norms(*w, eps, offset)) : std::nullopt;
        p.add(make_rope_kv_write(p->inputs(), heads(h), floats(qkv), floats(table), norms, paging(at), cache(k), cache(v), floats(out)),
              qkv, table, w, at, caches, out);
    }, "heads"_a, "qkv"_v, "table"_v, "norm_weights"_v.none(), "eps"_a, "offset"_a, "paging"_v, "caches"_v, "out"_v);
    program.def("attention", [](PyProgram& p, HeadCounts h, FloatTable q, CacheArrays caches, PagingArrays at, FloatTable out,
                                float scale, int64_t window, float softcap) {
        const auto& [k, v] = caches;
        const AttentionScores scores{scale, window, softcap};
        p.add(make_attention(p->inputs(), heads(h), floats(q), cache(k), cache(v), paging(at), floats(out), scores),
              q, caches, at, out);
    }, "heads"_a, "q"_v, "caches"_v, "paging"_v, "out"_v, "scale"_a, "window"_a, "softcap"_a);
}

std::vector<std::string> isa_names() {
    std::vector<std::string> names;
    for (const Isa isa : available_isas()) names.emplace_back(isa_name(isa));
    return names;
}

nb::object step_ns(PyProgram& program) {
    const std::vector<int64_t>& times = program->step_ns();
    int64_t* copy = new int64_t[times.size()];
    std::memcpy(copy, times.data(), times.size() * sizeof(int64_t));
    const nb::capsule owner(copy, [](void* p) noexcept { delete[] static_cast<int64_t*>(p); });
    return nb::ndarray<nb::numpy, int64_t, nb::ndim<1>>(copy, {times.size()}, owner).cast();
}

}  // namespace
}  // namespace halfbyte

NB_MODULE(_native, module) {
    using namespace halfbyte;
    nb::class_<Matrix>(module, "Matrix").def_prop_ro("nbytes", &Matrix::nbytes);
    module.def("dense_matrix", dense_matrix, "values"_v, "format"_a, "rows"_a, "columns"_a);

    nb::class_<PyProgram> program(module, "Program");
    program.def(nb::init<int, int64_t, const std::string&, bool>(), "threads"_a, "context"_a, "isa"_a = "", "int8"_a = true)
        .def_prop_ro("isa", [](PyProgram& p) { return std::string(isa_name(p->isa())); })
        .def_prop_ro("threads", [](PyProgram& p) { return p->pool().size(); })
        .def("run", [](PyProgram& p, int64_t tokens, int64_t rows) { p->run(tokens, rows); }, "tokens"_a, "rows"_a,
             nb::call_guard<nb::gil_scoped_release>())
        .def("step_ns", step_ns)
        .def_prop_ro("start_ns", [](PyProgram& p) { return p->start_ns(); });
    bind_elementwise(program);
    bind_products(program);
    bind_norms(program);
    bind_attention(program);

    module.def("isas", isa_names);
    module.def("processor_name", processor_name);
    module.def("processor_features", processor_features);
    module.def("copy_bandwidth", [](int threads, int64_t nbytes, double seconds) {
        Pool pool(threads);
        return copy_bandwidth(pool, nbytes, seconds);
    }, "threads"_a, "nbytes"_a, "seconds"_a, nb::call_guard<nb::gil_scoped_release>());
    module.def("int8_rate", [](int threads, const std::string& isa, double seconds) {
        Pool pool(threads);
        return int8_rate(pool, find_isa(isa), seconds);
    }, "threads"_a, "isa"_a, "seconds"_a, nb::call_guard<nb::gil_scoped_release>());
    module.def("read_bandwidth", [](int threads, int64_t nbytes, double seconds) {
        Pool pool(threads);
        return read_bandwidth(pool, nbytes, seconds);
    }, "threads"_a, "nbytes"_a, "seconds"_a, nb::call_guard<nb::gil_scoped_release>());
}
