// out[t, i] = act(x[t, i]) · x[t, N + i]. Grid: (values of a row / WG, tokens). Constants: WG, N, X_STRIDE, STRIDE.
@bind var<storage, read> x: array<f32>;
@bind var<storage, read_write> out: array<f32>;
#include activation

@compute @workgroup_size(${WG})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < ${N}u) {
        let from_row = id.y * ${X_STRIDE}u + id.x;
        out[id.y * ${STRIDE}u + id.x] = activate(x[from_row]) * x[from_row + ${N}u];
    }
}
