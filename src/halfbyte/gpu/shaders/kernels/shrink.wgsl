// out[t, p · PADDED + r] = scale · A[r] · x[t] of the token's adapter k, for each part p: A begins at row (p · MANY + k) · RANK of the matrices. Zero behind RANK; nothing for tokens without an adapter.
// A workgroup takes ROWS slots of a token's SLOTS. Grid: (SLOTS / ROWS, tokens). Constants: WG, ROWS, SLOTS, PADDED, RANK, MANY (adapters), K4 and X_STRIDE4 (fours of a row), STRIDE.
@bind var<storage, read> state: array<i32>;
#include ${FORMAT}
@bind var<storage, read> x: array<vec4<f32>>;
@bind var<storage, read> scales: array<f32>;
@bind var<storage, read_write> out: array<f32>;

var<workgroup> sums: array<f32, ${WG * ROWS}>;

// The row of the matrices for a slot; the last of its part behind that.
fn row_of(slot: u32, adapter: u32) -> u32 {
    let part = min(slot, ${SLOTS - 1}u) / ${PADDED}u;
    return (part * ${MANY}u + adapter) * ${RANK}u + min(slot - part * ${PADDED}u, ${RANK - 1}u);
}

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.y;
    let chosen = state[${ADAPTERS}u + t];
    let adapter = u32(max(chosen - 1, 0));
    let first = wg.x * ${ROWS}u;
    let end = select(0u, ${K4}u, chosen > 0);
#for i in range(ROWS)
    let row${i} = row_of(first + ${i}u, adapter);
    var sum${i} = 0.0;
#endfor
    for (var k = lid; k < end; k += ${WG}u) {
        let v = x[t * ${X_STRIDE4}u + k];
#for i in range(ROWS)
        sum${i} += dot(weight4(row${i}, k), v);
#endfor
    }
#for i in range(ROWS)
    sums[${i * WG}u + lid] = sum${i};
#endfor
    workgroupBarrier();
    let slot = first + lid;
    if (lid < ${ROWS}u && slot < ${SLOTS}u && chosen > 0) {
        var sum = 0.0;
        for (var i = 0u; i < ${WG}u; i += 1u) {
            sum += sums[lid * ${WG}u + i];
        }
        let scale = scales[slot / ${PADDED}u * ${MANY}u + adapter];
        out[t * ${STRIDE}u + slot] = select(0.0, scale * sum, slot % ${PADDED}u < ${RANK}u);
    }
}
