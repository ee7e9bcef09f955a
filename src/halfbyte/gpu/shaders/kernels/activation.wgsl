// The gate's activation. Constant: ACTIVATION.
fn activate(x: f32) -> f32 {
#if ACTIVATION == "silu"
    return x / (1.0 + exp(min(-x, 80.0)));
#else
    let inner = 0.7978845608028654 * (x + 0.044715 * x * x * x);
    let t = 1.0 - 2.0 / (exp(clamp(2.0 * inner, -80.0, 80.0)) + 1.0);
    return 0.5 * x * (1.0 + t);
#endif
}
