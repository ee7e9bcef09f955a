// A causal convolution of each channel over its last TAPS inputs: out = silu(y), or c · y where GATED, x being [b | c | v]
// and the inputs b · v. Tokens that are alone of their sequence leave its state themselves; LEAVES does that for the last
// token of each other one, once all have read what was there.
// Grid: (channels / WG, tokens, or tokens of prompts where LEAVES). Constants: WG, C (channels), TAPS, X_STRIDE, STRIDE,
// GATED, LEAVES, TABLE (of states).
@bind var<storage, read> state: array<i32>;
@bind var<storage, read> x: array<f32>;
#if not LEAVES
@bind var<storage, read> weight: array<f32>;
@bind var<storage, read_write> out: array<f32>;
#include activation ACTIVATION="silu"
#endif
@bind var<storage, read_write> states: array<f32>;

fn input(t: u32, i: u32) -> f32 {
    return x[t * ${X_STRIDE}u + i]${f" * x[t * {X_STRIDE}u + {2 * C}u + i]" if GATED else ""};
}

@compute @workgroup_size(${WG})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x;
    let decodes = u32(state[${DECODES_AT}u]);
    let t = id.y${" + decodes" if LEAVES else ""};
    let sequence = state[${SEQ}u + t];
    if (i >= ${C}u) {
        return;
    }
#if LEAVES
    if (t + 1u < u32(state[${COUNT_AT}u]) && state[${SEQ}u + t + 1u] == sequence) {
        return;
    }
#endif
    // Tokens of the sequence before this one in the batch, as far as they matter.
    var near = 0u;
#for j in range(1, TAPS)
    if (t >= ${j}u && state[${SEQ}u + t - ${j}u] == sequence) {
        near = ${j}u;
    }
#endfor
    let begins = u32(state[${POSITIONS}u + t]) == near;
    let before = u32(state[${TABLE}u + 2u * u32(sequence)]) * ${(TAPS - 1) * C}u + i;
    let after = u32(state[${TABLE}u + 2u * u32(sequence) + 1u]) * ${(TAPS - 1) * C}u + i;
    let u0 = input(t, i);
#for j in range(1, TAPS)
    var u${j} = 0.0;
    if (${j}u <= near) {
        u${j} = input(t - ${j}u, i);
    } else if (!begins) {
        u${j} = states[before + (${TAPS - 1 - j}u + near) * ${C}u];
    }
#endfor
#if not LEAVES
    let y = ${" + ".join(f"weight[i * {TAPS}u + {TAPS - 1 - j}u] * u{j}" for j in range(TAPS - 1, -1, -1))};
#if GATED
    out[t * ${STRIDE}u + i] = x[t * ${X_STRIDE}u + ${C}u + i] * y;
#else
    out[t * ${STRIDE}u + i] = activate(y);
#endif
    if (t >= decodes) {
        return;
    }
#endif
#for j in range(TAPS - 1)
    states[after + ${(TAPS - 2 - j) * C}u] = u${j};
#endfor
}
