//! What vector units can do and compilers do not see in loops.

/// 32-bit lanes in which a [`Unit`] computes; each holds one number, or two of 16 bits.
pub(in super::super) const LANES: usize = 16;

/// Rows as long as they are many, in whole lines of a cache: they are read again at once.
#[repr(align(64))]
pub(in super::super) struct Square(pub(in super::super) [[f32; LANES]; LANES]);

/// What vector units can do and compilers do not see in loops. Whoever holds one runs where it is.
pub(in super::super) trait Unit: Copy {
    /// The whole numbers nearest to floats, ties to even where the thread's floats are IEEE's; any number in place of those that
    /// 32 bits do not hold.
    fn nearest(self, x: [f32; LANES]) -> [i32; LANES];

    /// Adds to each lane `a b` of its two numbers of 16 bits.
    fn add_products(self, to: &mut [i32; LANES], a: [i32; LANES], b: [i32; LANES]);

    /// The same to whatever lanes, at most four to each: what they make together is what is told.
    #[inline(always)]
    fn add_products_to_any(self, to: &mut [i32; LANES], a: [i32; LANES], b: [i32; LANES]) {
        self.add_products(to, a, b);
    }

    /// `y - x step`, rounded once, where the product is a float.
    #[inline(always)]
    fn minus_product(self, y: f32, x: f32, step: f32) -> f32 {
        y - x * step
    }

    /// The columns of a square.
    #[inline(always)]
    fn columns(self, rows: [&[f32; LANES]; LANES], to: &mut Square) {
        for (i, row) in rows.into_iter().enumerate() {
            for (to, &v) in to.0.iter_mut().zip(row) {
                to[i] = v;
            }
        }
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
impl Unit for Plain {
    #[inline(always)]
    fn nearest(self, x: [f32; LANES]) -> [i32; LANES] {
        x.map(|x| x.round_ties_even() as i32)
    }

    #[inline(always)]
    fn add_products(self, to: &mut [i32; LANES], a: [i32; LANES], b: [i32; LANES]) {
        for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
            let (low, high) = (i32::from(a as i16) * i32::from(b as i16), (a >> 16) * (b >> 16));
            *to = to.wrapping_add(low).wrapping_add(high);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![allow(unsafe_code, reason = "a caller without a vector unit's feature cannot call what has it in safe code")]

    use super::{LANES, Square, Unit};
    use bytemuck::cast;
    use std::arch::x86_64::*;

    /// SSE2, which every x86-64 has.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Any;
    /// Is made only where there is AVX2.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(());
    /// Is made only where there is AVX-512 F and BW.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(());

    impl Avx2 {
        #[target_feature(enable = "avx2")]
        pub(in super::super) fn new() -> Self {
            Self(())
        }
    }

    impl Avx512 {
        #[target_feature(enable = "avx512f,avx512bw")]
        pub(in super::super) fn new() -> Self {
            Self(())
        }
    }

    /// Adds products of parts to the lanes of theirs, or in turn to so many of the first ones.
    #[inline(always)]
    fn add_parts<V, const PARTS: usize, const PART: usize>(
        (to, lanes): (&mut [i32; LANES], usize),
        (a, b): ([V; PARTS], [V; PARTS]),
        products: impl Fn(V, V) -> [i32; PART],
    ) {
        for (i, (a, b)) in a.into_iter().zip(b).enumerate() {
            for (to, product) in to[PART * i % lanes..].iter_mut().zip(products(a, b)) {
                *to = to.wrapping_add(product);
            }
        }
    }

    impl Unit for Any {
        #[inline(always)]
        fn nearest(self, x: [f32; LANES]) -> [i32; LANES] {
            // SAFETY: SSE2 is everywhere.
            cast(cast::<_, [__m128; 4]>(x).map(|x| unsafe { _mm_cvtps_epi32(x) }))
        }

        #[inline(always)]
        fn add_products(self, to: &mut [i32; LANES], a: [i32; LANES], b: [i32; LANES]) {
            // SAFETY: SSE2 is everywhere.
            let products = |a, b| cast(unsafe { _mm_madd_epi16(a, b) });
            add_parts::<__m128i, 4, 4>((to, LANES), (cast(a), cast(b)), products);
        }

        // To few lanes: 16 registers hold no more.
        #[inline(always)]
        fn add_products_to_any(self, to: &mut [i32; LANES], a: [i32; LANES], b: [i32; LANES]) {
            // SAFETY: SSE2 is everywhere.
            let products = |a, b| cast(unsafe { _mm_madd_epi16(a, b) });
            add_parts::<__m128i, 4, 4>((to, 8), (cast(a), cast(b)), products);
        }
    }

    impl Unit for Avx2 {
        #[inline(always)]
        fn quotient(self, x: f32, s: f32, per_s: f32) -> f32 {
            super::fused_quotient(x, s, per_s)
        }

        #[inline(always)]
        fn nearest(self, x: [f32; LANES]) -> [i32; LANES] {
            // SAFETY: `self` is where AVX2 is.
            cast(cast::<_, [__m256; 2]>(x).map(|x| unsafe { _mm256_cvtps_epi32(x) }))
        }

        #[inline(always)]
        fn add_products(self, to: &mut [i32; LANES], a: [i32; LANES], b: [i32; LANES]) {
            // SAFETY: `self` is where AVX2 is.
            let products = |a, b| cast(unsafe { _mm256_madd_epi16(a, b) });
            add_parts::<__m256i, 2, 8>((to, LANES), (cast(a), cast(b)), products);
        }

        // To few lanes: 16 registers hold no more.
        #[inline(always)]
        fn add_products_to_any(self, to: &mut [i32; LANES], a: [i32; LANES], b: [i32; LANES]) {
            // SAFETY: `self` is where AVX2 is.
            let products = |a, b| cast(unsafe { _mm256_madd_epi16(a, b) });
            add_parts::<__m256i, 2, 8>((to, 8), (cast(a), cast(b)), products);
        }

        #[inline(always)]
        fn minus_product(self, y: f32, x: f32, step: f32) -> f32 {
            (-x).mul_add(step, y)
        }

        #[inline(always)]
        fn columns(self, rows: [&[f32; LANES]; LANES], to: &mut Square) {
            for (i, rows) in rows.as_chunks::<8>().0.iter().enumerate() {
                let rows = rows.map(|row| cast::<_, [__m256; 2]>(*row));
                for j in 0..2 {
                    // SAFETY: `self` is where AVX2 is.
                    let columns = unsafe { columns_of_8(rows.map(|row| row[j])) };
                    for (to, column) in to.0[8 * j..].iter_mut().zip(columns) {
                        to[8 * i..][..8].copy_from_slice(&cast::<_, [f32; 8]>(column));
                    }
                }
            }
        }
    }

    impl Unit for Avx512 {
        #[inline(always)]
        fn quotient(self, x: f32, s: f32, per_s: f32) -> f32 {
            super::fused_quotient(x, s, per_s)
        }

        #[inline(always)]
        fn nearest(self, x: [f32; LANES]) -> [i32; LANES] {
            // SAFETY: `self` is where AVX-512 F is.
            cast(unsafe { _mm512_cvtps_epi32(cast(x)) })
        }

        #[inline(always)]
        fn add_products(self, to: &mut [i32; LANES], a: [i32; LANES], b: [i32; LANES]) {
            // SAFETY: `self` is where AVX-512 BW is.
            let products = |a, b| cast(unsafe { _mm512_madd_epi16(a, b) });
            add_parts::<__m512i, 1, 16>((to, LANES), (cast(a), cast(b)), products);
        }

        #[inline(always)]
        fn minus_product(self, y: f32, x: f32, step: f32) -> f32 {
            (-x).mul_add(step, y)
        }

        #[inline(always)]
        fn columns(self, rows: [&[f32; LANES]; LANES], to: &mut Square) {
            // SAFETY: `self` is where AVX-512 F is.
            unsafe { columns_of_16(rows, to) };
        }
    }

    /// By neighbours, by pairs of them, and by halves.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn columns_of_8(rows: [__m256; 8]) -> [__m256; 8] {
        let mut columns = rows;
        let mut fours = [[_mm256_setzero_ps(); 4]; 2];
        for (four, rows) in fours.iter_mut().zip(rows.as_chunks::<4>().0) {
            let [a, b, c, d] = *rows;
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            let pairs = |ab, cd| {
                let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
                [_mm256_unpacklo_pd(ab, cd), _mm256_unpackhi_pd(ab, cd)].map(|pair| _mm256_castpd_ps(pair))
            };
            let ([first, second], [third, fourth]) = (pairs(ab, cd), pairs(ab_high, cd_high));
            *four = [first, second, third, fourth];
        }
        for i in 0..4 {
            columns[i] = _mm256_permute2f128_ps::<0x20>(fours[0][i], fours[1][i]);
            columns[4 + i] = _mm256_permute2f128_ps::<0x31>(fours[0][i], fours[1][i]);
        }
        columns
    }

    /// The same.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn columns_of_16(rows: [&[f32; LANES]; LANES], to: &mut Square) {
        let mut fours = [[_mm512_setzero_ps(); 4]; 4];
        for (four, rows) in fours.iter_mut().zip(rows.as_chunks::<4>().0) {
            let [a, b, c, d] = rows.map(|row| cast(*row));
            let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
            let pairs = |ab, cd| {
                let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
                [_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd)].map(|pair| _mm512_castpd_ps(pair))
            };
            let ([first, second], [third, fourth]) = (pairs(ab, cd), pairs(ab_high, cd_high));
            *four = [first, second, third, fourth];
        }
        for i in 0..4 {
            let [a, b, c, d] = fours.map(|four| four[i]);
            let even = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d)];
            let odd = [_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d)];
            to.0[i] = cast(_mm512_shuffle_f32x4::<0x88>(even[0], even[1]));
            to.0[4 + i] = cast(_mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]));
            to.0[8 + i] = cast(_mm512_shuffle_f32x4::<0xdd>(even[0], even[1]));
            to.0[12 + i] = cast(_mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kernel, for_each_level, run};
    use super::*;
    use crate::test_data::Rng;

    #[test]
    fn every_vector_unit_does_what_loops_say() {
        #[derive(Clone, Copy)]
        struct Of([f32; LANES], [[i32; LANES]; 2]);
        impl Kernel for Of {
            type Output = ([i32; LANES], [i32; LANES], i32, [[f32; LANES]; LANES]);

            #[inline(always)]
            fn run(self, unit: impl Unit) -> Self::Output {
                let (Self(x, [a, b]), mut products, mut to_any) = (self, [1; LANES], [1; LANES]);
                unit.add_products(&mut products, a, b);
                unit.add_products_to_any(&mut to_any, a, b);
                let rows: [[f32; LANES]; LANES] =
                    std::array::from_fn(|i| x.map(|x| unit.minus_product(x, i as f32, 0.25)));
                let mut columns = Square([[0.0; LANES]; LANES]);
                unit.columns(rows.each_ref(), &mut columns);
                (unit.nearest(x), products, to_any.into_iter().fold(0, i32::wrapping_add), columns.0)
            }
        }
        for_each_level(|level| {
            let mut rng = Rng::new(45);
            for _ in 0..10_000 {
                // Halves, and any of less than 31 bits.
                let x = std::array::from_fn(|i| match i % 2 {
                    0 => (rng.next_u32().cast_signed() >> 7) as f32 / 2.0,
                    _ => f32::from_bits((rng.next_u32() % (157 << 23)) | (rng.next_u32() & (1 << 31))),
                });
                let of = Of(x, [0; 2].map(|_| [0; LANES].map(|_| rng.next_u32().cast_signed())));
                assert_eq!(run(of), of.run(Plain), "{level} {x:?}");
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
