// Runs every op that has kernels on each instruction set of this machine and compares it with the generic one: products
// of all formats, few tokens and many, with 8-bit and with float activations; attention; norms, rotations, activations.
// Prints a line for each set and ends with 1 where one differs. scripts/neon runs it for ARM under an emulator.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <random>

#include "half.h"
#include "steps.h"

using namespace halfbyte;

namespace {

constexpr double kTolerance = 2e-5;  // of the largest value: sums are made in another order
constexpr int64_t kContext = 96, kBlockSize = 8;

std::mt19937 random_bits(7);

// Normal values, one in fifty of them 20 times as large.
std::vector<float> hostile(int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) value = normal(random_bits) * (random_bits() % 50 == 0 ? 20.0f : 1.0f);
    return values;
}

std::vector<uint8_t> bytes(int64_t count) {
    std::vector<uint8_t> values(count);
    for (uint8_t& value : values) value = static_cast<uint8_t>(random_bits());
    return values;
}

// Small positive numbers in half precision, every `stride` bytes from `at` on.
void put_scales(std::vector<uint8_t>& into, int64_t at, int64_t stride) {
    for (; at + 2 <= static_cast<int64_t>(into.size()); at += stride) {
        const uint16_t half = float_to_half(0.01f + static_cast<float>(random_bits() % 1000) / 1000);
        std::memcpy(into.data() + at, &half, 2);
    }
}

struct Parts {
    std::vector<uint8_t> codes, scales, zeros;
    int64_t group = 0;
};

// ggml's blocks: values and bytes of one, and where its numbers in half precision are.
struct BlockShape {
    int64_t values, nbytes;
    std::vector<int64_t> halves;
};
const std::map<std::string, BlockShape> kBlockShapes{
    {"q4_1", {32, 20, {0, 2}}},    {"q5_0", {32, 22, {0}}},       {"q5_1", {32, 24, {0, 2}}},    {"iq4_nl", {32, 18, {0}}},
    {"q2_k", {256, 84, {80, 82}}}, {"q3_k", {256, 110, {108}}},   {"q4_k", {256, 144, {0, 2}}}, {"q5_k", {256, 176, {0, 2}}},
    {"q6_k", {256, 210, {208}}},   {"iq4_xs", {256, 136, {0}}},
};

// A random matrix as it is stored in one format.
Parts stored(const std::string& format, int64_t rows, int64_t columns, bool zeros) {
    Parts parts;
    if (const auto found = kBlockShapes.find(format); found != kBlockShapes.end()) {
        const BlockShape& shape = found->second;
        parts.codes = bytes(rows * ((columns + shape.values - 1) / shape.values) * shape.nbytes);
        for (const int64_t at : shape.halves) put_scales(parts.codes, at, shape.nbytes);
    } else if (format[0] == 'q') {
        parts.group = 64;
        const int64_t groups = (columns + parts.group - 1) / parts.group, bits = format[1] - '0';
        parts.codes = bytes(rows * groups * parts.group * bits / 8);
        parts.scales.resize(rows * groups * 2);
        put_scales(parts.scales, 0, 2);
        if (zeros) parts.zeros = bytes(rows * ((groups + 1) / 2));
    } else {
        const std::vector<float> values = hostile(rows * columns);
        const int64_t item = format == "f32" ? 4 : 2;
        parts.codes.resize(values.size() * item);
        for (size_t i = 0; i < values.size(); ++i) {
            const uint16_t half = float_to_half(values[i]);
            const auto* from = reinterpret_cast<const uint8_t*>(&values[i]);
            if (format == "f16") std::memcpy(&parts.codes[i * 2], &half, 2);
            else std::memcpy(&parts.codes[i * item], from + 4 - item, item);
        }
    }
    return parts;
}

Array array(std::vector<float>& values, int64_t rows) {
    return {values.data(), Array::Type::f32, true, {rows, static_cast<int64_t>(values.size()) / rows}};
}

Array vector(std::vector<float>& values) { return {values.data(), Array::Type::f32, true, {static_cast<int64_t>(values.size())}}; }

Array state(std::vector<int32_t>& values) { return {values.data(), Array::Type::i32, true, {static_cast<int64_t>(values.size())}}; }

// Runs steps that write `out` on one instruction set.
struct Run {
    Program program;

    Run(Isa isa, bool int8) : program(2, isa, kContext, int8, true) {}
    void step(const std::string& op, std::map<std::string, Field> fields) {
        program.add(make_step(op, {Axis::tokens, std::move(fields)}, program.inputs()));
    }
};

using Results = std::vector<std::pair<std::string, std::vector<float>>>;

void products(Isa isa, Results& results) {
    constexpr int64_t kRows = 100;
    for (const std::string& format : format_names()) {
        for (const bool zeros : {false, true}) {
            if (zeros && format != "q3g" && format != "q4g") continue;
            for (const int64_t columns : {40, 300, 1152}) {
                const Parts parts = stored(format, kRows, columns, zeros);
                std::vector<float> bias = hostile(kRows);
                for (const int64_t tokens : {1, 2, 3, 4, 5, 9, 33}) {
                    std::vector<float> x = hostile(tokens * columns);
                    for (const bool int8 : {false, true}) {
                        Run run(isa, int8);
                        const StoredMatrix matrix{parts.codes, parts.scales, parts.zeros, kRows, columns, parts.group};
                        std::vector<float> out(tokens * kRows);
                        const auto weight = std::make_shared<Matrix>(find_format(format), matrix, run.program.pool(), run.program.arena());
                        run.step("Linear", {{"x", array(x, tokens)}, {"weights", Matrices{weight}}, {"bias", vector(bias)}, {"out", array(out, tokens)}});
                        run.program.run(tokens, 0);
                        results.emplace_back(format + (zeros ? "z" : "") + (int8 ? " int8" : " f32"), out);
                    }
                }
            }
        }
    }
}

void elementwise(Isa isa, Results& results) {
    for (const int64_t width : {2, 16, 62, 1152}) {
        std::vector<float> x = hostile(3 * width), y = hostile(3 * width), weight = hostile(width), out(3 * width), half(3 * width / 2);
        const auto add = [&](const std::string& op, std::vector<float>& result, std::map<std::string, Field> fields) {
            Run run(isa, true);
            fields.insert({{"x", array(x, 3)}, {"out", array(result, 3)}});
            run.step(op, std::move(fields));
            run.program.run(3, 0);
            results.emplace_back(op, result);
        };
        add("RmsNorm", out, {{"weight", vector(weight)}, {"eps", 1e-6}, {"offset", 1.0}, {"scale", 1.0}, {"residual", array(y, 3)}});
        add("Add", out, {{"y", array(y, 3)}});
        add("Softcap", out, {{"cap", 5.0}});
        for (const char* name : {"silu", "gelu_tanh"}) add("GatedActivation", half, {{"activation", std::string(name)}});
    }
}

// Keys and values are written, then attended to, for a prompt and for single tokens after it. Where the cache rounds them
// to few codes they are written as they are: what differs in its last bit may get another code.
void attention(Isa isa, Results& results, int64_t head_dim, CacheType type, double window, double softcap) {
    constexpr int64_t kHeads = 8, kKvHeads = 2, kTokens = 40, kBlocks = kContext / kBlockSize;
    std::vector<float> qkv = hostile(kTokens * (kHeads + 2 * kKvHeads) * head_dim), table = hostile(kTokens * head_dim / 2 * 2);
    std::vector<float> norm = hostile(head_dim), q(kTokens * kHeads * head_dim), out(q.size());
    std::vector<int32_t> positions(kTokens), sequences(kTokens), blocks(kBlocks);
    for (int64_t i = 0; i < kBlocks; ++i) blocks[i] = static_cast<int32_t>((5 * i) % kBlocks);
    std::vector<uint8_t> k(kContext * kKvHeads * (head_dim + Cache::kRun) * 4), v(k.size());
    const Cache shape{nullptr, type, kBlocks, kKvHeads, kBlockSize, head_dim};
    const auto cache = [&](std::vector<uint8_t>& memory) {
        const Array::Type item = shape.rounded() ? Array::Type::u8 : shape.half() ? Array::Type::f16 : Array::Type::f32;
        return Array{memory.data(), item, true, {kBlocks, kKvHeads, kBlockSize, shape.rounded() ? shape.row_bytes() : head_dim}};
    };
    std::map<std::string, Field> shared{
        {"heads", double(kHeads)}, {"kv_heads", double(kKvHeads)}, {"head_dim", double(head_dim)},
        {"positions", state(positions)}, {"sequences", state(sequences)},
        {"blocks", Array{blocks.data(), Array::Type::i32, true, {1, kBlocks}}}, {"k_cache", cache(k)}, {"v_cache", cache(v)},
    };
    Run run(isa, true);
    std::map<std::string, Field> write = shared, attend = shared;
    write.insert({{"qkv", array(qkv, kTokens)}, {"table", array(table, kTokens)}, {"q_weight", vector(norm)},
                  {"k_weight", vector(norm)}, {"eps", 1e-6}, {"offset", 0.0}, {"v_norm", 1.0}, {"beta", 0.5}, {"beta_length", 8.0},
                  {"hadamard", type == CacheType::f32 ? double(head_dim & -head_dim) : 1.0}, {"out", array(q, kTokens)}});
    attend.insert({{"q", array(shape.rounded() ? qkv : q, kTokens)}, {"out", array(out, kTokens)}, {"scale", 1 / std::sqrt(double(head_dim))}});
    if (window > 0) attend.insert({"window", window});
    if (softcap > 0) attend.insert({"softcap", softcap});
    run.step(shape.rounded() ? "KvWrite" : "RopeKvWrite", write);
    run.step("Attention", attend);
    for (int32_t first = 0; first < kContext; first += first == 0 ? kTokens : 1) {
        const int64_t tokens = first == 0 ? kTokens : 1;
        for (int64_t t = 0; t < tokens; ++t) positions[t] = first + static_cast<int32_t>(t);
        run.program.run(tokens, 0);
        results.emplace_back("attention", std::vector<float>(out.begin(), out.begin() + tokens * kHeads * head_dim));
    }
}

Results all(Isa isa) {
    random_bits.seed(7);
    Results results;
    products(isa, results);
    elementwise(isa, results);
    for (const CacheType type : {CacheType::f32, CacheType::f16, CacheType::q8, CacheType::q4}) {
        for (const int64_t head_dim : {20, 64, 128}) attention(isa, results, head_dim, type, 0, 0);
        attention(isa, results, 64, type, 17, 5);
    }
    return results;
}

// The largest difference, in parts of the largest value; infinite where a value is not finite.
double difference(const std::vector<float>& expected, const std::vector<float>& found) {
    double largest = 0, most = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        if (!std::isfinite(found[i]) || !std::isfinite(expected[i])) return INFINITY;
        largest = std::max<double>(largest, std::abs(expected[i]));
        most = std::max<double>(most, std::abs(static_cast<double>(expected[i]) - found[i]));
    }
    return most / largest;
}

}  // namespace

int main() {
    const Results expected = all(Isa::generic);
    bool equal = true;
    for (const Isa isa : available_isas()) {
        if (isa == Isa::generic) continue;
        const Results found = all(isa);
        double worst = 0;
        for (size_t i = 0; i < expected.size(); ++i) {
            const double apart = difference(expected[i].second, found[i].second);
            worst = std::max(worst, apart);
            if (apart > kTolerance) std::printf("%s: %s differs by %.1e of the largest value\n", isa_name(isa), expected[i].first.c_str(), apart);
        }
        std::printf("%s: %zu results, at most %.1e from generic\n", isa_name(isa), found.size(), worst);
        equal &= worst <= kTolerance;
    }
    return equal ? 0 : 1;
}
