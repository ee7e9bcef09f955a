// Inside `attend_tiled`: reads 32 dims of the queries and of KEYS keys, to be staged next. FIRST_KEY, DIMS: which.
#for n in range((ROWS * 8 + WG - 1) // WG)
        next_q${n} = query4(min(first + lid / 8u + ${n * WG // 8}u, last - 1u), head, (${DIMS}) * 32u + lid % 8u * 4u);
#endfor
#for n in range((KEYS * 4 + WG - 1) // WG)
        next_k${n} = key8(sequence, kv_head, ${FIRST_KEY}, newest, ${DIMS}, lid + ${n * WG}u);
#endfor
