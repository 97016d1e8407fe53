//! The loss of codes that come of their values, on the grid of their scale: sums that vector units gather in lanes.

mod short;

pub(super) use short::{SHORT_ELEMS, Short, together};

use super::code::{Coder, Field, WHOLE, bytes_of_sums, in_each_byte, mask, quotients};
use super::loss::SUM_ELEMS;
use super::simd::{self, Floats, Kernel, MOST_LANES, Unit, Whole};
use crate::loss::UnitSums;
use crate::scheme::{CodeType, Scheme};

/// `abs`, `h h`, `l l`, `q q`, `h l`, `h q`, `l q` of [`Lanes`].
const SUMS: usize = 7;
/// `p p`, `p q`, `h p`, `l p`.
const WIDE_SUMS: usize = 4;

/// Registers that are taken at once: their codes are the bytes of one.
const VECTORS: usize = 4;

/// The most elements that a lane adds up, and so of products to one: see [`Lanes`].
const LANE_ELEMS: usize = 128;

/// Sums on a scale's own grid, of at most [`LANE_ELEMS`] elements to a lane, with `|D|` below 2^24.
///
/// Numbers of 16 bits are what a vector unit multiplies at the least cost. So `D` is `2^12 h + l`, `l` from 0; and `Q` is
/// `q`, or where a code may have more than 8 bits `2^8 p + q`, `q` from 0. Of [`LANE_ELEMS`] products those of `h h` may fill
/// 32 bits, those of `h l` and `l l` 31, and the others are smaller.
#[derive(Clone, Copy)]
struct Lanes<const LANES: usize> {
    /// Of the patterns of losses in steps.
    largest: Whole<LANES>,
    sums: [Whole<LANES>; SUMS],
    wide_sums: [Whole<LANES>; WIDE_SUMS],
}

impl<const LANES: usize> Lanes<LANES> {
    const NONE: Self = Self { largest: [0; LANES], sums: [[0; LANES]; SUMS], wide_sums: [[0; LANES]; WIDE_SUMS] };

    /// Adds values and the steps that they become; of [`ORDINARY`](Gather) values none is NaN.
    ///
    /// Step by step for several registers, so that none waits for what another is about to be.
    #[inline(always)]
    fn add<const WIDE: bool, const ORDINARY: bool>(
        &mut self,
        unit: impl Unit<LANES>,
        grid: &Grids<LANES>,
        x: &[Floats<LANES>; VECTORS],
        Steps { floats, whole: steps }: &Steps<LANES>,
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
            unit.add_products(hh, h, h);
            unit.add_products(ll, l, l);
            unit.add_products(qq, q, q);
            unit.add_products(hl, h, l);
            unit.add_products(hq, h, q);
            unit.add_products(lq, l, q);
            if WIDE {
                let [pp, pq, hp, lp] = &mut self.wide_sums;
                let p = unit.pairs(steps.map(|steps| steps.map(|q| q >> 8)));
                unit.add_products(pp, p, p);
                unit.add_products(pq, p, q);
                unit.add_products(hp, h, p);
                unit.add_products(lp, l, p);
            }
        }
    }
}

/// [`OwnGrid`] of each lane.
#[derive(Clone, Copy)]
struct Grids<const LANES: usize> {
    s: Floats<LANES>,
    per_step: Floats<LANES>,
}

impl<const LANES: usize> Grids<LANES> {
    #[inline(always)]
    fn of(s: &Floats<LANES>) -> Self {
        Self { s: s.map(|s| OwnGrid::of(s).s), per_step: s.map(|s| OwnGrid::of(s).per_step) }
    }
}

/// The steps of the scale that values are rounded to.
struct Steps<const LANES: usize> {
    floats: [Floats<LANES>; VECTORS],
    /// Of numbers of 8 bits the lower 16 alone count.
    whole: [Whole<LANES>; VECTORS],
}

impl<const LANES: usize> Steps<LANES> {
    #[inline(always)]
    fn of(unit: impl Unit<LANES>, whole: [Whole<LANES>; VECTORS]) -> Self {
        let mut floats = [[0.0; LANES]; VECTORS];
        for v in 0..VECTORS {
            floats[v] = unit.floats(whole[v]);
        }
        Self { floats, whole }
    }
}

/// Values that become codes of at most 8 bits, and the sums of their losses; `ORDINARY` ones are not clipped, and their codes
/// are told. A `GUESS` is a quotient's, but for the last places, and the loss tells of each whether it is the value's.
struct Making<const LANES: usize, const ORDINARY: bool, const GUESS: bool> {
    grid: Grids<LANES>,
    s: Floats<LANES>,
    per_s: Floats<LANES>,
    first: Floats<LANES>,
    last: Floats<LANES>,
    plus: Whole<LANES>,
    mask: Whole<LANES>,
}

impl<const LANES: usize, const ORDINARY: bool, const GUESS: bool> Making<LANES, ORDINARY, GUESS> {
    /// With each lane's scale and zero point.
    #[inline(always)]
    fn new(scheme: Scheme, s: &Floats<LANES>, z: &Whole<LANES>) -> Self {
        let (mut first, mut last, mut per_s) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for i in 0..LANES {
            if !ORDINARY {
                (first[i], last[i]) = quotients(scheme.qmin(), scheme.qmax(), z[i]);
            }
            per_s[i] = 1.0 / s[i];
        }
        let (plus, mask) = (z.map(in_each_byte), [in_each_byte(mask(scheme).cast_signed()); LANES]);
        Self { grid: Grids::of(s), s: *s, per_s, first, last, plus, mask }
    }

    /// Adds values to what lanes have; of ordinary ones the codes are told, a byte each.
    #[inline(always)]
    fn add(&self, unit: impl Unit<LANES>, lanes: &mut Lanes<LANES>, x: &[Floats<LANES>; VECTORS]) -> Whole<LANES> {
        let whole = [WHOLE; LANES];
        let mut sums = [[0.0; LANES]; VECTORS];
        for v in 0..VECTORS {
            sums[v] = if GUESS {
                unit.plus_product(whole, x[v], self.per_s)
            } else {
                let y = unit.quotients(x[v], self.s, self.per_s);
                unit.sum(if ORDINARY { y } else { unit.held(y, self.first, self.last) }, whole)
            };
        }
        let mut floats = [[0.0; LANES]; VECTORS];
        for v in 0..VECTORS {
            floats[v] = unit.difference(sums[v], whole);
        }
        // The sums' low bits are the steps.
        let steps = Steps { floats, whole: bytemuck::cast(sums) };
        lanes.add::<false, ORDINARY>(unit, &self.grid, x, &steps);
        if ORDINARY { bytes_of_sums(unit, sums, self.plus, self.mask) } else { [0; LANES] }
    }

    /// Whether all codes are those of their values, of guesses whose margin is [`guess_margin`].
    #[inline(always)]
    fn are_codes_nearest(&self, lanes: &Lanes<LANES>, margin: f32) -> bool {
        lanes.largest.iter().zip(&self.grid.s).fold(true, |all, (&largest, &s)| {
            let most = s / 2.0 - margin;
            all & (largest < most.to_bits().cast_signed())
        })
    }
}

/// What half a step is more, in the grid's, than the loss of a code that is certainly its value's, as it is if the nearest float to
/// `x / s` is nearest to the code.
///
/// Quotients and steps are at most `n`, a power of two; a step `s` is below 2^25 of the grid's. It is so where `|x / s - q|` is
/// below half by more than a quotient's rounding, half a last place of a float below `n`: `2^-25 n`, and so `n` of the grid's
/// steps. A loss misses that distance by what `x'` was rounded by, at most `n` more.
fn guess_margin(scheme: Scheme) -> f32 {
    let n = if scheme.has_zero_point() {
        1 << scheme.code().bits()
    } else {
        (1 + scheme.qmax().max(-scheme.qmin())).cast_unsigned().next_power_of_two()
    };
    2.0 * n as f32
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
    let (s, mut sums) = (coder.s, Sums::NONE);
    let ahead_bytes = ahead_bytes.next_multiple_of(simd::ASK_BYTES);
    if coder.z == 0 && coder.scheme.code() == CodeType::Int8 {
        // Of these it is one instruction.
        simd::run(OwnSums { x, codes, steps: |bits| i32::from(bits as i8), s, ahead_bytes, sums: &mut sums });
    } else {
        simd::run(OwnSums { x, codes, steps: coder.steps(), s, ahead_bytes, sums: &mut sums });
    }
    simd::run(Gathered { sums: &sums, wide: size_of::<T>() > 1, s })
}

/// Codes of at most 8 bits of values as ordinary as [`Coder::is_ordinary`] says, and their sums, as [`sums`] finds them, of as many
/// as there are.
pub(super) fn make(coder: &Coder, x: &[f32], codes: &mut [u8], ahead_bytes: usize) -> Option<UnitSums> {
    debug_assert!(OwnGrid::has(coder.s) && simd::is_divisor(coder.s));
    let mut sums = Sums::NONE;
    let ahead_bytes = ahead_bytes.next_multiple_of(simd::ASK_BYTES);
    simd::run(Ordinary { x, codes, coder, ahead_bytes, sums: &mut sums });
    simd::run(Gathered { sums: &sums, wide: false, s: coder.s })
}

/// What [`Lanes`] are added up in.
struct Sums {
    largest: Whole<MOST_LANES>,
    sums: [[i64; MOST_LANES]; SUMS],
    wide_sums: [[i64; MOST_LANES]; WIDE_SUMS],
}

impl Sums {
    const NONE: Self =
        Self { largest: [0; MOST_LANES], sums: [[0; MOST_LANES]; SUMS], wide_sums: [[0; MOST_LANES]; WIDE_SUMS] };

    #[inline(always)]
    fn add<const WIDE: bool, const LANES: usize>(&mut self, lanes: &Lanes<LANES>) {
        for i in 0..LANES {
            self.largest[i] = self.largest[i].max(lanes.largest[i]);
        }
        for (of, (to, sums)) in self.sums.iter_mut().zip(&lanes.sums).enumerate() {
            for i in 0..LANES {
                // Of sizes and of squares of `h` all bits are digits.
                to[i] += if of < 2 { i64::from(sums[i].cast_unsigned()) } else { i64::from(sums[i]) };
            }
        }
        if WIDE {
            for (to, sums) in self.wide_sums.iter_mut().zip(&lanes.wide_sums) {
                for i in 0..LANES {
                    to[i] += i64::from(sums[i]);
                }
            }
        }
    }
}

/// See [`sums`].
struct OwnSums<'a, T, S> {
    x: &'a [f32],
    codes: &'a [T],
    steps: S,
    s: f32,
    ahead_bytes: usize,
    sums: &'a mut Sums,
}

impl<T: Field, S: Fn(u32) -> i32> Kernel for OwnSums<'_, T, S> {
    type Output = ();

    #[inline(always)]
    fn run<const LANES: usize>(self, unit: impl Unit<LANES>) {
        if size_of::<T>() > 1 { self.add::<true, LANES>(unit) } else { self.add::<false, LANES>(unit) }
    }
}

impl<T: Field, S: Fn(u32) -> i32> OwnSums<'_, T, S> {
    #[inline(always)]
    fn add<const WIDE: bool, const LANES: usize>(self, unit: impl Unit<LANES>) {
        let Self { x, codes, steps, s, ahead_bytes, sums } = self;
        let grid = Grids::of(&[s; LANES]);
        for (x, codes) in x.chunks(LANE_ELEMS * LANES).zip(codes.chunks(LANE_ELEMS * LANES)) {
            let mut lanes = Lanes::NONE;
            let ((chunks, x), (of_chunks, codes)) = (in_chunks(x), in_chunks::<T, LANES>(codes));
            for (x, codes) in chunks.iter().zip(of_chunks) {
                simd::ask_beside(x, ahead_bytes);
                let mut whole = [[0; LANES]; VECTORS];
                for (whole, code) in whole.as_flattened_mut().iter_mut().zip(codes.as_flattened()) {
                    *whole = steps(code.bits());
                }
                lanes.add::<WIDE, false>(unit, &grid, x, &Steps::of(unit, whole));
            }
            if !x.is_empty() {
                // Zeros, which are no steps away from what they become.
                let (mut last, mut whole) = ([[0.0; LANES]; VECTORS], [[0; LANES]; VECTORS]);
                last.as_flattened_mut()[..x.len()].copy_from_slice(x);
                let to = whole.as_flattened_mut().iter_mut();
                to.zip(codes).for_each(|(to, code)| *to = steps(code.bits()));
                lanes.add::<WIDE, false>(unit, &grid, &last, &Steps::of(unit, whole));
            }
            sums.add::<WIDE, LANES>(&lanes);
        }
    }
}

/// As many registers as are taken at once, and what is left.
#[inline(always)]
fn in_chunks<T, const LANES: usize>(all: &[T]) -> (&[[[T; LANES]; VECTORS]], &[T]) {
    let chunks = all.as_chunks().0.as_chunks().0;
    (chunks, &all[chunks.len() * VECTORS * LANES..])
}

/// See [`make`].
struct Ordinary<'a> {
    x: &'a [f32],
    codes: &'a mut [u8],
    coder: &'a Coder,
    ahead_bytes: usize,
    sums: &'a mut Sums,
}

impl Kernel for Ordinary<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const LANES: usize>(self, unit: impl Unit<LANES>) {
        let Self { x, codes, coder, ahead_bytes, sums } = self;
        let Coder { scheme, s, z, .. } = *coder;
        let margin = guess_margin(scheme);
        let guesses = Making::<LANES, true, true>::new(scheme, &[s; LANES], &[z; LANES]);
        for (x, codes) in x.chunks(LANE_ELEMS * LANES).zip(codes.chunks_mut(LANE_ELEMS * LANES)) {
            let mut lanes = guesses.make(unit, x, codes, ahead_bytes);
            if !guesses.are_codes_nearest(&lanes, margin) {
                let quotients = Making::<LANES, true, false>::new(scheme, &[s; LANES], &[z; LANES]);
                lanes = quotients.make(unit, x, codes, ahead_bytes);
            }
            sums.add::<false, LANES>(&lanes);
        }
    }
}

impl<const LANES: usize, const GUESS: bool> Making<LANES, true, GUESS> {
    /// Makes codes in the order of their values, so many that lanes hold what they add up.
    #[inline(always)]
    fn make(&self, unit: impl Unit<LANES>, x: &[f32], codes: &mut [u8], ahead_bytes: usize) -> Lanes<LANES> {
        let mut lanes = Lanes::NONE;
        let (chunks, x) = in_chunks(x);
        let (of_chunks, codes) = codes.split_at_mut(codes.len() - x.len());
        for (x, codes) in chunks.iter().zip(of_chunks.as_chunks_mut().0.as_chunks_mut::<VECTORS>().0) {
            simd::ask_beside(x, ahead_bytes);
            *codes = unit.bytes_in_turn(self.add(unit, &mut lanes, x));
        }
        if !x.is_empty() {
            // Zeros, which add nothing.
            let mut last = [[0.0; LANES]; VECTORS];
            last.as_flattened_mut()[..x.len()].copy_from_slice(x);
            let made = unit.bytes_in_turn(self.add(unit, &mut lanes, &last));
            codes.copy_from_slice(&made.as_flattened()[..x.len()]);
        }
        lanes
    }
}

/// What lanes make together, apart from what they add up, a loop that compilers get wrong where they see this.
struct Gathered<'a> {
    sums: &'a Sums,
    /// Of codes of more than 8 bits.
    wide: bool,
    s: f32,
}

impl Kernel for Gathered<'_> {
    type Output = Option<UnitSums>;

    #[inline(always)]
    fn run<const LANES: usize>(self, _: impl Unit<LANES>) -> Option<UnitSums> {
        let Self { sums: Sums { largest, sums, wide_sums }, wide, s } = self;
        let largest = largest.iter().fold(0, |most, &size| size.max(most));
        if largest >= OwnGrid::MOST {
            return None;
        }
        let (mut sum_of, mut wide_sum_of) = ([0; SUMS], [0; WIDE_SUMS]);
        sum_of.iter_mut().zip(sums).for_each(|(sum, lanes)| *sum = lanes.iter().sum());
        if wide {
            wide_sum_of.iter_mut().zip(wide_sums).for_each(|(sum, lanes)| *sum = lanes.iter().sum());
        }
        Some(unit_sums(largest, sum_of, wide_sum_of, s))
    }
}
