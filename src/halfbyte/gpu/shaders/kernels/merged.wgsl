// Four values of a row of attention, merged from its splits, to float32 or int8 blocks.
// Constants: HEADS, HD, HDP, MAX_SPLITS, STRIDE4, OUT, EMIT; `partial` and `weight` as `attend` writes them.
#if OUT
@bind var<storage, read_write> out: array<vec4<f32>>;
#endif
#if EMIT
#include quantize_block ROW_BLOCKS=STRIDE4//8
#endif

#if HD % 4
fn merged1(t: u32, i: u32, splits: u32) -> f32 {
    let at = (t * ${HEADS}u + min(i / ${HD}u, ${HEADS - 1}u)) * ${MAX_SPLITS}u;
    var top = -3.0e38;
    for (var s = 0u; s < splits; s++) {
        top = max(top, weight[at + s].x);
    }
    var total = 0.0;
    var sum = 0.0;
    for (var s = 0u; s < splits; s++) {
        let share = exp(weight[at + s].x - top);
        total += weight[at + s].y * share;
        sum += partial[(at + s) * ${HDP // 4}u + i % ${HD}u / 4u][i % ${HD}u % 4u] * share;
    }
    return sum / total;
}

fn merged4(t: u32, i: u32, splits: u32) -> vec4<f32> {
    return vec4<f32>(merged1(t, i, splits), merged1(t, i + 1u, splits), merged1(t, i + 2u, splits), merged1(t, i + 3u, splits));
}
#else
fn merged4(t: u32, i: u32, splits: u32) -> vec4<f32> {
    let at = (t * ${HEADS}u + i / ${HD}u) * ${MAX_SPLITS}u;
    let d4 = i % ${HD}u / 4u;
    var top = -3.0e38;
    var total = 0.0;
    var sum = vec4<f32>(0.0);
    for (var first = 0u; first < splits; first += ${min(16, MAX_SPLITS)}u) {
#for u in range(min(16, MAX_SPLITS))
        let s${u} = at + min(first + ${u}u, splits - 1u);
        let w${u} = weight[s${u}];
        let p${u} = partial[s${u} * ${HDP // 4}u + d4];
#endfor
        var newer = top;
#for u in range(min(16, MAX_SPLITS))
        newer = max(newer, w${u}.x);
#endfor
        let faded = exp(top - newer);
        top = newer;
        total *= faded;
        sum *= faded;
#for u in range(min(16, MAX_SPLITS))
        {
            let share = select(0.0, exp(w${u}.x - top), first + ${u}u < splits);
            total += w${u}.y * share;
            sum += p${u} * share;
        }
#endfor
    }
    return sum / total;
}
#endif

fn store_merged(lid: u32, t: u32, i4: u32, splits: u32, valid: bool) {
    var v = vec4<f32>(0.0);
    if (valid && i4 < ${HEADS * HD // 4}u) {
        v = merged4(t, i4 * 4u, splits);
    }
#if HEADS * HD % 4
    if (i4 == ${HEADS * HD // 4}u) {
#for j in range(HEADS * HD % 4)
        v[${j}] = merged1(t, i4 * 4u + ${j}u, splits);
#endfor
    }
#endif
#if OUT
    if (valid) {
        out[t * ${STRIDE4}u + i4] = v;
    }
#endif
#if EMIT
    store_block(lid, (t * ${STRIDE4}u + i4) / 8u, v, 0.0, valid);
#endif
}
