// Attention of few tokens, split along the context. Teams of TL invocations take KEYS keys at a time, each lane eight
// values of the head, for the SLICE query heads that share a key head; then the teams are merged.
// With FUSED the queries and the newest key are normed and rotated here, and the newest key and value are written.
// Writes `partial` [tokens, heads, MAX_SPLITS, HDP] and `weight` [tokens, heads, MAX_SPLITS] (maximum, sum). With
// FINISH the last workgroup to get there, known by a counter, merges the splits of its heads into the result.
// Grid: (KV_HEADS · slices, splits, tokens).
@bind var<storage, read> state: array<i32>;
#include cache ACCESS=["read","read_write"][FUSED]
#if FUSED
#include rotate
var<workgroup> fresh: array<f32, ${(SLICE + 1) * HDP}>;
#else
@bind var<storage, read> q: array<f32>;
#include team NAME="head" TEAM=TL
var<workgroup> head_values: array<f32, ${WG * 8}>;
#endif
@bind var<storage, read_write> partial: array<f32>;
@bind var<storage, read_write> weight: array<vec2<f32>>;
#include splits
#if FINISH
@bind var<storage, read_write> arrived: array<atomic<u32>>;
#include merged
var<workgroup> order: u32;
#endif
var<workgroup> group_max: array<f32, ${WG // max(TL, SUBGROUP) * SLICE}>;
var<workgroup> group_total: array<f32, ${WG // max(TL, SUBGROUP) * SLICE}>;

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.z;
    let kv_head = wg.x / ${SLICES}u;
    let first_head = wg.x * ${SLICE}u;
    let lane = lid % ${TL}u;
    let team = lid / ${TL}u;
#if FUSED
    // All loads that need nothing else come first: those of the cache wait for the position and the block table.
    let head = select(${HEADS}u + kv_head, first_head + team, team < ${SLICE}u);
    let raw = raw8(t, head, lane);
    let newest_v = raw8(t, ${HEADS + KV_HEADS}u + kv_head, lane);
    let turn = angles8(t, lane);
#endif
    let position = u32(state[${POSITIONS}u + t]);
    let sequence = u32(state[${SEQ}u + t]);
#if WINDOW
    let oldest = max(position, ${WINDOW - 1}u) - ${WINDOW - 1}u;
#else
    let oldest = 0u;
#endif
    let keys = position + 1u - oldest;
    let splits = split_count(keys);
    let each = (keys + splits - 1u) / splits;
    if (wg.y >= splits) {
        return;
    }
    let start = oldest + wg.y * each;
    let end = min(start + each, position + 1u);
    let inside = lane < ${HDP // 8}u;
    let column = min(lane, ${HDP // 8 - 1}u);
#for u in range(KEYS)
    let at${u} = cache_row(sequence, kv_head, min(start + ${WG // TL * u}u + team, end - 1u)) + column;
    var next_k${u} = k_cache[at${u}];
    var next_v${u} = v_cache[at${u}];
#endfor
#if FUSED
    let turned = rotated8(lid, head, raw, turn);
    if (team <= ${SLICE}u && inside) {
        for (var i = 0u; i < 8u; i++) {
            fresh[team * ${HDP}u + lane * 8u + i] = select(turned.b[i & 3u], turned.a[i & 3u], i < 4u);
        }
    }
    if (team == ${SLICE}u && inside && wg.x % ${SLICES}u == 0u && end == position + 1u) {
        let at = cache_row(sequence, kv_head, position) + lane;
        k_cache[at] = packed(turned.a, turned.b);
        v_cache[at] = packed(newest_v.a, newest_v.b);
    }
    workgroupBarrier();
#endif
#for g in range(SLICE)
    var qa${g} = vec4<f32>(0.0);
    var qb${g} = vec4<f32>(0.0);
    if (inside) {
#for i in range(8)
#if FUSED
        q${"ab"[i // 4]}${g}[${i % 4}] = fresh[${g * HDP + i}u + lane * 8u] * ${SCALE};
#else
        if (lane * 8u + ${i}u < ${HD}u) {
            q${"ab"[i // 4]}${g}[${i % 4}] = q[t * ${Q_ROW}u + (first_head + ${g}u) * ${HD}u + lane * 8u + ${i}u] * ${SCALE};
        }
#endif
#endfor
    }
    var top${g} = -3.0e38;
    var total${g} = 0.0;
    var a${g} = vec4<f32>(0.0);
    var b${g} = vec4<f32>(0.0);
#endfor
    for (var base = start; base < end; base += ${WG // TL * KEYS}u) {
#for u in range(KEYS)
        let key${u} = base + ${WG // TL * u}u + team;
        let seen${u} = key${u} < end;
        var k${u} = unpacked(next_k${u});
        var v${u} = unpacked(next_v${u});
#if FUSED
        if (key${u} == position) {
            let at = ${SLICE * HDP}u + column * 8u;
            k${u} = unpacked(packed(
                vec4<f32>(fresh[at], fresh[at + 1u], fresh[at + 2u], fresh[at + 3u]),
                vec4<f32>(fresh[at + 4u], fresh[at + 5u], fresh[at + 6u], fresh[at + 7u])));
            v${u} = unpacked(packed(newest_v.a, newest_v.b));
        }
#endif
#endfor
        if (base + ${WG // TL * KEYS}u < end) {
#for u in range(KEYS)
            let at${u} = cache_row(sequence, kv_head, min(key${u} + ${WG // TL * KEYS}u, end - 1u)) + column;
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
    if (lid % ${max(TL, SUBGROUP)}u == 0u) {
        group_max[lid / ${max(TL, SUBGROUP)}u * ${SLICE}u + ${g}u] = top${g};
        group_total[lid / ${max(TL, SUBGROUP)}u * ${SLICE}u + ${g}u] = total${g};
    }
#endfor
    workgroupBarrier();
#for g in range(SLICE)
    {
        var top = -3.0e38;
        var total = 0.0;
#for i in range(WG // max(TL, SUBGROUP))
        top = max(top, group_max[${i * SLICE + g}]);
#endfor
#for i in range(WG // max(TL, SUBGROUP))
        total += group_total[${i * SLICE + g}] * exp(group_max[${i * SLICE + g}] - top);
#endfor
        let share = exp(top${g} - top);
        let group = lid / ${max(TL, SUBGROUP)}u;
        if (lid % ${max(TL, SUBGROUP)}u < ${TL}u) {
#for i in range(8)
            head_values[(group * 8u + ${i}u) * ${TL}u + lane] = ${"ab"[i // 4]}${g}[${i % 4}] * share;
#endfor
        }
        workgroupBarrier();
        let at = (t * ${HEADS}u + first_head + ${g}u) * ${MAX_SPLITS}u + wg.y;
        for (var d = lid; d < ${HDP}u; d += ${WG}u) {
            var sum = 0.0;
#for i in range(WG // max(TL, SUBGROUP))
            sum += head_values[(${8 * i}u + d % 8u) * ${TL}u + d / 8u];
#endfor
            partial[at * ${HDP}u + d] = sum;
        }
        if (lid == 0u) {
            weight[at] = vec2<f32>(top, total);
        }
        workgroupBarrier();
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
