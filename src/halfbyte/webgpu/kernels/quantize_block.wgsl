// Activations as int8 in blocks of 32: `x8_out` holds them four in a word, of each row the first 16 of every block,
// then the others, so that lanes beside each other read words beside each other. `xm_out` holds a block's
// (scale, sum of its int8 values, sum of squares of what it was made from, –).
// Eight neighbouring invocations hold a block, four values each. Constants: WG, SUBGROUP, ROW_BLOCKS.
@bind var<storage, read_write> x8_out: array<u32>;
@bind var<storage, read_write> xm_out: array<vec4<u32>>;
#include team NAME="block" TEAM=8

fn store_block(lid: u32, slot: u32, v: vec4<f32>, squares: f32, valid: bool) {
    let a = abs(v);
    let largest = block_max(lid, max(max(a.x, a.y), max(a.z, a.w)));
    let q = vec4<i32>(round(v * select(0.0, 127.0 / largest, largest > 1e-30)));
    let total = block_sum(lid, f32(q.x + q.y + q.z + q.w));
    let square = block_sum(lid, squares);
    if (valid) {
        let i = lid % 8u;
        let row = slot / ${ROW_BLOCKS}u;
        x8_out[((row + i / 4u) * ${ROW_BLOCKS}u + slot) * 4u + i % 4u] = pack4xI8(q);
        if (i == 0u) {
            xm_out[slot] = vec4<u32>(bitcast<u32>(largest / 127.0), bitcast<u32>(i32(total)), bitcast<u32>(square), 0u);
        }
    }
}
