// The gated delta rule: S ← S · e^decay; S ← S + k ⊗ (v − Sᵀ k) · β; out = Sᵀ q / √K, token after token of one sequence.
// Teams of TEAM invocations hold a column of a head's S, each ROWS fours of it; it stays in registers until the last token.
// All sums over a column are made before it changes: Sᵀ q after the change follows from Sᵀ q before and k · q.
// A head of `states` lies as [V, K], filled up with zeros to whole fours of K.
// Grid: (V_HEADS · SLICES, 1, decodes, or slots of sequences where PROMPTS). Constants: WG, TEAM, ROWS, SLICES, K_HEADS,
// V_HEADS, K, V, K4 (fours of K), TILED, ROW, GATES_ROW, GATES_AT, STRIDE, SCALE, PROMPTS, TABLE (of states).
@bind var<storage, read> state: array<i32>;
@bind var<storage, read> qkv: array<f32>;
@bind var<storage, read> gates: array<f32>;
@bind var<storage, read> a_log: array<f32>;
@bind var<storage, read> dt_bias: array<f32>;
@bind var<storage, read_write> states: array<vec4<f32>>;
@bind var<storage, read_write> out: array<f32>;
#include team NAME="column" TEAM=TEAM

// Four values of a key or query, `at` being the head's place in the row; beyond its end zeros.
fn four(at: u32, k4: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
#for i in range(4)
    if (k4 * 4u + ${i}u < ${K}u) {
        v[${i}] = qkv[at + k4 * 4u + ${i}u];
    }
#endfor
    return v;
}

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let count = state[${COUNT_AT}u];
#if PROMPTS
    var t = state[${STARTS}u + wg.z];
    if (t < state[${DECODES_AT}u]) {
        return;
    }
#else
    var t = i32(wg.z);
#endif
    let sequence = state[${SEQ}u + u32(t)];
    let head = wg.x / ${SLICES}u;
    let key_head = head ${f"% {K_HEADS}u" if TILED else f"/ {V_HEADS // K_HEADS}u"};
    let column = wg.x % ${SLICES}u * ${WG // TEAM}u + lid / ${TEAM}u;
    let lane = lid % ${TEAM}u;
    let own = column < ${V}u;
    let row = (head * ${V}u + min(column, ${V - 1}u)) * ${K4}u;
    let before = u32(state[${TABLE}u + 2u * u32(sequence)]) * ${V_HEADS * V * K4}u + row;
    let after = u32(state[${TABLE}u + 2u * u32(sequence) + 1u]) * ${V_HEADS * V * K4}u + row;
    let begins = state[${POSITIONS}u + u32(t)] == 0;
    let rate = exp(a_log[head]);
#for r in range(ROWS)
    let at${r} = ${r * TEAM}u + lane;
    let there${r} = own && !begins && at${r} < ${K4}u;
    var s${r} = select(vec4<f32>(0.0), states[before + min(at${r}, ${K4 - 1}u)], there${r});
#endfor
    loop {
        let at = u32(t) * ${ROW}u;
#for r in range(ROWS)
        let q${r} = four(at + key_head * ${K}u, at${r});
        let k${r} = four(at + ${K_HEADS * K}u + key_head * ${K}u, at${r});
#endfor
        let v = qkv[at + ${2 * K_HEADS * K}u + head * ${V}u + min(column, ${V - 1}u)];
        let gate = u32(t) * ${GATES_ROW}u + ${GATES_AT}u + head;
        let beta = 1.0 / (1.0 + exp(-gates[gate]));
        let a = gates[gate + ${V_HEADS}u] + dt_bias[head];
        // log(1 + e^a), without the loss of digits where e^a is small.
        let e = exp(-abs(a));
        let soft = max(a, 0.0) + select(log(1.0 + e), e * (1.0 - e * (0.5 - e * (1.0 / 3.0 - 0.25 * e))), e < 0.03);
        let fade = exp(-rate * soft);
        let qq = column_sum(lid, ${" + ".join(f"dot(q{r}, q{r})" for r in range(ROWS))});
        let kk = column_sum(lid, ${" + ".join(f"dot(k{r}, k{r})" for r in range(ROWS))});
        let kq = column_sum(lid, ${" + ".join(f"dot(k{r}, q{r})" for r in range(ROWS))});
        let sk = column_sum(lid, ${" + ".join(f"dot(s{r}, k{r})" for r in range(ROWS))});
        let sq = column_sum(lid, ${" + ".join(f"dot(s{r}, q{r})" for r in range(ROWS))});
        let unit_q = inverseSqrt(qq + 1e-6);
        let unit_k = inverseSqrt(kk + 1e-6);
        let change = (v - fade * sk * unit_k) * beta * unit_k;
#for r in range(ROWS)
        s${r} = s${r} * fade + k${r} * change;
#endfor
        if (own && lane == 0u) {
            out[u32(t) * ${STRIDE}u + head * ${V}u + column] = (fade * sq + kq * change) * unit_q * ${SCALE};
        }
        t += 1;
        if (t >= count || state[${SEQ}u + u32(t)] != sequence) {
            break;
        }
    }
#for r in range(ROWS)
    if (own && at${r} < ${K4}u) {
        states[after + at${r}] = s${r};
    }
#endfor
}
