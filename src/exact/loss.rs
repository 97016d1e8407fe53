//! Distances on the loss grid, on bit patterns; twin of `shaders/exact/loss.wgsl`.

use super::float::{MAGNITUDE, parts, shift_right_rne};

/// A cast's values are counted in steps of `2^(e + CAST_STEP_EXP)`, `m * 2^e` being its nominal scale.
pub(crate) const CAST_STEP_EXP: i32 = 12;
/// The most steps that are counted.
pub(crate) const CAST_STEPS: u32 = 1 << 26;

/// The grid's exponent `g` of a unit with this scale and this largest loss (infinity counts as 2^128).
pub(crate) fn grid_exp(scale_bits: u32, max_bits: u32) -> i32 {
    let fine = parts(scale_bits).e - 1;
    if max_bits <= scale_bits { fine } else { fine.max(parts(max_bits).e - 5) }
}

/// `rne(|x| / 2^g)` modulo 2^32.
pub(crate) fn to_grid(a: u32, g: i32) -> u32 {
    let x = parts(a);
    let up = x.e - g;
    if up >= 0 {
        return if up > 31 { 0 } else { x.m << up };
    }
    shift_right_rne(x.m, (-up).min(25).cast_unsigned())
}

/// A cast's value in steps of `2^(e + CAST_STEP_EXP)`.
pub(crate) fn cast_steps(out: u32, s: u32) -> i32 {
    let x = parts(out & MAGNITUDE);
    let up = x.e - (parts(s).e + CAST_STEP_EXP);
    let fine = shift_right_rne(x.m, (-up).clamp(1, 25).cast_unsigned());
    let coarse = if up > 2 { CAST_STEPS } else { x.m << (up & 31).cast_unsigned() };
    let k = if up >= 0 { coarse } else { fine };
    (if out >> 31 == 1 { 0u32.wrapping_sub(k) } else { k }).cast_signed()
}

/// `rne(x' / 2^g) - rne(x / 2^g)`, known to fit in an i32.
pub(crate) fn distance_on_grid(x: u32, out: u32, g: i32) -> i32 {
    let signed = |b: u32| {
        let n = to_grid(b & MAGNITUDE, g);
        if b >> 31 == 1 { 0u32.wrapping_sub(n) } else { n }
    };
    signed(out).wrapping_sub(signed(x)).cast_signed()
}
