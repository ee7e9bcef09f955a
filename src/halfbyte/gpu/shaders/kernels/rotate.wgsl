// A head's vector, normed (QK_NORM; heads of v too, without a weight, with V_NORM) and rotated (ROTATE), eight values an invocation: teams of TL invocations, one head
// each. FOURS: sizes that let whole fours be loaded. SHUFFLED: pairs meet by shuffles, whole lanes at a time.
// Constants: HD, HDP, ROW (values of a row of qkv), TL; with QK_NORM EPS; with ROTATE HALF (rotated pairs), HADAMARD
// (values that a Hadamard rotation mixes afterwards), BETA and BETA_LENGTH (how queries grow with the position).
@bind var<storage, read> qkv: array<${"vec4<f32>" if FOURS else "f32"}>;
#if ROTATE
@bind var<storage, read> table: array<${"vec4<f32>" if FOURS else "f32"}>;
#endif
#if QK_NORM
@bind var<storage, read> q_norm: array<vec4<f32>>;
@bind var<storage, read> k_norm: array<vec4<f32>>;
#endif
#include team NAME="head" TEAM=TL
#if ROTATE and not SHUFFLED
var<workgroup> turning: array<f32, ${WG * 8}>;
#endif

// Eight values of a head as the projection gave them.
fn raw8(t: u32, head: u32, lane: u32) -> Values {
#if FOURS
    let at = min(t * ${ROW // 4}u + head * ${HD // 4}u + lane * 2u, (t + 1u) * ${ROW // 4}u - 2u);
    let here = lane < ${HD // 8}u;
    return Values(select(vec4<f32>(0.0), qkv[at], here), select(vec4<f32>(0.0), qkv[at + 1u], here));
#else
    var v: Values;
#for i in range(8)
    v.${"ab"[i // 4]}[${i % 4}] = select(
        0.0, qkv[t * ${ROW}u + min(head * ${HD}u + lane * 8u + ${i}u, ${ROW - 1}u)], lane * 8u + ${i}u < ${HD}u);
#endfor
    return v;
#endif
}

// The lane's eight values of a query (head < HEADS), of a key or, with V_NORM, of a value, normed; in uniform control flow.
fn normed8(lid: u32, head: u32, raw: Values) -> Values {
    var v = raw;
#if QK_NORM
    let factor = inverseSqrt(head_sum(lid, dot(v.a, v.a) + dot(v.b, v.b)) / ${float(HD)} + ${EPS});
#for h in "ab"
    {
        let at = min(lid % ${TL}u * 2u + ${"ab".index(h)}u, ${(HD + 3) // 4 - 1}u);
        v.${h} *= factor * ${"select(" if V_NORM else ""}select(k_norm[at], q_norm[at], head < ${HEADS}u)${", vec4<f32>(1.0), head >= {}u)".format(HEADS + KV_HEADS) if V_NORM else ""};
    }
#endfor
#endif
    return v;
}

#if ROTATE
struct Angles { cos: Values, sin: Values }

// (cos, sin) for the lane's eight dimensions; the sines of the first half are negative.
fn angles8(t: u32, lane: u32) -> Angles {
    var turn: Angles;
#if FOURS
#for h in "ab"
    {
        let d4 = lane * 2u + ${"ab".index(h)}u;
        let first = d4 < ${HALF // 4}u;
        let turned = d4 < ${HALF // 2}u;
        let at = t * ${HALF // 2}u + min(select(d4 - ${HALF // 4}u, d4, first), ${HALF // 4 - 1}u);
        turn.cos.${h} = select(vec4<f32>(1.0), table[at], turned);
        turn.sin.${h} = select(vec4<f32>(0.0), select(1.0, -1.0, first) * table[at + ${HALF // 4}u], turned);
    }
#endfor
#else
#for i in range(8)
    {
        let d = lane * 8u + ${i}u;
        let first = d < ${HALF}u;
        let at = t * ${2 * HALF}u + min(select(d - ${HALF}u, d, first), ${HALF - 1}u);
        turn.cos.${"ab"[i // 4]}[${i % 4}] = select(1.0, table[at], d < ${2 * HALF}u);
        turn.sin.${"ab"[i // 4]}[${i % 4}] = select(0.0, select(1.0, -1.0, first) * table[at + ${HALF}u], d < ${2 * HALF}u);
    }
#endfor
#endif
    return turn;
}

#if HADAMARD > 1
// The lane's eight values multiplied by the Hadamard matrix, a factor of 2 of its size at a time.
fn mixed8(lid: u32, v: Values) -> Values {
    var a = vec4<f32>(v.a.xz + v.a.yw, v.a.xz - v.a.yw).xzyw;
    var b = vec4<f32>(v.b.xz + v.b.yw, v.b.xz - v.b.yw).xzyw;
#if HADAMARD > 2
    a = vec4<f32>(a.xy + a.zw, a.xy - a.zw);
    b = vec4<f32>(b.xy + b.zw, b.xy - b.zw);
#endif
    var m = Values(a, b);
#if HADAMARD > 4
    m = Values(a + b, a - b);
#endif
#for d in [d for d in (1, 2, 4, 8, 16, 32, 64) if 8 * d < HADAMARD]
    {
#if SUBGROUP >= TL
        let other = Values(subgroupShuffleXor(m.a, ${d}u), subgroupShuffleXor(m.b, ${d}u));
#else
        workgroupBarrier();
#for i in range(8)
        turning[lid * 8u + ${i}u] = m.${"ab"[i // 4]}[${i % 4}];
#endfor
        workgroupBarrier();
        var other: Values;
#for i in range(8)
        other.${"ab"[i // 4]}[${i % 4}] = turning[(lid ^ ${d}u) * 8u + ${i}u];
#endfor
#endif
        let second = (lid & ${d}u) != 0u;
        m = Values(select(m.a + other.a, other.a - m.a, second), select(m.b + other.b, other.b - m.b, second));
    }
#endfor
    return Values(m.a * ${HADAMARD ** -0.5}, m.b * ${HADAMARD ** -0.5});
}
#endif

#if BETA
// The values of a query, as its position makes them grow, or of a key.
fn grown8(head: u32, position: u32, v: Values) -> Values {
    let growth = select(1.0, 1.0 + ${float(BETA)} * log(1.0 + f32(position / ${BETA_LENGTH}u)), head < ${HEADS}u);
    return Values(v.a * growth, v.b * growth);
}
#endif

// The lane's eight values, rotated; in uniform control flow.
fn rotated8(lid: u32, v: Values, turn: Angles) -> Values {
    let lane = lid % ${TL}u;
#if SHUFFLED
    let partner = select(lane - ${HALF // 8}u, lane + ${HALF // 8}u, lane < ${HALF // 8}u);
    let from_lane = lid % ${SUBGROUP}u - lane + select(lane, partner, lane < ${HALF // 4}u);
    let other = Values(subgroupShuffle(v.a, from_lane), subgroupShuffle(v.b, from_lane));
#else
    workgroupBarrier();
#for i in range(8)
    turning[lid * 8u + ${i}u] = v.${"ab"[i // 4]}[${i % 4}];
#endfor
    workgroupBarrier();
    let base = (lid - lane) * 8u;
    var other: Values;
#for i in range(8)
    {
        let d = lane * 8u + ${i}u;
        let partner = select(d - ${HALF}u, d + ${HALF}u, d < ${HALF}u);
        other.${"ab"[i // 4]}[${i % 4}] = turning[base + select(d, partner, d < ${2 * HALF}u)];
    }
#endfor
#endif
    let turned = Values(v.a * turn.cos.a + other.a * turn.sin.a, v.b * turn.cos.b + other.b * turn.sin.b);
    return ${"mixed8(lid, turned)" if HADAMARD > 1 else "turned"};
}
#endif
