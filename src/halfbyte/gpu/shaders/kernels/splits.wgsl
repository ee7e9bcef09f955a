// How the keys of a token are split among workgroups: in chunks of CHUNK keys, dealt out in turn.
// Constants: WINDOW, CHUNK, MAX_SPLITS, SPLIT_CHUNKS (a split has at least these).
fn oldest_key(position: u32) -> u32 {
#if WINDOW
    return max(position, ${WINDOW - 1}u) - ${WINDOW - 1}u;
#else
    return 0u;
#endif
}

fn split_count(position: u32) -> u32 {
    let chunks = position / ${CHUNK}u + 1u - oldest_key(position) / ${CHUNK}u;
    return clamp((chunks + ${SPLIT_CHUNKS - 1}u) / ${SPLIT_CHUNKS}u, 1u, ${MAX_SPLITS}u);
}
