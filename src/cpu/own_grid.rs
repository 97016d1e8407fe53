//! The loss of codes that come of their values, on the grid of their scale: sums that vector units gather in lanes.

mod short;

pub(super) use short::{SHORT_ELEMS, Short, together};

use super::code::{Coder, Field};
use super::loss::SUM_ELEMS;
use super::simd::{self, Floats, Kernel, LANES, Unit, Whole};
use crate::loss::UnitSums;
use crate::scheme::{CodeType, Scheme};

/// `abs`, `h h`, `l l`, `q q`, `h l`, `h q`, `l q` of [`Lanes`].
const SUMS: usize = 7;
/// `p p`, `p q`, `h p`, `l p`.
const WIDE_SUMS: usize = 4;

/// Sums on a scale's own grid, of at most [`SUM_ELEMS`] elements with `|D|` below 2^24.
///
/// Numbers of 16 bits are what a vector unit multiplies at the least cost. So `D` is `2^12 h + l`, `l` from 0; and `Q` is
/// `q`, or where a code may have more than 8 bits `2^8 p + q`, `q` from 0. There are at most 128 products to a lane: those of
/// `h h` may fill 32 bits, those of `h l` and `l l` 31, and the others are smaller.
#[derive(Clone, Copy, Default)]
struct Lanes {
    /// Of the patterns of losses in steps.
    largest: [i32; LANES],
    sums: [[i32; LANES]; SUMS],
    wide_sums: [[i32; LANES]; WIDE_SUMS],
}

impl Lanes {
    /// Whether all codes are those of their values, as they are if the nearest float to `x / s` is nearest to the code.
    ///
    /// Quotients and steps are below `n`, 2 to as many as a code has bits; a step `s` is below 2^25 of the grid's. It is so where
    /// `|x / s - q|` is below half by more than a quotient's rounding, half a last place of a float below `n`: `2^-25 n`, and so `n` of
    /// the grid's steps. A loss misses that distance by what `x'` was rounded by, at most `n` more.
    #[inline(always)]
    fn are_codes_nearest(&self, s: &Floats, scheme: Scheme) -> bool {
        let margin = 2.0 * (1 << scheme.code().bits()) as f32;
        self.largest.iter().zip(s).fold(true, |all, (&largest, &s)| {
            let most = OwnGrid::of(s).s / 2.0 - margin;
            all & (largest < most.to_bits().cast_signed())
        })
    }

    /// Adds values and the steps that they become; of [`ORDINARY`](Gather) values none is NaN.
    ///
    /// Step by step for several vectors, so that none waits for what another is about to be.
    #[inline(always)]
    fn add<const WIDE: bool, const ORDINARY: bool, const VECTORS: usize>(
        &mut self,
        unit: impl Unit,
        grid: &Grids,
        add_products: impl Fn(&mut Whole, Whole, Whole),
        x: &[Floats; VECTORS],
        Steps { floats, whole: steps }: &Steps<VECTORS>,
    ) {
        let mut errors = [[0.0; LANES]; VECTORS];
        for v in 0..VECTORS {
            errors[v] = unit.minus_product(unit.product(floats[v], grid.s), x[v], grid.per_step);
        }
        let mut d = [[0; LANES]; VECTORS];
        for v in 0..VECTORS {
            d[v] = unit.nearest(errors[v]);
            // As numbers of the same sign, patterns order as their values do.
            self.largest = if ORDINARY {
                unit.larger_magnitude(self.largest, errors[v])
            } else {
                unit.larger(self.largest, unit.magnitudes(errors[v]))
            };
        }
        let [abs, hh, ll, qq, hl, hq, lq] = &mut self.sums;
        for d in d {
            *abs = unit.plus_size(*abs, d);
        }
        for v in 0..VECTORS / 2 {
            // Neighbours lie half of all apart, so that pairs of four are, together, their codes in order.
            let (d, steps) = ([d[v], d[v + VECTORS / 2]], [steps[v], steps[v + VECTORS / 2]]);
            let [h, l] = unit.pairs_of_parts(d);
            let q = unit.pairs(if WIDE { steps.map(|steps| steps.map(|q| q & 0xff)) } else { steps });
            add_products(hh, h, h);
            add_products(ll, l, l);
            add_products(qq, q, q);
            add_products(hl, h, l);
            add_products(hq, h, q);
            add_products(lq, l, q);
            if WIDE {
                let [pp, pq, hp, lp] = &mut self.wide_sums;
                let p = unit.pairs(steps.map(|steps| steps.map(|q| q >> 8)));
                add_products(pp, p, p);
                add_products(pq, p, q);
                add_products(hp, h, p);
                add_products(lp, l, p);
            }
        }
    }
}

/// [`OwnGrid`] of each lane.
struct Grids {
    s: Floats,
    per_step: Floats,
}

impl Grids {
    #[inline(always)]
    fn of(s: &Floats) -> Self {
        Self { s: s.map(|s| OwnGrid::of(s).s), per_step: s.map(|s| OwnGrid::of(s).per_step) }
    }
}

/// The steps of the scale that values are rounded to.
struct Steps<const VECTORS: usize> {
    floats: [Floats; VECTORS],
    /// Of numbers of 8 bits the lower 16 alone count.
    whole: [Whole; VECTORS],
}

impl<const VECTORS: usize> Steps<VECTORS> {
    #[inline(always)]
    fn of(unit: impl Unit, whole: [Whole; VECTORS]) -> Self {
        let mut floats = [[0.0; LANES]; VECTORS];
        for v in 0..VECTORS {
            floats[v] = unit.floats(whole[v]);
        }
        Self { floats, whole }
    }
}

/// `D D` of its halves' products.
#[inline(always)]
fn noise_of(hh: i64, hl: i64, ll: i64) -> i64 {
    (hh << 24) + (hl << 13) + ll
}

/// `Q D`, or `P D`, of its halves' products.
#[inline(always)]
fn cross_of(hq: i64, lq: i64) -> i64 {
    (hq << 12) + lq
}

/// What [`Lanes`] make together.
#[inline(always)]
fn unit_sums(largest: i32, sums: [i64; SUMS], wide_sums: [i64; WIDE_SUMS], s: f32) -> UnitSums {
    let ([abs, hh, ll, qq, hl, hq, lq], [pp, pq, hp, lp]) = (sums, wide_sums);
    let unsigned = |sum: i64| u128::from(sum.cast_unsigned());
    UnitSums {
        max_bits: OwnGrid::loss_bits(largest, s),
        abs: unsigned(abs),
        noise: unsigned(noise_of(hh, hl, ll)),
        codes: unsigned((pp << 16) + (pq << 9) + qq),
        cross: ((cross_of(hp, lp) << 8) + cross_of(hq, lq)).into(),
    }
}

/// The scale's own grid, and distances on it of values from what codes stand for.
///
/// In its steps `u` the difference of floats `x' - x` is exact, and so `D` before it is rounded: where `q` is 0 it is `-x`,
/// rounded as `x` is; elsewhere `|x|` is beyond half of the scale, so that `x`, as `x'`, is a whole number of steps, and a
/// whole number below 2^24 is a float.
#[derive(Clone, Copy)]
pub(super) struct OwnGrid {
    per_step: f32,
    /// In steps.
    s: f32,
}

impl OwnGrid {
    /// The pattern of the least loss, in steps, that has none of these distances: 2^24. Those of infinity and NaN are above.
    const MOST: i32 = 0x4b80_0000;

    /// Whether x and x' in steps of the grid are floats as good as they are themselves: no smaller, and not too large.
    #[inline(always)]
    pub(super) fn has(s: f32) -> bool {
        (-120..=0).contains(&((s.to_bits() >> 23).cast_signed() - 151))
    }

    /// Of a scale that has it.
    #[inline(always)]
    fn of(s: f32) -> Self {
        let bits = s.to_bits();
        // No digit changes where a power of two of at least 1 multiplies, here 2^-g; an infinity that comes of it is no small
        // loss. The scale's 24 digits are the whole number above 2^24.
        let per_step = f32::from_bits(278u32.wrapping_sub(bits >> 23) << 23);
        Self { per_step, s: f32::from_bits(bits & 0x007f_ffff | 151 << 23) }
    }

    /// A loss in steps, by its pattern, as the bits of what it is.
    #[inline(always)]
    fn loss_bits(pattern: i32, s: f32) -> u32 {
        let step = f32::from_bits((s.to_bits() >> 23).wrapping_sub(24) << 23);
        (f32::from_bits(pattern.cast_unsigned()) * step).to_bits()
    }
}

/// The sums of at most [`SUM_ELEMS`] values and the codes that they become, on the grid of a scale that has one; meanwhile memory
/// is asked for so many bytes ahead. `None` where a value is not finite or a loss is of 2^24 steps of the grid or more.
pub(super) fn sums<T: Field>(coder: &Coder, x: &[f32], codes: &[T], ahead_bytes: usize) -> Option<UnitSums> {
    debug_assert!(x.len() <= SUM_ELEMS);
    let s = coder.s;
    let lanes = if coder.z == 0 && coder.scheme.code() == CodeType::Int8 {
        // Of these it is one instruction.
        simd::run(OwnSums { x, codes, steps: |bits| i32::from(bits as i8), s, ahead_bytes })
    } else {
        simd::run(OwnSums { x, codes, steps: coder.steps(), s, ahead_bytes })
    };
    simd::run(Gathered { lanes: &lanes, wide: size_of::<T>() > 1, s })
}

/// See [`sums`].
struct OwnSums<'a, T, S> {
    x: &'a [f32],
    codes: &'a [T],
    steps: S,
    s: f32,
    ahead_bytes: usize,
}

impl<T: Field, S: Fn(u32) -> i32> Kernel for OwnSums<'_, T, S> {
    type Output = Lanes;

    #[inline(always)]
    fn run(self, unit: impl Unit) -> Lanes {
        if size_of::<T>() > 1 { self.sums::<true>(unit) } else { self.sums::<false>(unit) }
    }
}

impl<T: Field, S: Fn(u32) -> i32> OwnSums<'_, T, S> {
    #[inline(always)]
    fn sums<const WIDE: bool>(self, unit: impl Unit) -> Lanes {
        let Self { x, codes, steps, s, ahead_bytes } = self;
        let OwnGrid { s, per_step } = OwnGrid::of(s);
        let (grid, mut lanes) = (Grids { s: [s; LANES], per_step: [per_step; LANES] }, Lanes::default());
        let ahead_bytes = ahead_bytes.next_multiple_of(simd::ASK_BYTES);
        // As many as registers hold, some with what they make.
        const VECTORS: usize = 2;
        const CHUNK: usize = VECTORS * LANES;
        let steps_of = |codes: &[T]| {
            let mut whole = [0; CHUNK];
            for (whole, code) in whole.iter_mut().zip(codes) {
                *whole = steps(code.bits());
            }
            Steps::of(unit, bytemuck::cast(whole))
        };
        let add_products = |to: &mut Whole, a, b| unit.add_products_to_any(to, a, b);
        let ((chunks, x), (of_chunks, codes)) = (x.as_chunks::<CHUNK>(), codes.as_chunks::<CHUNK>());
        for (x, codes) in chunks.iter().zip(of_chunks) {
            simd::ask_ahead::<2>(x, ahead_bytes);
            lanes.add::<WIDE, false, VECTORS>(unit, &grid, add_products, bytemuck::cast_ref(x), &steps_of(codes));
        }
        if !x.is_empty() {
            let mut last = [0.0; CHUNK];
            last[..x.len()].copy_from_slice(x);
            lanes.add::<WIDE, false, VECTORS>(unit, &grid, add_products, bytemuck::cast_ref(&last), &steps_of(codes));
        }
        lanes
    }
}

/// What lanes make together, apart from [`OwnSums`], whose loop compilers get wrong where they see this.
struct Gathered<'a> {
    lanes: &'a Lanes,
    /// Of codes of more than 8 bits.
    wide: bool,
    s: f32,
}

impl Kernel for Gathered<'_> {
    type Output = Option<UnitSums>;

    #[inline(always)]
    fn run(self, _: impl Unit) -> Option<UnitSums> {
        let Self { lanes: Lanes { largest, sums, wide_sums }, wide, s } = self;
        let largest = largest.iter().fold(0, |most, &size| size.max(most));
        if largest >= OwnGrid::MOST {
            return None;
        }
        let unsigned = |lanes: &[i32; LANES]| lanes.iter().fold(0, |sum, lane| sum + i64::from(lane.cast_unsigned()));
        let signed = |lanes: &[i32; LANES]| lanes.iter().fold(0, |sum, &lane| sum + i64::from(lane));
        let [abs, hh, ll, qq, hl, hq, lq] = sums;
        let sums = [unsigned(abs), unsigned(hh), signed(ll), signed(qq), signed(hl), signed(hq), signed(lq)];
        let mut wide_sums_of = [0; WIDE_SUMS];
        if wide {
            wide_sums_of.iter_mut().zip(wide_sums).for_each(|(sum, lanes)| *sum = signed(lanes));
        }
        Some(unit_sums(largest, sums, wide_sums_of, s))
    }
}
