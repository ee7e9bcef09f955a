// A row of float32 that every workgroup norms and rounds for itself: what it is made from, and where it is kept.
// DEFERRED: x still wants a norm. ADDED: before that, a norm of its own and the residual; workgroup 0 writes that sum.
// Constants: WG, X_BLOCKS, SUBGROUP.
@bind var<storage, read> x: array<vec4<f32>>;
#if ADDED
@bind var<storage, read> x_weight: array<vec4<f32>>;
@bind var<storage, read> x_residual: array<vec4<f32>>;
@bind var<storage, read_write> x_sum: array<vec4<f32>>;
#include team NAME="row" TEAM=WG
#endif
#if DEFERRED
@bind var<storage, read> x_norm: array<vec4<f32>>;
var<workgroup> squared: array<f32, ${WG // SUBGROUP}>;
#endif
#if not EMIT
#include team NAME="block" TEAM=8
#endif
// As `quantize_block` lays them out: the first halves of all blocks, then the others; of each block (scale, sum).
var<workgroup> x8: array<vec4<u32>, ${2 * X_BLOCKS}>;
var<workgroup> xm: array<vec2<u32>, ${X_BLOCKS}>;

// Four values of the row, those beyond its width taken as zero: what lies there may be left from another tensor.
fn inside(i: u32, v: vec4<f32>) -> vec4<f32> {
#if K % 4
    let seen = vec4<bool>(i < ${K // 4}u) | (vec4<bool>(i == ${K // 4}u) & (vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(${K % 4}u)));
    return select(vec4<f32>(0.0), v, seen);
#else
    return select(vec4<f32>(0.0), v, i < ${K // 4}u);
#endif
}
