// ggml's q4_k and q6_k as `formats/ggml_k.py` describes them; functions as in q4g.wgsl. Constants: KIND, BLOCKS (of
// 256 values in a row), COLUMNS. Byte i of a group's 32 belongs to code i, in fields that other groups share.
#include int8
#if KIND == "q4_k"
@bind var<storage, read> w: array<vec4<u32>>;       // [rows, BLOCKS, 9]: ggml's blocks as they are
#else
@bind var<storage, read> w_low: array<vec4<u32>>;   // [rows, BLOCKS, 8]: nibble pairs
@bind var<storage, read> w_high: array<vec4<u32>>;  // [rows, BLOCKS, 4]: the codes' two high bits
@bind var<storage, read> w_scale: array<u32>;       // [rows, BLOCKS, 5]: 16 signed s, d in f16
#endif

alias Codes = Bytes;

#if KIND == "q4_k"
struct Scale {
    scale: f32,
    offset: f32,
}
#else
// For the first and the other 16 codes: d · s.x and d · s.y.
struct Scale {
    d: f32,
    s: vec2<i32>,
}
#endif

// 16 codes of a block of 32, the first or (part = 1) the others; of q6_k as signed bytes, less 32.
fn sixteen(row: u32, block: u32, part: u32) -> vec4<u32> {
    let first = row * ${BLOCKS}u + (block >> 3u);
    let j = block & 7u;
#if KIND == "q4_k"
    return (w[first * 9u + 1u + (j & 6u) + part] >> vec4<u32>(4u * (j & 1u))) & vec4<u32>(0x0F0F0F0Fu);
#else
    let low = w_low[first * 8u + (j & 4u) + 2u * (j & 1u) + part] >> vec4<u32>(2u * (j & 2u));
    let high = w_high[first * 4u + 2u * (j >> 2u) + part] >> vec4<u32>(2u * (j & 3u));
    let codes = (low & vec4<u32>(0x0F0F0F0Fu)) | ((high & vec4<u32>(0x03030303u)) << vec4<u32>(4u));
    return (codes + vec4<u32>(0x60606060u)) ^ vec4<u32>(0x80808080u);
#endif
}

fn weight_codes(row: u32, block: u32) -> Codes {
    return Bytes(sixteen(row, block, 0u), sixteen(row, block, 1u));
}

fn weight_scale(row: u32, block: u32) -> Scale {
    let first = row * ${BLOCKS}u + (block >> 3u);
    let j = block & 7u;
#if KIND == "q4_k"
    let head = w[first * 9u];
    let steps = unpack2x16float(head.x);
    let six = (head.yzw >> vec3<u32>(8u * (j & 3u))) & vec3<u32>(255u);
    let early = vec2<u32>(six.x & 63u, six.y & 63u);
    let late = vec2<u32>(six.z & 15u, six.z >> 4u) | ((six.xy >> vec2<u32>(6u)) << vec2<u32>(4u));
    let value = vec2<f32>(select(early, late, j > 3u)) * steps;
    return Scale(value.x, value.y);
#else
    let pair = w_scale[first * 5u + (j >> 1u)] >> (16u * (j & 1u));
    let d = unpack2x16float(w_scale[first * 5u + 4u]).x;
    return Scale(d, unpack4xI8(pair).xy);
#endif
}

fn weight4(row: u32, k4: u32) -> vec4<f32> {
    let part = (k4 >> 2u) & 1u;
    let four = unpack4xI8(sixteen(row, k4 >> 3u, part)[k4 & 3u]);
    let scale = weight_scale(row, k4 >> 3u);
#if KIND == "q4_k"
    let value = vec4<f32>(four) * scale.scale - scale.offset;
#if COLUMNS % 4
    return select(vec4<f32>(0.0), value, vec4<u32>(4u * k4) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(${COLUMNS}u));
#else
    return value;
#endif
#else
    return vec4<f32>(four) * (scale.d * f32(scale.s[part]));
#endif
}

fn block_product(codes: Codes, scale: Scale, low: vec4<u32>, high: vec4<u32>, x_sum: i32) -> f32 {
#if KIND == "q4_k"
    return f32(dot32(codes, low, high, 0)) * scale.scale - f32(x_sum) * scale.offset;
#else
    return f32(dot16(codes.low, low, 0) * scale.s.x + dot16(codes.high, high, 0) * scale.s.y) * scale.d;
#endif
}

fn block_bytes(codes: Codes, scale: Scale) -> Bytes {
    return codes;
}

fn tile_scale(scale: Scale) -> vec2<f32> {
#if KIND == "q4_k"
    return vec2<f32>(scale.scale, scale.offset);
#else
    return vec2<f32>(scale.s) * scale.d;
#endif
}
