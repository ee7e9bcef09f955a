// Ids that can be drawn: those within e⁻³⁰ of the best, and within min_p of it unless top_p comes first, which counts
// the others too. A row whose most likely token is taken has none. Grid: (GROUPS, rows).
// Constants: WG, V, STRIDE, GROUPS, MASKED, PITCH.
@bind var<storage, read> state: array<i32>;
@bind var<storage, read> scores: array<f32>;
@bind var<storage, read> params: array<u32>;
@bind var<storage, read> parts: array<vec4<f32>>;
@bind var<storage, read_write> found: array<atomic<u32>>;
@bind var<storage, read_write> candidates: array<vec2<u32>>;
#if MASKED
#include sample_mask
#endif

fn param(slot: u32, i: u32) -> f32 {
    return bitcast<f32>(params[slot * ${PITCH}u + i]);
}

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let row = wg.y;
    let slot = u32(state[${SEQ}u + u32(state[${ROWS_AT}u + row])]);
    let temperature = param(slot, ${TEMPERATURE}u);
    if (temperature == 0.0) {
        return;
    }
    var best = -3.0e38;
    for (var i = 0u; i < ${GROUPS}u; i++) {
        best = max(best, parts[row * ${GROUPS}u + i].z);
    }
    let min_p = select(param(slot, ${MIN_P}u), 0.0, param(slot, ${TOP_P}u) < 1.0);
    let least = best + temperature * max(-30.0, log(max(min_p, 1.0e-14)));
    for (var id = wg.x * ${WG}u + lid; id < ${V}u; id += ${WG * GROUPS}u) {
        let score = scores[row * ${STRIDE}u + id];
#if MASKED
        let kept = score >= least && may_come(slot, id);
#else
        let kept = score >= least;
#endif
        if (kept) {
            candidates[row * ${V}u + atomicAdd(&found[row], 1u)] = vec2<u32>(bitcast<u32>(score), id);
        }
    }
}
