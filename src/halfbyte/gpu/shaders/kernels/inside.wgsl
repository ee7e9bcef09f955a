// Four values of a row, those beyond its width taken as zero: what lies there may be left from another tensor.
// Constant: WIDTH.
fn inside(i: u32, v: vec4<f32>) -> vec4<f32> {
#if WIDTH % 4
    let seen = vec4<bool>(i < ${WIDTH // 4}u) | (vec4<bool>(i == ${WIDTH // 4}u) & (vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(${WIDTH % 4}u)));
    return select(vec4<f32>(0.0), v, seen);
#else
    return select(vec4<f32>(0.0), v, i < ${WIDTH // 4}u);
#endif
}
