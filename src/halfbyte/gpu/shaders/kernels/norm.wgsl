// One row a workgroup: h = norm(x) [+ residual], then [norm(h)], to float32 and/or int8 blocks.
// With NORM off it only quantizes. Weights are padded with zeros. Grid: (rows, or tokens of prompts where PROMPTS).
// Constants: WG, W (width), STRIDE4, EPS, GATHER (read row rows[r]), NORM, RESIDUAL, OUT, SECOND, OUT2, EMIT.
#if GATHER or PROMPTS
@bind var<storage, read> state: array<i32>;
#endif
@bind var<storage, read> x: array<vec4<f32>>;
#if NORM
@bind var<storage, read> weight: array<vec4<f32>>;
#endif
#if RESIDUAL
@bind var<storage, read> residual: array<vec4<f32>>;
#endif
#if OUT
@bind var<storage, read_write> out: array<vec4<f32>>;
#endif
#if SECOND
@bind var<storage, read> weight2: array<vec4<f32>>;
#endif
#if OUT2
@bind var<storage, read_write> out2: array<vec4<f32>>;
#endif
#if EMIT
#include quantize_block ROW_BLOCKS=STRIDE4//8
#endif
#include team NAME="row" TEAM=WG
#include inside WIDTH=W

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.x${" + u32(state[{}u])".format(DECODES_AT) if PROMPTS else ""};
    let to = t * ${STRIDE4}u;
#if GATHER
    let from_row = u32(state[${ROWS_AT}u + t]) * ${STRIDE4}u;
#else
    let from_row = to;
#endif
#for j in range((STRIDE4 + WG - 1) // WG)
    let i${j} = lid + ${j * WG}u;
    let at${j} = min(i${j}, ${STRIDE4 - 1}u);
    var v${j} = inside(i${j}, x[from_row + at${j}]);
#endfor
#if NORM
    var squares = 0.0;
#for j in range((STRIDE4 + WG - 1) // WG)
    squares += dot(v${j}, v${j});
#endfor
    let factor = inverseSqrt(row_sum(lid, squares) / ${float(W)} + ${EPS});
#for j in range((STRIDE4 + WG - 1) // WG)
    v${j} = v${j} * factor * weight[at${j}];
#endfor
#endif
#if RESIDUAL
#for j in range((STRIDE4 + WG - 1) // WG)
    v${j} += inside(i${j}, residual[from_row + at${j}]);
#endfor
#endif
#if OUT
#for j in range((STRIDE4 + WG - 1) // WG)
    if (i${j} < ${STRIDE4}u) {
        out[to + i${j}] = v${j};
    }
#endfor
#endif
#if SECOND
    var squares2 = 0.0;
#for j in range((STRIDE4 + WG - 1) // WG)
    if (i${j} < ${STRIDE4}u) {
        squares2 += dot(v${j}, v${j});
    }
#endfor
    let factor2 = inverseSqrt(row_sum(lid, squares2) / ${float(W)} + ${EPS});
#for j in range((STRIDE4 + WG - 1) // WG)
    v${j} = v${j} * factor2 * weight2[at${j}];
#endfor
#if OUT2
#for j in range((STRIDE4 + WG - 1) // WG)
    if (i${j} < ${STRIDE4}u) {
        out2[to + i${j}] = v${j};
    }
#endfor
#endif
#endif
#if EMIT
#for j in range((STRIDE4 + WG - 1) // WG)
    store_block(lid, (to + i${j}) / 8u, v${j}, 0.0, i${j} < ${STRIDE4}u);
#endfor
#endif
}
