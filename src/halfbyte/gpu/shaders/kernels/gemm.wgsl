// out[t, o] = x[t] · W[o] for many rows of x: tiles of TM rows × 64 outputs, 16 × 16 invocations, each with rows
// ty + 16·i and outputs tx + 16·j. Both tiles are staged in workgroup memory as [row][four words], the stride odd so
// that 16-byte loads do not collide; the next tile is loaded while this one is multiplied.
// INT8: int8 blocks of x against codes, made signed bytes on the way in. HALVES: each 16 codes have their own scale;
// OFFSETS: something is taken off what a block's codes stand for. GATED: half the outputs of a tile are gates.
// BIAS: a value of each output is added, before the residual.
// Grid: (outputs / (64 or 32), rows / TM). Constants: N, FIRST, STRIDE, X_BLOCKS or K and X_STRIDE, STEP, RM.
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
var<workgroup> x_tile: array<vec4<u32>, ${16 * RM * (2 * STEP + 1)}>;
var<workgroup> w_tile: array<vec4<u32>, ${64 * (2 * STEP + 1)}>;
var<workgroup> x_scales: array<${"vec2<f32>" if OFFSETS else "f32"}, ${16 * RM * STEP}>;
var<workgroup> w_scales: array<${"vec2<f32>" if HALVES or OFFSETS else "f32"}, ${64 * STEP}>;
#else
var<workgroup> x_tile: array<vec4<f32>, ${16 * RM * 5}>;
var<workgroup> w_tile: array<vec4<f32>, ${64 * 5}>;
#endif

// The matrix row of column c of the tile.
fn weight_row(tile: u32, c: u32) -> u32 {
#if GATED
    return min(tile * 32u + c % 32u, ${N - 1}u) + select(0u, ${N}u, c >= 32u);
#else
    return min(tile * 64u + c, ${N - 1}u);
#endif
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let tx = lid % 16u;
    let ty = lid / 16u;
    let row0 = wg.y * ${16 * RM}u;
#for i in range(RM)
#for j in range(4)
    var sum${i}_${j} = 0.0;
#endfor
#endfor
#if INT8
#for k in range((16 * RM * 2 * STEP + 255) // 256)
    let x_item${k} = min(lid + ${256 * k}u, ${16 * RM * 2 * STEP - 1}u);
    let x_row${k} = x_item${k} / ${2 * STEP}u;
    let x_word${k} = x_item${k} % ${2 * STEP}u;
    let x_from${k} = (row0 + x_row${k}) * ${X_BLOCKS}u;
    var next_x${k} = vec4<u32>(0u);
    var next_xs${k}: ${"vec2<f32>" if OFFSETS else "f32"};
#endfor
#for k in range((64 * STEP + 255) // 256)
    let w_item${k} = min(lid + ${256 * k}u, ${64 * STEP - 1}u);
    let w_col${k} = w_item${k} / ${STEP}u;
    let w_block${k} = w_item${k} % ${STEP}u;
    let w_row${k} = weight_row(wg.x, w_col${k});
    var next_w${k}: Codes;
    var next_ws${k}: Scale;
#endfor
    for (var step = 0u; step <= ${(X_BLOCKS + STEP - 1) // STEP}u; step++) {
        workgroupBarrier();
        if (step > 0u) {
#for k in range((16 * RM * 2 * STEP + 255) // 256)
            x_tile[x_row${k} * ${2 * STEP + 1}u + x_word${k}] = next_x${k};
            if (x_word${k} % 2u == 0u) {
                x_scales[x_word${k} / 2u * ${16 * RM}u + x_row${k}] = next_xs${k};
            }
#endfor
#for k in range((64 * STEP + 255) // 256)
            {
                let at = w_col${k} * ${2 * STEP + 1}u + w_block${k} * 2u;
                let bytes = block_bytes(next_w${k}, next_ws${k});
                w_tile[at] = bytes.low;
                w_tile[at + 1u] = bytes.high;
                w_scales[w_block${k} * 64u + w_col${k}] = tile_scale(next_ws${k});
            }
#endfor
        }
        workgroupBarrier();
        {
            let first = step * ${STEP}u;
#for k in range((16 * RM * 2 * STEP + 255) // 256)
            {
                let block = first + x_word${k} / 2u;
                let at = x_from${k} + min(block, ${X_BLOCKS - 1}u);
                next_x${k} = x8[at + x_from${k} + x_word${k} % 2u * ${X_BLOCKS}u];
                let x_scale = select(0.0, bitcast<f32>(xm[at].x), block < ${X_BLOCKS}u);
                next_xs${k} = ${"vec2<f32>(x_scale, x_scale * f32(bitcast<i32>(xm[at].y)))" if OFFSETS else "x_scale"};
            }
#endfor
#for k in range((64 * STEP + 255) // 256)
            {
                let block = min(first + w_block${k}, ${X_BLOCKS - 1}u);
                next_w${k} = weight_codes(w_row${k}, block);
                next_ws${k} = weight_scale(w_row${k}, block);
            }
#endfor
        }
        if (step > 0u) {
            for (var b = 0u; b < ${STEP}u; b++) {
#for j in range(4)
                let w_at${j} = (tx + ${16 * j}u) * ${2 * STEP + 1}u + b * 2u;
                let w_low${j} = w_tile[w_at${j}];
                let w_high${j} = w_tile[w_at${j} + 1u];
                let w_scale${j} = w_scales[b * 64u + tx + ${16 * j}u];
#endfor
#for i in range(RM)
                {
                    let at = (ty + ${16 * i}u) * ${2 * STEP + 1}u + b * 2u;
                    let low = x_tile[at];
                    let high = x_tile[at + 1u];
                    let x_scale = x_scales[b * ${16 * RM}u + ty + ${16 * i}u];
#for j in range(4)
#if HALVES
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
    for (var base = 0u; base < ${(K + 3) // 4}u; base += 4u) {
        workgroupBarrier();
        for (var item = lid; item < ${64 * RM}u; item += 256u) {
            let k4 = base + item % 4u;
            x_tile[item / 4u * 5u + item % 4u] = select(vec4<f32>(0.0), x[(row0 + item / 4u) * ${X_STRIDE // 4}u + k4], k4 < ${(K + 3) // 4}u);
        }
        {
            let k4 = base + lid % 4u;
            w_tile[lid / 4u * 5u + lid % 4u] = select(
                vec4<f32>(0.0), weight4(weight_row(wg.x, lid / 4u), min(k4, ${(K + 3) // 4 - 1}u)), k4 < ${(K + 3) // 4}u);
        }
        workgroupBarrier();
        for (var k = 0u; k < 4u; k++) {
#for j in range(4)
            let w${j} = w_tile[(tx + ${16 * j}u) * 5u + k];
#endfor
#for i in range(RM)
            {
                let x = x_tile[(ty + ${16 * i}u) * 5u + k];
#for j in range(4)
                sum${i}_${j} += dot(x, w${j});
#endfor
            }
#endfor
        }
    }
#endif
#for i in range(RM)
#for j in range(2 if GATED else 4)
    {
        let t = row0 + ty + ${16 * i}u;
        let o = wg.x * ${32 if GATED else 64}u + tx + ${16 * j}u;
        if (o < ${N}u) {
            let at = t * ${STRIDE}u + ${FIRST}u + o;
#if GATED
            out[at] = activate(sum${i}_${j}) * sum${i}_${j + 2};
#else
            let y = sum${i}_${j}${f" + bias[{FIRST}u + o]" if BIAS else ""};
            out[at] = ${"residual[at] + y" if RESIDUAL else "y"};
#endif
        }
    }
#endfor
#endfor
}
