// Inside `gemv`: the loads that rounding its input takes, before those of the weights.
#for j in range((8 * X_BLOCKS + WG - 1) // WG)
    let i${j} = lid + ${j * WG}u;
    let from${j} = min(i${j}, ${8 * X_BLOCKS - 1}u);
    let raw${j} = x[from${j}];
#if ADDED
    let weight${j} = x_weight[from${j}];
    let residual${j} = x_residual[from${j}];
#endif
#if DEFERRED
    let norm${j} = x_norm[from${j}];
#endif
#endfor
