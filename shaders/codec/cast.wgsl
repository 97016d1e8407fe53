// Codes that are floats. A field is a code's stored bits.
// Needs from the prelude: HALF, true of f16 and false of bf16.

fn field_of(b: u32, r: Recipe) -> u32 {
    if (HALF) { return to_f16(b, params.saturate == 1u); }
    return to_bf16(b);
}

fn pad_of(r: Recipe) -> u32 { return 0u; }

// Whether b is finite and its cast is not, or would not be without saturation.
fn clips(b: u32, r: Recipe) -> bool {
    let beyond = select((to_bf16(b) & 0x7fffu) >= 0x7f80u, (to_f16(b, false) & 0x7fffu) >= 0x7c00u, HALF);
    return is_finite(b) && beyond;
}

fn value_of(field: u32, s: u32, z: i32) -> u32 {
    if (HALF) { return from_f16(field); }
    return from_bf16(field);
}

fn loss_steps(field: u32, out: u32, s: u32, z: i32) -> i32 { return cast_steps(out, s); }
