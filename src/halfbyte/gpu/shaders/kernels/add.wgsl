// out = x + y, element by element. Grid: (fours of a row / WG, rows). Constants: WG, STRIDE4 (fours of a row).
@bind var<storage, read> x: array<vec4<f32>>;
@bind var<storage, read> y: array<vec4<f32>>;
@bind var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(${WG})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < ${STRIDE4}u) {
        let at = id.y * ${STRIDE4}u + id.x;
        out[at] = x[at] + y[at];
    }
}
