// Sums and maxima over teams of TEAM neighbouring invocations, for all of them, in uniform control flow.
// Constants: NAME, TEAM (a power of two), WG (invocations of the workgroup), SUBGROUP (lanes; 0: no subgroup operations).
#if TEAM > 1 and SUBGROUP < TEAM
var<workgroup> ${NAME}_shared: array<f32, ${WG}>;
#endif
#for op, start, all in [("sum", "0.0", "subgroupAdd"), ("max", "-3.4e38", "subgroupMax")]
fn ${NAME}_${op}(lid: u32, value: f32) -> f32 {
#if TEAM == 1
    return value;
#elif TEAM == SUBGROUP
    return ${all}(value);
#elif SUBGROUP > TEAM
    var v = value;
#for d in [1 << i for i in range(TEAM.bit_length() - 1)]
    v = ${"v + " if op == "sum" else "max(v, "}subgroupShuffleXor(v, ${d}u)${"" if op == "sum" else ")"};
#endfor
    return v;
#elif SUBGROUP > 1
    let part = ${all}(value);
    workgroupBarrier();
    if (lid % ${SUBGROUP}u == 0u) {
        ${NAME}_shared[lid / ${SUBGROUP}u] = part;
    }
    workgroupBarrier();
    let first = lid / ${TEAM}u * ${TEAM // SUBGROUP}u;
    var v = ${start};
    for (var i = 0u; i < ${TEAM // SUBGROUP}u; i++) {
        v = ${"v + " if op == "sum" else "max(v, "}${NAME}_shared[first + i]${"" if op == "sum" else ")"};
    }
    return v;
#else
    workgroupBarrier();
    ${NAME}_shared[lid] = value;
    workgroupBarrier();
#for d in [TEAM >> i for i in range(1, TEAM.bit_length())]
    if (lid % ${TEAM}u < ${d}u) {
        let v = ${NAME}_shared[lid];
        let other = ${NAME}_shared[lid + ${d}u];
        ${NAME}_shared[lid] = ${"v + other" if op == "sum" else "max(v, other)"};
    }
    workgroupBarrier();
#endfor
    return ${NAME}_shared[lid - lid % ${TEAM}u];
#endif
}
#endfor
