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

fn raw8(t: u32, head: u32, lane: u32) -> Values {
    var v: array<f32, 8>;
    for (var i = 0u; i < 8u; i++) {
        let d = lane * 8u + i;
        v[i] = select(0.0, qkv[t * ${ROW}u + min(head * ${HD}u + d, ${ROW - 1}u)], d < ${HD}u);
    }
    return Values(vec4<f32>(v[0], v[1], v[2], v[3]), vec4<f32>(v[4], v[5], v[6], v[7]));
}

fn rotated1(t: u32, base: u32, d: u32) -> f32 {
    let v = head_values[base + d];
    if (d >= ${2 * HALF}u) {
        return v;
    }
    let first = d < ${HALF}u;
    let i = select(d - ${HALF}u, d, first);
    let other = head_values[base + select(i, d + ${HALF}u, first)];
    let c = table[t * ${2 * HALF}u + i];
    let s = table[t * ${2 * HALF}u + ${HALF}u + i];
    return v * c + select(other, -other, first) * s;
}

// The lane's eight values of a query (head < HEADS) or key; in uniform control flow.
fn rotated8(lid: u32, t: u32, head: u32) -> Values {
    let lane = lid % ${TL}u;
    var v = raw8(t, head, lane);
#if QK_NORM
    let factor = inverseSqrt(head_sum(lid, dot(v.a, v.a) + dot(v.b, v.b)) / ${float(HD)} + ${EPS});
#endif
    workgroupBarrier();
    for (var i = 0u; i < 8u; i++) {
        let d = lane * 8u + i;
        var value = select(v.b[i & 3u], v.a[i & 3u], i < 4u);
#if QK_NORM
        let at = min(d, ${HD - 1}u);
        value *= factor * select(k_norm[at], q_norm[at], head < ${HEADS}u);
#endif
        head_values[lid * 8u + i] = value;
    }
    workgroupBarrier();
    let base = (lid - lane) * 8u;
    let d = lane * 8u;
    return Values(
        vec4<f32>(rotated1(t, base, d), rotated1(t, base, d + 1u), rotated1(t, base, d + 2u), rotated1(t, base, d + 3u)),
        vec4<f32>(rotated1(t, base, d + 4u), rotated1(t, base, d + 5u), rotated1(t, base, d + 6u), rotated1(t, base, d + 7u)));
}
