// Norm (where the model has one) and rotate q and k; k and v go to the cache, q to `out`.
// A team of TL invocations takes a head, the workgroup TEAMS of them. Grid: (heads / TEAMS, tokens).
// Constants: WG, TL, HEADS, KV_HEADS, Q_ROW (values of a row of out).
@bind var<storage, read> state: array<i32>;
#include cache ACCESS="read_write"
#include rotate
@bind var<storage, read_write> out: array<f32>;

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.y;
    let lane = lid % ${TL}u;
    let head = wg.x * ${WG // TL}u + lid / ${TL}u;
    let turning = min(head, ${HEADS + KV_HEADS - 1}u);
    let turned = rotated8(lid, turning, raw8(t, turning, lane), angles8(t, lane));
    if (head >= ${HEADS + 2 * KV_HEADS}u || lane >= ${HDP // 8}u) {
        return;
    }
    if (head < ${HEADS}u) {
        for (var i = 0u; i < 8u; i++) {
            let d = lane * 8u + i;
            if (d < ${HD}u) {
                out[t * ${Q_ROW}u + head * ${HD}u + d] = select(turned.b[i & 3u], turned.a[i & 3u], i < 4u);
            }
        }
        return;
    }
    let position = u32(state[${POSITIONS}u + t]);
    let kv_head = (head - ${HEADS}u) % ${KV_HEADS}u;
    let at = cache_row(u32(state[${SEQ}u + t]), kv_head, position) + lane;
    if (head < ${HEADS + KV_HEADS}u) {
        k_cache[at] = packed(turned.a, turned.b);
    } else {
        let v = raw8(t, head, lane);
        v_cache[at] = packed(v.a, v.b);
    }
}
