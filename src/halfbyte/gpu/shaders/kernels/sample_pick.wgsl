// The next token of each row: the best score, or one drawn from the candidates; then the state moves on by a position.
// Filters are thresholds on the scores, found by halving the range of their order-preserving integers, with sums in
// integers so that the order of the candidates does not matter. The draw is the largest of score / temperature plus
// Gumbel noise, a function of (seed, position, id) that sampling/noise.py computes on the host. Writes `result` (id, bits of
// its log-probability, which is no number where nothing can be chosen) [RING, ROW_COUNT] of step modulo RING.
// Grid: (1, rows). Constants: WG, V, STRIDE, GROUPS, ROW_COUNT, GREEDY, PENALIZED, RING, PITCH, XTC_STREAM.
@bind var<storage, read> logits: array<f32>;
@bind var<storage, read> parts: array<vec4<f32>>;
#if PENALIZED or not GREEDY
@bind var<storage, read> params: array<u32>;  // of each slot bits of float32, the seed's two words, flags
#endif
#if not GREEDY
@bind var<storage, read> found: array<u32>;
@bind var<storage, read> candidates: array<vec2<u32>>;
#endif
#if PENALIZED
@bind var<storage, read_write> counts: array<u32>;
#endif
@bind var<storage, read_write> state: array<i32>;
@bind var<storage, read_write> result: array<u32>;
var<workgroup> joined_parts: array<vec4<f32>, ${WG}>;
#if not GREEDY
var<workgroup> shared_place: vec2<u32>;  // slot, position of the next token
var<workgroup> high: atomic<u32>;
var<workgroup> low: atomic<u32>;

fn param(slot: u32, i: u32) -> f32 {
    return bitcast<f32>(params[slot * ${PITCH}u + i]);
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

fn uniform_bits(slot: u32, stream: vec2<u32>, position: u32, id: u32) -> u32 {
    let seed = vec2<u32>(params[slot * ${PITCH}u + ${SEED}u], params[slot * ${PITCH}u + ${SEED_HIGH}u]) ^ stream;
    var v = vec3<u32>(seed.x ^ (position * 0x9E3779B9u), seed.y + position, id) * 1664525u + 1013904223u;
    v.x += v.y * v.z;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v ^= v >> vec3<u32>(16u);
    v.x += v.y * v.z;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    return v.z >> 9u;
}

fn noise(slot: u32, position: u32, id: u32) -> f32 {
    return -log(exponential((f32(uniform_bits(slot, vec2<u32>(), position, id)) + 0.5) * 1.1920929e-7));
}

// What a row's candidates are chosen by.
struct Row {
    first: u32,  // of its candidates
    count: u32,
    best: f32,
    temperature: f32,
}

// Of the candidates at or above a threshold: how many, or (by weight) their weights in units of 2⁻²⁴ of the best's.
fn measure(lid: u32, row: Row, threshold: u32, weighed: bool) -> f32 {
    workgroupBarrier();
    if (lid == 0u) {
        atomicStore(&high, 0u);
        atomicStore(&low, 0u);
    }
    workgroupBarrier();
    var my_high = 0u;
    var my_low = 0u;
    for (var i = lid; i < row.count; i += ${WG}u) {
        let bits = candidates[row.first + i].x;
        if (ordered(bits) >= threshold) {
            let weight = u32(exp((bitcast<f32>(bits) - row.best) / row.temperature) * 16777216.0);
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
fn highest(lid: u32, row: Row, from_least: u32, wanted: f32, weighed: bool) -> u32 {
    var least = from_least;
    var most = ordered(bitcast<u32>(row.best));
    for (var i = 0u; i < 32u; i++) {
        let middle = least + (most - least) / 2u + ((most - least) & 1u);
        let passes = measure(lid, row, middle, weighed) >= wanted;
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

#if not GREEDY
// The token that is drawn for a row.
fn drawn_id(lid: u32, row: Row, slot: u32, position: u32) -> u32 {
    var threshold = 0u;
    if (param(slot, ${TOP_K}u) > 0.0) {
        threshold = highest(lid, row, threshold, min(param(slot, ${TOP_K}u), f32(row.count)), false);
    }
    if (param(slot, ${TOP_P}u) < 1.0) {
        let wanted = param(slot, ${TOP_P}u) * measure(lid, row, threshold, true);
        threshold = highest(lid, row, threshold, wanted, true);
    }
    if (param(slot, ${MIN_P}u) > 0.0) {
        threshold = max(threshold, ordered(bitcast<u32>(row.best + row.temperature * log(param(slot, ${MIN_P}u)))));
    }
    var most = 0xFFFFFFFFu;
    let coin = uniform_bits(slot, vec2<u32>(${XTC_STREAM % 2**32}u, ${XTC_STREAM >> 32}u), position, 0u);
    if (coin < params[slot * ${PITCH}u + ${XTC_BELOW}u]) {
        let weight = param(slot, ${XTC_THRESHOLD}u) * measure(lid, row, threshold, true) / 16777216.0;
        let least = max(threshold, ordered(bitcast<u32>(row.best + row.temperature * log(max(weight, 1.0e-30)))));
        let count = measure(lid, row, least, false);
        most = select(most, highest(lid, row, least, count, false), count >= 2.0);
    }
    var drawn = vec4<f32>(-3.0e38, 0.0, -3.0e38, bitcast<f32>(0x7FFFFFu));
    for (var i = lid; i < row.count; i += ${WG}u) {
        let candidate = candidates[row.first + i];
        if (ordered(candidate.x) >= threshold && ordered(candidate.x) <= most) {
            let score = bitcast<f32>(candidate.x) / row.temperature + noise(slot, position, candidate.y);
            drawn = better(drawn, vec4<f32>(0.0, 0.0, score, bitcast<f32>(candidate.y)));
        }
    }
    return bitcast<u32>(reduce(lid, drawn).w);
}
#endif

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let row = wg.y;
    let token = u32(state[${ROWS_AT}u + row]);
#if GREEDY
    let slot = u32(state[${SEQ}u + token]);
#else
    if (lid == 0u) {
        shared_place = vec2<u32>(u32(state[${SEQ}u + token]), u32(state[${POSITIONS}u + token]) + 1u);
    }
    let place = workgroupUniformLoad(&shared_place);
    let slot = place.x;
#endif
    var mine = vec4<f32>(-3.0e38, 0.0, -3.0e38, bitcast<f32>(0x7FFFFFu));
    for (var i = lid; i < ${GROUPS}u; i += ${WG}u) {
        mine = better(mine, parts[row * ${GROUPS}u + i]);
    }
    let all = reduce(lid, mine);
    var id = bitcast<u32>(all.w);
#if not GREEDY
    if (param(slot, ${TEMPERATURE}u) > 0.0) {
        let chosen_by = Row(row * ${V}u, found[row], all.z, param(slot, ${TEMPERATURE}u));
        id = drawn_id(lid, chosen_by, slot, place.y);
    }
#endif
    if (lid == 0u) {
        // Where no score is a number, of those that may come, there is no best.
        let none = id >= ${V}u;
        id = min(id, ${V - 1}u);
        let steps = state[${STEPS}u + row];
        let at = (u32(steps) % ${RING}u * ${ROW_COUNT}u + row) * 2u;
        result[at] = id;
        result[at + 1u] = select(bitcast<u32>(logits[row * ${STRIDE}u + id] - all.x - log(all.y)), 0x7FC00000u, none);
#if PENALIZED
        if (params[slot * ${PITCH}u + ${PENALIZES}u] != 0u) {
            counts[slot * ${V}u + id] += 1u;
        }
#endif
        state[${DRAWN}u + slot] = i32(id);
        state[${IDS}u + token] = i32(id);
        state[${POSITIONS}u + token] += 1;
        state[${STEPS}u + row] = steps + 1;
    }
}
