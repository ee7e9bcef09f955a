// out = x · sigmoid(gate), each head's gate lying behind its query in rows of `gates`.
// Grid: (values of a row / WG, tokens). Constants: WG, HD, QUERIES (HEADS · HD), X_STRIDE, GATES_STRIDE, STRIDE.
@bind var<storage, read> x: array<f32>;
@bind var<storage, read> gates: array<f32>;
@bind var<storage, read_write> out: array<f32>;

@compute @workgroup_size(${WG})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x;
    if (i < ${QUERIES}u) {
        let gate = gates[id.y * ${GATES_STRIDE}u + i + (i / ${HD}u + 1u) * ${HD}u];
        out[id.y * ${STRIDE}u + i] = x[id.y * ${X_STRIDE}u + i] / (1.0 + exp(-gate));
    }
}
