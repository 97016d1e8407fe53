//! The formulas of the schemes with a scale in binary64: fast enough for every 16-bit float under many scales, and
//! checked against the oracle in whole numbers.
//!
//! Exact, because a quotient, a difference or a sum of two 24-bit operands that is rounded to 53 bits and then to 24
//! is the one rounded once: 53 >= 2 * 24 + 2. (A quotient that is subnormal in binary32 has fewer bits yet and is
//! code 0 either way.) A product by a code has at most 17 + 24 bits and is rounded once only.

/// A scheme with a scale: its codes' ends, a unit's scale and its zero point, 0 where there is none.
#[derive(Clone, Copy)]
pub(crate) struct Formula {
    pub(crate) qmin: i32,
    pub(crate) qmax: i32,
    pub(crate) scale: f32,
    pub(crate) zero_point: i32,
}

impl Formula {
    /// The code, and whether it is counted as clipped.
    pub(crate) fn code(self, x: f32) -> (i32, bool) {
        if x.is_nan() {
            return (self.zero_point, false);
        }
        // Infinite where it is beyond binary32, and from there on.
        let quotient = (f64::from(x) / f64::from(self.scale)) as f32;
        let whole = f64::from(quotient).round_ties_even() + f64::from(self.zero_point);
        let clamped = whole.clamp(self.qmin.into(), self.qmax.into());
        (clamped as i32, clamped != whole && x.is_finite())
    }

    /// `x'` as bits.
    pub(crate) fn value(self, code: i32) -> u32 {
        // A whole number of +0 is +0: the scale is positive, and a difference of 0 has no sign.
        ((f64::from(code - self.zero_point) * f64::from(self.scale)) as f32).to_bits()
    }
}

/// `|x' - x|` as bits.
pub(crate) fn abs_error(x: f32, value: f32) -> u32 {
    let error = ((f64::from(value) - f64::from(x)) as f32).abs();
    if error.is_nan() { 0x7fc0_0000 } else { error.to_bits() }
}
