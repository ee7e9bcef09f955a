// Plain weights as `formats/dense.py` stores them, rows padded to four values. Constants: KIND, ROW4 (fours in a row).
#if KIND == "f32"
@bind var<storage, read> w: array<vec4<f32>>;
#else
@bind var<storage, read> w: array<vec2<u32>>;
#endif

// Values 4·k4 … 4·k4 + 3 of a row.
fn weight4(row: u32, k4: u32) -> vec4<f32> {
    let stored = w[row * ${ROW4}u + k4];
#if KIND == "f32"
    return stored;
#elif KIND == "f16"
    return vec4<f32>(unpack2x16float(stored.x), unpack2x16float(stored.y));
#else
    return bitcast<vec4<f32>>(vec4<u32>(stored.x << 16u, stored.x & 0xFFFF0000u, stored.y << 16u, stored.y & 0xFFFF0000u));
#endif
}
