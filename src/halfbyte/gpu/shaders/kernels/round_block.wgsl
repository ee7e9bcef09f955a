// Float32 rounded to int8 in blocks of 32. Eight neighbouring invocations hold a block, four values each; in uniform
// control flow. Constants: WG, SUBGROUP.
#include team NAME="block" TEAM=8

struct Rounded { word: u32, scale: f32, sum: i32 }

// The invocation's four int8 values, and the scale of its block and the sum of all its values.
fn rounded(lid: u32, v: vec4<f32>) -> Rounded {
    let a = abs(v);
    let largest = block_max(lid, max(max(a.x, a.y), max(a.z, a.w)));
    let q = vec4<i32>(round(v * select(0.0, 127.0 / largest, largest > 1e-30)));
    return Rounded(pack4xI8(q), largest / 127.0, i32(block_sum(lid, f32(q.x + q.y + q.z + q.w))));
}
