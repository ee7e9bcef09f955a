#include "fields.h"

#include <algorithm>
#include <cmath>

namespace halfbyte {
namespace {

template <class T>
Table<T> table(const Array& array) {
    int64_t columns = 1;
    for (size_t i = 1; i < array.shape.size(); ++i) columns *= array.shape[i];
    return {static_cast<T*>(array.data), array.shape[0], columns};
}

template <class T>
std::span<const T> values(const Array& array) {
    return {static_cast<const T*>(array.data), static_cast<size_t>(array.shape[0])};
}

Array::Type array_type(CacheType type) {
    if (type == CacheType::f32) return Array::Type::f32;
    return type == CacheType::f16 ? Array::Type::f16 : Array::Type::u8;
}

int64_t item_bytes(Array::Type type) {
    if (type == Array::Type::u8) return 1;
    return type == Array::Type::f16 ? 2 : 4;
}

}  // namespace

template <class Kind>
const Kind& Fields::get(const std::string& name, const char* kind) const {
    const auto found = fields_.find(name);
    require(found != fields_.end(), "the field '" + name + "' is missing");
    const Kind* value = std::get_if<Kind>(&found->second);
    require(value != nullptr, "the field '" + name + "' is not " + kind);
    return *value;
}

// An array of this type with so many dimensions; of more than one, 2 allow any number.
const Array& Fields::array(const std::string& name, Array::Type type, size_t dimensions, bool written) const {
    const Array& found = get<Array>(name, "an array");
    const size_t has = found.shape.size();
    require(has == dimensions || (dimensions == 2 && has > 2), "the array '" + name + "' has " + std::to_string(has) + " dimensions");
    require(found.type == type, "the array '" + name + "' is of another type than expected");
    require(found.writable || !written, "the array '" + name + "' is read-only");
    return found;
}

Floats Fields::floats(const std::string& name) const { return table<float>(array(name, Array::Type::f32, 2, true)); }

Table<const float> Fields::constants(const std::string& name) const {
    return table<const float>(array(name, Array::Type::f32, 2, false));
}

Weights Fields::weights(const std::string& name) const { return values<float>(array(name, Array::Type::f32, 1, false)); }

State Fields::state(const std::string& name) const { return values<int32_t>(array(name, Array::Type::i32, 1, false)); }

Cache Fields::cache(const std::string& name) const {
    const Array::Type type = get<Array>(name, "an array").type;
    const Array& found = array(name, type, 4, true);
    const auto& shape = found.shape;
    const int64_t head_dim = type == Array::Type::u8 ? whole("head_dim") : shape[3];
    for (const CacheType each : {CacheType::f32, CacheType::f16, CacheType::q8, CacheType::q4}) {
        const Cache cache{static_cast<std::byte*>(found.data), each, shape[0], shape[1], shape[2], head_dim};
        if (type == array_type(each) && shape[3] * item_bytes(type) == cache.row_bytes()) return cache;
    }
    throw std::invalid_argument("the cache '" + name + "' has rows of " + std::to_string(shape[3]) + " items, which fit no type");
}

MatrixPtr Fields::matrix(const std::string& name) const {
    const Matrices& found = get<Matrices>(name, "a weight");
    require_equal(found.size(), 1, "number of weights");
    return found.front();
}

int64_t Fields::whole(const std::string& name) const {
    constexpr double kMost = 1u << 31;
    const double value = get<double>(name, "a number");
    require(value >= 0 && value <= kMost && value == std::floor(value), "the field '" + name + "' is no whole number up to 2^31");
    return static_cast<int64_t>(value);
}

Heads Fields::heads(int64_t least_kv) const {
    const Heads heads{whole("heads"), whole("kv_heads"), whole("head_dim")};
    constexpr int64_t kMost = 1 << 16;
    for (const int64_t count : {heads.heads, std::max(heads.kv_heads, 1 - least_kv), heads.head_dim})
        require(count > 0 && count <= kMost, "the numbers of heads and their size must be from 1 to 2^16");
    return heads;
}

Paging Fields::paging() const {
    const auto blocks = table<const int32_t>(array("blocks", Array::Type::i32, 2, false));
    require(blocks.columns > 0, "a block table has no columns");
    return {state("positions"), state("sequences"), blocks};
}

Stateful Fields::stateful() const {
    return {state("positions"), state("sequences"), table<const int32_t>(array("table", Array::Type::i32, 2, false)), floats("states")};
}

Activation Fields::activation() const {
    const std::string& name = get<std::string>("activation", "a name");
    require(name == "silu" || name == "gelu_tanh", "unknown activation '" + name + "'");
    return name == "silu" ? Activation::silu : Activation::gelu_tanh;
}

}  // namespace halfbyte
