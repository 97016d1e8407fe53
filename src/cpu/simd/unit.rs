//! What vector units can do and compilers do not see in loops.

use std::array::from_fn;

/// The most 32-bit lanes that a register has; each unit's are a part of them.
pub(in super::super) const MOST_LANES: usize = 16;

/// What a register holds: floats, or whole numbers, each of which may be two of 16 bits or four bytes.
pub(in super::super) type Floats<const LANES: usize> = [f32; LANES];
pub(in super::super) type Whole<const LANES: usize> = [i32; LANES];

/// What vector units with registers of so many lanes can do and compilers do not see in loops, or see in some and not in others.
/// Whoever holds one runs where it is.
pub(in super::super) trait Unit<const LANES: usize>: Copy {
    #[inline(always)]
    fn sum(self, a: Floats<LANES>, b: Floats<LANES>) -> Floats<LANES> {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn difference(self, a: Floats<LANES>, b: Floats<LANES>) -> Floats<LANES> {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn product(self, a: Floats<LANES>, b: Floats<LANES>) -> Floats<LANES> {
        from_fn(|i| a[i] * b[i])
    }

    /// `y - x step`, rounded once, where the products are floats.
    #[inline(always)]
    fn minus_product(self, y: Floats<LANES>, x: Floats<LANES>, step: Floats<LANES>) -> Floats<LANES> {
        from_fn(|i| y[i] - x[i] * step[i])
    }

    /// `to + x y`, rounded once or twice.
    #[inline(always)]
    fn plus_product(self, to: Floats<LANES>, x: Floats<LANES>, y: Floats<LANES>) -> Floats<LANES> {
        self.sum(to, self.product(x, y))
    }

    /// [`quotient`](Self::quotient) of each lane.
    #[inline(always)]
    fn quotients(self, x: Floats<LANES>, s: Floats<LANES>, per_s: Floats<LANES>) -> Floats<LANES> {
        from_fn(|i| self.quotient(x[i], s[i], per_s[i]))
    }

    /// At least the first and at most the last; the first in place of NaN.
    #[inline(always)]
    fn held(self, x: Floats<LANES>, first: Floats<LANES>, last: Floats<LANES>) -> Floats<LANES> {
        from_fn(|i| {
            let held = if x[i] > first[i] { x[i] } else { first[i] };
            if held < last[i] { held } else { last[i] }
        })
    }

    /// The patterns of magnitudes.
    #[inline(always)]
    fn magnitudes(self, x: Floats<LANES>) -> Whole<LANES> {
        x.map(|x| x.abs().to_bits().cast_signed())
    }

    /// The whole numbers nearest to floats, ties to even where the thread's floats are IEEE's; any number in place of those that
    /// 32 bits do not hold.
    #[inline(always)]
    fn nearest(self, x: Floats<LANES>) -> Whole<LANES> {
        x.map(|x| x.round_ties_even() as i32)
    }

    /// The floats of whole numbers that floats hold.
    #[inline(always)]
    fn floats(self, x: Whole<LANES>) -> Floats<LANES> {
        x.map(|x| x as f32)
    }

    #[inline(always)]
    fn larger(self, a: Whole<LANES>, b: Whole<LANES>) -> Whole<LANES> {
        from_fn(|i| a[i].max(b[i]))
    }

    /// The larger one of a pattern of a magnitude and that of another number, which is not NaN.
    #[inline(always)]
    fn larger_magnitude(self, a: Whole<LANES>, b: Floats<LANES>) -> Whole<LANES> {
        self.larger(a, self.magnitudes(b))
    }

    /// `to + |x|`.
    #[inline(always)]
    fn plus_size(self, to: Whole<LANES>, x: Whole<LANES>) -> Whole<LANES> {
        from_fn(|i| to[i].wrapping_add(x[i].wrapping_abs()))
    }

    /// Two numbers of 16 bits to a lane, the lower ones of two.
    #[inline(always)]
    fn pairs(self, [a, b]: [Whole<LANES>; 2]) -> Whole<LANES> {
        from_fn(|i| a[i] & 0xffff | b[i] << 16)
    }

    /// Of numbers of at most 28 bits, `2^12 h + l`, the pairs of `h`, and those of `l`, from 0.
    #[inline(always)]
    fn pairs_of_parts(self, [a, b]: [Whole<LANES>; 2]) -> [Whole<LANES>; 2] {
        [from_fn(|i| a[i] >> 12 & 0xffff | b[i] >> 12 << 16), from_fn(|i| a[i] & 0xfff | (b[i] & 0xfff) << 16)]
    }

    /// Adds to each lane `a b` of its two numbers of 16 bits.
    #[inline(always)]
    fn add_products(self, to: &mut Whole<LANES>, a: Whole<LANES>, b: Whole<LANES>) {
        for i in 0..LANES {
            let (low, high) = (i32::from(a[i] as i16) * i32::from(b[i] as i16), (a[i] >> 16) * (b[i] >> 16));
            to[i] = to[i].wrapping_add(low).wrapping_add(high);
        }
    }

    /// The columns of a square.
    #[inline(always)]
    fn columns(self, rows: [&Floats<LANES>; LANES]) -> [Floats<LANES>; LANES] {
        from_fn(|i| rows.map(|row| row[i]))
    }

    /// The lower bytes of pairs of 0 and 2, and of 1 and 3, in order; to each is added one, and what a mask leaves is told.
    #[inline(always)]
    fn bytes(self, [a, b]: [Whole<LANES>; 2], plus: Whole<LANES>, mask: Whole<LANES>) -> Whole<LANES> {
        let byte = |pair: i32, plus: i32, at: u32| (pair >> at).wrapping_add(plus) & 0xff;
        from_fn(|i| {
            let even = byte(a[i], plus[i], 0) | byte(a[i], plus[i] >> 16, 16) << 16;
            let odd = byte(b[i], plus[i] >> 8, 0) << 8 | byte(b[i], plus[i] >> 24, 16) << 24;
            (even | odd) & mask[i]
        })
    }

    /// Each lane's bytes of four, one after the other.
    #[inline(always)]
    fn byte_rows(self, fours: [Whole<LANES>; 4]) -> [[u8; 16]; LANES] {
        from_fn(|i| bytemuck::cast(fours.map(|four| four[i].to_le_bytes())))
    }

    /// All lanes' first bytes, then their second ones, and so on.
    #[inline(always)]
    fn bytes_in_turn(self, bytes: Whole<LANES>) -> [[u8; LANES]; 4] {
        from_fn(|at| bytes.map(|bytes| bytes.to_le_bytes()[at]))
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

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Any, Avx2, Avx512};

/// What every machine has, said in loops.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Clone, Copy)]
pub(super) struct Any;

#[cfg(not(target_arch = "x86_64"))]
impl Unit<4> for Any {}

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests {
    use super::super::{Kernel, for_each_level, run};
    use super::*;
    use crate::test_data::Rng;

    /// What every unit has, said in loops.
    #[derive(Clone, Copy)]
    struct Plain;

    impl<const LANES: usize> Unit<LANES> for Plain {}

    #[test]
    fn every_vector_unit_does_what_loops_say() {
        /// Floats, whole numbers of any size, and of at most 28 bits.
        #[derive(Clone, Copy)]
        struct Of([[f32; MOST_LANES]; 3], [[i32; MOST_LANES]; 4]);

        /// What they become, by its bits.
        fn made<const LANES: usize>(of: Of, unit: impl Unit<LANES>) -> Vec<Vec<i32>> {
            let [x, y, z] = of.0.map(|floats| *floats.first_chunk::<LANES>().unwrap());
            let [a, b, c, d] = of.1.map(|whole| *whole.first_chunk::<LANES>().unwrap());
            let small = [c, d].map(|whole| whole.map(|v| v >> 7));
            let mut products = [1; LANES];
            unit.add_products(&mut products, a, b);
            let rows: [Floats<LANES>; LANES] = from_fn(|i| unit.minus_product(x, [i as f32; LANES], [0.25; LANES]));
            let columns = unit.columns(rows.each_ref());
            // The products are floats, so that it is the same once and twice rounded.
            let plus_product = unit.plus_product(x, from_fn(|i| i as f32), [0.25; LANES]);
            let floats = [unit.sum(x, y), unit.difference(x, y), unit.product(x, y), unit.held(x, y, z), plus_product];
            let floats = floats.into_iter().chain(columns).chain([unit.floats(small[0])]);
            let mut made: Vec<Whole<LANES>> = floats.map(|floats| floats.map(|v| v.to_bits().cast_signed())).collect();
            made.extend([unit.nearest(x), unit.magnitudes(x), unit.larger(a, b), unit.plus_size(a, b), products]);
            made.extend([unit.larger_magnitude(unit.magnitudes(x), y), unit.pairs([a, b]), unit.bytes([a, b], b, a)]);
            made.extend(unit.pairs_of_parts(small));
            let mut made: Vec<Vec<i32>> = made.iter().map(|whole| whole.to_vec()).collect();
            let bytes =
                [unit.byte_rows([a, b, products, c]).as_flattened(), unit.bytes_in_turn(a).as_flattened()].concat();
            made.push(bytes.into_iter().map(i32::from).collect());
            made
        }

        impl Kernel for Of {
            type Output = [Vec<Vec<i32>>; 2];

            #[inline(always)]
            fn run<const LANES: usize>(self, unit: impl Unit<LANES>) -> Self::Output {
                [made(self, unit), made::<LANES>(self, Plain)]
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
                let whole = [0; 4].map(|_| [0; MOST_LANES].map(|_| rng.next_u32().cast_signed()));
                let [found, expected] = run(Of(floats, whole));
                assert_eq!(found, expected, "{level} {floats:?} {whole:?}");
            }
        });
    }

    #[test]
    fn quotients_of_lanes_are_those_of_each_and_nan_is_held_as_the_first() {
        struct Of<'a>(&'a [f32], &'a [f32], &'a mut [[f32; 3]]);
        impl Kernel for Of<'_> {
            type Output = ();

            #[inline(always)]
            fn run<const LANES: usize>(self, unit: impl Unit<LANES>) {
                let Self(x, s, to) = self;
                let of_lanes = x.as_chunks::<LANES>().0.iter().zip(s.as_chunks::<LANES>().0);
                for (at, ((x, s), to)) in of_lanes.zip(to.as_chunks_mut::<LANES>().0).enumerate() {
                    let per_s = s.map(|s| 1.0 / s);
                    let nans = from_fn(|i| if (at * LANES + i).is_multiple_of(3) { f32::NAN } else { x[i] });
                    let (quotients, held) =
                        (unit.quotients(*x, *s, per_s), unit.held(nans, [-8.5; LANES], [7.5; LANES]));
                    *to = from_fn(|i| [quotients[i], unit.quotient(x[i], s[i], per_s[i]), held[i]]);
                }
            }
        }
        for_each_level(|level| {
            let mut rng = Rng::new(47);
            for _ in 0..1000 {
                let s: [f32; MOST_LANES] =
                    from_fn(|_| f32::from_bits((120 + rng.below(10)) << 23 | rng.below(1 << 23)));
                let x: [f32; MOST_LANES] = from_fn(|i| s[i] * (rng.next_u32().cast_signed() >> 20) as f32 / 7.0);
                let mut found = [[0.0; 3]; MOST_LANES];
                run(Of(&x, &s, &mut found));
                for (i, ([quotient, each, held], x)) in found.into_iter().zip(x).enumerate() {
                    assert_eq!(quotient.to_bits(), each.to_bits(), "{level} {x:?} {s:?}");
                    assert_eq!(held, if i % 3 == 0 { -8.5 } else { x.clamp(-8.5, 7.5) }, "{level}");
                }
            }
        });
    }

    #[test]
    fn quotients_are_those_of_divisions_at_every_level() {
        struct All<'a>(&'a [f32], f32, &'a mut [f32]);
        impl Kernel for All<'_> {
            type Output = ();

            #[inline(always)]
            fn run<const LANES: usize>(self, unit: impl Unit<LANES>) {
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
