// The first pass over rows of logits: scores = logits with penalties and bias, and for each workgroup's share
// (largest logit, Σ exp(logit − largest), best score of an id that may come, that id). Grid: (GROUPS, rows).
// Constants: WG, V (vocabulary), STRIDE of a row, GROUPS, PENALIZED, MASKED, PITCH of a slot's params. A count's top bit
// says that the id is in the prompt.
@bind var<storage, read> logits: array<f32>;
#if PENALIZED or MASKED
@bind var<storage, read> state: array<i32>;
@bind var<storage, read> params: array<u32>;  // of each slot bits of float32, the seed's two words, flags, the mask
#endif
#if PENALIZED
@bind var<storage, read> counts: array<u32>;
@bind var<storage, read> bias: array<f32>;
@bind var<storage, read_write> scores: array<f32>;
#endif
@bind var<storage, read_write> parts: array<vec4<f32>>;
@bind var<storage, read_write> found: array<atomic<u32>>;
var<workgroup> shared_parts: array<vec4<f32>, ${WG}>;

#if MASKED
#include sample_mask
#endif
#if PENALIZED
fn param(slot: u32, i: u32) -> f32 {
    return bitcast<f32>(params[slot * ${PITCH}u + i]);
}

fn penalized(slot: u32, id: u32, logit: f32) -> f32 {
    if (params[slot * ${PITCH}u + ${PENALIZES}u] == 0u) {
        return logit;
    }
    let stored = counts[slot * ${V}u + id];
    let count = f32(stored & 0x7FFFFFFFu);
    var score = logit;
    if (stored != 0u) {
        let repetition = param(slot, ${REPETITION}u);
        score = select(score / repetition, score * repetition, score < 0.0);
    }
    let used = param(slot, ${PRESENCE}u) * min(count, 1.0) + param(slot, ${FREQUENCY}u) * count;
    return score - used + bias[slot * ${V}u + id];
}
#endif

fn joined(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    let top = max(a.x, b.x);
    let sum = a.y * exp(a.x - top) + b.y * exp(b.x - top);
    let first = a.z > b.z || (a.z == b.z && bitcast<u32>(a.w) < bitcast<u32>(b.w));
    return vec4<f32>(top, sum, select(b.zw, a.zw, first));
}

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let row = wg.y;
#if PENALIZED or MASKED
    let slot = u32(state[${SEQ}u + u32(state[${ROWS_AT}u + row])]);
#endif
    if (wg.x == 0u && lid == 0u) {
        atomicStore(&found[row], 0u);
    }
    var mine = vec4<f32>(-3.0e38, 0.0, -3.0e38, bitcast<f32>(0x7FFFFFu));
    for (var id = wg.x * ${WG}u + lid; id < ${V}u; id += ${WG * GROUPS}u) {
        let logit = logits[row * ${STRIDE}u + id];
#if PENALIZED
        let score = penalized(slot, id, logit);
        scores[row * ${STRIDE}u + id] = score;
#else
        let score = logit;
#endif
#if MASKED
        if (!may_come(slot, id)) {
            mine = joined(mine, vec4<f32>(logit, 1.0, -3.0e38, bitcast<f32>(0x7FFFFFu)));
            continue;
        }
#endif
        mine = joined(mine, vec4<f32>(logit, 1.0, score, bitcast<f32>(id)));
    }
    shared_parts[lid] = mine;
    workgroupBarrier();
#for d in [WG >> i for i in range(1, WG.bit_length())]
    if (lid < ${d}u) {
        shared_parts[lid] = joined(shared_parts[lid], shared_parts[lid + ${d}u]);
    }
    workgroupBarrier();
#endfor
    if (lid == 0u) {
        parts[row * ${GROUPS}u + wg.x] = shared_parts[0];
    }
}
