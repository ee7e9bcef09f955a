// Inside `gemv`: its input, normed and rounded to int8 blocks while the first weights are on their way.
#for j in range((8 * X_BLOCKS + WG - 1) // WG)
#if SPLITS
    var top${j} = fact${j}_0.x;
#for s in range(1, SPLITS)
    top${j} = select(top${j}, max(top${j}, fact${j}_${s}.x), ${s}u < splits);
#endfor
    var total${j} = 0.0;
    var raw${j} = vec4<f32>(0.0);
#for s in range(SPLITS)
    {
        let share = exp(fact${j}_${s}.x - top${j});
        total${j} += select(0.0, share * fact${j}_${s}.y, ${s}u < splits);
        raw${j} += select(vec4<f32>(0.0), share * part${j}_${s}, ${s}u < splits);
    }
#endfor
    raw${j} /= total${j};
#endif
    var v${j} = inside(i${j}, raw${j});
#endfor
#if ADDED
    var x_before = 0.0;
#for j in range((8 * X_BLOCKS + WG - 1) // WG)
    x_before += dot(v${j}, v${j});
#endfor
    let x_factor = inverseSqrt(row_sum(lid, x_before) / ${float(K)} + ${EPS});
#for j in range((8 * X_BLOCKS + WG - 1) // WG)
    v${j} = inside(i${j}, v${j} * x_factor * weight${j} + residual${j});
    if (wg == 0u && i${j} < ${8 * X_BLOCKS}u) {
        x_sum[i${j}] = v${j};
    }
#endfor
#endif
#if DEFERRED
    var x_squares = 0.0;
#for j in range((8 * X_BLOCKS + WG - 1) // WG)
    x_squares += dot(v${j}, v${j});
    v${j} *= norm${j};
#endfor
    x_squares = subgroupAdd(x_squares);
    if (lid % ${SUBGROUP}u == 0u) {
        squared[lid / ${SUBGROUP}u] = x_squares;
    }
#endif
#for j in range((8 * X_BLOCKS + WG - 1) // WG)
    {
        let r = rounded(lid, v${j});
        if (i${j} < ${8 * X_BLOCKS}u) {
            let word = lid % 8u;
            x8[word / 4u * ${X_BLOCKS}u + i${j} / 8u][word % 4u] = r.word;
            if (word == 0u) {
                xm[i${j} / 8u] = vec2<u32>(bitcast<u32>(r.scale), bitcast<u32>(r.sum));
            }
        }
    }
#endfor
    workgroupBarrier();
