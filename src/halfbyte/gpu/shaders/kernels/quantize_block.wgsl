// Activations as int8 in blocks of 32: `x8_out` holds them four in a word, of each row the first 16 of every block,
// then the others, so that lanes beside each other read words beside each other. `xm_out` holds a block's
// (scale, sum of its int8 values, sum of squares of what it was made from, –).
// Constants: ROW_BLOCKS and those of `round_block`.
@bind var<storage, read_write> x8_out: array<u32>;
@bind var<storage, read_write> xm_out: array<vec4<u32>>;
#include round_block

fn store_block(lid: u32, slot: u32, v: vec4<f32>, squares: f32, valid: bool) {
    let r = rounded(lid, v);
    let square = block_sum(lid, squares);
    if (valid) {
        let i = lid % 8u;
        let row = slot / ${ROW_BLOCKS}u;
        x8_out[((row + i / 4u) * ${ROW_BLOCKS}u + slot) * 4u + i % 4u] = r.word;
        if (i == 0u) {
            xm_out[slot] = vec4<u32>(bitcast<u32>(r.scale), bitcast<u32>(r.sum), bitcast<u32>(square), 0u);
        }
    }
}
