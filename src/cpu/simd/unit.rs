//! What vector units can do and compilers do not see in loops.

use std::array::from_fn;

/// 32-bit lanes in which a [`Unit`] computes; each holds one number, or two of 16 bits.
pub(in super::super) const LANES: usize = 16;
pub(in super::super) type Floats = [f32; LANES];
pub(in super::super) type Whole = [i32; LANES];

/// Rows as long as they are many, in whole lines of a cache: they are read again at once.
#[repr(align(64))]
pub(in super::super) struct Square(pub(in super::super) [Floats; LANES]);

/// What vector units can do and compilers do not see in loops, or see in some and not in others. Whoever holds one runs where it
/// is.
pub(in super::super) trait Unit: Copy {
    #[inline(always)]
    fn sum(self, a: Floats, b: Floats) -> Floats {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn difference(self, a: Floats, b: Floats) -> Floats {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn product(self, a: Floats, b: Floats) -> Floats {
        from_fn(|i| a[i] * b[i])
    }

    /// `y - x step`, rounded once, where the products are floats.
    #[inline(always)]
    fn minus_product(self, y: Floats, x: Floats, step: Floats) -> Floats {
        from_fn(|i| y[i] - x[i] * step[i])
    }

    /// `to + x y`, rounded once or twice.
    #[inline(always)]
    fn plus_product(self, to: Floats, x: Floats, y: Floats) -> Floats {
        self.sum(to, self.product(x, y))
    }

    /// [`quotient`](Self::quotient) of each lane.
    #[inline(always)]
    fn quotients(self, x: Floats, s: Floats, per_s: Floats) -> Floats {
        from_fn(|i| self.quotient(x[i], s[i], per_s[i]))
    }

    /// At least the first and at most the last; the first in place of NaN.
    #[inline(always)]
    fn held(self, x: Floats, first: Floats, last: Floats) -> Floats {
        from_fn(|i| {
            let held = if x[i] > first[i] { x[i] } else { first[i] };
            if held < last[i] { held } else { last[i] }
        })
    }

    /// The patterns of magnitudes.
    #[inline(always)]
    fn magnitudes(self, x: Floats) -> Whole {
        x.map(|x| x.abs().to_bits().cast_signed())
    }

    /// The whole numbers nearest to floats, ties to even where the thread's floats are IEEE's; any number in place of those that
    /// 32 bits do not hold.
    #[inline(always)]
    fn nearest(self, x: Floats) -> Whole {
        x.map(|x| x.round_ties_even() as i32)
    }

    /// The floats of whole numbers that floats hold.
    #[inline(always)]
    fn floats(self, x: Whole) -> Floats {
        x.map(|x| x as f32)
    }

    #[inline(always)]
    fn larger(self, a: Whole, b: Whole) -> Whole {
        from_fn(|i| a[i].max(b[i]))
    }

    /// The larger one of a pattern of a magnitude and that of another number, which is not NaN.
    #[inline(always)]
    fn larger_magnitude(self, a: Whole, b: Floats) -> Whole {
        self.larger(a, self.magnitudes(b))
    }

    /// `to + |x|`.
    #[inline(always)]
    fn plus_size(self, to: Whole, x: Whole) -> Whole {
        from_fn(|i| to[i].wrapping_add(x[i].wrapping_abs()))
    }

    /// Two numbers of 16 bits to a lane, the lower ones of two.
    #[inline(always)]
    fn pairs(self, [a, b]: [Whole; 2]) -> Whole {
        from_fn(|i| a[i] & 0xffff | b[i] << 16)
    }

    /// Of numbers of at most 28 bits, `2^12 h + l`, the pairs of `h`, and those of `l`, from 0.
    #[inline(always)]
    fn pairs_of_parts(self, [a, b]: [Whole; 2]) -> [Whole; 2] {
        [from_fn(|i| a[i] >> 12 & 0xffff | b[i] >> 12 << 16), from_fn(|i| a[i] & 0xfff | (b[i] & 0xfff) << 16)]
    }

    /// Adds to each lane `a b` of its two numbers of 16 bits.
    #[inline(always)]
    fn add_products(self, to: &mut Whole, a: Whole, b: Whole) {
        for i in 0..LANES {
            let (low, high) = (i32::from(a[i] as i16) * i32::from(b[i] as i16), (a[i] >> 16) * (b[i] >> 16));
            to[i] = to[i].wrapping_add(low).wrapping_add(high);
        }
    }

    /// The same to whatever lanes, at most four to each: what they make together is what is told.
    #[inline(always)]
    fn add_products_to_any(self, to: &mut Whole, a: Whole, b: Whole) {
        self.add_products(to, a, b);
    }

    /// The columns of a square.
    #[inline(always)]
    fn columns(self, rows: [&Floats; LANES], to: &mut Square) {
        for (i, row) in rows.into_iter().enumerate() {
            for (to, &v) in to.0.iter_mut().zip(row) {
                to[i] = v;
            }
        }
    }

    /// The lower bytes of pairs of 0 and 2, and of 1 and 3, in order; to each is added one, and what a mask leaves is told.
    #[inline(always)]
    fn bytes(self, [a, b]: [Whole; 2], plus: Whole, mask: Whole) -> Whole {
        let byte = |pair: i32, plus: i32, at: u32| (pair >> at).wrapping_add(plus) & 0xff;
        from_fn(|i| {
            let even = byte(a[i], plus[i], 0) | byte(a[i], plus[i] >> 16, 16) << 16;
            let odd = byte(b[i], plus[i] >> 8, 0) << 8 | byte(b[i], plus[i] >> 24, 16) << 24;
            (even | odd) & mask[i]
        })
    }

    /// Each lane's bytes of four, one after the other.
    #[inline(always)]
    fn byte_rows(self, fours: [Whole; 4]) -> [[u8; LANES]; LANES] {
        from_fn(|i| bytemuck::cast(fours.map(|four| four[i].to_le_bytes())))
    }

    /// `x / s`, rounded once, where `per_s` is `1 / s`, rounded once, `s` [`is_divisor`] and `x / s` is below 2^24. Of what is
    /// below a quarter it may be the last place off, and lack 0's sign.
    ///
    /// Two fused multiplications make the quotient of the product `x per_s`, at a fraction of a division's cost. In last places
    /// of the quotient, `S` being the digits of `s` as a whole number: the product is less than 1 1/2 off. What is then added
    /// misses the rest by at most `S / 2^48` of it, and where that is above 1, and may have more than 24 digits, by `1 / S` more.
    /// From the midpoints half a place away a quotient is at least `1 / 2S`, more than is missed there, `S / 2^49`. Of those 1 1/2
    /// away it stays clear by 4.5 / 2^24, more than the 3.1 / 2^24 that are missed; but where the digits of `s` are all ones by
    /// half of that, and of these a test takes every `x`.
    #[inline(always)]
    fn quotient(self, x: f32, s: f32, per_s: f32) -> f32 {
        let _ = per_s;
        x / s
    }
}

/// Whether [`Unit::quotient`] divides by this: no digit of what comes on the way is below the least float's, and nothing is
/// beyond the largest.
#[inline(always)]
pub(in super::super) fn is_divisor(s: f32) -> bool {
    (2f32.powi(-90)..=2f32.powi(90)).contains(&s)
}

/// [`Unit::quotient`] where `mul_add` is an instruction.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn fused_quotient(x: f32, s: f32, per_s: f32) -> f32 {
    let near = x * per_s;
    (-near).mul_add(s, x).mul_add(per_s, near)
}

/// What every machine has.
#[cfg(not(target_arch = "x86_64"))]
pub(super) use Plain as Any;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Any, Avx2, Avx512};

/// What every machine has, said in loops.
#[cfg(any(test, not(target_arch = "x86_64")))]
#[derive(Clone, Copy)]
pub(super) struct Plain;

#[cfg(any(test, not(target_arch = "x86_64")))]
impl Unit for Plain {}

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests {
    use super::super::{Kernel, for_each_level, run};
    use super::*;
    use crate::test_data::Rng;

    #[test]
    fn every_vector_unit_does_what_loops_say() {
        /// Floats, whole numbers of any size, and of at most 28 bits.
        #[derive(Clone, Copy)]
        struct Of([Floats; 3], [Whole; 2], [Whole; 2]);
        /// What they become, by its bits.
        #[derive(Debug, PartialEq)]
        struct Made(Vec<Whole>, [[u8; LANES]; LANES], i32);

        impl Kernel for Of {
            type Output = Made;

            #[inline(always)]
            fn run(self, unit: impl Unit) -> Made {
                let Self([x, y, z], [a, b], small) = self;
                let (mut products, mut to_any) = ([1; LANES], [1; LANES]);
                unit.add_products(&mut products, a, b);
                unit.add_products_to_any(&mut to_any, a, b);
                let rows: [Floats; LANES] = from_fn(|i| unit.minus_product(x, [i as f32; LANES], [0.25; LANES]));
                let mut columns = Square([[0.0; LANES]; LANES]);
                unit.columns(rows.each_ref(), &mut columns);
                // The products are floats, so that it is the same once and twice rounded.
                let plus_product = unit.plus_product(x, from_fn(|i| i as f32), [0.25; LANES]);
                let floats =
                    [unit.sum(x, y), unit.difference(x, y), unit.product(x, y), unit.held(x, y, z), plus_product];
                let floats = floats.into_iter().chain(columns.0).chain([unit.floats(small[0])]);
                let mut whole: Vec<Whole> = floats.map(bytemuck::cast).collect();
                whole.extend([unit.nearest(x), unit.magnitudes(x), unit.larger(a, b), unit.plus_size(a, b), products]);
                whole.extend([
                    unit.larger_magnitude(unit.magnitudes(x), y),
                    unit.pairs([a, b]),
                    unit.bytes([a, b], b, a),
                ]);
                whole.extend(unit.pairs_of_parts(small));
                let bytes = unit.byte_rows([a, b, products, small[0]]);
                Made(whole, bytes, to_any.into_iter().fold(0, i32::wrapping_add))
            }
        }
        for_each_level(|level| {
            let mut rng = Rng::new(45);
            for _ in 0..10_000 {
                // Halves, and any of less than 31 bits.
                let floats = [0; 3].map(|_| {
                    from_fn(|i| match i % 2 {
                        0 => (rng.next_u32().cast_signed() >> 7) as f32 / 2.0,
                        _ => f32::from_bits((rng.next_u32() % (157 << 23)) | (rng.next_u32() & (1 << 31))),
                    })
                });
                let whole = [0; 4].map(|_| [0; LANES].map(|_| rng.next_u32().cast_signed()));
                let [a, b, c, d] = whole;
                let of = Of(floats, [a, b], [c, d].map(|whole| whole.map(|v| v >> 7)));
                assert_eq!(run(of), of.run(Plain), "{level} {floats:?} {whole:?}");
            }
        });
    }

    #[test]
    fn quotients_of_lanes_are_those_of_each_and_nan_is_held_as_the_first() {
        #[derive(Clone, Copy)]
        struct Of(Floats, Floats);
        impl Kernel for Of {
            type Output = (Floats, Floats, Floats);

            #[inline(always)]
            fn run(self, unit: impl Unit) -> Self::Output {
                let (Self(x, s), per_s) = (self, self.1.map(|s| 1.0 / s));
                let nans: Floats = from_fn(|i| if i % 3 == 0 { f32::NAN } else { x[i] });
                let held = unit.held(nans, [-8.5; LANES], [7.5; LANES]);
                (unit.quotients(x, s, per_s), from_fn(|i| unit.quotient(x[i], s[i], per_s[i])), held)
            }
        }
        for_each_level(|level| {
            let mut rng = Rng::new(47);
            for _ in 0..1000 {
                let s: Floats = from_fn(|_| f32::from_bits((120 + rng.below(10)) << 23 | rng.below(1 << 23)));
                let x: Floats = from_fn(|i| s[i] * (rng.next_u32().cast_signed() >> 20) as f32 / 7.0);
                let (quotients, each, held) = run(Of(x, s));
                assert_eq!(quotients.map(f32::to_bits), each.map(f32::to_bits), "{level} {x:?} {s:?}");
                let expected: Floats = from_fn(|i| if i % 3 == 0 { -8.5 } else { x[i].clamp(-8.5, 7.5) });
                assert_eq!(held, expected, "{level}");
            }
        });
    }

    #[test]
    fn quotients_are_those_of_divisions_at_every_level() {
        struct All<'a>(&'a [f32], f32, &'a mut [f32]);
        impl Kernel for All<'_> {
            type Output = ();

            #[inline(always)]
            fn run(self, unit: impl Unit) {
                let Self(x, s, out) = self;
                let per_s = 1.0 / s;
                x.iter().zip(out).for_each(|(&x, out)| *out = unit.quotient(x, s, per_s));
            }
        }
        let check = |x: &[f32], s: f32| {
            let mut found = vec![0.0; x.len()];
            run(All(x, s, &mut found));
            for (&x, found) in x.iter().zip(found) {
                let q = x / s;
                let equal = found.to_bits() == q.to_bits();
                assert!(equal || q.abs() < 0.25 && (found - q).abs() <= 2f32.powi(-26), "{x:e} / {s:e}: {found:e}");
            }
        };
        let ones = f32::from_bits(0x3fff_ffff);
        let all_digits: Vec<f32> = (0..1 << 23).map(|digits| f32::from_bits(0x4200_0000 + digits)).collect();
        for_each_level(|_| {
            check(&all_digits, ones);
            let mut rng = Rng::new(46);
            for i in 0..3000 {
                let exponent = rng.below(180).cast_signed() - 90;
                let s = match i % 4 {
                    0 => f32::from_bits(0x3fff_ffff - rng.below(8)),
                    1 => f32::from_bits(0x3f80_0000 + rng.below(8)),
                    _ => f32::from_bits(0x3f80_0000 | rng.below(1 << 23)),
                };
                // Of quotients between floats and between whole numbers, both sides; any; and what is nearly nothing.
                let s = s * 2f32.powi(exponent.min(89));
                assert!(is_divisor(s));
                let x: Vec<f32> = (0..256)
                    .map(|k| {
                        let q = f64::from(f32::from_bits(((125 + rng.below(24)) << 23) | rng.below(1 << 23)));
                        let x = match k % 4 {
                            0 => (q + f64::from(q as f32 * f32::EPSILON) / 4.0) * f64::from(s),
                            1 => (q.floor() + 0.5) * f64::from(s),
                            2 => q * f64::from(s),
                            _ => f64::from(f32::from_bits(rng.below(1 << 28))) * f64::from(s),
                        };
                        let x = x as f32;
                        let x = f32::from_bits(x.to_bits().saturating_add_signed(rng.below(3).cast_signed() - 1));
                        if rng.below(2) == 0 { x } else { -x }
                    })
                    .collect();
                check(&x, s);
            }
        });
    }
}
