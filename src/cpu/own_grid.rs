//! The loss of codes that come of their values, on the grid of their scale: sums that vector units gather in lanes.

use super::code::{Coder, Field, WHOLE, quotients};
use super::loss::SUM_ELEMS;
use super::simd::{self, Kernel, LANES, Square, Unit};
use crate::loss::{UnitLoss, UnitSums};
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
    /// Adds values and the steps that they become.
    #[inline(always)]
    fn add<const WIDE: bool>(
        &mut self,
        unit: impl Unit,
        grid: impl Fn(usize) -> OwnGrid,
        add_products: impl Fn(&mut [i32; LANES], [i32; LANES], [i32; LANES]),
        x: &[f32; CHUNK],
        Steps { floats, whole: steps }: Steps,
    ) {
        let mut d = [[0; LANES]; 2];
        let [abs, hh, ll, qq, hl, hq, lq] = &mut self.sums;
        // Each loop is short enough to become one of vectors.
        for half in 0..2 {
            let (d, mut errors) = (&mut d[half], [0.0; LANES]);
            for i in 0..LANES {
                let grid = grid(i);
                errors[i] = unit.minus_product(floats[half][i] * grid.s, x[LANES * half + i], grid.per_step);
            }
            for (largest, error) in self.largest.iter_mut().zip(errors) {
                // As numbers of the same sign, patterns order as their values do.
                *largest = error.abs().to_bits().cast_signed().max(*largest);
            }
            *d = unit.nearest(errors);
            for (abs, d) in abs.iter_mut().zip(d) {
                *abs = abs.wrapping_add(d.wrapping_abs());
            }
        }
        let (h, l) = (pairs(d, |d| d >> 12), pairs(d, |d| d & 0xfff));
        let q = pairs(steps, |q| if WIDE { q & 0xff } else { q });
        add_products(hh, h, h);
        add_products(ll, l, l);
        add_products(qq, q, q);
        add_products(hl, h, l);
        add_products(hq, h, q);
        add_products(lq, l, q);
        if WIDE {
            let [pp, pq, hp, lp] = &mut self.wide_sums;
            let p = pairs(steps, |q| q >> 8);
            add_products(pp, p, p);
            add_products(pq, p, q);
            add_products(hp, h, p);
            add_products(lp, l, p);
        }
    }
}

/// The steps of the scale that values are rounded to.
struct Steps {
    floats: [[f32; LANES]; 2],
    /// Of numbers of 8 bits the lower 16 alone count.
    whole: [[i32; LANES]; 2],
}

impl Steps {
    #[inline(always)]
    fn of(whole: [[i32; LANES]; 2]) -> Self {
        let mut floats = [[0.0; LANES]; 2];
        for (float, whole) in floats.as_flattened_mut().iter_mut().zip(whole.as_flattened()) {
            *float = *whole as f32;
        }
        Self { floats, whole }
    }

    /// That codes become.
    #[inline(always)]
    fn of_codes<T: Field>(codes: &[T; CHUNK], steps: impl Fn(u32) -> i32) -> Self {
        let mut whole = [[0; LANES]; 2];
        for (whole, code) in whole.as_flattened_mut().iter_mut().zip(codes) {
            *whole = steps(code.bits());
        }
        Self::of(whole)
    }
}

/// Two numbers of 16 bits to a lane.
#[inline(always)]
fn pairs([a, b]: [[i32; LANES]; 2], part: impl Fn(i32) -> i32) -> [i32; LANES] {
    let mut pairs = [0; LANES];
    for i in 0..LANES {
        pairs[i] = part(a[i]) & 0xffff | part(b[i]) << 16;
    }
    pairs
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

/// Elements of a unit that are taken at once.
const CHUNK: usize = 2 * LANES;

/// Units that are taken together: one to a lane.
pub(super) const TOGETHER: usize = LANES;

/// The most elements of such a unit: sums of more do not fit in a lane's 32 bits.
pub(super) const SHORT_ELEMS: usize = 128;

/// Sums of each of [`TOGETHER`] units.
#[derive(Default)]
struct Each {
    largest: [f32; TOGETHER],
    abs: [u32; TOGETHER],
    noise: [i64; TOGETHER],
    codes: [i64; TOGETHER],
    cross: [i64; TOGETHER],
    /// The noise as what it is, rounded once.
    rounded_noise: [f64; TOGETHER],
}

/// Short units that are taken together, and their sums.
pub(super) struct Short {
    x: [f32; TOGETHER * SHORT_ELEMS],
    scales: [f32; TOGETHER],
    zero_points: [i32; TOGETHER],
    each: Each,
}

impl Short {
    pub(super) fn new() -> Self {
        let x = [0.0; TOGETHER * SHORT_ELEMS];
        Self { x, scales: [1.0; TOGETHER], zero_points: [0; TOGETHER], each: Each::default() }
    }

    /// Finds the sums of at most [`TOGETHER`] units of at most [`SHORT_ELEMS`], the last of which may be short, and of codes of
    /// at most 8 bits that their values become; whether there are any, as there are none where [`sums`] has none of some
    /// unit, or a scale is tiny or huge.
    pub(super) fn find(
        &mut self,
        scheme: Scheme,
        x: &[f32],
        unit_elems: usize,
        scales: &[f32],
        zero_points: &[i32],
    ) -> bool {
        let Self { x: padded, scales: all_scales, zero_points: all_zero_points, each } = self;
        all_scales[..scales.len()].copy_from_slice(scales);
        all_zero_points[..zero_points.len()].copy_from_slice(zero_points);
        let lane_elems = unit_elems.next_multiple_of(LANES);
        let x = if x.len() == TOGETHER * lane_elems {
            x
        } else {
            // Zeros add nothing, with any scale.
            padded.fill(0.0);
            for (padded, x) in padded.chunks_mut(lane_elems).zip(x.chunks(unit_elems)) {
                padded[..x.len()].copy_from_slice(x);
            }
            &padded[..TOGETHER * lane_elems]
        };
        let ends = (scheme.qmin(), scheme.qmax());
        simd::run(OwnSumsOfEach { x, ends, scales: all_scales, zero_points: all_zero_points, each })
    }

    pub(super) fn sums(&self, unit: usize) -> UnitSums {
        let Each { largest, abs, noise, codes, cross, .. } = &self.each;
        let unsigned = |sum: i64| sum.cast_unsigned().into();
        UnitSums {
            max_bits: largest[unit].to_bits(),
            abs: abs[unit].into(),
            noise: unsigned(noise[unit]),
            codes: unsigned(codes[unit]),
            cross: cross[unit].into(),
        }
    }

    pub(super) fn loss(&self, unit: usize) -> UnitLoss {
        UnitLoss { max_abs_error: self.each.largest[unit], noise: self.each.rounded_noise[unit] }
    }
}

/// [`OwnSums`] of each of [`TOGETHER`] units; whether each has them.
struct OwnSumsOfEach<'a> {
    /// A multiple of [`LANES`] to each unit, at most [`SHORT_ELEMS`].
    x: &'a [f32],
    /// The last codes.
    ends: (i32, i32),
    scales: &'a [f32; TOGETHER],
    zero_points: &'a [i32; TOGETHER],
    each: &'a mut Each,
}

impl Kernel for OwnSumsOfEach<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self, unit: impl Unit) -> bool {
        let scales = self.scales;
        if !scales.iter().fold(true, |all, &s| all & OwnGrid::has(s) & simd::is_divisor(s)) {
            return false;
        }
        // A length that the compiler knows is a bounds check less for each read.
        let Lanes { largest, sums: [abs, hh, ll, qq, hl, hq, lq], .. } = match self.x.len() / (TOGETHER * LANES) {
            1 => self.lanes::<1>(unit),
            2 => self.lanes::<2>(unit),
            3 => self.lanes::<3>(unit),
            4 => self.lanes::<4>(unit),
            5 => self.lanes::<5>(unit),
            6 => self.lanes::<6>(unit),
            7 => self.lanes::<7>(unit),
            _ => self.lanes::<8>(unit),
        };
        let each = self.each;
        for i in 0..TOGETHER {
            let s = scales[i];
            each.largest[i] = f32::from_bits(OwnGrid::loss_bits(largest[i], s));
            each.abs[i] = abs[i].cast_unsigned();
            each.codes[i] = qq[i].into();
            each.cross[i] = cross_of(hq[i].into(), lq[i].into());
            let noise = noise_of(hh[i].cast_unsigned().into(), hl[i].into(), ll[i].into());
            // The square of the grid's step, which a float holds.
            let square = f64::from_bits(u64::from(2 * (s.to_bits() >> 23) + 1023 - 2 * 151) << 52);
            (each.noise[i], each.rounded_noise[i]) = (noise, noise as f64 * square);
        }
        largest.iter().fold(true, |all, &size| all & (size < OwnGrid::MOST))
    }
}

impl OwnSumsOfEach<'_> {
    /// Of so many squares to a unit.
    #[inline(always)]
    fn lanes<const SQUARES: usize>(&self, unit: impl Unit) -> Lanes {
        let Self { scales: &s, zero_points: &z, ends: (qmin, qmax), .. } = *self;
        let (mut first, mut last) = ([0.0; LANES], [0.0; LANES]);
        let (mut per_s, mut s_in_steps, mut per_step) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for i in 0..LANES {
            (first[i], last[i]) = quotients(qmin, qmax, z[i]);
            per_s[i] = 1.0 / s[i];
            OwnGrid { s: s_in_steps[i], per_step: per_step[i] } = OwnGrid::of(s[i]);
        }
        let mut lanes = Lanes::default();
        let Some(units) = self.x.as_chunks().0.as_chunks::<SQUARES>().0.first_chunk::<TOGETHER>() else { return lanes };
        #[allow(clippy::needless_range_loop, reason = "it is a column")]
        for square in 0..SQUARES {
            let mut columns = Square([[0.0; LANES]; LANES]);
            unit.columns(std::array::from_fn(|i| &units[i][square]), &mut columns);
            for x in columns.0.as_flattened().as_chunks::<CHUNK>().0 {
                let mut steps = Steps { floats: [[0.0; LANES]; 2], whole: [[0; LANES]; 2] };
                // Values are rounded once more: columns of their codes would cost as much.
                for half in 0..2 {
                    let (floats, whole) = (&mut steps.floats[half], &mut steps.whole[half]);
                    for i in 0..LANES {
                        let y = unit.quotient(x[LANES * half + i], s[i], per_s[i]);
                        let held = if y > first[i] { y } else { first[i] };
                        let held = if held < last[i] { held } else { last[i] };
                        // The sum's low bits are the steps.
                        (floats[i], whole[i]) = (held + WHOLE - WHOLE, (held + WHOLE).to_bits().cast_signed());
                    }
                }
                let add_products = |to: &mut [i32; LANES], a, b| unit.add_products(to, a, b);
                let grid = |i: usize| OwnGrid { s: s_in_steps[i], per_step: per_step[i] };
                lanes.add::<false>(unit, grid, add_products, x, steps);
            }
        }
        lanes
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
    simd::run(Together { lanes: &lanes, wide: size_of::<T>() > 1, s })
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
        let (grid, mut lanes) = (OwnGrid::of(s), Lanes::default());
        let ahead_bytes = ahead_bytes.next_multiple_of(simd::ASK_BYTES);
        let ((chunks, x), (of_chunks, rest)) = (x.as_chunks(), codes.as_chunks::<CHUNK>());
        for (x, codes) in chunks.iter().zip(of_chunks) {
            simd::ask_ahead::<2>(x, ahead_bytes);
            lanes.add::<WIDE>(
                unit,
                |_| grid,
                |to, a, b| unit.add_products_to_any(to, a, b),
                x,
                Steps::of_codes(codes, &steps),
            );
        }
        if !x.is_empty() {
            let (mut last, mut last_steps) = ([0.0; CHUNK], [0; CHUNK]);
            last[..x.len()].copy_from_slice(x);
            last_steps.iter_mut().zip(rest).for_each(|(step, code)| *step = steps(code.bits()));
            lanes.add::<WIDE>(
                unit,
                |_| grid,
                |to, a, b| unit.add_products_to_any(to, a, b),
                &last,
                Steps::of(bytemuck::cast(last_steps)),
            );
        }
        lanes
    }
}

/// What lanes make together, apart from [`OwnSums`], whose loop compilers get wrong where they see this.
struct Together<'a> {
    lanes: &'a Lanes,
    /// Of codes of more than 8 bits.
    wide: bool,
    s: f32,
}

impl Kernel for Together<'_> {
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
