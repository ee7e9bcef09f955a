// The splits of `attend` made one. Grid: (fours of a row / WG, tokens). Constants: WG and those of `merged` and `splits`.
@bind var<storage, read> state: array<i32>;
@bind var<storage, read> partial: array<vec4<f32>>;
@bind var<storage, read> weight: array<vec2<f32>>;
#include merged
#include splits

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.y;
    let i4 = wg.x * ${WG}u + lid;
    let splits = split_count(u32(state[${POSITIONS}u + t]));
    store_merged(lid, t, i4, splits, i4 < ${STRIDE4}u);
}
