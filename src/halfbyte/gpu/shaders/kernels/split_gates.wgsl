// Rows of q, k and v from rows in which each head of q is followed by its gate.
// Grid: (values of a row / WG, tokens). Constants: WG, HD, QUERIES (HEADS · HD), WIDTH (of q, k and v), X_STRIDE, STRIDE.
@bind var<storage, read> x: array<f32>;
@bind var<storage, read_write> out: array<f32>;

@compute @workgroup_size(${WG})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x;
    if (i < ${WIDTH}u) {
        let skipped = select(${QUERIES}u, i / ${HD}u * ${HD}u, i < ${QUERIES}u);
        out[id.y * ${STRIDE}u + i] = x[id.y * ${X_STRIDE}u + i + skipped];
    }
}
