// Each head of x normed by its root mean square and a weight, times silu(z), which rows of `gate` have from GATE_AT on.
// A workgroup takes a head. Grid: (heads, tokens). Constants: WG, SIZE (of a head), EPS, X_STRIDE, GATE_STRIDE, GATE_AT, STRIDE.
@bind var<storage, read> x: array<f32>;
@bind var<storage, read> gate: array<f32>;
@bind var<storage, read> weight: array<f32>;
@bind var<storage, read_write> out: array<f32>;
#include team NAME="head" TEAM=WG
#include activation ACTIVATION="silu"

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let first = wg.y * ${X_STRIDE}u + wg.x * ${SIZE}u;
    var squares = 0.0;
    for (var i = lid; i < ${SIZE}u; i += ${WG}u) {
        squares += x[first + i] * x[first + i];
    }
    let factor = inverseSqrt(head_sum(lid, squares) / ${float(SIZE)} + ${EPS});
    for (var i = lid; i < ${SIZE}u; i += ${WG}u) {
        let z = gate[wg.y * ${GATE_STRIDE}u + ${GATE_AT}u + wg.x * ${SIZE}u + i];
        out[wg.y * ${STRIDE}u + wg.x * ${SIZE}u + i] = x[first + i] * factor * weight[i] * activate(z);
    }
}
