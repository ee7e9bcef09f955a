// The Python module `halfbyte.cpu._native`: programs, matrices, and facts about the processor.
//
// Arrays are taken as views, never converted, and kept alive by the program or matrix that uses them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>
#include <tuple>

#include "choose.h"
#include "interpreter.h"
#include "isa.h"
#include "machine.h"
#include "peak.h"
#include "steps.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace halfbyte {
namespace {

using Readable = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Writable = nb::ndarray<nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
// The settings of a row of logits, the tokens before it, those that are penalized with their counts, and what may come.
using Asked = std::tuple<const ChoiceSettings*, uint64_t, Ids, Counts, std::optional<Words>>;

std::optional<Array::Type> array_type(nb::dlpack::dtype type) {
    const nb::dlpack::dtype half{static_cast<uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};
    if (type == nb::dtype<float>()) return Array::Type::f32;
    if (type == half) return Array::Type::f16;
    if (type == nb::dtype<int32_t>()) return Array::Type::i32;
    if (type == nb::dtype<uint8_t>()) return Array::Type::u8;
    return std::nullopt;
}

Axis axis_named(const std::string& name) {
    if (name == "tokens") return Axis::tokens;
    if (name == "rows") return Axis::rows;
    require(name == "hidden", "there is no axis " + name);
    return Axis::hidden;
}

// The program and the arrays that its steps use.
class PyProgram {
public:
    PyProgram(int threads, int64_t context, const std::string& isa, bool int8, bool spin)
        : program_(threads, find_isa(isa), context, int8, spin), chooser_(program_.pool(), kernels_for(program_.isa())) {}

    // Appends the step of an op, whose fields are arrays, matrices, numbers, names, or None where absent.
    void step(const std::string& op, const std::string& axis, const nb::dict& values) {
        std::map<std::string, Field> fields;
        for (const auto [name, value] : values)
            if (!value.is_none()) fields.emplace(nb::cast<std::string>(name), field(op, name, value));
        program_.add(make_step(op, {axis_named(axis), std::move(fields)}, program_.inputs()));
    }

    MatrixPtr matrix(const std::string& format, Bytes codes, const std::optional<Bytes>& scales, const std::optional<Bytes>& zeros,
                     int64_t rows, int64_t columns, int64_t group) {
        const auto bytes = [](const Bytes& array) { return std::span(array.data(), array.size()); };
        const StoredMatrix stored{bytes(codes), scales ? bytes(*scales) : std::span<const uint8_t>{},
                                  zeros ? bytes(*zeros) : std::span<const uint8_t>{}, rows, columns, group};
        const Storage storage = find_format(format);
        std::unique_ptr<Matrix> made;
        without_lock([&] { made = std::make_unique<Matrix>(storage, stored, program_.pool(), program_.arena()); });
        if (is_packed(storage)) return made;
        return {made.release(), [codes](Matrix* matrix) { delete matrix; }};
    }

    std::vector<Choice> choose(const Logits& logits, const std::vector<Asked>& asked) {
        require_equal(static_cast<int64_t>(asked.size()), static_cast<int64_t>(logits.shape(0)), "number of choices");
        const int64_t vocabulary = static_cast<int64_t>(logits.shape(1));
        require(vocabulary > 0, "there are no logits");
        std::vector<ChoiceRow> rows;
        for (const auto& [settings, position, ids, counts, allowed] : asked)
            rows.push_back({logits.data() + static_cast<int64_t>(rows.size()) * vocabulary, settings, position, {ids.data(), ids.size()},
                            {counts.data(), counts.size()}, allowed ? std::span(allowed->data(), allowed->size()) : std::span<const uint32_t>{}});
        std::vector<Choice> choices;
        without_lock([&] { choices = chooser_.choose(rows, vocabulary); });
        return choices;
    }

    Program* operator->() { return &program_; }

private:
    Field field(const std::string& op, nb::handle name, nb::handle value) {
        if (nb::isinstance<nb::str>(value)) return nb::cast<std::string>(value);
        if (nb::isinstance<nb::float_>(value) || nb::isinstance<nb::int_>(value)) return nb::cast<double>(value);
        if (nb::isinstance<Matrix>(value)) return Matrices{nb::cast<MatrixPtr>(value)};
        if (nb::isinstance<nb::list>(value)) return nb::cast<Matrices>(value);
        if (std::optional<Array> array = view(value)) return *array;
        throw nb::type_error((op + "." + nb::cast<std::string>(name) + " is of a type that no op takes").c_str());
    }

    std::optional<Array> view(nb::handle value) {
        Writable writable;
        if (nb::try_cast(value, writable, false)) return view(writable, true);
        Readable readable;
        if (nb::try_cast(value, readable, false)) return view(readable, false);
        return std::nullopt;
    }

    template <class Found>
    std::optional<Array> view(const Found& array, bool writable) {
        const std::optional<Array::Type> type = array_type(array.dtype());
        if (!type || array.ndim() == 0) return std::nullopt;
        arrays_.emplace_back(nb::find(array));
        std::vector<int64_t> shape;
        for (size_t i = 0; i < array.ndim(); ++i) shape.push_back(static_cast<int64_t>(array.shape(i)));
        return Array{const_cast<void*>(static_cast<const void*>(array.data())), *type, writable, std::move(shape)};
    }

    Program program_;
    Chooser chooser_;
    std::vector<nb::object> arrays_;
};

void make_settings(ChoiceSettings* at, float temperature, int64_t top_k, double typical_p, double top_p, float min_p, float repetition,
                   float presence, float frequency, uint64_t seed, int64_t logprobs, const Ids& bias_ids, const Counts& bias) {
    new (at) ChoiceSettings{temperature, top_k, typical_p, top_p, min_p, repetition, presence, frequency, seed, logprobs,
                            {bias_ids.data(), bias_ids.data() + bias_ids.size()}, {bias.data(), bias.data() + bias.size()}};
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

// What measure(pool) finds on so many threads.
template <class Measure>
double measured(int threads, const Measure& measure) {
    double found = 0;
    without_lock([&] {
        Pool pool(threads, true);
        found = measure(pool);
    });
    return found;
}

}  // namespace
}  // namespace halfbyte

NB_MODULE(_native, module) {
    using namespace halfbyte;
    nb::set_leak_warnings(false);  // what a running thread holds when the interpreter ends is no leak
    nb::class_<Matrix>(module, "Matrix").def_prop_ro("nbytes", &Matrix::nbytes);

    nb::class_<ChoiceSettings>(module, "ChoiceSettings")
        .def("__init__", make_settings, nb::kw_only(), "temperature"_a, "top_k"_a, "typical_p"_a, "top_p"_a, "min_p"_a, "repetition"_a,
             "presence"_a, "frequency"_a, "seed"_a, "logprobs"_a, "bias_ids"_a.noconvert(), "bias"_a.noconvert());
    nb::class_<Choice>(module, "Choice")
        .def_ro("id", &Choice::id)
        .def_ro("logprob", &Choice::logprob)
        .def_ro("likeliest", &Choice::likeliest)
        .def_ro("peak", &Choice::peak)
        .def_ro("top", &Choice::top);

    nb::class_<PyProgram>(module, "Program")
        .def(nb::init<int, int64_t, const std::string&, bool, bool>(), "threads"_a, "context"_a, "isa"_a = "", "int8"_a = true,
             "spin"_a = true)
        .def_prop_ro("isa", [](PyProgram& p) { return std::string(isa_name(p->isa())); })
        .def_prop_ro("threads", [](PyProgram& p) { return p->pool().size(); })
        .def("matrix", &PyProgram::matrix, "format"_a, "codes"_a.noconvert(), "scales"_a.none().noconvert(),
             "zeros"_a.none().noconvert(), "rows"_a, "columns"_a, "group"_a)
        .def("step", &PyProgram::step, "op"_a, "axis"_a, "fields"_a)
        .def("run", [](PyProgram& p, int64_t tokens, int64_t rows, bool hidden) { without_lock([&] { p->run(tokens, rows, hidden); }); },
             "tokens"_a, "rows"_a, "hidden"_a = false)
        .def("choose", &PyProgram::choose, "logits"_a.noconvert(), "rows"_a)
        .def("step_ns", step_ns)
        .def_prop_ro("start_ns", [](PyProgram& p) { return p->start_ns(); });

    module.def("formats", format_names);
    module.def("ops", op_names);
    module.def("isas", isa_names);
    module.def("processor_name", processor_name);
    module.def("processor_features", processor_features);
    module.def("copy_bandwidth", [](int threads, int64_t nbytes, double seconds) {
        return measured(threads, [&](Pool& pool) { return copy_bandwidth(pool, nbytes, seconds); });
    }, "threads"_a, "nbytes"_a, "seconds"_a);
    module.def("int8_rate", [](int threads, const std::string& isa, double seconds) {
        return measured(threads, [&](Pool& pool) { return int8_rate(pool, find_isa(isa), seconds); });
    }, "threads"_a, "isa"_a, "seconds"_a);
    module.def("read_bandwidth", [](int threads, int64_t nbytes, double seconds) {
        return measured(threads, [&](Pool& pool) { return read_bandwidth(pool, nbytes, seconds); });
    }, "threads"_a, "nbytes"_a, "seconds"_a);
}
