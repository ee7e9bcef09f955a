// Ids that can be drawn: those within e⁻³⁰ of the best, and within min_p of it unless top_p comes first, which counts
// the others too. Grid: (GROUPS).
// Constants: WG, V, GROUPS.
@bind var<storage, read> scores: array<f32>;
@bind var<storage, read> params: array<f32>;
@bind var<storage, read> parts: array<vec4<f32>>;
@bind var<storage, read_write> found: array<atomic<u32>>;
@bind var<storage, read_write> candidates: array<vec2<u32>>;

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    var best = -3.0e38;
    for (var i = 0u; i < ${GROUPS}u; i++) {
        best = max(best, parts[i].z);
    }
    let min_p = select(params[${MIN_P}], 0.0, params[${TOP_P}] < 1.0);
    let least = best + params[${TEMPERATURE}] * max(-30.0, log(max(min_p, 1.0e-14)));
    for (var id = wg.x * ${WG}u + lid; id < ${V}u; id += ${WG * GROUPS}u) {
        let score = scores[id];
        if (score >= least) {
            candidates[atomicAdd(&found[0], 1u)] = vec2<u32>(bitcast<u32>(score), id);
        }
    }
}
