// A head's vector, normed and rotated, eight values an invocation: teams of TL invocations, one head each.
// Constants: HD, HDP, HALF (rotated pairs), ROW (values of a row of qkv), TL, QK_NORM, EPS.
@bind var<storage, read> qkv: array<f32>;
@bind var<storage, read> table: array<f32>;
#if QK_NORM
@bind var<storage, read> q_norm: array<f32>;
@bind var<storage, read> k_norm: array<f32>;
#endif
#include team NAME="head" TEAM=TL
var<workgroup> head_values: array<f32, ${WG * 8}>;

// Eight values of a head as the projection gave them.
fn raw8(t: u32, head: u32, lane: u32) -> Values {
    var v: Values;
#for i in range(8)
    v.${"ab"[i // 4]}[${i % 4}] = select(
        0.0, qkv[t * ${ROW}u + min(head * ${HD}u + lane * 8u + ${i}u, ${ROW - 1}u)], lane * 8u + ${i}u < ${HD}u);
#endfor
    return v;
}

struct Angles { cos: Values, sin: Values }

// (cos, sin) for the lane's eight dimensions; the sines of the first half are negative.
fn angles8(t: u32, lane: u32) -> Angles {
    var turn: Angles;
#for i in range(8)
    {
        let d = lane * 8u + ${i}u;
        let first = d < ${HALF}u;
        let at = t * ${2 * HALF}u + min(select(d - ${HALF}u, d, first), ${HALF - 1}u);
        turn.cos.${"ab"[i // 4]}[${i % 4}] = select(1.0, table[at], d < ${2 * HALF}u);
        turn.sin.${"ab"[i // 4]}[${i % 4}] = select(0.0, select(1.0, -1.0, first) * table[at + ${HALF}u], d < ${2 * HALF}u);
    }
#endfor
    return turn;
}

// The lane's eight values of a query (head < HEADS) or key, normed and rotated; in uniform control flow.
fn rotated8(lid: u32, head: u32, raw: Values, turn: Angles) -> Values {
    let lane = lid % ${TL}u;
    var v = raw;
#if QK_NORM
    let factor = inverseSqrt(head_sum(lid, dot(v.a, v.a) + dot(v.b, v.b)) / ${float(HD)} + ${EPS});
#for i in range(8)
    {
        let at = min(lane * 8u + ${i}u, ${HD - 1}u);
        v.${"ab"[i // 4]}[${i % 4}] *= factor * select(k_norm[at], q_norm[at], head < ${HEADS}u);
    }
#endfor
#endif
    workgroupBarrier();
#for i in range(8)
    head_values[lid * 8u + ${i}u] = v.${"ab"[i // 4]}[${i % 4}];
#endfor
    workgroupBarrier();
    let base = (lid - lane) * 8u;
    var other: Values;
#for i in range(8)
    {
        let d = lane * 8u + ${i}u;
        let partner = select(d - ${HALF}u, d + ${HALF}u, d < ${HALF}u);
        other.${"ab"[i // 4]}[${i % 4}] = head_values[base + select(d, partner, d < ${2 * HALF}u)];
    }
#endfor
    return Values(v.a * turn.cos.a + other.a * turn.sin.a, v.b * turn.cos.b + other.b * turn.sin.b);
}
