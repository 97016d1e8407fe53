//! The vector units of x86-64, by their instructions.

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

/// The bytes of each four lanes, one after the other.
macro_rules! byte_rows {
    ($feature:literal, $whole:ty, $low_32:ident, $high_32:ident, $low_64:ident, $high_64:ident) => {
        #[target_feature(enable = $feature)]
        #[inline]
        pub(super) fn byte_rows([a, b, c, d]: [$whole; 4]) -> [$whole; 4] {
            let (ab, cd) = ($low_32(a, b), $low_32(c, d));
            let (ab_high, cd_high) = ($high_32(a, b), $high_32(c, d));
            [$low_64(ab, cd), $high_64(ab, cd), $low_64(ab_high, cd_high), $high_64(ab_high, cd_high)]
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

    byte_rows!("sse2", __m128i, _mm_unpacklo_epi32, _mm_unpackhi_epi32, _mm_unpacklo_epi64, _mm_unpackhi_epi64);
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

    byte_rows!(
        "avx2",
        __m256i,
        _mm256_unpacklo_epi32,
        _mm256_unpackhi_epi32,
        _mm256_unpacklo_epi64,
        _mm256_unpackhi_epi64
    );
}

mod of_512 {
    use std::arch::x86_64::*;

    pub(super) use std::arch::x86_64::{
        _mm512_add_epi8 as plus_bytes, _mm512_and_si512 as and, _mm512_max_epi32 as larger,
    };

    #[target_feature(enable = "avx512f,avx512vnni")]
    #[inline]
    pub(super) fn plus_products(mut to: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // Of the intrinsic, compilers make a product and a sum wherever another one follows.
        // SAFETY: it is where VNNI is, and changes nothing but `to`.
        unsafe {
            std::arch::asm!(
                "vpdpwssd {}, {}, {}",
                inout(zmm_reg) to,
                in(zmm_reg) a,
                in(zmm_reg) b,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        to
    }

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

    byte_rows!(
        "avx512f,avx512bw",
        __m512i,
        _mm512_unpacklo_epi32,
        _mm512_unpackhi_epi32,
        _mm512_unpacklo_epi64,
        _mm512_unpackhi_epi64
    );
}

impl Unit for Any {
    alike!(4, _mm_mul_ps, _mm_add_ps, _mm_sub_ps, _mm_max_ps, _mm_min_ps, _mm_and_ps, _mm_cvtps_epi32, _mm_cvtepi32_ps);
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
    fn plus_product(self, to: Floats, x: Floats, y: Floats) -> Floats {
        each!(2, _mm256_fmadd_ps, x, y, to)
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
        let lanes: &mut [i32; LANES_OF_ANY] = to.first_chunk_mut().expect("8 of 16");
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
    fn plus_product(self, to: Floats, x: Floats, y: Floats) -> Floats {
        each!(1, _mm512_fmadd_ps, x, y, to)
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
