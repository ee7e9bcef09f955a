// 8-bit groups as `formats/q8g.py` stores them; functions as in q4g.wgsl. Constants: BLOCKS, GROUPS, GROUP.
#include int8
@bind var<storage, read> w_q: array<vec4<u32>>;  // [rows, BLOCKS, 2]
@bind var<storage, read> w_scale: array<u32>;    // f16 [rows, GROUPS], two in a word

alias Codes = Bytes;
alias Scale = f32;

fn weight_codes(row: u32, block: u32) -> Codes {
    let at = (row * ${BLOCKS}u + block) * 2u;
    return Bytes(w_q[at], w_q[at + 1u]);
}

fn weight_scale(row: u32, block: u32) -> Scale {
    let i = row * ${GROUPS}u + block / ${GROUP // 32}u;
    return unpack2x16float(w_scale[i >> 1u] >> (16u * (i & 1u))).x;
}

fn weight4(row: u32, k4: u32) -> vec4<f32> {
    let word = w_q[row * ${2 * BLOCKS}u + (k4 >> 2u)][k4 & 3u];
    return vec4<f32>(unpack4xI8(word)) * weight_scale(row, k4 >> 3u);
}

fn block_product(codes: Codes, scale: Scale, low: vec4<u32>, high: vec4<u32>, x_sum: i32) -> f32 {
    return f32(dot32(codes, low, high, 0)) * scale;
}

fn block_bytes(codes: Codes, scale: Scale) -> Bytes {
    return codes;
}

fn tile_scale(scale: Scale) -> f32 {
    return scale;
}
