//! Distances on the loss grid, on bit patterns; twin of `shaders/exact/loss.wgsl`.

use super::float::{MAGNITUDE, parts, shift_right_rne};

/// `rne(|x| / 2^g)` modulo 2^32.
pub(crate) fn to_grid(a: u32, g: i32) -> u32 {
    let x = parts(a);
    let up = x.e - g;
    if up >= 0 {
        return if up > 31 { 0 } else { x.m << up };
    }
    shift_right_rne(x.m, (-up).min(25).cast_unsigned())
}

/// `rne(x' / 2^g) - rne(x / 2^g)`, known to fit in an i32.
pub(crate) fn distance(x: u32, out: u32, g: i32) -> i32 {
    let signed = |b: u32| {
        let n = to_grid(b & MAGNITUDE, g);
        if b >> 31 == 1 { 0u32.wrapping_sub(n) } else { n }
    };
    signed(out).wrapping_sub(signed(x)).cast_signed()
}
