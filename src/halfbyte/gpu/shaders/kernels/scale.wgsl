// out = x · factor, element by element. Grid: (values of a row / 4 / WG, rows). Constants: WG, STRIDE4.
@bind var<storage, read> x: array<vec4<f32>>;
@bind var<storage, read> factor: array<f32>;
@bind var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(${WG})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < ${STRIDE4}u) {
        let i = id.y * ${STRIDE4}u + id.x;
        out[i] = x[i] * factor[0];
    }
}
