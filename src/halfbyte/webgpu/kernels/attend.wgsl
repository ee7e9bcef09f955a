// Attention of few tokens, split along the context. Teams of TL invocations take KEYS keys at a time, each lane eight
// values of the head, for the SLICE query heads that share a key head; then the teams are merged.
// With FUSED the queries and the newest key are normed and rotated here, and the newest key and value are written.
// Writes `partial` [tokens, heads, MAX_SPLITS, HDP] and `weight` [tokens, heads, MAX_SPLITS] (maximum, sum). With
// FINISH the last workgroup to get there, known by a counter, merges the splits of its heads into the result.
// Grid: (KV_HEADS · slices, splits, tokens). AT_ONCE: heads whose teams are merged at once, as workgroup memory allows.
@bind var<storage, read> state: array<i32>;
#include cache ACCESS=["read","read_write"][FUSED]
#if FUSED
#include rotate
var<workgroup> fresh: array<vec4<f32>, ${(SLICE + 1) * 2 * TL}>;
#else
@bind var<storage, read> q: array<f32>;
#include team NAME="head" TEAM=TL
#endif
@bind var<storage, read_write> partial: array<vec4<f32>>;
@bind var<storage, read_write> weight: array<vec2<f32>>;
#include splits
#if FINISH
@bind var<storage, read_write> arrived: array<atomic<u32>>;
#include merged
var<workgroup> order: u32;
#endif
var<workgroup> group_max: array<f32, ${WG // max(TL, SUBGROUP) * SLICE}>;
var<workgroup> group_total: array<f32, ${WG // max(TL, SUBGROUP) * SLICE}>;
var<workgroup> group_values: array<vec4<f32>, ${AT_ONCE * WG // max(TL, SUBGROUP) * 2 * TL}>;

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.z;
    let kv_head = wg.x / ${SLICES}u;
    let first_head = wg.x * ${SLICE}u;
    let lane = lid % ${TL}u;
    let team = lid / ${TL}u;
#if FUSED
    // All loads that need nothing else come first: those of the cache wait for the block table, maybe the position.
    let head = select(${HEADS}u + kv_head, first_head + team, team < ${SLICE}u);
    let raw = raw8(t, head, lane);
    let newest_v = raw8(t, ${HEADS + KV_HEADS}u + kv_head, lane);
    let turn = angles8(t, lane);
#endif
    let position = u32(state[${POSITIONS}u + t]);
#if SEQUENCES > 1
    let sequence = u32(state[${SEQ}u + t]);
#else
    let sequence = 0u;
#endif
    let oldest = oldest_key(position);
    let start = (oldest / ${CHUNK}u + wg.y) * ${CHUNK}u;
    let inside = lane < ${HDP // 8}u;
    let column = min(lane, ${HDP // 8 - 1}u);
#for u in range(KEYS)
    let at${u} = cache_row(sequence, kv_head, start + ${WG // TL * u}u + team) + column;
    var next_k${u} = k_cache[at${u}];
    var next_v${u} = v_cache[at${u}];
#endfor
    let splits = split_count(position);
    if (wg.y >= splits) {
        return;
    }
#if FUSED
    let turned = rotated8(lid, head, raw, turn);
    if (team <= ${SLICE}u) {
        fresh[team * ${2 * TL}u + lane] = turned.a;
        fresh[team * ${2 * TL}u + ${TL}u + lane] = turned.b;
    }
    let newest_chunk = position / ${CHUNK}u - oldest / ${CHUNK}u;
    if (team == ${SLICE}u && inside && wg.x % ${SLICES}u == 0u && newest_chunk % splits == wg.y) {
        let at = cache_row(sequence, kv_head, position) + lane;
        k_cache[at] = packed(turned.a, turned.b);
        v_cache[at] = packed(newest_v.a, newest_v.b);
    }
    workgroupBarrier();
#endif
#for g in range(SLICE)
#if FUSED
    let qa${g} = fresh[${2 * g * TL}u + lane] * ${SCALE};
    let qb${g} = fresh[${(2 * g + 1) * TL}u + lane] * ${SCALE};
#else
    var qa${g} = vec4<f32>(0.0);
    var qb${g} = vec4<f32>(0.0);
#for i in range(8)
    if (lane * 8u + ${i}u < ${HD}u) {
        q${"ab"[i // 4]}${g}[${i % 4}] = q[t * ${Q_ROW}u + (first_head + ${g}u) * ${HD}u + lane * 8u + ${i}u] * ${SCALE};
    }
#endfor
#endif
    var top${g} = -3.0e38;
    var total${g} = 0.0;
    var a${g} = vec4<f32>(0.0);
    var b${g} = vec4<f32>(0.0);
#endfor
    for (var base = start; base <= position; base += ${CHUNK}u * splits) {
#for u in range(KEYS)
        let key${u} = base + ${WG // TL * u}u + team;
        let seen${u} = key${u} <= position && key${u} >= oldest;
        var k${u} = unpacked(next_k${u});
        var v${u} = unpacked(next_v${u});
        if (!seen${u}) {
            v${u} = Values(vec4<f32>(0.0), vec4<f32>(0.0));
        }
#if FUSED
        if (key${u} == position) {
            k${u} = unpacked(packed(fresh[${2 * SLICE * TL}u + lane], fresh[${(2 * SLICE + 1) * TL}u + lane]));
            v${u} = unpacked(packed(newest_v.a, newest_v.b));
        }
#endif
#endfor
        if (base + ${CHUNK}u * splits <= position) {
#for u in range(KEYS)
            let at${u} = cache_row(sequence, kv_head, key${u} + ${CHUNK}u * splits) + column;
            next_k${u} = k_cache[at${u}];
            next_v${u} = v_cache[at${u}];
#endfor
        }
#for g in range(SLICE)
#for u in range(KEYS)
        var s${g}_${u} = head_sum(lid, dot(qa${g}, k${u}.a) + dot(qb${g}, k${u}.b));
#if SOFTCAP
        s${g}_${u} = ${SOFTCAP} * (1.0 - 2.0 / (exp(clamp(2.0 * s${g}_${u} / ${SOFTCAP}, -80.0, 80.0)) + 1.0));
#endif
        s${g}_${u} = select(-3.0e38, s${g}_${u}, seen${u});
#endfor
        {
            var top = top${g};
#for u in range(KEYS)
            top = max(top, s${g}_${u});
#endfor
            let faded = exp(top${g} - top);
            top${g} = top;
            total${g} *= faded;
            a${g} *= faded;
            b${g} *= faded;
#for u in range(KEYS)
            let p${u} = select(0.0, exp(s${g}_${u} - top), seen${u});
            total${g} += p${u};
            a${g} += p${u} * v${u}.a;
            b${g} += p${u} * v${u}.b;
#endfor
        }
#endfor
    }
#for g in range(SLICE)
#for d in [d for d in (1, 2, 4, 8, 16, 32, 64) if TL <= d < SUBGROUP]
    {
        let top = max(top${g}, subgroupShuffleXor(top${g}, ${d}u));
        let share = exp(top${g} - top);
        top${g} = top;
        total${g} *= share;
        total${g} += subgroupShuffleXor(total${g}, ${d}u);
        a${g} *= share;
        a${g} += subgroupShuffleXor(a${g}, ${d}u);
        b${g} *= share;
        b${g} += subgroupShuffleXor(b${g}, ${d}u);
    }
#endfor
#endfor
    let group = lid / ${max(TL, SUBGROUP)}u;
#for g in range(SLICE)
    if (lid % ${max(TL, SUBGROUP)}u == 0u) {
        group_max[group * ${SLICE}u + ${g}u] = top${g};
        group_total[group * ${SLICE}u + ${g}u] = total${g};
    }
#endfor
#for first in range(0, SLICE, AT_ONCE)
#if first
    workgroupBarrier();
#endif
    if (lid % ${max(TL, SUBGROUP)}u < ${TL}u) {
#for g in range(first, min(first + AT_ONCE, SLICE))
        {
            let at = (${(g - first) * (WG // max(TL, SUBGROUP))}u + group) * ${2 * TL}u + lane * 2u;
            group_values[at] = a${g};
            group_values[at + 1u] = b${g};
        }
#endfor
    }
    workgroupBarrier();
    for (var item = lid; item < ${(min(first + AT_ONCE, SLICE) - first) * HDP // 4}u; item += ${WG}u) {
        let g = ${first}u + item / ${HDP // 4}u;
        let d4 = item % ${HDP // 4}u;
        var top = -3.0e38;
#for i in range(WG // max(TL, SUBGROUP))
        top = max(top, group_max[${i * SLICE}u + g]);
#endfor
        var total = 0.0;
        var sum = vec4<f32>(0.0);
#for i in range(WG // max(TL, SUBGROUP))
        {
            let share = exp(group_max[${i * SLICE}u + g] - top);
            total += group_total[${i * SLICE}u + g] * share;
            sum += group_values[((g - ${first}u) * ${WG // max(TL, SUBGROUP)}u + ${i}u) * ${2 * TL}u + d4] * share;
        }
#endfor
        let at = (t * ${HEADS}u + first_head + g) * ${MAX_SPLITS}u + wg.y;
        partial[at * ${HDP // 4}u + d4] = sum;
        if (d4 == 0u) {
            weight[at] = vec2<f32>(top, total);
        }
    }
#endfor
#if FINISH
    storageBarrier();
    if (lid == 0u) {
        order = atomicAdd(&arrived[wg.z * ${KV_HEADS * SLICES}u + wg.x], 1u);
    }
    workgroupBarrier();
    if (order + 1u < splits) {
        return;
    }
    storageBarrier();
    if (lid == 0u) {
        atomicStore(&arrived[wg.z * ${KV_HEADS * SLICES}u + wg.x], 0u);
    }
    store_merged(lid, t, first_head * ${HD // 4}u + lid, splits, lid < ${SLICE * HD // 4}u);
#endif
}
