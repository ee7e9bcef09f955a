// Values 4·k4 … 4·k4 + 3 of a row, zero past its last one: what fills up a block may stand for anything.
// Constants: COLUMNS.
fn in_row(k4: u32, value: vec4<f32>) -> vec4<f32> {
#if COLUMNS % 4
    return select(vec4<f32>(0.0), value, vec4<u32>(4u * k4) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(${COLUMNS}u));
#else
    return value;
#endif
}
