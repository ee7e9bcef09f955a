// out = activation(x) · y, the columns of y from AT on.
// Grid: (values of a row / WG, tokens). Constants: WG, WIDTH, AT, X_STRIDE, Y_STRIDE, STRIDE, those of `activation`.
@bind var<storage, read> x: array<f32>;
@bind var<storage, read> y: array<f32>;
@bind var<storage, read_write> out: array<f32>;
#include activation

@compute @workgroup_size(${WG})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x;
    if (i < ${WIDTH}u) {
        out[id.y * ${STRIDE}u + i] = activate(x[id.y * ${X_STRIDE}u + i]) * y[id.y * ${Y_STRIDE}u + ${AT}u + i];
    }
}
