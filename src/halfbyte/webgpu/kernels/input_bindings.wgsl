// A row of float32 that every workgroup norms and rounds for itself: what it is made from, and where it is kept.
// DEFERRED: x still wants a norm. ADDED: before that, a norm of its own and the residual; workgroup 0 writes that sum.
// Constants: WG, K, X_BLOCKS, SUBGROUP.
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
#include round_block
#endif
// As `quantize_block` lays them out: the first halves of all blocks, then the others; of each block (scale, sum).
var<workgroup> x8: array<vec4<u32>, ${2 * X_BLOCKS}>;
var<workgroup> xm: array<vec2<u32>, ${X_BLOCKS}>;
#include inside WIDTH=K
