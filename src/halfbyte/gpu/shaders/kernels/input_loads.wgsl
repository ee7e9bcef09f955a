// Inside `gemv`: the loads that rounding its input takes, before those of the weights.
#if SPLITS
    let splits = split_count(u32(state[${POSITIONS}u]));
#endif
#for j in range((8 * X_BLOCKS + WG - 1) // WG)
    let i${j} = lid + ${j * WG}u;
    let from${j} = min(i${j}, ${8 * X_BLOCKS - 1}u);
#if SPLITS
    let head${j} = from${j} / ${HD // 4}u * ${SPLITS}u;
#for s in range(SPLITS)
    let fact${j}_${s} = weight[head${j} + ${s}u];
    let part${j}_${s} = partial[(head${j} + ${s}u) * ${HDP // 4}u + from${j} % ${HD // 4}u];
#endfor
#else
    let raw${j} = x[from${j}];
#endif
#if ADDED
    let weight${j} = x_weight[from${j}];
    let residual${j} = x_residual[from${j}];
#endif
#if DEFERRED
    let norm${j} = x_norm[from${j}];
#endif
#endfor
