// Sums of products of int8 values, four in a word; what the snippets of packed formats share.

// 32 bytes: the first 16 and the others.
struct Bytes {
    low: vec4<u32>,
    high: vec4<u32>,
}

// start + a · b, of 16 values each.
fn dot16(a: vec4<u32>, b: vec4<u32>, start: i32) -> i32 {
    return start + dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y) + dot4I8Packed(a.z, b.z) + dot4I8Packed(a.w, b.w);
}

fn dot32(a: Bytes, low: vec4<u32>, high: vec4<u32>, start: i32) -> i32 {
    return dot16(a.high, high, dot16(a.low, low, start));
}

// The sum of 16 values.
fn sum16(a: vec4<u32>) -> i32 {
    return dot16(a, vec4<u32>(0x01010101u), 0);
}

// Codes of at most 7 bits, as signed bytes with a zero point of at most 7 bits taken off.
fn without_zero(codes: vec4<u32>, zero: u32) -> vec4<u32> {
    return (codes + vec4<u32>((128u - zero) * 0x01010101u)) ^ vec4<u32>(0x80808080u);
}
