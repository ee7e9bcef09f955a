// out[t, 0 / 1, i] = cos / sin of (positions[t] · inv_freq[sets[t], i]), times FACTOR.
// The angle is a float32 product of up to 17 integer bits, so it is reduced to an eighth of a turn exactly, in
// integers, and a polynomial does the rest: a GPU's own sine is good to 2⁻¹¹ near zero and to nothing far from it.
// Grid: (pairs / 64, tokens). Constants: HALF, FACTOR.
@bind var<storage, read> state: array<i32>;
@bind var<storage, read> inv_freq: array<f32>;
@bind var<storage, read_write> out: array<f32>;

// High and low word of a · b.
fn wide_product(a: u32, b: u32) -> vec2<u32> {
    let low = (a & 0xFFFFu) * (b & 0xFFFFu);
    let mid1 = (a >> 16u) * (b & 0xFFFFu);
    let mid2 = (a & 0xFFFFu) * (b >> 16u);
    let carry = ((low >> 16u) + (mid1 & 0xFFFFu) + (mid2 & 0xFFFFu)) >> 16u;
    return vec2<u32>((a >> 16u) * (b >> 16u) + (mid1 >> 16u) + (mid2 >> 16u) + carry, a * b);
}

// Fraction of a turn in units of 2⁻³², for an angle in [1, 2²³).
fn turn(angle: f32) -> u32 {
    let bits = bitcast<u32>(angle);
    let mantissa = (bits & 0x7FFFFFu) | 0x800000u;
    let shift = 150u - (bits >> 23u);
    // 1/2π = 0x0.28BE60DB 9391054A; the product's words below the point, before the shift right.
    let high = wide_product(mantissa, 0x28BE60DBu);
    let low = wide_product(mantissa, 0x9391054Au);
    let first = high.y + low.x;
    let whole = high.x + select(0u, 1u, first < high.y);
    if (shift == 0u) {
        return first;
    }
    return (first >> shift) | (whole << (32u - shift));
}

// (cos, sin) of an angle in ±π/4, to 2⁻²³.
fn small_cos_sin(x: f32) -> vec2<f32> {
    let z = x * x;
    let c = 1.0 + z * (-0.5 + z * (0.041666666 + z * (-0.0013888889 + z * 2.4801587e-5)));
    let s = x + x * z * (-0.16666667 + z * (0.008333333 + z * (-0.00019841270 + z * 2.7557319e-6)));
    return vec2<f32>(c, s);
}

fn cos_sin(angle: f32) -> vec2<f32> {
    if (angle < 1.0) {
        let half = small_cos_sin(0.5 * angle);
        return vec2<f32>(1.0 - 2.0 * half.y * half.y, 2.0 * half.x * half.y);
    }
    let t = turn(angle);
    let quarter = (t + 0x20000000u) >> 30u;
    let rest = bitcast<i32>(t - (quarter << 30u));
    let p = small_cos_sin(f32(rest) * 1.4629180792671596e-9);
    let swapped = select(p, p.yx, (quarter & 1u) == 1u);
    return select(swapped, -swapped, vec2<bool>(quarter == 1u || quarter == 2u, quarter >= 2u));
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.y;
    let i = wg.x * 64u + lid;
    if (i >= ${HALF}u) {
        return;
    }
    let angle = f32(state[${POSITIONS}u + t]) * inv_freq[u32(state[${SETS}u + t]) * ${HALF}u + i];
    let at = cos_sin(angle) * ${FACTOR};
    out[t * ${2 * HALF}u + i] = at.x;
    out[t * ${2 * HALF}u + ${HALF}u + i] = at.y;
}
