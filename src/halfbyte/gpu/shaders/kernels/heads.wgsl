// Norms (QK_NORM) and rotates (ROTATE) the heads of q and k, and norms those of v (V_NORM). The first OUT_HEADS heads go to `out`, each row of OUT_ROW
// values; with CACHE k and v go to the cache.
// A team of TL invocations takes a head, from FIRST_HEAD on. Grid: (heads / teams of a workgroup, tokens).
// Constants: WG, TL, HEADS, KV_HEADS, those of `rotate`, with CACHE those of `cache`.
#if CACHE or BETA
@bind var<storage, read> state: array<i32>;
#endif
#if CACHE
#include cache ACCESS="read_write" LANES=TL
#else
#include values
#endif
#include rotate
#if OUT_HEADS
@bind var<storage, read_write> out: array<f32>;
#endif

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.y;
    let lane = lid % ${TL}u;
    let head = ${FIRST_HEAD}u + wg.x * ${WG // TL}u + lid / ${TL}u;
    let turning = min(head, ${HEADS + (2 if V_NORM else 1) * KV_HEADS - 1}u);
    let normed = normed8(lid, turning, raw8(t, turning, lane));
#if ROTATE
    let turned = ${"grown8(turning, u32(state[{}u + t]), ".format(POSITIONS) if BETA else "("}rotated8(lid, normed, angles8(t, lane)));
#else
    let turned = normed;
#endif
    var v = turned;
    if (head >= ${HEADS + KV_HEADS}u) {
        v = ${"normed" if V_NORM else "raw8(t, head, lane)"};
    }
#if CACHE
    let stored = packed(lid, v);
#endif
    if (head >= ${HEADS + 2 * KV_HEADS}u || lane >= ${HDP // 8}u) {
        return;
    }
#if OUT_HEADS
    if (head < ${OUT_HEADS}u) {
        for (var i = 0u; i < 8u; i++) {
            let d = lane * 8u + i;
            if (d < ${HD}u) {
                out[t * ${OUT_ROW}u + head * ${HD}u + d] = select(v.b[i & 3u], v.a[i & 3u], i < 4u);
            }
        }
    }
#endif
#if CACHE
    if (head >= ${HEADS}u) {
        let position = u32(state[${POSITIONS}u + t]);
        let kv_head = (head - ${HEADS}u) % ${KV_HEADS}u;
        let row = cache_row(u32(state[${SEQ}u + t]), kv_head, position);
        if (head < ${HEADS + KV_HEADS}u) {
            store_k(row, lane, stored);
        } else {
            store_v(row, lane, stored);
        }
    }
#endif
}
