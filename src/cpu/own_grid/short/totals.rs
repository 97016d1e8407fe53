//! Sums of short units in lanes, before they go to wider ones.

use super::super::super::simd::{self, Kernel, MOST_LANES, Unit};
use super::{Found, TOGETHER};
use crate::loss::{Adder, Terms};

/// Sums of units whose scales are of much the same size, each lane for itself, before they go to wider ones.
///
/// They count in steps of the least exponent: a unit's, whose scale is `m 2^(e + d)`, are times `2^d` and `4^d`, those of codes
/// times `m` and `m^2` too. So are the two parts of a number that would not fit in 64 bits.
#[derive(Default)]
pub(super) struct Totals {
    exponent_field: i32,
    rounds: usize,
    largest: [i32; MOST_LANES],
    /// Of losses, of the lower and upper 32 bits of noise, of the lower 24 bits and the others of codes, of `h q` and `l q`.
    sums: [[i64; MOST_LANES]; 7],
}

impl Totals {
    /// How many exponents there are: `m 4^d` fits in 30 bits.
    const EXPONENTS: u32 = 4;
    /// Sums of `h q` are below 2^27, and so 2^57 with what they are times: of so many rounds they fit.
    const ROUNDS: usize = 63;

    pub(super) fn add(&mut self, units: usize, found: &Found, adder: &mut Adder) {
        let (mut left, rounds) = ([-1; TOGETHER], units / MOST_LANES);
        loop {
            if self.rounds + rounds > Self::ROUNDS {
                self.flush(adder);
            }
            self.rounds += rounds;
            if simd::run(Add { rounds, found, left: &mut left, totals: &mut *self }) {
                return;
            }
            self.flush(adder);
            // The next ones may be smaller.
            let scales = found.scales[..units].iter().zip(&left).filter(|(_, left)| **left != 0);
            let exponents = scales.map(|(s, _)| (s.to_bits() >> 23).cast_signed());
            self.exponent_field = exponents.min().unwrap_or(1) - 1;
        }
    }

    pub(super) fn flush(&mut self, adder: &mut Adder) {
        let sums = self.sums.map(|lanes| lanes.into_iter().map(i128::from).sum::<i128>());
        let [abs, noise_low, noise_high, codes_low, codes_high, hq, lq] = sums;
        let terms = Terms {
            abs,
            noise: noise_low + (noise_high << 32),
            codes: codes_low + (codes_high << 24),
            cross: (hq << 12) + lq,
        };
        let largest = self.largest.into_iter().fold(0, i32::max);
        adder.add_terms(self.exponent_field - 150, largest.cast_unsigned(), &terms);
        *self = Self { exponent_field: self.exponent_field, ..Self::default() };
    }
}

/// Adds to each lane. What is added to is not what anything is made of, as compilers see then.
macro_rules! plus {
    ($to:ident, |$i:ident| $of_lane:expr) => {
        let mut sums = *$to;
        for $i in 0..MOST_LANES {
            sums[$i] += $of_lane;
        }
        *$to = sums;
    };
}

/// Adds what has one of the exponents, of units that are left; whether none is.
struct Add<'a> {
    rounds: usize,
    found: &'a Found,
    /// Of those all bits are set.
    left: &'a mut [i32; TOGETHER],
    totals: &'a mut Totals,
}

impl Kernel for Add<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<const LANES: usize>(self, _: impl Unit<LANES>) -> bool {
        let Self { rounds, found: Found { scales, losses, noise, sums, .. }, left, totals } = self;
        let (mut any_left, exponent_field) = (0, totals.exponent_field);
        let [abs, _, _, qq, _, hq, lq] = sums.each_ref().map(of_rounds);
        let of_each = of_rounds(scales).iter().zip(of_rounds(losses)).zip(of_rounds(noise));
        let of_each = left.as_chunks_mut::<MOST_LANES>().0.iter_mut().zip(of_each);
        for (round, (left, ((scales, losses), noise))) in of_each.enumerate().take(rounds) {
            let (abs, qq, hq, lq) = (abs[round], qq[round], hq[round], lq[round]);
            let (scales, losses, noise, mut now_left) = (*scales, *losses, *noise, *left);
            let ([mut power, mut square, mut digits, mut times], mut codes) = ([[0; MOST_LANES]; 4], [0; MOST_LANES]);
            for i in 0..MOST_LANES {
                let bits = scales[i].to_bits();
                let above = (bits >> 23).wrapping_sub(exponent_field.cast_unsigned());
                let takes = if above < Totals::EXPONENTS { now_left[i] } else { 0 };
                // Nothing has no exponent.
                now_left[i] &= if abs[i] | qq[i] == 0 { 0 } else { !takes };
                any_left |= now_left[i];
                power[i] = (1 << (above & 31)) & takes.cast_unsigned();
                square[i] = power[i] * power[i];
                digits[i] = bits & 0x007f_ffff | 1 << 23;
                times[i] = digits[i] * square[i];
            }
            *left = now_left;
            for i in 0..MOST_LANES {
                codes[i] = u64::from(qq[i].cast_unsigned()) * u64::from(digits[i]);
            }
            let product = |a: u64, b: u32| ((a & 0xffff_ffff) * u64::from(b)).cast_signed();
            let signed_product = |a: i32, b: u32| i64::from(a) * i64::from(b.cast_signed());
            let Totals { largest: to_largest, sums, .. } = &mut *totals;
            let [to_abs, to_noise, to_high_noise, to_codes, to_high_codes, to_hq, to_lq] = sums;
            let mut all_largest = *to_largest;
            for i in 0..MOST_LANES {
                all_largest[i] = all_largest[i].max(losses[i].to_bits().cast_signed());
            }
            *to_largest = all_largest;
            plus!(to_abs, |i| product(abs[i].cast_unsigned().into(), power[i]));
            plus!(to_noise, |i| product(noise[i].cast_unsigned(), square[i]));
            plus!(to_high_noise, |i| product(noise[i].cast_unsigned() >> 32, square[i]));
            plus!(to_codes, |i| product(codes[i] & 0xff_ffff, times[i]));
            plus!(to_high_codes, |i| product(codes[i] >> 24, times[i]));
            plus!(to_hq, |i| signed_product(hq[i], times[i]));
            plus!(to_lq, |i| signed_product(lq[i], times[i]));
        }
        any_left == 0
    }
}

/// As many units' as are added at once.
#[inline(always)]
fn of_rounds<V>(of_units: &[V; TOGETHER]) -> &[[V; MOST_LANES]] {
    of_units.as_chunks().0
}
