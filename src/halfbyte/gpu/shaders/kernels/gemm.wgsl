// out[t, o] = x[t] · W[o] for several rows of x: tiles of ROWS rows × OUTS outputs. TEAMS share a tile's depth, each of
// TX × TY invocations with rows ty + TY·i and outputs tx + TX·j; their sums are merged in the end, always in one order.
// Both tiles are staged in workgroup memory as [row][WORDS words of 16 bytes], the stride odd so that loads do not
// collide: weights first, then x. What is staged next is loaded while this is multiplied.
// INT8: int8 blocks of x against codes, made signed bytes on the way in. HALVES: each 16 codes have their own scale;
// OFFSETS: something is taken off what a block's codes stand for, or those of each half. GATED: half the outputs of a tile
// are gates.
// BIAS: a value of each output is added, before the residual.
// Grid: (outputs / OUTS, or 2 · outputs / OUTS where GATED; rows / ROWS). Constants: N, FIRST, STRIDE, X_BLOCKS or K and
// X_STRIDE, WG, TX, TY, RM (rows of an invocation), RN (its outputs), TEAMS, STEP (blocks staged at once), WORDS, TILE
// (words of both tiles), PACKS (fours of sums that are merged at once).
#if INT8
@bind var<storage, read> x8: array<vec4<u32>>;
@bind var<storage, read> xm: array<vec4<u32>>;
#else
@bind var<storage, read> x: array<vec4<f32>>;
#endif
#include ${FORMAT}
#if BIAS
@bind var<storage, read> bias: array<f32>;
#endif
#if RESIDUAL
@bind var<storage, read> residual: array<f32>;
#endif
@bind var<storage, read_write> out: array<f32>;
#if GATED
#include activation
#endif
#if INT8
var<workgroup> tile: array<vec4<u32>, ${TILE}>;
#if HALVES and OFFSETS
alias XScale = vec3<f32>;
alias WScale = vec4<f32>;
#elif HALVES
alias XScale = f32;
alias WScale = vec2<f32>;
#elif OFFSETS
alias XScale = vec2<f32>;
alias WScale = vec2<f32>;
#else
alias XScale = f32;
alias WScale = f32;
#endif
var<workgroup> x_scales: array<XScale, ${ROWS * STEP}>;
var<workgroup> w_scales: array<WScale, ${OUTS * STEP}>;
#else
var<workgroup> tile: array<vec4<f32>, ${TILE}>;
#endif

// The matrix row that is column c of a workgroup's tile.
fn weight_row(group: u32, c: u32) -> u32 {
#if GATED
    return min(group * ${OUTS // 2}u + c % ${OUTS // 2}u, ${N - 1}u) + select(0u, ${N}u, c >= ${OUTS // 2}u);
#else
    return min(group * ${OUTS}u + c, ${N - 1}u);
#endif
}

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let team = lid / ${TX * TY}u;
    let tx = lid % ${TX}u;
    let ty = lid / ${TX}u % ${TY}u;
    let row0 = wg.y * ${ROWS}u;
#for i in range(RM)
#for j in range(RN)
    var sum${i}_${j} = 0.0;
#endfor
#endfor
#if INT8
#for k in range((ROWS * WORDS + WG - 1) // WG)
    let x_row${k} = (lid + ${WG * k}u) / ${WORDS}u;
    let x_word${k} = (lid + ${WG * k}u) % ${WORDS}u;
    let x_from${k} = (row0 + x_row${k}) * ${X_BLOCKS}u;
    var next_x${k} = vec4<u32>(0u);
    var next_xs${k}: XScale;
#endfor
#for k in range((OUTS * STEP + WG - 1) // WG)
    let w_col${k} = (lid + ${WG * k}u) / ${STEP}u;
    let w_block${k} = (lid + ${WG * k}u) % ${STEP}u;
    let w_row${k} = weight_row(wg.x, w_col${k});
    var next_w${k}: Codes;
    var next_ws${k}: Scale;
#endfor
    for (var step = 0u; step <= ${(X_BLOCKS + STEP - 1) // STEP}u; step++) {
        workgroupBarrier();
        if (step > 0u) {
#for k in range((ROWS * WORDS + WG - 1) // WG)
            ${f"if (lid < {ROWS * WORDS - WG * k}u) " if ROWS * WORDS < WG * (k + 1) else ""}{
                tile[(${OUTS}u + x_row${k}) * ${WORDS + 1}u + x_word${k}] = next_x${k};
                if (x_word${k} % 2u == 0u) {
                    x_scales[x_word${k} / 2u * ${ROWS}u + x_row${k}] = next_xs${k};
                }
            }
#endfor
#for k in range((OUTS * STEP + WG - 1) // WG)
            ${f"if (lid < {OUTS * STEP - WG * k}u) " if OUTS * STEP < WG * (k + 1) else ""}{
                let at = w_col${k} * ${WORDS + 1}u + w_block${k} * 2u;
                let bytes = block_bytes(next_w${k}, next_ws${k});
                tile[at] = bytes.low;
                tile[at + 1u] = bytes.high;
                w_scales[w_block${k} * ${OUTS}u + w_col${k}] = tile_scale(next_ws${k});
            }
#endfor
        }
        workgroupBarrier();
        {
            let first = step * ${STEP}u;
#for k in range((ROWS * WORDS + WG - 1) // WG)
            ${f"if (lid < {ROWS * WORDS - WG * k}u) " if ROWS * WORDS < WG * (k + 1) else ""}{
                let block = first + x_word${k} / 2u;
                let at = x_from${k} + min(block, ${X_BLOCKS - 1}u);
                next_x${k} = x8[at + x_from${k} + x_word${k} % 2u * ${X_BLOCKS}u];
                let x_scale = select(0.0, bitcast<f32>(xm[at].x), block < ${X_BLOCKS}u);
#if HALVES and OFFSETS
                let x_first = sum16(next_x${k});
                let x_sums = vec2<f32>(vec2<i32>(x_first, bitcast<i32>(xm[at].y) - x_first));
                next_xs${k} = vec3<f32>(x_scale, x_scale * x_sums);
#else
                next_xs${k} = ${"vec2<f32>(x_scale, x_scale * f32(bitcast<i32>(xm[at].y)))" if OFFSETS else "x_scale"};
#endif
            }
#endfor
#for k in range((OUTS * STEP + WG - 1) // WG)
            ${f"if (lid < {OUTS * STEP - WG * k}u) " if OUTS * STEP < WG * (k + 1) else ""}{
                let block = min(first + w_block${k}, ${X_BLOCKS - 1}u);
                next_w${k} = weight_codes(w_row${k}, block);
                next_ws${k} = weight_scale(w_row${k}, block);
            }
#endfor
        }
        if (step > 0u) {
            for (var b = ${"team" if TEAMS > 1 else "0u"}; b < ${STEP}u; b += ${TEAMS}u) {
#for j in range(RN)
                let w_at${j} = (tx + ${TX * j}u) * ${WORDS + 1}u + b * 2u;
                let w_low${j} = tile[w_at${j}];
                let w_high${j} = tile[w_at${j} + 1u];
                let w_scale${j} = w_scales[b * ${OUTS}u + tx + ${TX * j}u];
#endfor
#for i in range(RM)
                {
                    let at = (ty + ${OUTS + TY * i}u) * ${WORDS + 1}u + b * 2u;
                    let low = tile[at];
                    let high = tile[at + 1u];
                    let x_scale = x_scales[b * ${ROWS}u + ty + ${TY * i}u];
#for j in range(RN)
#if HALVES and OFFSETS
                    let products${j} = vec2<f32>(vec2<i32>(dot16(low, w_low${j}, 0), dot16(high, w_high${j}, 0)));
                    sum${i}_${j} += dot(products${j}, w_scale${j}.xy) * x_scale.x - dot(x_scale.yz, w_scale${j}.zw);
#elif HALVES
                    sum${i}_${j} += dot(vec2<f32>(vec2<i32>(dot16(low, w_low${j}, 0), dot16(high, w_high${j}, 0))), w_scale${j}) * x_scale;
#elif OFFSETS
                    sum${i}_${j} += f32(dot16(low, w_low${j}, dot16(high, w_high${j}, 0))) * (x_scale.x * w_scale${j}.x) - x_scale.y * w_scale${j}.y;
#else
                    sum${i}_${j} += f32(dot16(low, w_low${j}, dot16(high, w_high${j}, 0))) * (x_scale * w_scale${j});
#endif
#endfor
                }
#endfor
            }
        }
    }
#else
    for (var base = 0u; base < ${(K + 3) // 4}u; base += ${WORDS}u) {
        workgroupBarrier();
        for (var item = lid; item < ${ROWS * WORDS}u; item += ${WG}u) {
            let k4 = base + item % ${WORDS}u;
            tile[(${OUTS}u + item / ${WORDS}u) * ${WORDS + 1}u + item % ${WORDS}u] = select(
                vec4<f32>(0.0), x[(row0 + item / ${WORDS}u) * ${X_STRIDE // 4}u + min(k4, ${X_STRIDE // 4 - 1}u)], k4 < ${(K + 3) // 4}u);
        }
        for (var item = lid; item < ${OUTS * WORDS}u; item += ${WG}u) {
            let k4 = base + item % ${WORDS}u;
            tile[item / ${WORDS}u * ${WORDS + 1}u + item % ${WORDS}u] = select(
                vec4<f32>(0.0), weight4(weight_row(wg.x, item / ${WORDS}u), min(k4, ${(K + 3) // 4 - 1}u)), k4 < ${(K + 3) // 4}u);
        }
        workgroupBarrier();
        for (var k = ${"team" if TEAMS > 1 else "0u"}; k < ${WORDS}u; k += ${TEAMS}u) {
#for j in range(RN)
            let w${j} = tile[(tx + ${TX * j}u) * ${WORDS + 1}u + k];
#endfor
#for i in range(RM)
            {
                let x = tile[(ty + ${OUTS + TY * i}u) * ${WORDS + 1}u + k];
#for j in range(RN)
                sum${i}_${j} += dot(x, w${j});
#endfor
            }
#endfor
        }
    }
#endif
#for first in range(0, RM * RN // 4 if TEAMS > 1 else 0, PACKS)
#for half in [TEAMS >> i for i in range(1, TEAMS.bit_length())]
    workgroupBarrier();
    if (team >= ${half}u && team < ${2 * half}u) {
#for p in range(first, first + PACKS)
        tile[lid + ${(p - first) * WG // 2}u - ${half * TX * TY}u] = ${"bitcast<vec4<u32>>" if INT8 else ""}(vec4<f32>(${", ".join(f"sum{n // RN}_{n % RN}" for n in range(4 * p, 4 * p + 4))}));
#endfor
    }
    workgroupBarrier();
    if (team < ${half}u) {
#for p in range(first, first + PACKS)
        {
            let other = ${"bitcast<vec4<f32>>" if INT8 else ""}(tile[lid + ${(p - first) * WG // 2}u]);
#for n in range(4)
            sum${(4 * p + n) // RN}_${(4 * p + n) % RN} += other[${n}];
#endfor
        }
#endfor
    }
#endfor
#endfor
#if TEAMS > 1
    if (team > 0u) {
        return;
    }
#endif
#for j in range(RN // 2 if GATED else RN)
    let o${j} = wg.x * ${OUTS // 2 if GATED else OUTS}u + tx + ${TX * j}u;
    let last${j} = min(o${j}, ${N - 1}u);
#endfor
    // All is read before anything is written: `out` and `residual` may be one memory to a GPU, and each read would wait.
#for i in range(RM)
    let at${i} = (row0 + ty + ${TY * i}u) * ${STRIDE}u + ${FIRST}u;
#for j in range(RN // 2 if GATED else RN)
#if GATED
    let y${i}_${j} = activate(sum${i}_${j}) * sum${i}_${j + RN // 2};
#else
    let y${i}_${j} = sum${i}_${j}${f" + bias[{FIRST}u + last{j}]" if BIAS else ""}${f" + residual[at{i} + last{j}]" if RESIDUAL else ""};
#endif
#endfor
#endfor
#for i in range(RM)
#for j in range(RN // 2 if GATED else RN)
    if (o${j} < ${N}u) {
        out[at${i} + o${j}] = y${i}_${j};
    }
#endfor
#endfor
}
