// How the keys of a token are split among workgroups. Constants: MAX_SPLITS, SPLIT_KEYS (a split has at least these).
fn split_count(keys: u32) -> u32 {
    return clamp((keys + ${SPLIT_KEYS - 1}u) / ${SPLIT_KEYS}u, 1u, ${MAX_SPLITS}u);
}
