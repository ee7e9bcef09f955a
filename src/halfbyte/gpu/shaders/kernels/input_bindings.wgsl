// A row of float32 that every workgroup norms and rounds for itself: what it is made from, and where it is kept.
// SPLITS: it is merged from that many splits of attention at most, as `attend` leaves them. DEFERRED: x still wants a
// norm. ADDED: before that, a norm of its own and the residual; workgroup 0 writes that sum.
// Constants: WG, K, X_BLOCKS, SUBGROUP; with SPLITS HD, HDP and those of `splits`.
#if SPLITS
@bind var<storage, read> state: array<i32>;
@bind var<storage, read> partial: array<vec4<f32>>;
@bind var<storage, read> weight: array<vec2<f32>>;
#include splits MAX_SPLITS=SPLITS
#else
@bind var<storage, read> x: array<vec4<f32>>;
#endif
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
