// out[t, n] += B[n] · shrunk[t] of the token's adapter, for the COUNT columns that adapters change; with APART out = y plus that, for all COUNT columns.
// PARTS has for each part its number, its first column, its columns, and how many columns that change come before it. Its B begin at row MANY times that.
// Grid: (COUNT / WG, tokens). Constants: WG, COUNT, APART, PARTS, MANY (adapters), RANK4 and STRIDE4 (fours of a part and of a row of `shrunk`), Y_STRIDE.
@bind var<storage, read> state: array<i32>;
#include ${FORMAT}
@bind var<storage, read> shrunk: array<vec4<f32>>;
#if APART
@bind var<storage, read> y: array<f32>;
#endif
@bind var<storage, read_write> out: array<f32>;

@compute @workgroup_size(${WG})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let t = id.y;
    let chosen = state[${ADAPTERS}u + t];
    let adapter = u32(max(chosen - 1, 0));
    var column = id.x;
    var row = 0u;
    var slot = 0u;
    var changed = false;
#for part, begin, height, start in PARTS
#if APART
    if (id.x >= ${begin}u && id.x < ${begin + height}u) {
        let at = id.x - ${begin}u;
#else
    if (id.x >= ${start}u && id.x < ${start + height}u) {
        let at = id.x - ${start}u;
        column = ${begin}u + at;
#endif
        row = ${start * MANY}u + adapter * ${height}u + at;
        slot = ${part * RANK4}u;
        changed = chosen > 0;
    }
#endfor
    let to = t * ${Y_STRIDE}u + column;
    var sum = 0.0;
    if (changed) {
        for (var r = 0u; r < ${RANK4}u; r += 1u) {
            sum += dot(weight4(row, r), shrunk[t * ${STRIDE4}u + slot + r]);
        }
    }
#if APART
    if (id.x < ${COUNT}u) {
        out[to] = y[to] + sum;
    }
#else
    if (changed) {
        out[to] += sum;
    }
#endif
}
