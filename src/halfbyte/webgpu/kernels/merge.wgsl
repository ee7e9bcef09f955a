// The splits of `attend` made one. Grid: (fours of a row / WG, tokens). Constants: WG, WINDOW and those of `merged`.
@bind var<storage, read> state: array<i32>;
@bind var<storage, read> partial: array<f32>;
@bind var<storage, read> weight: array<vec2<f32>>;
#include merged
#include splits

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.y;
    let i4 = wg.x * ${WG}u + lid;
    let position = u32(state[${POSITIONS}u + t]);
#if WINDOW
    let splits = split_count(min(position + 1u, ${WINDOW}u));
#else
    let splits = split_count(position + 1u);
#endif
    store_merged(lid, t, i4, splits, i4 < ${STRIDE4}u);
}
