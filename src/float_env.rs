//! Is this thread's f32 arithmetic IEEE's default?
//!
//! A host may have set flush-to-zero, denormals-are-zero or another rounding mode, and new threads inherit
//! it. Then plain f32 code is silently wrong. Every task of the CPU path asks here first and takes the
//! integer twin instead, which gives the same bits.
//!
//! The question is asked by computing, not by reading a control register, so that it works on every
//! architecture and needs no `unsafe`.

use std::hint::black_box;

/// True when subnormals are kept as operands and as results, and results round to nearest, ties to even.
#[inline(never)]
pub(crate) fn is_ieee_default() -> bool {
    // The hidden operands keep the compiler from computing the answers itself, at build time.
    let sum = |a: f32, b: f32| (black_box(a) + black_box(b)).to_bits();
    let product = |a: f32, b: f32| (black_box(a) * black_box(b)).to_bits();
    const ONE: u32 = 0x3f80_0000;
    let ulp = f32::EPSILON;
    let results_kept = product(f32::MIN_POSITIVE, 0.5) == 0x0040_0000;
    // 2^-149 * 2^24 = 2^-125, of biased exponent 2.
    let operands_kept = product(f32::from_bits(1), 16_777_216.0) == 2 << 23;
    let not_upward = sum(1.0, 0.25 * ulp) == ONE;
    let not_downward = sum(-1.0, -0.25 * ulp) == ONE | 1 << 31;
    let not_toward_zero = sum(1.0, 0.75 * ulp) == ONE + 1;
    results_kept && operands_kept && not_upward && not_downward && not_toward_zero
}
