//! The vector units of x86-64, by their instructions.

#![allow(unsafe_code, reason = "a caller without a vector unit's feature cannot call what has it in safe code")]

use super::{Floats, Unit, Whole};
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

/// What an instruction, or a few, make of registers.
macro_rules! by {
    ($op:expr, $($a:expr),+) => {
        // SAFETY: each unit is where its instructions are.
        cast(unsafe { $op($(cast($a)),+) })
    };
}

/// What all units do, each by its own instructions and functions.
macro_rules! alike {
    (
        $lanes:literal, $functions:ident, $mul_ps:ident, $add_ps:ident, $sub_ps:ident, $max_ps:ident, $min_ps:ident,
        $and_ps:ident, $cvtps_epi32:ident, $cvtepi32_ps:ident
    ) => {
        #[inline(always)]
        fn product(self, a: Floats<$lanes>, b: Floats<$lanes>) -> Floats<$lanes> {
            by!($mul_ps, a, b)
        }

        #[inline(always)]
        fn sum(self, a: Floats<$lanes>, b: Floats<$lanes>) -> Floats<$lanes> {
            by!($add_ps, a, b)
        }

        #[inline(always)]
        fn difference(self, a: Floats<$lanes>, b: Floats<$lanes>) -> Floats<$lanes> {
            by!($sub_ps, a, b)
        }

        #[inline(always)]
        fn held(self, x: Floats<$lanes>, first: Floats<$lanes>, last: Floats<$lanes>) -> Floats<$lanes> {
            // Of NaN and a number these are the second.
            let x: Floats<$lanes> = by!($max_ps, x, first);
            by!($min_ps, x, last)
        }

        #[inline(always)]
        fn magnitudes(self, x: Floats<$lanes>) -> Whole<$lanes> {
            by!($and_ps, x, [0x7fff_ffff; $lanes])
        }

        #[inline(always)]
        fn nearest(self, x: Floats<$lanes>) -> Whole<$lanes> {
            by!($cvtps_epi32, x)
        }

        #[inline(always)]
        fn floats(self, x: Whole<$lanes>) -> Floats<$lanes> {
            by!($cvtepi32_ps, x)
        }

        #[inline(always)]
        fn larger(self, a: Whole<$lanes>, b: Whole<$lanes>) -> Whole<$lanes> {
            by!($functions::larger, a, b)
        }

        #[inline(always)]
        fn add_products(self, to: &mut Whole<$lanes>, a: Whole<$lanes>, b: Whole<$lanes>) {
            *to = by!($functions::plus_products, *to, a, b);
        }

        #[inline(always)]
        fn plus_size(self, to: Whole<$lanes>, x: Whole<$lanes>) -> Whole<$lanes> {
            by!($functions::plus_size, to, x)
        }

        #[inline(always)]
        fn pairs(self, [a, b]: [Whole<$lanes>; 2]) -> Whole<$lanes> {
            by!($functions::pairs, a, b)
        }

        #[inline(always)]
        fn pairs_of_parts(self, [a, b]: [Whole<$lanes>; 2]) -> [Whole<$lanes>; 2] {
            [by!($functions::high_pairs, a, b), by!($functions::low_pairs, a, b)]
        }

        #[inline(always)]
        fn bytes(self, [a, b]: [Whole<$lanes>; 2], plus: Whole<$lanes>, mask: Whole<$lanes>) -> Whole<$lanes> {
            let bytes: Whole<$lanes> = by!($functions::two_bytes, a, b);
            let bytes: Whole<$lanes> = by!($functions::plus_bytes, bytes, plus);
            by!($functions::and, bytes, mask)
        }

        #[inline(always)]
        fn bytes_in_turn(self, bytes: Whole<$lanes>) -> [[u8; $lanes]; 4] {
            by!($functions::bytes_in_turn, bytes)
        }

        #[inline(always)]
        fn columns(self, rows: [&Floats<$lanes>; $lanes]) -> [Floats<$lanes>; $lanes] {
            let mut columns = [[0.0; $lanes]; $lanes];
            for (column, row) in columns.iter_mut().zip(rows) {
                *column = *row;
            }
            by!($functions::columns, columns)
        }

        #[inline(always)]
        fn byte_rows(self, fours: [Whole<$lanes>; 4]) -> [[u8; 16]; $lanes] {
            let of_registers: [[[u8; 16]; $lanes / 4]; 4] = by!($functions::byte_rows, fours);
            let mut rows = [[0; 16]; $lanes];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = of_registers[i % 4][i / 4];
            }
            rows
        }
    };
}

/// What units with fused products do besides.
macro_rules! fused {
    ($lanes:literal, $fnmadd_ps:ident, $fmadd_ps:ident) => {
        #[inline(always)]
        fn minus_product(self, y: Floats<$lanes>, x: Floats<$lanes>, step: Floats<$lanes>) -> Floats<$lanes> {
            by!($fnmadd_ps, x, step, y)
        }

        #[inline(always)]
        fn plus_product(self, to: Floats<$lanes>, x: Floats<$lanes>, y: Floats<$lanes>) -> Floats<$lanes> {
            by!($fmadd_ps, x, y, to)
        }

        #[inline(always)]
        fn quotients(self, x: Floats<$lanes>, s: Floats<$lanes>, per_s: Floats<$lanes>) -> Floats<$lanes> {
            let near = self.product(x, per_s);
            let rest = self.minus_product(x, near, s);
            by!($fmadd_ps, rest, per_s, near)
        }

        #[inline(always)]
        fn quotient(self, x: f32, s: f32, per_s: f32) -> f32 {
            super::fused_quotient(x, s, per_s)
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

/// Of each quarter of 4 rows the columns, by neighbours and by pairs of them.
macro_rules! fours {
    (
        $feature:literal, $floats:ty, $low_ps:ident, $high_ps:ident, $low_pd:ident, $high_pd:ident, $to_pd:ident, $to_ps:ident
    ) => {
        #[target_feature(enable = $feature)]
        #[inline]
        fn fours([a, b, c, d]: [$floats; 4]) -> [$floats; 4] {
            let (ab, cd) = ($to_pd($low_ps(a, b)), $to_pd($low_ps(c, d)));
            let (ab_high, cd_high) = ($to_pd($high_ps(a, b)), $to_pd($high_ps(c, d)));
            [
                $to_ps($low_pd(ab, cd)),
                $to_ps($high_pd(ab, cd)),
                $to_ps($low_pd(ab_high, cd_high)),
                $to_ps($high_pd(ab_high, cd_high)),
            ]
        }
    };
}

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

    /// By halves, twice.
    #[target_feature(enable = "sse2")]
    #[inline]
    pub(super) fn bytes_in_turn(bytes: __m128i) -> __m128i {
        let even_and_odd = _mm_unpacklo_epi8(bytes, _mm_srli_si128::<8>(bytes));
        _mm_unpacklo_epi8(even_and_odd, _mm_srli_si128::<8>(even_and_odd))
    }

    /// By neighbours, and by pairs of them.
    #[target_feature(enable = "sse2")]
    #[inline]
    pub(super) fn columns([a, b, c, d]: [__m128; 4]) -> [__m128; 4] {
        let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
        let (ab_high, cd_high) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
        [_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab), _mm_movelh_ps(ab_high, cd_high), _mm_movehl_ps(cd_high, ab_high)]
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

    /// Within quarters of a register, and these in turn.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn bytes_in_turn(bytes: __m256i) -> __m256i {
        let in_fours = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
        let in_turn = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(bytes, in_fours), in_turn)
    }

    /// By neighbours, by pairs of them, and by halves.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn columns(rows: [__m256; 8]) -> [__m256; 8] {
        let [a, b, c, d, e, f, g, h] = rows;
        let (low, high) = (fours([a, b, c, d]), fours([e, f, g, h]));
        let first = |i: usize| _mm256_permute2f128_ps::<0x20>(low[i], high[i]);
        let last = |i: usize| _mm256_permute2f128_ps::<0x31>(low[i], high[i]);
        [first(0), first(1), first(2), first(3), last(0), last(1), last(2), last(3)]
    }

    fours!(
        "avx2",
        __m256,
        _mm256_unpacklo_ps,
        _mm256_unpackhi_ps,
        _mm256_unpacklo_pd,
        _mm256_unpackhi_pd,
        _mm256_castps_pd,
        _mm256_castpd_ps
    );

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

    /// Within quarters of a register, and these in turn.
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    pub(super) fn bytes_in_turn(bytes: __m512i) -> __m512i {
        let in_fours = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
        let in_turn = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm512_permutexvar_epi32(in_turn, _mm512_shuffle_epi8(bytes, in_fours))
    }

    /// By neighbours, by pairs of them, and by quarters.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn columns(rows: [__m512; 16]) -> [__m512; 16] {
        let (mut columns, mut of_quarters) = (rows, [[_mm512_setzero_ps(); 4]; 4]);
        for (of_quarters, rows) in of_quarters.iter_mut().zip(rows.as_chunks().0) {
            *of_quarters = fours(*rows);
        }
        for i in 0..4 {
            let [a, b, c, d] = of_quarters.map(|four| four[i]);
            let even = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d)];
            let odd = [_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d)];
            columns[i] = _mm512_shuffle_f32x4::<0x88>(even[0], even[1]);
            columns[4 + i] = _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]);
            columns[8 + i] = _mm512_shuffle_f32x4::<0xdd>(even[0], even[1]);
            columns[12 + i] = _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]);
        }
        columns
    }

    fours!(
        "avx512f",
        __m512,
        _mm512_unpacklo_ps,
        _mm512_unpackhi_ps,
        _mm512_unpacklo_pd,
        _mm512_unpackhi_pd,
        _mm512_castps_pd,
        _mm512_castpd_ps
    );

    byte_rows!(
        "avx512f,avx512bw",
        __m512i,
        _mm512_unpacklo_epi32,
        _mm512_unpackhi_epi32,
        _mm512_unpacklo_epi64,
        _mm512_unpackhi_epi64
    );
}

impl Unit<4> for Any {
    alike!(
        4,
        sse2,
        _mm_mul_ps,
        _mm_add_ps,
        _mm_sub_ps,
        _mm_max_ps,
        _mm_min_ps,
        _mm_and_ps,
        _mm_cvtps_epi32,
        _mm_cvtepi32_ps
    );

    #[inline(always)]
    fn quotients(self, x: Floats<4>, s: Floats<4>, _: Floats<4>) -> Floats<4> {
        by!(_mm_div_ps, x, s)
    }
}

impl Unit<8> for Avx2 {
    alike!(
        8,
        of_256,
        _mm256_mul_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_max_ps,
        _mm256_min_ps,
        _mm256_and_ps,
        _mm256_cvtps_epi32,
        _mm256_cvtepi32_ps
    );
    fused!(8, _mm256_fnmadd_ps, _mm256_fmadd_ps);
}

impl Unit<16> for Avx512 {
    alike!(
        16,
        of_512,
        _mm512_mul_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_max_ps,
        _mm512_min_ps,
        _mm512_and_ps,
        _mm512_cvtps_epi32,
        _mm512_cvtepi32_ps
    );
    fused!(16, _mm512_fnmadd_ps, _mm512_fmadd_ps);

    #[inline(always)]
    fn larger_magnitude(self, a: Whole<16>, b: Floats<16>) -> Whole<16> {
        // The larger magnitude, and its sign cleared.
        const LARGER_MAGNITUDE: i32 = 0b1011;
        by!(_mm512_range_ps::<LARGER_MAGNITUDE>, a, b)
    }
}
