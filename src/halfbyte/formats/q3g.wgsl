// 3-bit groups as `formats/q3g.py` stores them; functions as in q4g.wgsl. Constants: BLOCKS, GROUPS, GROUP, ZERO.
// A block is 3 words. Bits 2·(t / 2) … of each byte of word t % 2 are the two low bits of codes 4t … 4t + 3; bit t of
// each byte of word 2 is their high bit.
#include int8
@bind var<storage, read> w_q: array<u32>;      // [rows, BLOCKS, 3]
@bind var<storage, read> w_scale: array<u32>;  // f16 [rows, GROUPS], two in a word
#if ZERO
@bind var<storage, read> w_zero: array<u32>;   // 4-bit [rows, GROUPS], each row in whole bytes
#endif

alias Codes = vec3<u32>;

struct Scale {
    scale: f32,
    zero: i32,
}

fn weight_codes(row: u32, block: u32) -> Codes {
    let at = (row * ${BLOCKS}u + block) * 3u;
    return vec3<u32>(w_q[at], w_q[at + 1u], w_q[at + 2u]);
}

fn weight_scale(row: u32, block: u32) -> Scale {
    let group = block / ${GROUP // 32}u;
    let i = row * ${GROUPS}u + group;
    let scale = unpack2x16float(w_scale[i >> 1u] >> (16u * (i & 1u))).x;
#if ZERO
    let byte = row * ${(GROUPS + 1) // 2}u + (group >> 1u);
    return Scale(scale, i32((w_zero[byte >> 2u] >> (8u * (byte & 3u) + 4u * (group & 1u))) & 15u));
#else
    return Scale(scale, 4);
#endif
}

fn weight4(row: u32, k4: u32) -> vec4<f32> {
    let block = k4 >> 3u;
    let t = k4 & 7u;
    let at = (row * ${BLOCKS}u + block) * 3u;
    let low = (w_q[at + (t & 1u)] >> (t & 6u)) & 0x03030303u;
    let word = low | (((w_q[at + 2u] >> t) & 0x01010101u) << 2u);
    let scale = weight_scale(row, block);
    return vec4<f32>(vec4<i32>(unpack4xU8(word)) - scale.zero) * scale.scale;
}

// Codes 4t … 4t + 3 of 16, whose low bits begin at bits 0 and 2 of their words, and whose high bits at bit 0.
fn three_bits(even: u32, odd: u32, high: u32) -> vec4<u32> {
    let low = vec4<u32>(even, odd, even >> 2u, odd >> 2u) & vec4<u32>(0x03030303u);
    return low | (vec4<u32>(high << 2u, high << 1u, high, high >> 1u) & vec4<u32>(0x04040404u));
}

fn unpacked(codes: Codes) -> Bytes {
    return Bytes(three_bits(codes.x, codes.y, codes.z), three_bits(codes.x >> 4u, codes.y >> 4u, codes.z >> 4u));
}

fn block_product(codes: Codes, scale: Scale, low: vec4<u32>, high: vec4<u32>, x_sum: i32) -> f32 {
    return f32(dot32(unpacked(codes), low, high, -x_sum * scale.zero)) * scale.scale;
}

fn block_bytes(codes: Codes, scale: Scale) -> Bytes {
    let bytes = unpacked(codes);
    return Bytes(without_zero(bytes.low, u32(scale.zero)), without_zero(bytes.high, u32(scale.zero)));
}

fn tile_scale(scale: Scale) -> f32 {
    return scale.scale;
}
