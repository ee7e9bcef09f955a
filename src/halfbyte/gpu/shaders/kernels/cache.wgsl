// The paged cache: [blocks, KV_HEADS, BLOCK_SIZE, HDP / 8] eights of values, HDP being the head's size in whole eights.
// Constants: F16, ACCESS (read or read_write), SEQUENCES, TABLE and COLUMNS (where the block table lies in `state`).
#include values
#if F16
alias Eight = vec4<u32>;
#else
struct Eight { a: vec4<f32>, b: vec4<f32> }
#endif
@bind var<storage, ${ACCESS}> k_cache: array<Eight>;
@bind var<storage, ${ACCESS}> v_cache: array<Eight>;

fn unpacked(e: Eight) -> Values {
#if F16
    return Values(vec4<f32>(unpack2x16float(e.x), unpack2x16float(e.y)), vec4<f32>(unpack2x16float(e.z), unpack2x16float(e.w)));
#else
    return Values(e.a, e.b);
#endif
}

fn packed(a: vec4<f32>, b: vec4<f32>) -> Eight {
#if F16
    return vec4<u32>(pack2x16float(a.xy), pack2x16float(a.zw), pack2x16float(b.xy), pack2x16float(b.zw));
#else
    return Eight(a, b);
#endif
}

// Where a position's eights begin.
fn cache_row(sequence: u32, kv_head: u32, position: u32) -> u32 {
    let column = position / ${BLOCK_SIZE}u % ${COLUMNS}u;
    let block = u32(state[${TABLE}u + sequence * ${COLUMNS}u + column]);
    return ((block * ${KV_HEADS}u + kv_head) * ${BLOCK_SIZE}u + position % ${BLOCK_SIZE}u) * ${HDP // 8}u;
}
