// Inside `gemv`: a round of weights, UNROLL blocks of every row.
#for i in range(UNROLL)
#if X_BLOCKS % (TEAM * UNROLL)
        let inside${i} = first + ${i * TEAM}u < ${X_BLOCKS}u;
        let b${i} = min(first + ${i * TEAM}u, ${X_BLOCKS - 1}u);
#else
        let b${i} = first + ${i * TEAM}u;
#endif
#for u in range(UNITS)
        let codes${i}_${u} = weight_codes(row${u}, b${i});
#endfor
#endfor
#for i in range(UNROLL)
#for u in range(UNITS)
        let scale${i}_${u} = weight_scale(row${u}, b${i});
#endfor
#endfor
