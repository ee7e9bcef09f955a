// The paged cache: pages [blocks, KV_HEADS] of BLOCK_SIZE positions, each of HDP / 8 eights of values, HDP being the
// head's size in whole eights. In KV_BITS of 8 or 4 eights are codes; the scales of a page follow them, a float16 for each
// 32 values, two in a word. Codes are stored without sign, the lowest as 0, and so that two neighbours lie in the halves
// of a word: the bits of a code above 0x6400 are the float16 of 1024 plus the code, which takes no conversion to float.
// Constants: KV_BITS, PAGE (words of a page), ACCESS (read or read_write), SEQUENCES, TABLE and COLUMNS (where the block
// table lies in `state`); with read_write LANES, which hold a head.
#include values
#if KV_BITS == 32
struct Eight { a: vec4<f32>, b: vec4<f32> }
alias Stored = Eight;
#elif KV_BITS == 16
alias Eight = vec4<u32>;
alias Stored = Eight;
#else
alias Stored = ${"vec2<u32>" if KV_BITS == 8 else "u32"};
// `scales` has those of two runs of 32 values, this eight's from bit `shift` on.
struct Eight { codes: Stored, scales: u32, shift: u32 }
#endif
#if KV_BITS > 8
alias Row = u32;
#else
// Where a position's codes begin, in eights, and its scales, in words.
struct Row { codes: u32, scales: u32 }
#endif
@bind var<storage, ${ACCESS}> k_cache: array<Stored>;
@bind var<storage, ${ACCESS}> v_cache: array<Stored>;
#if ACCESS == "read_write"
#if KV_BITS <= 8
#include team NAME="run" TEAM=min(4,LANES)
#include team NAME="scale" TEAM=min(8,LANES)

// The nearest number that float16 has, ties to even.
fn nearest_half(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    let rounded = bitcast<f32>((bits + 0xfffu + ((bits >> 13u) & 1u)) & 0xffffe000u);
    return unpack2x16float(pack2x16float(vec2<f32>(rounded, 0.0))).x;
}

// Four codes, two in each half of a word.
fn codes4(v: vec4<f32>, scale: f32) -> u32 {
    let lowest = vec4<f32>(${float(-(1 << KV_BITS - 1))});
    let q = vec4<u32>(clamp(round(v / scale), lowest, -lowest - 1.0) - lowest);
    return q.x | (q.y << 16u) | (q.z << ${KV_BITS}u) | (q.w << ${16 + KV_BITS}u);
}
#endif

// What the cache holds of a lane's eight values; in uniform control flow.
fn packed(lid: u32, v: Values) -> Eight {
#if KV_BITS == 32
    return Eight(v.a, v.b);
#elif KV_BITS == 16
    return vec4<u32>(pack2x16float(v.a.xy), pack2x16float(v.a.zw), pack2x16float(v.b.xy), pack2x16float(v.b.zw));
#else
    let high = max(v.a, v.b);
    let low = min(v.a, v.b);
    let top = run_max(lid, max(max(high.x, high.y), max(high.z, high.w)));
    let bottom = -run_max(lid, -min(min(low.x, low.y), min(low.z, low.w)));
    let scale = nearest_half(select(bottom, top, top > -bottom) / ${float(-(1 << KV_BITS - 1))});
    let lane = lid % ${LANES}u;
    let first = scale_sum(lid, select(0.0, scale, lane % 8u == 0u));
    let second = scale_sum(lid, select(0.0, scale, lane % 8u == 4u));
    let by = select(scale, 1.0e30, scale == 0.0);
    let codes = ${"vec2<u32>(codes4(v.a, by), codes4(v.b, by))" if KV_BITS == 8 else "codes4(v.a, by) | (codes4(v.b, by) << 8u)"};
    return Eight(codes, pack2x16float(vec2<f32>(first, second)), lane / 4u % 2u * 16u);
#endif
}
#endif

#if KV_BITS <= 8
// The lowest four codes of a word, each plus 1024.
fn coded4(word: u32) -> vec4<f32> {
    let first = (word & ${"0x00ff00ffu" if KV_BITS == 8 else "0x000f000fu"}) | 0x64006400u;
    let second = ((word >> ${KV_BITS}u) & ${"0x00ff00ffu" if KV_BITS == 8 else "0x000f000fu"}) | 0x64006400u;
    return vec4<f32>(unpack2x16float(first), unpack2x16float(second));
}

#endif
fn unpacked(e: Eight) -> Values {
#if KV_BITS == 32
    return Values(e.a, e.b);
#elif KV_BITS == 16
    return Values(vec4<f32>(unpack2x16float(e.x), unpack2x16float(e.y)), vec4<f32>(unpack2x16float(e.z), unpack2x16float(e.w)));
#else
    let scale = unpack2x16float(e.scales >> e.shift).x;
    let zero = vec4<f32>(scale * ${-1024.0 - (1 << KV_BITS - 1)});
    let a = coded4(${"e.codes.x" if KV_BITS == 8 else "e.codes"});
    let b = coded4(${"e.codes.y" if KV_BITS == 8 else "e.codes >> 8u"});
    return Values(fma(a, vec4<f32>(scale), zero), fma(b, vec4<f32>(scale), zero));
#endif
}

fn cache_row(sequence: u32, kv_head: u32, position: u32) -> Row {
    let column = position / ${BLOCK_SIZE}u % ${COLUMNS}u;
    let block = u32(state[${TABLE}u + sequence * ${COLUMNS}u + column]);
    let slot = position % ${BLOCK_SIZE}u;
#if KV_BITS > 8
    return ((block * ${KV_HEADS}u + kv_head) * ${BLOCK_SIZE}u + slot) * ${HDP // 8}u;
#else
    let page = block * ${KV_HEADS}u + kv_head;
    let codes = page * ${PAGE * 4 // KV_BITS}u + slot * ${HDP // 8}u;
    return Row(codes, page * ${PAGE}u + ${BLOCK_SIZE * HDP * KV_BITS // 32}u + slot * ${(HDP + 63) // 64}u);
#endif
}
#for x in "kv"

fn ${x}_eight(row: Row, eight: u32) -> Eight {
#if KV_BITS > 8
    return ${x}_cache[row + eight];
#else
    let word = row.scales + eight / 8u;
    return Eight(${x}_cache[row.codes + eight], ${x}_cache[${"word / 2u][word % 2u" if KV_BITS == 8 else "word"}], eight / 4u % 2u * 16u);
#endif
}
#if ACCESS == "read_write"

fn store_${x}(row: Row, eight: u32, e: Eight) {
#if KV_BITS > 8
    ${x}_cache[row + eight] = e;
#else
    ${x}_cache[row.codes + eight] = e.codes;
    if (eight % 8u == 0u) {
        let word = row.scales + eight / 8u;
        ${x}_cache[${"word / 2u][word % 2u" if KV_BITS == 8 else "word"}] = e.scales;
    }
#endif
}
#endif
#endfor
