#include "isa.h"

#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "kernels.h"

#if defined(HB_X86)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(HB_ARM) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(HB_ARM) && defined(_WIN32)
#include <windows.h>
#endif

namespace halfbyte {
namespace {

#if defined(HB_X86)

struct Registers {
    uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf = 0) {
    Registers r{};
#if defined(_MSC_VER)
    int values[4];
    __cpuidex(values, static_cast<int>(leaf), static_cast<int>(subleaf));
    std::memcpy(&r, values, sizeof r);
#else
    __cpuid_count(leaf, subleaf, r.a, r.b, r.c, r.d);
#endif
    return r;
}

// The vector registers that the operating system saves.
uint64_t saved_registers() {
    if (!(cpuid(1).c >> 27 & 1)) return 0;
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<uint64_t>(high) << 32 | low;
#endif
}

struct Features {
    bool avx2 = false, fma = false, f16c = false, avx512 = false, avx512_vnni = false, avx_vnni = false, avx512_bf16 = false;
};

Features detect() {
    Features f;
    const uint64_t saved = saved_registers();
    if ((saved & 0x06) != 0x06 || cpuid(0).a < 7) return f;
    const Registers one = cpuid(1), seven = cpuid(7), more = seven.a >= 1 ? cpuid(7, 1) : Registers{};
    f.fma = one.c >> 12 & 1;
    f.f16c = one.c >> 29 & 1;
    f.avx2 = seven.b >> 5 & 1;
    f.avx_vnni = more.a >> 4 & 1;
    if ((saved & 0xe6) != 0xe6) return f;
    const bool foundation = seven.b >> 16 & 1, dq = seven.b >> 17 & 1, bw = seven.b >> 30 & 1, vl = seven.b >> 31 & 1;
    f.avx512 = foundation && dq && bw && vl;
    f.avx512_vnni = f.avx512 && (seven.c >> 11 & 1);
    f.avx512_bf16 = f.avx512 && (more.a >> 5 & 1);
    return f;
}

#elif defined(HB_ARM)

bool has_dot_product() {
#if defined(__APPLE__)
    return true;
#elif defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1;
#elif defined(_WIN32)
    return IsProcessorFeaturePresent(PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE);
#else
    return false;
#endif
}

#endif

}  // namespace

std::vector<Isa> available_isas() {
    std::vector<Isa> isas{Isa::generic};
#if defined(HB_X86)
    const Features f = detect();
    const bool avx2 = f.avx2 && f.fma && f.f16c;
    if (avx2) isas.push_back(Isa::avx2);
    if (avx2 && f.avx_vnni) isas.push_back(Isa::avx_vnni);
    if (avx2 && f.avx512_vnni) isas.push_back(Isa::avx512);
#elif defined(HB_ARM)
    isas.push_back(Isa::neon);
    if (has_dot_product()) isas.push_back(Isa::neon_dot);
#endif
    return isas;
}

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::neon: return "neon";
        case Isa::neon_dot: return "neon-dot";
        case Isa::avx2: return "avx2";
        case Isa::avx_vnni: return "avx-vnni";
        case Isa::avx512: return "avx512";
        default: return "generic";
    }
}

Isa find_isa(const std::string& name) {
    const std::vector<Isa> isas = available_isas();
    if (name.empty()) return isas.back();
    std::string known;
    for (const Isa isa : isas) {
        if (name == isa_name(isa)) return isa;
        known += std::string(known.empty() ? "" : ", ") + isa_name(isa);
    }
    throw std::invalid_argument("no instruction set '" + name + "' here; there are " + known);
}

const Kernels& kernels_for(Isa isa) {
    switch (isa) {
#if defined(HB_X86)
        case Isa::avx2:
        case Isa::avx_vnni: return kernels_avx2;
        case Isa::avx512: return kernels_avx512;
#elif defined(HB_ARM)
        case Isa::neon:
        case Isa::neon_dot: return kernels_neon;
#endif
        default: return kernels_generic;
    }
}

const Int8Kernels& int8_kernels_for(Isa isa) {
    switch (isa) {
#if defined(HB_X86)
        case Isa::avx2: return int8_avx2;
        case Isa::avx_vnni: return int8_avx_vnni;
        case Isa::avx512: return int8_avx512;
#elif defined(HB_ARM)
        case Isa::neon: return int8_neon;
        case Isa::neon_dot: return int8_neon_dot;
#endif
        default: return int8_generic;
    }
}

std::string processor_name() {
#if defined(HB_X86)
    if (cpuid(0x80000000).a < 0x80000004) return {};
    std::array<Registers, 3> text{cpuid(0x80000002), cpuid(0x80000003), cpuid(0x80000004)};
    char name[sizeof text + 1] = {};
    std::memcpy(name, text.data(), sizeof text);
    return name;
#else
    return {};
#endif
}

std::vector<std::string> processor_features() {
    std::vector<std::string> names;
#if defined(HB_X86)
    const Features f = detect();
    const std::pair<bool, const char*> known[] = {
        {f.avx2, "avx2"},     {f.fma, "fma"},           {f.f16c, "f16c"},
        {f.avx512, "avx512"}, {f.avx_vnni, "avx-vnni"}, {f.avx512_vnni, "avx512-vnni"},
        {f.avx512_bf16, "avx512-bf16"},
    };
    for (const auto& [present, name] : known)
        if (present) names.emplace_back(name);
#elif defined(HB_ARM)
    names.emplace_back("neon");
    if (has_dot_product()) names.emplace_back("dotprod");
#endif
    return names;
}

}  // namespace halfbyte
