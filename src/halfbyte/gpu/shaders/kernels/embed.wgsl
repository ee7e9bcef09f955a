// out[t] = table[ids[t]] · scale; an id -1 - s is the token that was drawn last for slot s. With EMIT also out · norm as int8 blocks with their sums of squares.
// Grid: (fours of a row / 64, tokens). Constants: K, STRIDE4, SCALE, ROW0 and ROWS (of this piece of the table), EMIT.
@bind var<storage, read> state: array<i32>;
#include ${FORMAT}
@bind var<storage, read_write> out: array<vec4<f32>>;
#if EMIT
@bind var<storage, read> norm: array<vec4<f32>>;
#include quantize_block ROW_BLOCKS=STRIDE4//8
#endif

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.y;
    let k4 = wg.x * ${WG}u + lid;
    let id = state[${IDS}u + t];
    let row = u32(select(id, state[${DRAWN}u + u32(max(-1 - id, 0))], id < 0)) - ${ROW0}u;
    let valid = row < ${ROWS}u && k4 < ${(K + 3) // 4}u;
    var v = vec4<f32>(0.0);
    if (valid) {
        v = weight4(row, k4) * ${SCALE};
        out[t * ${STRIDE4}u + k4] = v;
    }
#if EMIT
    let slot = t * ${STRIDE4 // 8}u + k4 / 8u;
    store_block(lid, slot, v * norm[min(k4, ${K // 4 - 1}u)], dot(v, v), valid);
#endif
}
