// Attention of the tokens of prompts, which follow the decodes: a workgroup takes ROWS tokens of one query head and
// walks over the keys, KEYS at a time, with an online softmax. Invocation (tx, ty) of 16 × 16 holds tokens ty + 16·r, keys tx + 16·j and
// dims 4·tx + 64·j.
// Tokens of several sequences may share a tile: the walk is made once for each run of one sequence. Queries and keys are
// staged in workgroup memory 32 dims at a time, then values STAGED keys at a time; what is staged next is read meanwhile.
// Grid: (heads, tokens of prompts / ROWS), the last tokens first, which see most keys. Constants: HD, HDP, ROWS, KEYS,
// STAGED, WINDOW, SCALE, SOFTCAP.
@bind var<storage, read> state: array<i32>;
#include cache ACCESS="read"
@bind var<storage, read> q: array<${"vec4<f32>" if HD % 4 == 0 else "f32"}>;
@bind var<storage, read_write> out: array<f32>;
#include team NAME="row" TEAM=16
var<workgroup> stage: array<vec4<f32>, ${(ROWS + KEYS) * 9}>;
var<workgroup> shares: array<vec4<f32>, ${ROWS * (KEYS // 4 + 1)}>;

// Four dims of a row of a query head, zeros beyond it.
fn query4(t: u32, head: u32, d: u32) -> vec4<f32> {
#if HD % 4 == 0
    if (d < ${HD}u) {
        return q[(t * ${Q_ROW}u + head * ${HD}u + d) / 4u];
    }
    return vec4<f32>(0.0);
#else
    var v = vec4<f32>(0.0);
#for i in range(4)
    if (d + ${i}u < ${HD}u) {
        v[${i}] = q[t * ${Q_ROW}u + head * ${HD}u + d + ${i}u];
    }
#endfor
    return v;
#endif
}

// Item i of a tile of keys of which `chunk` is staged: an eight of a key; queries are zero beyond the last.
fn key8(sequence: u32, kv_head: u32, first: u32, newest: u32, chunk: u32, i: u32) -> Eight {
    let eight = min(chunk * 4u + i % 4u, ${HDP // 8 - 1}u);
    return k_eight(cache_row(sequence, kv_head, min(first + i / 4u, newest)), eight);
}

// Item i of values that are staged.
fn value8(sequence: u32, kv_head: u32, first: u32, newest: u32, i: u32) -> Eight {
    return v_eight(cache_row(sequence, kv_head, min(first + i / ${HDP // 8}u, newest)), i % ${HDP // 8}u);
}

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) lid: u32
) {
    let head = wg.x;
    let kv_head = head / ${HEADS // KV_HEADS}u;
    let tx = lid % 16u;
    let ty = lid / 16u;
    let first = u32(state[${DECODES_AT}u]) + (count.y - 1u - wg.y) * ${ROWS}u;
    let last = min(first + ${ROWS}u, u32(state[${COUNT_AT}u]));
#for r in range(ROWS // 16)
    let t${r} = first + ty + ${16 * r}u;
    let position${r} = state[${POSITIONS}u + min(t${r}, last - 1u)];
    var top${r} = -3.0e38;
    var total${r} = 0.0;
#for j in range((HDP + 63) // 64)
    var o${r}_${j} = vec4<f32>(0.0);
#endfor
#endfor
    var run = first;
    while (run < last) {
        let sequence = u32(state[${SEQ}u + run]);
        var run_end = run + 1u;
        while (run_end < last && u32(state[${SEQ}u + run_end]) == sequence) {
            run_end++;
        }
        let newest = u32(state[${POSITIONS}u + run_end - 1u]);
#if WINDOW
        let oldest = max(u32(state[${POSITIONS}u + run]), ${WINDOW - 1}u) - ${WINDOW - 1}u;
#else
        let oldest = 0u;
#endif
#for n in range((ROWS * 8 + WG - 1) // WG)
        var next_q${n}: vec4<f32>;
#endfor
#for n in range((KEYS * 4 + WG - 1) // WG)
        var next_k${n}: Eight;
#endfor
#for n in range((STAGED * HDP // 8 + WG - 1) // WG)
        var next_v${n}: Eight;
#endfor
#include attend_tiled_loads FIRST_KEY="oldest" DIMS="0u"
        for (var base = oldest; base <= newest; base += ${KEYS}u) {
#for r in range(ROWS // 16)
#for j in range(KEYS // 16)
            var s${r}_${j} = 0.0;
#endfor
#endfor
            for (var chunk = 0u; chunk < ${(HDP + 31) // 32}u; chunk++) {
                workgroupBarrier();
#for n in range((ROWS * 8 + WG - 1) // WG)
                if (lid < ${ROWS * 8 - n * WG}u) {
                    stage[(lid + ${n * WG}u) / 8u * 9u + lid % 8u] = next_q${n};
                }
#endfor
#for n in range((KEYS * 4 + WG - 1) // WG)
                if (lid < ${KEYS * 4 - n * WG}u) {
                    let k = unpacked(next_k${n});
                    let at = ${ROWS * 9}u + (lid + ${n * WG}u) / 4u * 9u + lid % 4u * 2u;
                    stage[at] = k.a;
                    stage[at + 1u] = k.b;
                }
#endfor
                workgroupBarrier();
                if (chunk < ${(HDP + 31) // 32 - 1}u) {
#include attend_tiled_loads FIRST_KEY="base" DIMS="chunk+1u"
                } else {
#for n in range((STAGED * HDP // 8 + WG - 1) // WG)
                    next_v${n} = value8(sequence, kv_head, base, newest, lid + ${n * WG}u);
#endfor
                }
                for (var i = 0u; i < 8u; i++) {
#for r in range(ROWS // 16)
                    let q${r} = stage[(ty + ${16 * r}u) * 9u + i];
#endfor
#for j in range(KEYS // 16)
                    let k${j} = stage[(${ROWS + 16 * j}u + tx) * 9u + i];
#for r in range(ROWS // 16)
#for d in "xyzw"
                    s${r}_${j} = fma(q${r}.${d}, k${j}.${d}, s${r}_${j});
#endfor
#endfor
#endfor
                }
            }
#for r in range(ROWS // 16)
            {
                let mine = t${r} >= run && t${r} < run_end;
                var top = top${r};
#for j in range(KEYS // 16)
                let key${j} = i32(base + tx) + ${16 * j};
                var score${j} = s${r}_${j} * ${SCALE};
#if SOFTCAP
                score${j} = ${SOFTCAP} * (1.0 - 2.0 / (exp(clamp(2.0 * score${j} / ${SOFTCAP}, -80.0, 80.0)) + 1.0));
#endif
                let seen${j} = mine && key${j} <= position${r}${f" && key{j} + {WINDOW} > position{r}" if WINDOW else ""};
                top = max(top, select(-3.0e38, score${j}, seen${j}));
#endfor
                top = row_max(lid, top);
                var sum = 0.0;
#for j in range(KEYS // 16)
                let share${j} = select(0.0, exp(score${j} - top), seen${j});
                sum += share${j};
                shares[(ty + ${16 * r}u) * ${KEYS // 4 + 1}u + tx / 4u + ${4 * j}u][tx % 4u] = share${j};
#endfor
                let faded = exp(top${r} - top);
                total${r} = total${r} * faded + row_sum(lid, sum);
                top${r} = top;
#for j in range((HDP + 63) // 64)
                o${r}_${j} *= faded;
#endfor
            }
#endfor
            for (var from_key = 0u; from_key < ${KEYS}u; from_key += ${STAGED}u) {
                workgroupBarrier();
#for n in range((STAGED * HDP // 8 + WG - 1) // WG)
                if (lid < ${STAGED * HDP // 8 - n * WG}u) {
                    let v = unpacked(next_v${n});
                    stage[(lid + ${n * WG}u) * 2u] = v.a;
                    stage[(lid + ${n * WG}u) * 2u + 1u] = v.b;
                }
#endfor
                workgroupBarrier();
                if (from_key < ${KEYS - STAGED}u) {
#for n in range((STAGED * HDP // 8 + WG - 1) // WG)
                    next_v${n} = value8(sequence, kv_head, base + from_key + ${STAGED}u, newest, lid + ${n * WG}u);
#endfor
                } else {
#include attend_tiled_loads FIRST_KEY=f"base+{KEYS}u" DIMS="0u"
                }
                for (var four = 0u; four < ${STAGED // 4}u; four++) {
#for r in range(ROWS // 16)
                    let p${r} = shares[(ty + ${16 * r}u) * ${KEYS // 4 + 1}u + from_key / 4u + four];
#endfor
#for i in range(4)
#for j in range((HDP + 63) // 64)
                    {
                        let v = stage[(four * 4u + ${i}u) * ${HDP // 4}u + min(tx + ${16 * j}u, ${HDP // 4 - 1}u)];
#for r in range(ROWS // 16)
                        o${r}_${j} += p${r}[${i}] * v;
#endfor
                    }
#endfor
#endfor
                }
            }
        }
        run = run_end;
    }
#for r in range(ROWS // 16)
    if (t${r} < last) {
#for j in range((HDP + 63) // 64)
#for i in range(4)
        if (tx * 4u + ${64 * j + i}u < ${HD}u) {
            out[t${r} * ${STRIDE}u + head * ${HD}u + tx * 4u + ${64 * j + i}u] = o${r}_${j}[${i}] / total${r};
        }
#endfor
#endfor
    }
#endfor
}
