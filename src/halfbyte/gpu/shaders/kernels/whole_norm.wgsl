// Norms all heads of q of a token together, and all of k; those of v are copied. Grid: (tokens).
// Constants: WG, ROW (values of a row of qkv), OUT_ROW, Q (values of q), K (of k), EPS.
@bind var<storage, read> qkv: array<f32>;
@bind var<storage, read> q_norm: array<f32>;
@bind var<storage, read> k_norm: array<f32>;
@bind var<storage, read_write> out: array<f32>;
#include team NAME="row" TEAM=WG

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let from_row = wg.x * ${ROW}u;
    let to = wg.x * ${OUT_ROW}u;
    var squares = vec2<f32>(0.0);
    for (var i = lid; i < ${Q + K}u; i += ${WG}u) {
        let x = qkv[from_row + i];
        squares += select(vec2<f32>(0.0, x * x), vec2<f32>(x * x, 0.0), i < ${Q}u);
    }
    let q_factor = inverseSqrt(row_sum(lid, squares.x) / ${float(Q)} + ${EPS});
    let k_factor = inverseSqrt(row_sum(lid, squares.y) / ${float(K)} + ${EPS});
    for (var i = lid; i < ${Q + 2 * K}u; i += ${WG}u) {
        var x = qkv[from_row + i];
        if (i < ${Q}u) {
            x *= q_factor * q_norm[i];
        } else if (i < ${Q + K}u) {
            x *= k_factor * k_norm[i - ${Q}u];
        }
        out[to + i] = x;
    }
}
