// ggml's q4_1, q5_0 and q5_1 as `formats/ggml.py` describes them; functions as in q4g.wgsl. Constants: BLOCKS and COLUMNS
// of a row, FIVE (whether codes have a fifth bit), MINIMUM (whether codes are above one, else around 16).
#include int8
#include ragged
@bind var<storage, read> w_q: array<vec4<u32>>;  // [rows, BLOCKS]: byte i holds codes i and i + 16
#if FIVE
@bind var<storage, read> w_high: array<u32>;     // [rows, BLOCKS]: bit t of each byte is the fifth of codes 4t … 4t + 3
#endif
@bind var<storage, read> w_scale: array<u32>;    // f16 [rows, BLOCKS], two in a word; with MINIMUM d and m of a block

struct Codes {
    pairs: vec4<u32>,
    high: u32,
}

struct Scale {
    scale: f32,
    minimum: f32,
}

fn weight_codes(row: u32, block: u32) -> Codes {
    let at = row * ${BLOCKS}u + block;
    return Codes(w_q[at], ${"w_high[at]" if FIVE else "0u"});
}

fn weight_scale(row: u32, block: u32) -> Scale {
    let i = row * ${BLOCKS}u + block;
#if MINIMUM
    let both = unpack2x16float(w_scale[i]);
    return Scale(both.x, both.y);
#else
    return Scale(unpack2x16float(w_scale[i >> 1u] >> (16u * (i & 1u))).x, 0.0);
#endif
}

fn unpacked(codes: Codes) -> Bytes {
    let low = codes.pairs & vec4<u32>(0x0F0F0F0Fu);
    let high = (codes.pairs >> vec4<u32>(4u)) & vec4<u32>(0x0F0F0F0Fu);
#if FIVE
    let fifth = vec4<u32>(codes.high << 4u, codes.high << 3u, codes.high << 2u, codes.high << 1u);
    let others = vec4<u32>(codes.high, codes.high >> 1u, codes.high >> 2u, codes.high >> 3u);
    return Bytes(low | (fifth & vec4<u32>(0x10101010u)), high | (others & vec4<u32>(0x10101010u)));
#else
    return Bytes(low, high);
#endif
}

fn weight4(row: u32, k4: u32) -> vec4<f32> {
    let block = k4 >> 3u;
    let codes = weight_codes(row, block);
    let pairs = (codes.pairs[k4 & 3u] >> (k4 & 4u)) & 0x0F0F0F0Fu;
    let four = vec4<i32>(unpack4xU8(pairs | (((codes.high >> (k4 & 7u)) & 0x01010101u) << 4u)));
    let scale = weight_scale(row, block);
#if MINIMUM
    return in_row(k4, vec4<f32>(four) * scale.scale + scale.minimum);
#else
    return in_row(k4, vec4<f32>(four - 16) * scale.scale);
#endif
}

fn block_product(codes: Codes, scale: Scale, low: vec4<u32>, high: vec4<u32>, x_sum: i32) -> f32 {
#if MINIMUM
    return f32(dot32(unpacked(codes), low, high, 0)) * scale.scale + f32(x_sum) * scale.minimum;
#else
    return f32(dot32(unpacked(codes), low, high, -16 * x_sum)) * scale.scale;
#endif
}

fn block_bytes(codes: Codes, scale: Scale) -> Bytes {
    let bytes = unpacked(codes);
#if MINIMUM
    return bytes;
#else
    return Bytes(without_zero(bytes.low, 16u), without_zero(bytes.high, 16u));
#endif
}

#if MINIMUM
fn tile_scale(scale: Scale) -> vec2<f32> {
    return vec2<f32>(scale.scale, -scale.minimum);
}
#else
fn tile_scale(scale: Scale) -> f32 {
    return scale.scale;
}
#endif
