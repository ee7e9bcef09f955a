// ggml's iq4_nl and iq4_xs as `formats/ggml_table.py` describes them; functions as in q4g.wgsl. Constants: BLOCKS (of 32)
// and COLUMNS of a row, SUPER (whether eight blocks share d, and have whole scales besides).
#include int8
#include ragged
@bind var<storage, read> w_q: array<vec4<u32>>;  // [rows, BLOCKS]: byte i holds codes i and i + 16
#if SUPER
@bind var<storage, read> w_scale: array<u32>;    // [rows, BLOCKS / 8, 2]: d in f16, two high bits of 8 s; 8 low nibbles
#else
@bind var<storage, read> w_scale: array<u32>;    // f16 [rows, BLOCKS], two in a word
#endif

alias Codes = vec4<u32>;
alias Scale = f32;

fn weight_codes(row: u32, block: u32) -> Codes {
    return w_q[row * ${BLOCKS}u + block];
}

fn weight_scale(row: u32, block: u32) -> Scale {
    let i = row * ${BLOCKS}u + block;
#if SUPER
    let first = w_scale[(i >> 3u) * 2u];
    let j = i & 7u;
    let low = (w_scale[(i >> 3u) * 2u + 1u] >> (4u * j)) & 15u;
    let s = i32(low | (((first >> (16u + 2u * j)) & 3u) << 4u)) - 32;
    return unpack2x16float(first).x * f32(s);
#else
    return unpack2x16float(w_scale[i >> 1u] >> (16u * (i & 1u))).x;
#endif
}

fn either(bit: vec4<u32>, zero: vec4<u32>, one: vec4<u32>) -> vec4<u32> {
    return zero ^ (bit & (zero ^ one));
}

fn entries(bit: vec4<u32>, zero: u32, one: u32) -> vec4<u32> {
    return either(bit, vec4<u32>(zero * 0x01010101u), vec4<u32>(one * 0x01010101u));
}

fn mask(codes: vec4<u32>, bit: u32) -> vec4<u32> {
    return ((codes >> vec4<u32>(bit)) & vec4<u32>(0x01010101u)) * 255u;
}

// The table's entry for each byte below 16: a tree of choices by the code's bits, for all bytes of a word at once.
fn looked_up(codes: vec4<u32>) -> vec4<u32> {
    let bit = mask(codes, 0u);
    let second = mask(codes, 1u);
    let third = mask(codes, 2u);
    let negative = either(third,
        either(second, entries(bit, 0x81u, 0x98u), entries(bit, 0xADu, 0xBFu)),
        either(second, entries(bit, 0xCFu, 0xDDu), entries(bit, 0xEAu, 0xF6u)));
    let positive = either(third,
        either(second, entries(bit, 1u, 13u), entries(bit, 25u, 38u)),
        either(second, entries(bit, 53u, 69u), entries(bit, 89u, 113u)));
    return either(mask(codes, 3u), negative, positive);
}

fn unpacked(codes: Codes) -> Bytes {
    let low = codes & vec4<u32>(0x0F0F0F0Fu);
    return Bytes(looked_up(low), looked_up((codes >> vec4<u32>(4u)) & vec4<u32>(0x0F0F0F0Fu)));
}

fn weight4(row: u32, k4: u32) -> vec4<f32> {
    let block = k4 >> 3u;
    let word = (w_q[row * ${BLOCKS}u + block][k4 & 3u] >> (k4 & 4u)) & 0x0F0F0F0Fu;
    return in_row(k4, vec4<f32>(unpack4xI8(looked_up(vec4<u32>(word)).x)) * weight_scale(row, block));
}

fn block_product(codes: Codes, scale: Scale, low: vec4<u32>, high: vec4<u32>, x_sum: i32) -> f32 {
    return f32(dot32(unpacked(codes), low, high, 0)) * scale;
}

fn block_bytes(codes: Codes, scale: Scale) -> Bytes {
    return unpacked(codes);
}

fn tile_scale(scale: Scale) -> f32 {
    return scale;
}
