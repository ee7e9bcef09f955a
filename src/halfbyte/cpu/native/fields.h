// The fields of one op of a plan, as its dataclass in halfbyte/plan/ops.py has them: what its step is made from.
//
// Each getter throws `std::invalid_argument` where the op has no such field or one of another kind; the `optional_` ones
// give an empty view where the field is absent.
#pragma once

#include <map>
#include <string>
#include <variant>
#include <vector>

#include "inputs.h"
#include "kernels.h"
#include "matrix.h"
#include "tensor.h"

namespace halfbyte {

// A C-contiguous array that somebody else keeps alive.
struct Array {
    enum class Type { f32, f16, i32, u8 };

    void* data;
    Type type;
    bool writable;
    std::vector<int64_t> shape;
};

using Matrices = std::vector<MatrixPtr>;
using Field = std::variant<Array, Matrices, double, std::string>;

struct Norm {
    float eps, offset;
};

class Fields {
public:
    Fields(Axis axis, std::map<std::string, Field> fields) : axis_(axis), fields_(std::move(fields)) {}

    // What the first dimension of the arrays counts.
    Axis axis() const { return axis_; }
    bool has(const std::string& name) const { return fields_.contains(name); }

    // An array of at least two dimensions, all but the first taken together.
    Floats floats(const std::string& name) const;
    Floats optional_floats(const std::string& name) const { return has(name) ? floats(name) : Floats{}; }
    Table<const float> constants(const std::string& name) const;
    Weights weights(const std::string& name) const;
    Weights optional_weights(const std::string& name) const { return has(name) ? weights(name) : Weights{}; }
    State state(const std::string& name) const;
    // Of f32, f16, or, in bytes, blocks of 32 values in 8 or 4 bits.
    Cache cache(const std::string& name) const;
    Matrices matrices(const std::string& name) const { return get<Matrices>(name, "weights"); }
    MatrixPtr matrix(const std::string& name) const;
    float number(const std::string& name) const { return static_cast<float>(get<double>(name, "a number")); }
    float optional_number(const std::string& name) const { return has(name) ? number(name) : 0; }
    int64_t whole(const std::string& name) const;
    int64_t optional_whole(const std::string& name) const { return has(name) ? whole(name) : 0; }

    // Groups of fields that several ops have.
    // `least_kv`: fewest kv heads, which may be none for ops without a cache.
    Heads heads(int64_t least_kv = 1) const;
    Paging paging() const;
    Stateful stateful() const;
    Norm norm() const { return {number("eps"), number("offset")}; }
    Activation activation() const;

private:
    template <class Kind>
    const Kind& get(const std::string& name, const char* kind) const;
    const Array& array(const std::string& name, Array::Type type, size_t dimensions, bool written) const;

    Axis axis_;
    std::map<std::string, Field> fields_;
};

}  // namespace halfbyte
