// Whether a token may come next in the sequence of a slot, whose mask lies behind its params where it has one.
// Reads `params`. Constants: PITCH, MASKS, MASK.
fn may_come(slot: u32, id: u32) -> bool {
    let at = slot * ${PITCH}u;
    return params[at + ${MASKS}u] == 0u || ((params[at + ${MASK}u + id / 32u] >> (id % 32u)) & 1u) != 0u;
}
