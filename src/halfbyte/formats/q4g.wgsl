// 4-bit groups as `formats/q4g.py` stores them. Constants: BLOCKS (of 32 codes) and GROUPS in a row, GROUP, ZERO.
// In each word w of a block, byte i holds code 4w + i (low nibble) and code 16 + 4w + i (high nibble).
#include int8
@bind var<storage, read> w_q: array<vec4<u32>>;  // [rows, BLOCKS]
@bind var<storage, read> w_scale: array<u32>;    // f16 [rows, GROUPS], two in a word
#if ZERO
@bind var<storage, read> w_zero: array<u32>;     // 4-bit [rows, GROUPS], each row in whole bytes
#endif

alias Codes = vec4<u32>;

struct Scale {
    scale: f32,
    zero: i32,
}

fn weight_codes(row: u32, block: u32) -> Codes {
    return w_q[row * ${BLOCKS}u + block];
}

fn weight_scale(row: u32, block: u32) -> Scale {
    let group = block / ${GROUP // 32}u;
    let i = row * ${GROUPS}u + group;
    let scale = unpack2x16float(w_scale[i >> 1u] >> (16u * (i & 1u))).x;
#if ZERO
    let byte = row * ${(GROUPS + 1) // 2}u + (group >> 1u);
    return Scale(scale, i32((w_zero[byte >> 2u] >> (8u * (byte & 3u) + 4u * (group & 1u))) & 15u));
#else
    return Scale(scale, 8);
#endif
}

fn nibbles(codes: Codes) -> Bytes {
    return Bytes(codes & vec4<u32>(0x0F0F0F0Fu), (codes >> vec4<u32>(4u)) & vec4<u32>(0x0F0F0F0Fu));
}

// Values 4·k4 … 4·k4 + 3 of a row.
fn weight4(row: u32, k4: u32) -> vec4<f32> {
    let block = k4 >> 3u;
    let word = w_q[row * ${BLOCKS}u + block][k4 & 3u] >> (k4 & 4u);
    let scale = weight_scale(row, block);
    return vec4<f32>(vec4<i32>(unpack4xU8(word & 0x0F0F0F0Fu)) - scale.zero) * scale.scale;
}

// A block times 32 int8 values (low: the first 16) whose sum is x_sum.
fn block_product(codes: Codes, scale: Scale, low: vec4<u32>, high: vec4<u32>, x_sum: i32) -> f32 {
    return f32(dot32(nibbles(codes), low, high, -x_sum * scale.zero)) * scale.scale;
}

// A block's codes as signed bytes, and what they are to be multiplied with.
fn block_bytes(codes: Codes, scale: Scale) -> Bytes {
    let bytes = nibbles(codes);
    return Bytes(without_zero(bytes.low, u32(scale.zero)), without_zero(bytes.high, u32(scale.zero)));
}

fn tile_scale(scale: Scale) -> f32 {
    return scale.scale;
}
