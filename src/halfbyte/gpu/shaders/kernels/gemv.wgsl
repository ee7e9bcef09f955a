// out[c, o] = W[o] · x[c] for up to COLS columns: a team of TEAM invocations takes ROWS outputs at once. Teams are
// subgroups, parts of them, or several; what each invocation summed up meets in workgroup memory.
// INT8: x in int8 blocks against packed codes, else float32. GATED: output o is act(W[o] · x) · (W[N + o] · x).
// DEFERRED: x was quantized before its RMS norm was known; the sums of squares of its blocks give it here.
// ROUNDS: x is one row of float32, which every workgroup norms and rounds (`input_bindings`).
// AHEAD: buffers of a later product and their words. The first workgroup only reads a word of each of their pages (of
// PAGE words), so that the GPU has the address by then. What it read goes where nobody looks.
// BIAS: a value of each output is added, before the residual.
// EMIT: results also leave as int8 blocks, multiplied by the weights of the norm that follows where NORM.
// Grid: (workgroups) in x, then y. Constants: WG, N, FIRST (output of this piece's row 0), STRIDE, K, X_STRIDE.
#if ROUNDS
#include input_bindings
#elif INT8
@bind var<storage, read> x8: array<vec4<u32>>;
@bind var<storage, read> xm: array<vec4<u32>>;
#else
@bind var<storage, read> x: array<vec4<f32>>;
#endif
#include ${FORMAT}
#for i, words in AHEAD
@bind var<storage, read> ahead${i}: array<u32>;
#endfor
#if AHEAD
@bind var<storage, read_write> unread: array<u32>;  // [WG]
#endif
#if BIAS
@bind var<storage, read> bias: array<${"vec4<f32>" if EMIT else "f32"}>;
#endif
#if RESIDUAL
@bind var<storage, read> residual: array<${"vec4<f32>" if EMIT else "f32"}>;
#endif
#if OUT
@bind var<storage, read_write> out: array<${"vec4<f32>" if EMIT else "f32"}>;
#endif
#if EMIT
#if NORM
@bind var<storage, read> norm: array<vec4<f32>>;
#endif
#include quantize_block ROW_BLOCKS=STRIDE//32
var<workgroup> tile: array<f32, ${WG // TEAM * ROWS * COLS}>;
#endif
#include team NAME="part" TEAM=WIDTH
// [parts of teams, COLS, UNITS]
var<workgroup> sums: array<f32, ${WG // WIDTH * UNITS * COLS}>;
#if DEFERRED and not ROUNDS
var<workgroup> squared: array<f32, ${TEAM // WIDTH * COLS}>;
#endif
#if GATED
#include activation
#endif

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) lid: u32
) {
#if AHEAD
    let index = id.x + id.y * count.x;
    if (index == 0u) {
        var read = 0u;
#for i, words in AHEAD
        for (var page = lid; page < ${-(-words // PAGE)}u; page += ${WG}u) {
            read ^= ahead${i}[page * ${PAGE}u];
        }
        read ^= ahead${i}[${words - 1}u];
#endfor
        unread[lid] = read;
        return;
    }
    let wg = index - 1u;
#else
    let wg = id.x + id.y * count.x;
#endif
    let lane = lid % ${TEAM}u;
    let team = lid / ${TEAM}u;
    let output = (wg * ${WG // TEAM}u + team) * ${ROWS}u;
#if ROUNDS
#include input_loads
#endif
#if EMIT
    let here = min(lid, ${WG // TEAM * ROWS // 4 * COLS - 1}u);
    let c = here / ${WG // TEAM * ROWS // 4}u;
    let o4 = wg * ${WG // TEAM * ROWS // 4}u + here % ${WG // TEAM * ROWS // 4}u;
    let valid = lid == here && o4 < ${N // 4}u;
    let at = c * ${STRIDE // 4}u + o4;
#if BIAS
    var added = vec4<f32>(0.0);
    if (valid) {
        added = bias[o4];
    }
#endif
#if RESIDUAL
    var before = vec4<f32>(0.0);
    if (valid) {
        before = residual[at];
    }
#endif
#if NORM
    var norm_weight = vec4<f32>(0.0);
    if (valid) {
        norm_weight = norm[o4];
    }
#endif
#endif
#for u in range(UNITS)
    let row${u} = min(output + ${u % ROWS}u, ${N - 1}u) + ${N if u >= ROWS else 0}u;
#for c in range(COLS)
    var sum${u}_${c} = 0.0;
#endfor
#endfor
#if INT8
#if DEFERRED and not ROUNDS
#for c in range(COLS)
    var squares${c} = 0.0;
#endfor
#endif
    var first = lane;
#if ROUNDS
#include gemv_loads
#include rounded_input
#include gemv_products
    first += ${TEAM * UNROLL}u;
#endif
#if not ROUNDS or X_BLOCKS > TEAM * UNROLL
    for (; first < ${X_BLOCKS}u; first += ${TEAM * UNROLL}u) {
#include gemv_loads
#include gemv_products
    }
#endif
#else
    for (var k4 = lane; k4 < ${(K + 3) // 4}u; k4 += ${TEAM}u) {
#for u in range(UNITS)
        let w${u} = weight4(row${u}, k4);
#endfor
#for c in range(COLS)
        let x${c} = x[${c * X_STRIDE // 4}u + k4];
#for u in range(UNITS)
        sum${u}_${c} += dot(w${u}, x${c});
#endfor
#endfor
    }
#endif
#include spread VALUES=UNITS*COLS
#if DEFERRED and not ROUNDS
#for c in range(COLS)
    {
        let part = part_sum(lid, squares${c});
        if (lid < ${TEAM}u && lid % ${WIDTH}u == 0u) {
            squared[lid / ${WIDTH}u * ${COLS}u + ${c}u] = part;
        }
    }
#endfor
#endif
    workgroupBarrier();
    for (var o = lid; o < ${WG // TEAM * ROWS * COLS}u; o += ${WG}u) {
        let o_column = o / ${WG // TEAM * ROWS}u;
        let row = o % ${WG // TEAM * ROWS}u;
        let begin = (row / ${ROWS}u * ${TEAM // WIDTH * COLS}u + o_column) * ${UNITS}u + row % ${ROWS}u;
        var y = 0.0;
#if GATED
        var y_up = 0.0;
#endif
#if DEFERRED
        var square = 0.0;
#endif
#for p in range(TEAM // WIDTH)
        y += sums[begin + ${p * COLS * UNITS}u];
#if GATED
        y_up += sums[begin + ${p * COLS * UNITS + ROWS}u];
#endif
#if DEFERRED and not ROUNDS
        square += squared[${p * COLS}u + o_column];
#endif
#endfor
#if DEFERRED
#if ROUNDS
#for p in range(WG // SUBGROUP)
        square += squared[${p}u];
#endfor
#endif
        let factor = inverseSqrt(square / ${float(K)} + ${EPS});
        y *= factor;
#if GATED
        y_up *= factor;
#endif
#endif
#if GATED
        y = activate(y) * y_up;
#endif
#if EMIT
        tile[o] = y;
#else
        let at = wg * ${WG // TEAM * ROWS}u + row;
        if (at < ${N}u) {
#if BIAS
            y += bias[${FIRST}u + at];
#endif
#if RESIDUAL
            y += residual[o_column * ${STRIDE}u + ${FIRST}u + at];
#endif
            out[o_column * ${STRIDE}u + ${FIRST}u + at] = y;
        }
#endif
    }
#if EMIT
    workgroupBarrier();
    var v = vec4<f32>(tile[here * 4u], tile[here * 4u + 1u], tile[here * 4u + 2u], tile[here * 4u + 3u]);
    var squares = 0.0;
    if (valid) {
#if BIAS
        v += added;
#endif
#if RESIDUAL
        v += before;
#endif
#if OUT
        out[at] = v;
#endif
#if NORM
        squares = dot(v, v);
        v *= norm_weight;
#endif
    }
    store_block(lid, c * ${STRIDE // 32}u + o4 / 8u, v, squares, valid);
#endif
}
