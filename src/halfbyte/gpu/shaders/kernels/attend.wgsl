// Attention of few tokens, split along the context. Teams of TL invocations take KEYS keys at a time, each lane EIGHTS
// times eight values of the head, for the SLICE query heads that share a key head; then the teams are merged.
// With FUSED teams of RL norm and rotate the queries and the newest key first, and that and its value are written.
// Writes `partial` [tokens, heads, MAX_SPLITS, HDP] and `weight` [tokens, heads, MAX_SPLITS] (maximum, sum). With
// FINISH the last workgroup to get there, known by a counter, merges the splits of its heads into the result.
// Grid: (KV_HEADS · slices, splits, tokens). AT_ONCE: heads whose teams are merged at once, as workgroup memory allows.
@bind var<storage, read> state: array<i32>;
#include cache ACCESS=["read","read_write"][FUSED] LANES=RL
#if FUSED
#include rotate TL=RL ROTATE=True
// Eights of the queries, the newest key and its value: the first halves of all lanes, then the second.
var<workgroup> fresh: array<vec4<f32>, ${(SLICE + 2) * 2 * RL}>;
#else
@bind var<storage, read> q: array<f32>;
#endif
#include team NAME="key" TEAM=TL
${"@coherent " if FINISH else ""}@bind var<storage, read_write> partial: array<vec4<f32>>;
${"@coherent " if FINISH else ""}@bind var<storage, read_write> weight: array<vec2<f32>>;
#include splits
#if FINISH
@bind var<storage, read_write> arrived: array<atomic<u32>>;
#include merged
var<workgroup> order: u32;
#endif
var<workgroup> group_max: array<f32, ${WG // max(TL, SUBGROUP) * SLICE}>;
var<workgroup> group_total: array<f32, ${WG // max(TL, SUBGROUP) * SLICE}>;
var<workgroup> group_values: array<vec4<f32>, ${AT_ONCE * WG // max(TL, SUBGROUP) * 2 * TL * EIGHTS}>;

#if FUSED
fn fresh8(slot: u32, eight: u32) -> Values {
    let at = slot * ${2 * RL}u + eight;
    return Values(fresh[at], fresh[at + ${RL}u]);
}

fn set_fresh8(slot: u32, eight: u32, v: Values) {
    let at = slot * ${2 * RL}u + eight;
    fresh[at] = v.a;
    fresh[at + ${RL}u] = v.b;
}
#endif

// Below any score, for a team that has seen no key yet; a key that is not seen has a lower one, and no weight.
const LEAST = -1.0e30;
const UNSEEN = -3.0e38;

fn capped(score: f32) -> f32 {
#if SOFTCAP
    return ${SOFTCAP} * (1.0 - 2.0 / (exp(clamp(2.0 * score / ${SOFTCAP}, -80.0, 80.0)) + 1.0));
#else
    return score;
#endif
}

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.z;
    let kv_head = wg.x / ${SLICES}u;
    let first_head = wg.x * ${SLICE}u;
    let lane = lid % ${TL}u;
    let team = lid / ${TL}u;
#if FUSED
    // All loads that need nothing else come first: those of the cache wait for the block table, maybe the position.
    let rotating = lid / ${RL}u;
    let eight = lid % ${RL}u;
    let head = select(${HEADS}u + kv_head, first_head + rotating, rotating < ${SLICE}u);
    let raw = raw8(t, head, eight);
    let newest_v = raw8(t, ${HEADS + KV_HEADS}u + kv_head, eight);
    let turn = angles8(t, eight);
#endif
    let position = u32(state[${POSITIONS}u + t]);
#if SEQUENCES > 1
    let sequence = u32(state[${SEQ}u + t]);
#else
    let sequence = 0u;
#endif
    let oldest = oldest_key(position);
    let start = (oldest / ${CHUNK}u + wg.y) * ${CHUNK}u;
#for e in range(EIGHTS)
    let column${e} = min(lane + ${TL * e}u, ${HDP // 8 - 1}u);
#endfor
#for u in range(KEYS)
    let at${u} = cache_row(sequence, kv_head, start + ${WG // TL * u}u + team);
#for e in range(EIGHTS)
    var next_k${u}_${e} = k_eight(at${u}, column${e});
    var next_v${u}_${e} = v_eight(at${u}, column${e});
#endfor
#endfor
    let splits = split_count(position);
    if (wg.y >= splits) {
        return;
    }
#if FUSED
    let turned = ${"grown8(head, position, " if BETA else "("}rotated8(lid, normed8(lid, head, raw), turn));
    // The newest key and value are taken as the cache holds them.
    let stored_k = packed(lid, turned);
    let stored_v = packed(lid, newest_v);
    if (rotating < ${SLICE}u) {
        set_fresh8(rotating, eight, turned);
    }
    if (rotating == ${SLICE}u) {
        set_fresh8(${SLICE}u, eight, unpacked(stored_k));
        set_fresh8(${SLICE + 1}u, eight, unpacked(stored_v));
    }
    let newest_chunk = position / ${CHUNK}u - oldest / ${CHUNK}u;
    if (rotating == ${SLICE}u && eight < ${HDP // 8}u && wg.x % ${SLICES}u == 0u && newest_chunk % splits == wg.y) {
        let row = cache_row(sequence, kv_head, position);
        store_k(row, eight, stored_k);
        store_v(row, eight, stored_v);
    }
    workgroupBarrier();
    let takes_newest = team == 0u && newest_chunk % splits == wg.y;
#for e in range(EIGHTS)
    let newest_k${e} = fresh8(${SLICE}u, lane + ${e * TL}u);
    let newest_v${e} = fresh8(${SLICE + 1}u, lane + ${e * TL}u);
#endfor
#endif
#for g in range(SLICE)
#for e in range(EIGHTS)
#if FUSED
    let qa${g}_${e} = fresh[${2 * g * RL + e * TL}u + lane] * ${SCALE};
    let qb${g}_${e} = fresh[${(2 * g + 1) * RL + e * TL}u + lane] * ${SCALE};
#else
    var qa${g}_${e} = vec4<f32>(0.0);
    var qb${g}_${e} = vec4<f32>(0.0);
#for i in range(8)
    if (lane * 8u + ${e * TL * 8 + i}u < ${HD}u) {
        q${"ab"[i // 4]}${g}_${e}[${i % 4}] = q[t * ${Q_ROW}u + (first_head + ${g}u) * ${HD}u + lane * 8u + ${e * TL * 8 + i}u] * ${SCALE};
    }
#endfor
#endif
#endfor
#if FUSED
    // One team begins with the newest key.
    let newest${g} = key_sum(lid, ${" + ".join(f"dot(qa{g}_{e}, newest_k{e}.a) + dot(qb{g}_{e}, newest_k{e}.b)" for e in range(EIGHTS))});
    var top${g} = select(LEAST, capped(newest${g}), takes_newest);
    var total${g} = select(0.0, 1.0, takes_newest);
#for e in range(EIGHTS)
    var a${g}_${e} = select(vec4<f32>(0.0), newest_v${e}.a, takes_newest);
    var b${g}_${e} = select(vec4<f32>(0.0), newest_v${e}.b, takes_newest);
#endfor
#else
    var top${g} = LEAST;
    var total${g} = 0.0;
#for e in range(EIGHTS)
    var a${g}_${e} = vec4<f32>(0.0);
    var b${g}_${e} = vec4<f32>(0.0);
#endfor
#endif
#endfor
    // Keys that the cache holds already: what was read beyond them, or left the window, may be anything.
    let cached = position${"" if FUSED else " + 1u"};
#for u in range(KEYS)
    let first_key${u} = start + ${WG // TL * u}u + team;
    if (first_key${u} >= cached${f" || first_key{u} < oldest" if WINDOW else ""}) {
#for e in range(EIGHTS)
        next_v${u}_${e} = Eight();
#endfor
    }
#endfor
    for (var base = start; base < cached; base += ${CHUNK}u * splits) {
#for u in range(KEYS)
        let key${u} = base + ${WG // TL * u}u + team;
        let seen${u} = key${u} < cached${f" && key{u} >= oldest" if WINDOW else ""};
#for e in range(EIGHTS)
        let k${u}_${e} = unpacked(next_k${u}_${e});
        let v${u}_${e} = unpacked(next_v${u}_${e});
#endfor
#endfor
        if (base + ${CHUNK}u * splits < cached) {
#for u in range(KEYS)
            let at${u} = cache_row(sequence, kv_head, min(key${u} + ${CHUNK}u * splits, cached - 1u));
#for e in range(EIGHTS)
            next_k${u}_${e} = k_eight(at${u}, column${e});
            next_v${u}_${e} = v_eight(at${u}, column${e});
#endfor
#endfor
        }
#for g in range(SLICE)
#for u in range(KEYS)
        let sum${g}_${u} = key_sum(lid, ${" + ".join(f"dot(qa{g}_{e}, k{u}_{e}.a) + dot(qb{g}_{e}, k{u}_{e}.b)" for e in range(EIGHTS))});
        let s${g}_${u} = select(UNSEEN, capped(sum${g}_${u}), seen${u});
#endfor
        {
            var top = top${g};
#for u in range(KEYS)
            top = max(top, s${g}_${u});
#endfor
            let faded = exp(top${g} - top);
            top${g} = top;
            total${g} *= faded;
#for e in range(EIGHTS)
            a${g}_${e} *= faded;
            b${g}_${e} *= faded;
#endfor
#for u in range(KEYS)
            let p${u} = exp(s${g}_${u} - top);
            total${g} += p${u};
#for e in range(EIGHTS)
            a${g}_${e} += p${u} * v${u}_${e}.a;
            b${g}_${e} += p${u} * v${u}_${e}.b;
#endfor
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
#for e in range(EIGHTS)
        a${g}_${e} *= share;
        a${g}_${e} += subgroupShuffleXor(a${g}_${e}, ${d}u);
        b${g}_${e} *= share;
        b${g}_${e} += subgroupShuffleXor(b${g}_${e}, ${d}u);
#endfor
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
            let at = (${(g - first) * (WG // max(TL, SUBGROUP))}u + group) * ${2 * TL * EIGHTS}u + lane * 2u;
#for e in range(EIGHTS)
            group_values[at + ${2 * TL * e}u] = a${g}_${e};
            group_values[at + ${2 * TL * e + 1}u] = b${g}_${e};
#endfor
        }
#endfor
    }
    workgroupBarrier();
    for (var item = lid; item < ${(min(first + AT_ONCE, SLICE) - first) * HDP // 4}u; item += ${WG}u) {
        let g = ${first}u + item / ${HDP // 4}u;
        let d4 = item % ${HDP // 4}u;
        var top = LEAST;
#for i in range(WG // max(TL, SUBGROUP))
        top = max(top, group_max[${i * SLICE}u + g]);
#endfor
        var total = 0.0;
        var sum = vec4<f32>(0.0);
#for i in range(WG // max(TL, SUBGROUP))
        {
            let share = exp(group_max[${i * SLICE}u + g] - top);
            total += group_total[${i * SLICE}u + g] * share;
            sum += group_values[((g - ${first}u) * ${WG // max(TL, SUBGROUP)}u + ${i}u) * ${2 * TL * EIGHTS}u + d4] * share;
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
