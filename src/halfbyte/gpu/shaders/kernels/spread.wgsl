// Inside a kernel: sums of `sum${u}_${c}` over WIDTH neighbouring invocations go to `sums`. Each step halves what an
// invocation still adds up, by trading half of it for the other half of its partner's, as long as there are several.
// Constants: VALUES = UNITS · COLS (a power of two), WIDTH, SUBGROUP.
#if SUBGROUP and WIDTH > 1
#for i in range(VALUES)
    let v0_${i} = sum${i % UNITS}_${i // UNITS};
#endfor
#for s in range(WIDTH.bit_length() - 1)
#if VALUES >> s > 1
    let upper${s} = (lid & ${WIDTH >> (s + 1)}u) != 0u;
#for i in range(VALUES >> (s + 1))
    let v${s + 1}_${i} = select(v${s}_${i}, v${s}_${i + (VALUES >> (s + 1))}, upper${s})
        + subgroupShuffleXor(select(v${s}_${i + (VALUES >> (s + 1))}, v${s}_${i}, upper${s}), ${WIDTH >> (s + 1)}u);
#endfor
#else
    let v${s + 1}_0 = v${s}_0 + subgroupShuffleXor(v${s}_0, ${WIDTH >> (s + 1)}u);
#endif
#endfor
    if (lid % ${max(1, WIDTH // VALUES)}u == 0u) {
        let to = lid / ${WIDTH}u * ${VALUES}u + lid % ${WIDTH}u / ${max(1, WIDTH // VALUES)}u * ${max(1, VALUES // WIDTH)}u;
#for i in range(max(1, VALUES // WIDTH))
        sums[to + ${i}u] = v${WIDTH.bit_length() - 1}_${i};
#endfor
    }
#else
#for i in range(VALUES)
    {
        let all = part_sum(lid, sum${i % UNITS}_${i // UNITS});
        if (lid % ${WIDTH}u == 0u) {
            sums[lid / ${WIDTH}u * ${VALUES}u + ${i}u] = all;
        }
    }
#endfor
#endif
