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
mod x86 {
    #![allow(unsafe_code, reason = "a caller without a vector unit's feature cannot call what has it in safe code")]

    use super::{Floats, LANES, Square, Unit, Whole};
    use bytemuck::cast;
    use std::arch::x86_64::*;

    /// SSE2, which every x86-64 has.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Any;
    /// Is made only where there is AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(());
    /// Is made only where there is AVX-512 F, BW, DQ and VNNI.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(());

    impl Avx2 {
        #[target_feature(enable = "avx2,fma")]
        pub(in super::super) fn new() -> Self {
            Self(())
        }
    }

    impl Avx512 {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vnni")]
        pub(in super::super) fn new() -> Self {
            Self(())
        }
    }

    /// What an instruction, or a few, make of all parts of what up to three arrays hold.
    macro_rules! each {
        ($parts:literal, $op:ident, $a:expr $(, $b:ident $(, $c:ident)?)?) => {{
            let mut parts = cast::<_, [_; $parts]>($a);
            $(let $b = cast::<_, [_; $parts]>($b);
            $(let $c = cast::<_, [_; $parts]>($c);)?)?
            for i in 0..$parts {
                // SAFETY: each unit is where its instructions are.
                parts[i] = unsafe { $op(parts[i] $(, $b[i] $(, $c[i])?)?) };
            }
            cast(parts)
        }};
    }

    /// What all units do in so many parts, each by its own instructions.
    macro_rules! alike {
        (
            $parts:literal, $mul_ps:ident, $add_ps:ident, $sub_ps:ident, $max_ps:ident, $min_ps:ident, $and_ps:ident,
            $cvtps_epi32:ident, $cvtepi32_ps:ident
        ) => {
            #[inline(always)]
            fn product(self, a: Floats, b: Floats) -> Floats {
                each!($parts, $mul_ps, a, b)
            }

            #[inline(always)]
            fn sum(self, a: Floats, b: Floats) -> Floats {
                each!($parts, $add_ps, a, b)
            }

            #[inline(always)]
            fn difference(self, a: Floats, b: Floats) -> Floats {
                each!($parts, $sub_ps, a, b)
            }

            #[inline(always)]
            fn held(self, x: Floats, first: Floats, last: Floats) -> Floats {
                // Of NaN and a number these are the second.
                let x: Floats = each!($parts, $max_ps, x, first);
                each!($parts, $min_ps, x, last)
            }

            #[inline(always)]
            fn magnitudes(self, x: Floats) -> Whole {
                let mask = [0x7fff_ffff; LANES];
                cast::<Floats, _>(each!($parts, $and_ps, x, mask))
            }

            #[inline(always)]
            fn nearest(self, x: Floats) -> Whole {
                // SAFETY: each unit is where its instructions are.
                cast(cast::<_, [_; $parts]>(x).map(|x| unsafe { $cvtps_epi32(x) }))
            }

            #[inline(always)]
            fn floats(self, x: Whole) -> Floats {
                // SAFETY: the same.
                cast(cast::<_, [_; $parts]>(x).map(|x| unsafe { $cvtepi32_ps(x) }))
            }
        };
    }

    /// Of these each unit has its own functions.
    macro_rules! by {
        ($parts:literal, $functions:ident) => {
            #[inline(always)]
            fn larger(self, a: Whole, b: Whole) -> Whole {
                use $functions::larger;
                each!($parts, larger, a, b)
            }

            #[inline(always)]
            fn add_products(self, to: &mut Whole, a: Whole, b: Whole) {
                use $functions::plus_products;
                *to = each!($parts, plus_products, *to, a, b);
            }

            #[inline(always)]
            fn plus_size(self, to: Whole, x: Whole) -> Whole {
                use $functions::plus_size;
                each!($parts, plus_size, to, x)
            }

            #[inline(always)]
            fn pairs(self, [a, b]: [Whole; 2]) -> Whole {
                use $functions::pairs;
                each!($parts, pairs, a, b)
            }

            #[inline(always)]
            fn pairs_of_parts(self, [a, b]: [Whole; 2]) -> [Whole; 2] {
                use $functions::{high_pairs, low_pairs};
                [each!($parts, high_pairs, a, b), each!($parts, low_pairs, a, b)]
            }

            #[inline(always)]
            fn bytes(self, [a, b]: [Whole; 2], plus: Whole, mask: Whole) -> Whole {
                use $functions::{and, plus_bytes, two_bytes};
                let bytes: Whole = each!($parts, two_bytes, a, b);
                let bytes: Whole = each!($parts, plus_bytes, bytes, plus);
                each!($parts, and, bytes, mask)
            }

            #[inline(always)]
            fn byte_rows(self, fours: [Whole; 4]) -> [[u8; LANES]; LANES] {
                use $functions::byte_rows;
                let parts = fours.map(cast::<_, [_; $parts]>);
                let mut rows = [[0; LANES]; LANES];
                for (i, rows) in rows.chunks_exact_mut(LANES / $parts).enumerate() {
                    // SAFETY: each unit is where its instructions are.
                    let of_parts: [[[u8; LANES]; LANES / 4 / $parts]; 4] =
                        cast(unsafe { byte_rows(parts.map(|part| part[i])) });
                    for (j, row) in rows.iter_mut().enumerate() {
                        *row = of_parts[j % 4][j / 4];
                    }
                }
                rows
            }
        };
    }

    /// So many products of 16 bits added to so many lanes in turn: 16 registers hold no more.
    const LANES_OF_ANY: usize = 8;

    mod sse2 {
        use std::arch::x86_64::*;

        pub(super) use std::arch::x86_64::{_mm_add_epi8 as plus_bytes, _mm_and_si128 as and};

        #[target_feature(enable = "sse2")]
        #[inline]
        pub(super) fn larger(a: __m128i, b: __m128i) -> __m128i {
            let is_a = _mm_cmpgt_epi32(a, b);
            _mm_or_si128(_mm_and_si128(is_a, a), _mm_andnot_si128(is_a, b))
        }

        #[target_feature(enable = "sse2")]
        #[inline]
        pub(super) fn plus_products(to: __m128i, a: __m128i, b: __m128i) -> __m128i {
            _mm_add_epi32(to, _mm_madd_epi16(a, b))
        }

        #[target_feature(enable = "sse2")]
        #[inline]
        pub(super) fn plus_size(to: __m128i, x: __m128i) -> __m128i {
            let sign = _mm_srai_epi32::<31>(x);
            _mm_add_epi32(to, _mm_sub_epi32(_mm_xor_si128(x, sign), sign))
        }

        #[target_feature(enable = "sse2")]
        #[inline]
        pub(super) fn pairs(a: __m128i, b: __m128i) -> __m128i {
            _mm_or_si128(_mm_and_si128(a, _mm_set1_epi32(0xffff)), _mm_slli_epi32::<16>(b))
        }

        #[target_feature(enable = "sse2")]
        #[inline]
        pub(super) fn high_pairs(a: __m128i, b: __m128i) -> __m128i {
            pairs(_mm_srli_epi32::<12>(a), _mm_srli_epi32::<12>(b))
        }

        #[target_feature(enable = "sse2")]
        #[inline]
        pub(super) fn low_pairs(a: __m128i, b: __m128i) -> __m128i {
            _mm_and_si128(pairs(a, b), _mm_set1_epi32(0x0fff_0fff))
        }

        #[target_feature(enable = "sse2")]
        #[inline]
        pub(super) fn two_bytes(a: __m128i, b: __m128i) -> __m128i {
            let (low, b) = (_mm_set1_epi32(0x00ff_00ff), _mm_slli_epi32::<8>(b));
            _mm_or_si128(_mm_and_si128(low, a), _mm_andnot_si128(low, b))
        }

        /// Of each four lanes.
        #[target_feature(enable = "sse2")]
        #[inline]
        pub(super) fn byte_rows([a, b, c, d]: [__m128i; 4]) -> [__m128i; 4] {
            let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
            [
                _mm_unpacklo_epi64(ab, cd),
                _mm_unpackhi_epi64(ab, cd),
                _mm_unpacklo_epi64(ab_high, cd_high),
                _mm_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }

    mod of_256 {
        use std::arch::x86_64::*;

        pub(super) use std::arch::x86_64::{
            _mm256_add_epi8 as plus_bytes, _mm256_and_si256 as and, _mm256_max_epi32 as larger,
        };

        #[target_feature(enable = "avx2")]
        #[inline]
        pub(super) fn plus_products(to: __m256i, a: __m256i, b: __m256i) -> __m256i {
            _mm256_add_epi32(to, _mm256_madd_epi16(a, b))
        }

        #[target_feature(enable = "avx2")]
        #[inline]
        pub(super) fn plus_size(to: __m256i, x: __m256i) -> __m256i {
            _mm256_add_epi32(to, _mm256_abs_epi32(x))
        }

        #[target_feature(enable = "avx2")]
        #[inline]
        pub(super) fn pairs(a: __m256i, b: __m256i) -> __m256i {
            _mm256_blend_epi16::<0xaa>(a, _mm256_slli_epi32::<16>(b))
        }

        #[target_feature(enable = "avx2")]
        #[inline]
        pub(super) fn high_pairs(a: __m256i, b: __m256i) -> __m256i {
            _mm256_blend_epi16::<0xaa>(_mm256_srli_epi32::<12>(a), _mm256_slli_epi32::<4>(b))
        }

        #[target_feature(enable = "avx2")]
        #[inline]
        pub(super) fn low_pairs(a: __m256i, b: __m256i) -> __m256i {
            _mm256_and_si256(pairs(a, b), _mm256_set1_epi32(0x0fff_0fff))
        }

        #[target_feature(enable = "avx2")]
        #[inline]
        pub(super) fn two_bytes(a: __m256i, b: __m256i) -> __m256i {
            _mm256_blendv_epi8(a, _mm256_slli_epi32::<8>(b), _mm256_set1_epi16(-0x100))
        }

        /// Of each four lanes.
        #[target_feature(enable = "avx2")]
        #[inline]
        pub(super) fn byte_rows([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
            let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
            [
                _mm256_unpacklo_epi64(ab, cd),
                _mm256_unpackhi_epi64(ab, cd),
                _mm256_unpacklo_epi64(ab_high, cd_high),
                _mm256_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }

    mod of_512 {
        use std::arch::x86_64::*;

        pub(super) use std::arch::x86_64::{
            _mm512_add_epi8 as plus_bytes, _mm512_and_si512 as and, _mm512_dpwssd_epi32 as plus_products,
            _mm512_max_epi32 as larger,
        };

        #[target_feature(enable = "avx512f")]
        #[inline]
        pub(super) fn plus_size(to: __m512i, x: __m512i) -> __m512i {
            _mm512_add_epi32(to, _mm512_abs_epi32(x))
        }

        #[target_feature(enable = "avx512f,avx512bw")]
        #[inline]
        pub(super) fn pairs(a: __m512i, b: __m512i) -> __m512i {
            _mm512_mask_blend_epi16(0xaaaa_aaaa, a, _mm512_slli_epi32::<16>(b))
        }

        #[target_feature(enable = "avx512f,avx512bw")]
        #[inline]
        pub(super) fn high_pairs(a: __m512i, b: __m512i) -> __m512i {
            _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_srli_epi32::<12>(a), _mm512_slli_epi32::<4>(b))
        }

        #[target_feature(enable = "avx512f,avx512bw")]
        #[inline]
        pub(super) fn low_pairs(a: __m512i, b: __m512i) -> __m512i {
            _mm512_and_si512(pairs(a, b), _mm512_set1_epi32(0x0fff_0fff))
        }

        #[target_feature(enable = "avx512f,avx512bw")]
        #[inline]
        pub(super) fn two_bytes(a: __m512i, b: __m512i) -> __m512i {
            _mm512_mask_blend_epi8(0xaaaa_aaaa_aaaa_aaaa, a, _mm512_slli_epi32::<8>(b))
        }

        /// Of each four lanes.
        #[target_feature(enable = "avx512f,avx512bw")]
        #[inline]
        pub(super) fn byte_rows([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ab_high, cd_high),
                _mm512_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }

    impl Unit for Any {
        alike!(
            4,
            _mm_mul_ps,
            _mm_add_ps,
            _mm_sub_ps,
            _mm_max_ps,
            _mm_min_ps,
            _mm_and_ps,
            _mm_cvtps_epi32,
            _mm_cvtepi32_ps
        );
        by!(4, sse2);

        #[inline(always)]
        fn minus_product(self, y: Floats, x: Floats, step: Floats) -> Floats {
            self.difference(y, self.product(x, step))
        }

        #[inline(always)]
        fn quotients(self, x: Floats, s: Floats, _: Floats) -> Floats {
            each!(4, _mm_div_ps, x, s)
        }

        #[inline(always)]
        fn add_products_to_any(self, to: &mut Whole, a: Whole, b: Whole) {
            let products: Whole = each!(4, _mm_madd_epi16, a, b);
            for products in products.as_chunks::<LANES_OF_ANY>().0 {
                to.iter_mut().zip(products).for_each(|(to, product)| *to = to.wrapping_add(*product));
            }
        }
    }

    impl Unit for Avx2 {
        alike!(
            2,
            _mm256_mul_ps,
            _mm256_add_ps,
            _mm256_sub_ps,
            _mm256_max_ps,
            _mm256_min_ps,
            _mm256_and_ps,
            _mm256_cvtps_epi32,
            _mm256_cvtepi32_ps
        );
        by!(2, of_256);

        #[inline(always)]
        fn minus_product(self, y: Floats, x: Floats, step: Floats) -> Floats {
            each!(2, _mm256_fnmadd_ps, x, step, y)
        }

        #[inline(always)]
        fn quotients(self, x: Floats, s: Floats, per_s: Floats) -> Floats {
            let near = self.product(x, per_s);
            let rest = self.minus_product(x, near, s);
            each!(2, _mm256_fmadd_ps, rest, per_s, near)
        }

        #[inline(always)]
        fn quotient(self, x: f32, s: f32, per_s: f32) -> f32 {
            super::fused_quotient(x, s, per_s)
        }

        #[inline(always)]
        fn add_products_to_any(self, to: &mut Whole, a: Whole, b: Whole) {
            let products: [_; 2] = cast::<Whole, _>(each!(2, _mm256_madd_epi16, a, b));
            let lanes: &mut [i32; LANES_OF_ANY] = to.first_chunk_mut().expect("they are fewer");
            for products in products {
                // SAFETY: `self` is where AVX2 is.
                *lanes = cast(unsafe { _mm256_add_epi32(cast(*lanes), products) });
            }
        }

        #[inline(always)]
        fn columns(self, rows: [&Floats; LANES], to: &mut Square) {
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
        fn larger_magnitude(self, a: Whole, b: Floats) -> Whole {
            // The larger magnitude, and its sign cleared.
            const LARGER_MAGNITUDE: i32 = 0b1011;
            // SAFETY: `self` is where AVX-512 DQ is.
            cast(unsafe { _mm512_range_ps::<LARGER_MAGNITUDE>(cast(a), cast(b)) })
        }

        alike!(
            1,
            _mm512_mul_ps,
            _mm512_add_ps,
            _mm512_sub_ps,
            _mm512_max_ps,
            _mm512_min_ps,
            _mm512_and_ps,
            _mm512_cvtps_epi32,
            _mm512_cvtepi32_ps
        );
        by!(1, of_512);

        #[inline(always)]
        fn minus_product(self, y: Floats, x: Floats, step: Floats) -> Floats {
            each!(1, _mm512_fnmadd_ps, x, step, y)
        }

        #[inline(always)]
        fn quotients(self, x: Floats, s: Floats, per_s: Floats) -> Floats {
            let near = self.product(x, per_s);
            let rest = self.minus_product(x, near, s);
            each!(1, _mm512_fmadd_ps, rest, per_s, near)
        }

        #[inline(always)]
        fn quotient(self, x: f32, s: f32, per_s: f32) -> f32 {
            super::fused_quotient(x, s, per_s)
        }

        #[inline(always)]
        fn columns(self, rows: [&Floats; LANES], to: &mut Square) {
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
    fn columns_of_16(rows: [&Floats; LANES], to: &mut Square) {
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
                let floats = [unit.sum(x, y), unit.difference(x, y), unit.product(x, y), unit.held(x, y, z)];
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
