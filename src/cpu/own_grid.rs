//! The loss of codes that come of their values, on the grid of their scale: sums that vector units gather in lanes.

use super::code::{Coder, Field, WHOLE, are_ordinary, mask, quotients};
use super::loss::SUM_ELEMS;
use super::scale::{plain_scales, plain_zero_points};
use super::simd::{self, ASK_BYTES, Floats, Kernel, LANES, Square, Unit, Whole};
use super::units::{key, key_value};
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

/// Vectors of columns that are taken at once: their codes are the bytes of one.
const VECTORS: usize = 4;

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
    columns: [Square; SHORT_ELEMS / LANES],
    magnitudes: Magnitudes,
    keys: Keys,
    scales: [f32; TOGETHER],
    zero_points: [i32; TOGETHER],
    each: Each,
}

impl Short {
    pub(super) fn new() -> Self {
        Self {
            x: [0.0; TOGETHER * SHORT_ELEMS],
            columns: std::array::from_fn(|_| Square([[0.0; LANES]; LANES])),
            magnitudes: Magnitudes([0; LANES]),
            keys: Keys([[0; LANES]; 2]),
            scales: [1.0; TOGETHER],
            zero_points: [0; TOGETHER],
            each: Each::default(),
        }
    }

    /// Finds scales, zero points, codes of at most 8 bits, and the sums of [`TOGETHER`] units of the same number of elements;
    /// whether it has. It has not where [`find`](Self::find) would not, or something is not ordinary; nor of units that do not
    /// fill vectors.
    pub(super) fn make(
        &mut self,
        scheme: Scheme,
        x: &[f32],
        scales: &mut [f32],
        zero_points: &mut [i32],
        codes: &mut [u8],
    ) -> bool {
        let squares = x.len() / (TOGETHER * LANES);
        if scales.len() != TOGETHER || x.len() != squares * TOGETHER * LANES || squares > self.columns.len() {
            return false;
        }
        let columns = &mut self.columns[..squares];
        // What one kernel stores and the next one loads stays in place: a copy in between, by parts, would be waited for.
        let ends = if scheme.mapping().is_by_magnitude() {
            simd::run(Turn { x, columns, see: &mut self.magnitudes });
            Ends::OfMagnitude(&self.magnitudes)
        } else {
            simd::run(Turn { x, columns, see: &mut self.keys });
            Ends::Both(&self.keys)
        };
        let (s, z) = (&mut self.scales[..scales.len()], &mut self.zero_points);
        simd::run(Scale { ends, scheme, scales: s, zero_points: &mut z[..zero_points.len()] }) && {
            scales.copy_from_slice(s);
            zero_points.copy_from_slice(&z[..zero_points.len()]);
            self.gather(scheme, squares, Some((x, codes)))
        }
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
        let Self { x: padded, columns, scales: all_scales, zero_points: all_zero_points, .. } = self;
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
        let squares = lane_elems / LANES;
        simd::run(Turn { x, columns: &mut columns[..squares], see: &mut Nothing });
        self.gather(scheme, squares, None)
    }

    /// The sums of columns; of ordinary ones also the codes, and meanwhile memory is asked for beyond what they are made of.
    fn gather(&mut self, scheme: Scheme, squares: usize, ordinary: Option<(&[f32], &mut [u8])>) -> bool {
        let Self { columns, scales: s, zero_points: z, each, .. } = self;
        if !s.iter().fold(true, |all, &s| all & OwnGrid::has(s) & simd::is_divisor(s)) {
            return false;
        }
        let columns = &columns[..squares];
        let lanes = match ordinary {
            Some((x, codes)) => simd::run(Gather::<true> { columns, scheme, s, z, x, codes }),
            None => simd::run(Gather::<false> { columns, scheme, s, z, x: &[], codes: &mut [] }),
        };
        simd::run(Tell { lanes: &lanes, scales: s, each })
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

/// Turns rows of squares, so many to a unit, into columns, and sees each.
struct Turn<'a, S> {
    x: &'a [f32],
    columns: &'a mut [Square],
    see: &'a mut S,
}

/// What is found of columns while they are made.
trait See {
    /// Having seen no column.
    const NONE: Self;

    fn see(&mut self, unit: impl Unit, column: Floats);
}

struct Nothing;

impl See for Nothing {
    const NONE: Self = Self;

    #[inline(always)]
    fn see(&mut self, _: impl Unit, _: Floats) {}
}

/// Each lane's largest pattern of a magnitude.
struct Magnitudes(Whole);

impl See for Magnitudes {
    const NONE: Self = Self([0; LANES]);

    #[inline(always)]
    fn see(&mut self, unit: impl Unit, column: Floats) {
        self.0 = unit.larger(self.0, unit.magnitudes(column));
    }
}

/// Each lane's largest inverted [`key`], and key.
struct Keys([Whole; 2]);

impl See for Keys {
    const NONE: Self = Self([[i32::MIN; LANES]; 2]);

    #[inline(always)]
    fn see(&mut self, unit: impl Unit, column: Floats) {
        let [least, most] = &mut self.0;
        let keys = column.map(key);
        (*least, *most) = (unit.larger(*least, keys.map(|key| !key)), unit.larger(*most, keys));
    }
}

impl<S: See> Kernel for Turn<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run(self, unit: impl Unit) {
        let (Self { x, columns, see: to }, mut see) = (self, S::NONE);
        let (rows, squares) = (x.as_chunks().0, columns.len());
        let rows: [&[Floats]; TOGETHER] = std::array::from_fn(|i| &rows[i * squares..][..squares]);
        for (square, columns) in columns.iter_mut().enumerate() {
            unit.columns(std::array::from_fn(|i| &rows[i][square]), columns);
            for column in &columns.0 {
                see.see(unit, *column);
            }
        }
        *to = see;
    }
}

/// What [`Turn`] found of each unit.
enum Ends<'a> {
    OfMagnitude(&'a Magnitudes),
    Both(&'a Keys),
}

/// Finds scales and zero points; whether all values are ordinary. That lengths are not known here makes loops of vectors.
struct Scale<'a> {
    ends: Ends<'a>,
    scheme: Scheme,
    scales: &'a mut [f32],
    zero_points: &'a mut [i32],
}

impl Kernel for Scale<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self, _: impl Unit) -> bool {
        let Self { ends, scheme, scales, zero_points } = self;
        let n = scales.len().min(LANES);
        let scales = &mut scales[..n];
        let (mut lo, mut hi) = ([0.0; LANES], [0.0; LANES]);
        let (lo, hi) = (&mut lo[..n], &mut hi[..n]);
        match ends {
            Ends::OfMagnitude(Magnitudes(most)) => {
                for ((lo, hi), &most) in lo.iter_mut().zip(&mut *hi).zip(most) {
                    (*lo, *hi) = (-key_value(most), key_value(most));
                }
            }
            Ends::Both(Keys([least, most])) => {
                for (((lo, hi), &least), &most) in lo.iter_mut().zip(&mut *hi).zip(least).zip(most) {
                    (*lo, *hi) = (key_value(!least), key_value(most));
                }
            }
        }
        plain_scales([lo, hi], scheme, scales);
        let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
        // Nor are quotients of infinities or NaN within the last ones.
        let mut is_ordinary = true;
        if scheme.mapping().is_by_magnitude() {
            // Below the middle there are as many codes, if not one more.
            let last = quotients(qmin, qmax, 0).1;
            for (&hi, &s) in hi.iter().zip(&*scales) {
                is_ordinary &= simd::is_divisor(s) & (hi / s <= last);
            }
        } else if scheme.has_zero_point() {
            plain_zero_points(lo, scales, scheme, zero_points);
            for (((&lo, &hi), &s), &z) in lo.iter().zip(&*hi).zip(&*scales).zip(&*zero_points) {
                is_ordinary &= are_ordinary(lo, hi, s, quotients(qmin, qmax, z));
            }
        } else {
            for ((&lo, &hi), &s) in lo.iter().zip(&*hi).zip(&*scales) {
                is_ordinary &= are_ordinary(lo, hi, s, quotients(qmin, qmax, 0));
            }
        }
        is_ordinary
    }
}

/// What lanes gather of columns; `ORDINARY` values are not clipped, and their codes are told.
struct Gather<'a, const ORDINARY: bool> {
    columns: &'a [Square],
    scheme: Scheme,
    s: &'a [f32; TOGETHER],
    z: &'a [i32; TOGETHER],
    /// Like the columns, in rows.
    x: &'a [f32],
    codes: &'a mut [u8],
}

impl<const ORDINARY: bool> Kernel for Gather<'_, ORDINARY> {
    type Output = Lanes;

    #[inline(always)]
    fn run(self, unit: impl Unit) -> Lanes {
        let Self { columns, scheme, s, z, x, codes } = self;
        let mut lines = x.as_chunks::<{ VECTORS * LANES }>().0.iter();
        let (mut first, mut last, mut per_s) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for i in 0..LANES {
            if !ORDINARY {
                (first[i], last[i]) = quotients(scheme.qmin(), scheme.qmax(), z[i]);
            }
            per_s[i] = 1.0 / s[i];
        }
        let (grid, whole) = (Grids::of(s), [WHOLE; LANES]);
        // In each byte.
        let (plus, mask) = (z.map(|z| (z & 0xff) * 0x0101_0101), [mask(scheme).cast_signed() * 0x0101_0101; LANES]);
        let (mut lanes, unit_elems) = (Lanes::default(), LANES * columns.len());
        for (square, columns) in columns.iter().enumerate() {
            let mut fours = [[0; LANES]; LANES / 4];
            for (x, four) in columns.0.as_chunks().0.iter().zip(&mut fours) {
                if let Some(lines) = lines.next() {
                    simd::ask_ahead::<4>(lines, ASK_BYTES);
                }
                let mut sums = [[0.0; LANES]; VECTORS];
                for v in 0..VECTORS {
                    let y = unit.quotients(x[v], *s, per_s);
                    sums[v] = unit.sum(if ORDINARY { y } else { unit.held(y, first, last) }, whole);
                }
                let mut floats = [[0.0; LANES]; VECTORS];
                for v in 0..VECTORS {
                    floats[v] = unit.difference(sums[v], whole);
                }
                // The sums' low bits are the steps.
                let steps = Steps { floats, whole: bytemuck::cast(sums) };
                let add_products = |to: &mut Whole, a, b| unit.add_products(to, a, b);
                lanes.add::<false, ORDINARY, VECTORS>(unit, &grid, add_products, x, &steps);
                if ORDINARY {
                    let [a, b, c, d] = steps.whole;
                    *four = unit.bytes([unit.pairs([a, c]), unit.pairs([b, d])], plus, mask);
                }
            }
            if ORDINARY {
                let rows = unit.byte_rows(fours);
                for (row, codes) in rows.iter().zip(codes.chunks_exact_mut(unit_elems)) {
                    codes[LANES * square..][..LANES].copy_from_slice(row);
                }
            }
        }
        lanes
    }
}

/// What lanes say of each unit; whether each has its sums.
struct Tell<'a> {
    lanes: &'a Lanes,
    scales: &'a [f32; TOGETHER],
    each: &'a mut Each,
}

impl Kernel for Tell<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self, _: impl Unit) -> bool {
        let Self { lanes: Lanes { largest, sums: [abs, hh, ll, qq, hl, hq, lq], .. }, scales, each } = self;
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
