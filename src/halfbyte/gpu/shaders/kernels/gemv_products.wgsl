// Inside `gemv`: what a round of weights adds to the sums.
#for i in range(UNROLL)
#for c in range(COLS)
        {
            let lo = x8[${2 * c * X_BLOCKS}u + b${i}];
            let hi = x8[${(2 * c + 1) * X_BLOCKS}u + b${i}];
            let facts = xm[${c * X_BLOCKS}u + b${i}];
#if X_BLOCKS % (TEAM * UNROLL)
            let x_scale = select(0.0, bitcast<f32>(facts.x), inside${i});
#if DEFERRED and not ROUNDS
            squares${c} += select(0.0, bitcast<f32>(facts.z), inside${i});
#endif
#else
            let x_scale = bitcast<f32>(facts.x);
#if DEFERRED and not ROUNDS
            squares${c} += bitcast<f32>(facts.z);
#endif
#endif
            let x_sum = bitcast<i32>(facts.y);
#for u in range(UNITS)
            sum${u}_${c} += block_product(codes${i}_${u}, scale${i}_${u}, lo, hi, x_sum) * x_scale;
#endfor
        }
#endfor
#endfor
