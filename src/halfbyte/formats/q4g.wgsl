// 4-bit groups as `formats/q4g.py` stores them. Constants: BLOCKS (of 32 codes) and GROUPS in a row, GROUP, ZERO.
// In each word w of a block, byte i holds code 4w + i (low nibble) and code 16 + 4w + i (high nibble).
@bind var<storage, read> w_q: array<vec4<u32>>;  // [rows, BLOCKS]
@bind var<storage, read> w_scale: array<u32>;    // f16 [rows, GROUPS], two in a word
#if ZERO
@bind var<storage, read> w_zero: array<u32>;     // 4-bit [rows, GROUPS], each row in whole bytes
#endif

fn weight_scale(row: u32, block: u32) -> f32 {
    let i = row * ${GROUPS}u + block / ${GROUP // 32}u;
    return unpack2x16float(w_scale[i >> 1u] >> (16u * (i & 1u))).x;
}

fn weight_zero(row: u32, block: u32) -> i32 {
#if ZERO
    let group = block / ${GROUP // 32}u;
    let byte = row * ${(GROUPS + 1) // 2}u + (group >> 1u);
    return i32((w_zero[byte >> 2u] >> (8u * (byte & 3u) + 4u * (group & 1u))) & 15u);
#else
    return 8;
#endif
}

// Values 4·k4 … 4·k4 + 3 of a row.
fn weight4(row: u32, k4: u32) -> vec4<f32> {
    let block = k4 >> 3u;
    let i = k4 & 7u;
    let word = w_q[row * ${BLOCKS}u + block][i & 3u] >> (i & 4u);
    let codes = vec4<i32>(unpack4xU8(word & 0x0F0F0F0Fu)) - weight_zero(row, block);
    return vec4<f32>(codes) * weight_scale(row, block);
}

fn weight_block(row: u32, block: u32) -> vec4<u32> {
    return w_q[row * ${BLOCKS}u + block];
}

// start + codes · x, for the 32 codes of a block and 32 int8 values (lo: the first 16).
fn block_dot(codes: vec4<u32>, lo: vec4<u32>, hi: vec4<u32>, start: i32) -> i32 {
    let a = codes & vec4<u32>(0x0F0F0F0Fu);
    let b = (codes >> vec4<u32>(4u)) & vec4<u32>(0x0F0F0F0Fu);
    var sum = start;
    sum += dot4I8Packed(a.x, lo.x);
    sum += dot4I8Packed(a.y, lo.y);
    sum += dot4I8Packed(a.z, lo.z);
    sum += dot4I8Packed(a.w, lo.w);
    sum += dot4I8Packed(b.x, hi.x);
    sum += dot4I8Packed(b.y, hi.y);
    sum += dot4I8Packed(b.z, hi.z);
    sum += dot4I8Packed(b.w, hi.w);
    return sum;
}

// Four codes in the low nibbles of a word, as signed bytes with the zero point taken off.
fn signed_codes(nibbles: u32, zero: u32) -> u32 {
    return ((nibbles | 0x80808080u) - zero * 0x01010101u) ^ 0x80808080u;
}
