// ggml's k-quants as `formats/ggml_k.py` describes them; functions as in q4g.wgsl. Constants: KIND, BLOCKS (of 256 values
// in a row), COLUMNS, HALVES (whether each 16 codes of 32 have scales of their own), OFFSETS (whether there are any).
// Byte i of a group's 32 belongs to code i, in fields that other groups share.
#include int8
#include ragged
#if KIND == "q2_k"
@bind var<storage, read> w: array<vec4<u32>>;       // [rows, BLOCKS, 5]: 16 pairs of s and m; the codes
@bind var<storage, read> w_scale: array<u32>;       // [rows, BLOCKS]: d, e in f16
#elif KIND == "q3_k"
@bind var<storage, read> w: array<vec4<u32>>;       // [rows, BLOCKS, 7]: high bits; low bits; 16 s in 12 bytes and d
#elif KIND == "q4_k"
@bind var<storage, read> w: array<vec4<u32>>;       // [rows, BLOCKS, 9]: ggml's blocks as they are
#elif KIND == "q5_k"
@bind var<storage, read> w: array<vec4<u32>>;       // [rows, BLOCKS, 11]: ggml's blocks as they are
#else
@bind var<storage, read> w_low: array<vec4<u32>>;   // [rows, BLOCKS, 8]: nibble pairs
@bind var<storage, read> w_high: array<vec4<u32>>;  // [rows, BLOCKS, 4]: the codes' two high bits
@bind var<storage, read> w_scale: array<u32>;       // [rows, BLOCKS, 5]: 16 signed s, d in f16
#endif

alias Codes = Bytes;

#if HALVES and OFFSETS
// For the first and the other 16 codes.
struct Scale {
    scale: vec2<f32>,
    offset: vec2<f32>,
}
#elif OFFSETS
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

// 16 codes of a block of 32, the first or (part = 1) the others; without offsets as signed bytes, less their middle.
fn sixteen(row: u32, block: u32, part: u32) -> vec4<u32> {
    let first = row * ${BLOCKS}u + (block >> 3u);
    let j = block & 7u;
#if KIND == "q2_k"
    return (w[first * 5u + 1u + 2u * (j >> 2u) + part] >> vec4<u32>(2u * (j & 3u))) & vec4<u32>(0x03030303u);
#elif KIND == "q3_k"
    let low = w[first * 7u + 2u + 2u * (j >> 2u) + part] >> vec4<u32>(2u * (j & 3u));
    let high = w[first * 7u + part] >> vec4<u32>(j);
    return without_zero((low & vec4<u32>(0x03030303u)) | ((high & vec4<u32>(0x01010101u)) << vec4<u32>(2u)), 4u);
#elif KIND == "q4_k"
    return (w[first * 9u + 1u + (j & 6u) + part] >> vec4<u32>(4u * (j & 1u))) & vec4<u32>(0x0F0F0F0Fu);
#elif KIND == "q5_k"
    let low = w[first * 11u + 3u + (j & 6u) + part] >> vec4<u32>(4u * (j & 1u));
    let high = w[first * 11u + 1u + part] >> vec4<u32>(j);
    return (low & vec4<u32>(0x0F0F0F0Fu)) | ((high & vec4<u32>(0x01010101u)) << vec4<u32>(4u));
#else
    let low = w_low[first * 8u + (j & 4u) + 2u * (j & 1u) + part] >> vec4<u32>(2u * (j & 2u));
    let high = w_high[first * 4u + 2u * (j >> 2u) + part] >> vec4<u32>(2u * (j & 3u));
    return without_zero((low & vec4<u32>(0x0F0F0F0Fu)) | ((high & vec4<u32>(0x03030303u)) << vec4<u32>(4u)), 32u);
#endif
}

fn weight_codes(row: u32, block: u32) -> Codes {
    return Bytes(sixteen(row, block, 0u), sixteen(row, block, 1u));
}

fn weight_scale(row: u32, block: u32) -> Scale {
    let first = row * ${BLOCKS}u + (block >> 3u);
    let j = block & 7u;
#if KIND == "q2_k"
    let pairs = vec2<u32>(w[first * 5u][j >> 1u]) >> (vec2<u32>(16u * (j & 1u)) + vec2<u32>(0u, 8u));
    let steps = unpack2x16float(w_scale[first]);
    return Scale(vec2<f32>(pairs & vec2<u32>(15u)) * steps.x, vec2<f32>((pairs >> vec2<u32>(4u)) & vec2<u32>(15u)) * steps.y);
#elif KIND == "q3_k"
    let six = w[first * 7u + 6u];
    let low = (select(six.x, six.y, (j & 2u) != 0u) >> (16u * (j & 1u) + 4u * (j >> 2u))) & 0x0F0Fu;
    let high = (six.z >> (16u * (j & 1u) + 2u * (j >> 1u))) & 0x0303u;
    return Scale(unpack2x16float(six.w).x, vec2<i32>(unpack4xU8(low | (high << 4u)).xy) - 32);
#elif KIND == "q4_k" or KIND == "q5_k"
    let head = w[first * ${9 if KIND == "q4_k" else 11}u];
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
    let four = vec4<f32>(unpack4xI8(sixteen(row, k4 >> 3u, part)[k4 & 3u]));
    let scale = weight_scale(row, k4 >> 3u);
#if HALVES and OFFSETS
    return in_row(k4, four * scale.scale[part] - scale.offset[part]);
#elif OFFSETS
    return in_row(k4, four * scale.scale - scale.offset);
#else
    return in_row(k4, four * (scale.d * f32(scale.s[part])));
#endif
}

fn block_product(codes: Codes, scale: Scale, low: vec4<u32>, high: vec4<u32>, x_sum: i32) -> f32 {
#if HALVES and OFFSETS
    let first = sum16(low);
    let sums = vec2<f32>(vec2<i32>(dot16(codes.low, low, 0), dot16(codes.high, high, 0)));
    return dot(sums, scale.scale) - dot(vec2<f32>(vec2<i32>(first, x_sum - first)), scale.offset);
#elif OFFSETS
    return f32(dot32(codes, low, high, 0)) * scale.scale - f32(x_sum) * scale.offset;
#else
    return f32(dot16(codes.low, low, 0) * scale.s.x + dot16(codes.high, high, 0) * scale.s.y) * scale.d;
#endif
}

fn block_bytes(codes: Codes, scale: Scale) -> Bytes {
    return codes;
}

#if HALVES and OFFSETS
fn tile_scale(scale: Scale) -> vec4<f32> {
    return vec4<f32>(scale.scale, scale.offset);
}
#elif OFFSETS
fn tile_scale(scale: Scale) -> vec2<f32> {
    return vec2<f32>(scale.scale, scale.offset);
}
#else
fn tile_scale(scale: Scale) -> vec2<f32> {
    return vec2<f32>(scale.s) * scale.d;
}
#endif
