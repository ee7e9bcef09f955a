// The Python module `halfbyte.gpu.device._record`: dispatches of a pass, handed to wgpu's C functions without Python between
// them. A token of a large model is two hundred of these.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <cstddef>
#include <cstdint>
#include <tuple>

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Address = std::uintptr_t;
using Handle = void*;
using SetPipeline = void (*)(Handle pass, Handle pipeline);
using SetBindGroup = void (*)(Handle pass, uint32_t index, Handle group, size_t offsets, const uint32_t* offset);
using DispatchWorkgroups = void (*)(Handle pass, uint32_t x, uint32_t y, uint32_t z);

template <class T>
T at(nb::handle command, Py_ssize_t i) {
    return nb::cast<T>(nb::handle(PyTuple_GetItem(command.ptr(), i)));
}

void record(std::tuple<Address, Address, Address> functions, Address pass, nb::list commands) {
    const auto set_pipeline = reinterpret_cast<SetPipeline>(std::get<0>(functions));
    const auto set_bind_group = reinterpret_cast<SetBindGroup>(std::get<1>(functions));
    const auto dispatch = reinterpret_cast<DispatchWorkgroups>(std::get<2>(functions));
    const auto encoder = reinterpret_cast<Handle>(pass);
    for (nb::handle command : commands) {
        if (!PyTuple_Check(command.ptr()) || PyTuple_Size(command.ptr()) != 5) {
            throw nb::type_error("a command is (pipeline, bind group, x, y, z)");
        }
        const auto pipeline = at<Address>(command, 0), group = at<Address>(command, 1);
        const auto x = at<uint32_t>(command, 2), y = at<uint32_t>(command, 3), z = at<uint32_t>(command, 4);
        set_pipeline(encoder, reinterpret_cast<Handle>(pipeline));
        set_bind_group(encoder, 0, reinterpret_cast<Handle>(group), 0, nullptr);
        dispatch(encoder, x, y, z);
    }
}

}  // namespace

NB_MODULE(_record, module) { module.def("record", record, "functions"_a, "recording"_a, "commands"_a); }
