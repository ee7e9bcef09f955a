// The splits of `attend` made one: out[t, heads · HD], to float32 or int8 blocks. Grid: (fours of a row / WG, tokens).
// Constants: WG, HEADS, HD, HDP, WINDOW, STRIDE4, OUT, EMIT.
@bind var<storage, read> state: array<i32>;
@bind var<storage, read> partial: array<f32>;
@bind var<storage, read> weight: array<vec2<f32>>;
#if OUT
@bind var<storage, read_write> out: array<vec4<f32>>;
#endif
#if EMIT
#include quantize_block
#endif
#include splits

fn merged(t: u32, i: u32, splits: u32) -> f32 {
    let head = i / ${HD}u;
    let d = i % ${HD}u;
    let at = (t * ${HEADS}u + head) * ${MAX_SPLITS}u;
    var top = -3.0e38;
    for (var s = 0u; s < splits; s++) {
        top = max(top, weight[at + s].x);
    }
    var total = 0.0;
    var sum = 0.0;
    for (var s = 0u; s < splits; s++) {
        let w = weight[at + s];
        let share = exp(w.x - top);
        total += w.y * share;
        sum += partial[(at + s) * ${HDP}u + d] * share;
    }
    return sum / total;
}

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
    var v = vec4<f32>(0.0);
#for j in range(4)
    if (i4 * 4u + ${j}u < ${HEADS * HD}u) {
        v[${j}] = merged(t, i4 * 4u + ${j}u, splits);
    }
#endfor
    let valid = i4 < ${STRIDE4}u;
#if OUT
    if (valid) {
        out[t * ${STRIDE4}u + i4] = v;
    }
#endif
#if EMIT
    store_block(lid, (t * ${STRIDE4}u + i4) / 8u, v, 0.0, valid);
#endif
}
