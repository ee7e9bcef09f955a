// The next token: the best score, or one drawn from the candidates; then the state moves on by one position.
// Filters are thresholds on the scores, found by halving the range of their order-preserving integers, with sums in
// integers so that the order of the candidates does not matter. The draw is the largest of score / temperature plus
// Gumbel noise, a function of (seed, position, id) that sampling/noise.py computes on the host. Writes `result` (id, bits of
// its log-probability) of step modulo RING. Grid: (1). Constants: WG, V, GROUPS, GREEDY, COUNTED, RING.
@bind var<storage, read> logits: array<f32>;
@bind var<storage, read> parts: array<vec4<f32>>;
#if not GREEDY
@bind var<storage, read> params: array<u32>;  // bits of float32, then the seed's two words
@bind var<storage, read> found: array<u32>;
@bind var<storage, read> candidates: array<vec2<u32>>;
#endif
#if COUNTED
@bind var<storage, read_write> counts: array<u32>;
#endif
@bind var<storage, read_write> state: array<i32>;
@bind var<storage, read_write> result: array<u32>;
var<workgroup> joined_parts: array<vec4<f32>, ${WG}>;
#if not GREEDY
var<workgroup> high: atomic<u32>;
var<workgroup> low: atomic<u32>;

fn param(i: u32) -> f32 {
    return bitcast<f32>(params[i]);
}

// Larger floats are larger integers.
fn ordered(bits: u32) -> u32 {
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

// -log(1 - tail); by its series up to 1/16, where 1 - tail loses digits and logarithms are coarse.
fn exponential(tail: f32) -> f32 {
    let series = tail * (1.0 + tail * (0.5 + tail * (1.0 / 3.0 + tail * (0.25 + tail * (0.2 + tail / 6.0)))));
    return select(-log(1.0 - tail), series, tail < 0.0625);
}

fn noise(position: u32, id: u32) -> f32 {
    var v = vec3<u32>(params[${SEED}] ^ (position * 0x9E3779B9u), params[${SEED + 1}] + position, id) * 1664525u + 1013904223u;
    v.x += v.y * v.z;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v ^= v >> vec3<u32>(16u);
    v.x += v.y * v.z;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    return -log(exponential((f32(v.z >> 9u) + 0.5) * 1.1920929e-7));
}

// Of the candidates at or above a threshold: how many, or (by weight) their weights in units of 2⁻²⁴ of the best's.
fn measure(lid: u32, count: u32, threshold: u32, best: f32, weighed: bool) -> f32 {
    workgroupBarrier();
    if (lid == 0u) {
        atomicStore(&high, 0u);
        atomicStore(&low, 0u);
    }
    workgroupBarrier();
    var my_high = 0u;
    var my_low = 0u;
    for (var i = lid; i < count; i += ${WG}u) {
        let bits = candidates[i].x;
        if (ordered(bits) >= threshold) {
            let weight = u32(exp((bitcast<f32>(bits) - best) / param(${TEMPERATURE}u)) * 16777216.0);
            my_high += select(0u, weight >> 12u, weighed);
            my_low += select(1u, weight & 4095u, weighed);
        }
    }
    atomicAdd(&high, my_high);
    atomicAdd(&low, my_low);
    workgroupBarrier();
    return f32(atomicLoad(&high)) * 4096.0 + f32(atomicLoad(&low));
}

// The largest threshold that lets at least `wanted` through.
fn highest(lid: u32, count: u32, from_least: u32, best: f32, wanted: f32, weighed: bool) -> u32 {
    var least = from_least;
    var most = ordered(bitcast<u32>(best));
    for (var i = 0u; i < 32u; i++) {
        let middle = least + (most - least) / 2u + ((most - least) & 1u);
        let passes = measure(lid, count, middle, best, weighed) >= wanted;
        least = select(least, middle, passes);
        most = select(middle - 1u, most, passes);
        most = max(most, least);
    }
    return least;
}
#endif

fn better(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    let top = max(a.x, b.x);
    let sum = a.y * exp(a.x - top) + b.y * exp(b.x - top);
    let first = a.z > b.z || (a.z == b.z && bitcast<u32>(a.w) < bitcast<u32>(b.w));
    return vec4<f32>(top, sum, select(b.zw, a.zw, first));
}

fn reduce(lid: u32, mine: vec4<f32>) -> vec4<f32> {
    workgroupBarrier();
    joined_parts[lid] = mine;
    workgroupBarrier();
#for d in [WG >> i for i in range(1, WG.bit_length())]
    if (lid < ${d}u) {
        joined_parts[lid] = better(joined_parts[lid], joined_parts[lid + ${d}u]);
    }
    workgroupBarrier();
#endfor
    return joined_parts[0];
}

@compute @workgroup_size(${WG})
fn main(@builtin(local_invocation_index) lid: u32) {
    let nothing = vec4<f32>(-3.0e38, 0.0, -3.0e38, bitcast<f32>(0x7FFFFFu));
    var mine = nothing;
    for (var i = lid; i < ${GROUPS}u; i += ${WG}u) {
        mine = better(mine, parts[i]);
    }
    let all = reduce(lid, mine);
    var id = bitcast<u32>(all.w);
#if not GREEDY
    let best = all.z;
    let count = found[0];
    var threshold = 0u;
    if (param(${TOP_K}u) > 0.0) {
        threshold = highest(lid, count, threshold, best, min(param(${TOP_K}u), f32(count)), false);
    }
    if (param(${TOP_P}u) < 1.0) {
        let wanted = param(${TOP_P}u) * measure(lid, count, threshold, best, true);
        threshold = highest(lid, count, threshold, best, wanted, true);
    }
    if (param(${MIN_P}u) > 0.0) {
        threshold = max(threshold, ordered(bitcast<u32>(best + param(${TEMPERATURE}u) * log(param(${MIN_P}u)))));
    }
    let position = u32(state[${POSITIONS}]) + 1u;
    var drawn = nothing;
    for (var i = lid; i < count; i += ${WG}u) {
        let candidate = candidates[i];
        if (ordered(candidate.x) >= threshold) {
            let score = bitcast<f32>(candidate.x) / param(${TEMPERATURE}u) + noise(position, candidate.y);
            drawn = better(drawn, vec4<f32>(0.0, 0.0, score, bitcast<f32>(candidate.y)));
        }
    }
    id = bitcast<u32>(reduce(lid, drawn).w);
#endif
    if (lid == 0u) {
        let slot = u32(state[1]) % ${RING}u * 2u;
        result[slot] = id;
        result[slot + 1u] = bitcast<u32>(logits[id] - all.x - log(all.y));
#if COUNTED
        counts[id] += 1u;
#endif
        state[${IDS}] = i32(id);
        state[${POSITIONS}] += 1;
        state[1] += 1;
    }
}
