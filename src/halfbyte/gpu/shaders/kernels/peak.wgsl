// Products of 8-bit integers and nothing else: how fast could they be? SUMS sums an invocation, ROUNDS times, over
// operands that change from round to round. Grid: (any). Constants: SUMS, ROUNDS.
@bind var<storage, read> seeds: array<u32>;
@bind var<storage, read_write> sums: array<i32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    var a = seeds[id.x % 256u] | 1u;
    let step = seeds[(id.x + 7u) % 256u];
#for i in range(SUMS)
    var sum${i} = 0;
    let b${i} = step ^ ${0x01020304 * (i + 1) % (1 << 32)}u;
#endfor
    for (var round = 0u; round < ${ROUNDS}u; round++) {
#for i in range(SUMS)
        sum${i} += dot4I8Packed(a, b${i});
#endfor
        a += step;
    }
    sums[id.x] = ${" + ".join(f"sum{i}" for i in range(SUMS))};
}
