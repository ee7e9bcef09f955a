// out = CAP · tanh(x / CAP), element by element. Grid: (values / WG). Constants: WG, COUNT, CAP.
@bind var<storage, read> x: array<f32>;
@bind var<storage, read_write> out: array<f32>;

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    for (var i = id.x * ${WG}u + lid; i < ${COUNT}u; i += count.x * ${WG}u) {
        let e = exp(clamp(2.0 * x[i] / ${CAP}, -80.0, 80.0));
        out[i] = ${CAP} * (1.0 - 2.0 / (e + 1.0));
    }
}
