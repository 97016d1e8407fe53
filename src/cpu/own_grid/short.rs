//! Short units side by side, one to a lane: their scales and codes, and the loss.

use super::super::code::{WHOLE, are_ordinary, mask, quotients};
use super::super::scale::{plain_scales, plain_zero_points};
use super::super::simd::{self, ASK_BYTES, Floats, Kernel, LANES, Square, Unit, Whole};
use super::super::units::{key, key_value};
use super::{Grids, Lanes, OwnGrid, Steps, cross_of, noise_of};
use crate::loss::{UnitLoss, UnitSums};
use crate::scheme::Scheme;

/// Vectors of columns that are taken at once: their codes are the bytes of one.
const VECTORS: usize = 4;

/// Units that are taken together: one to a lane.
pub(in super::super) const TOGETHER: usize = LANES;

/// The most elements of such a unit: sums of more do not fit in a lane's 32 bits.
pub(in super::super) const SHORT_ELEMS: usize = 128;

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
pub(in super::super) struct Short {
    x: [f32; TOGETHER * SHORT_ELEMS],
    columns: [Square; SHORT_ELEMS / LANES],
    magnitudes: Magnitudes,
    keys: Keys,
    scales: [f32; TOGETHER],
    zero_points: [i32; TOGETHER],
    each: Each,
}

impl Short {
    pub(in super::super) fn new() -> Self {
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
    pub(in super::super) fn make(
        &mut self,
        scheme: Scheme,
        x: &[f32],
        unit_elems: usize,
        scales: &mut [f32],
        zero_points: &mut [i32],
        codes: &mut [u8],
    ) -> bool {
        // As many units may be fewer elements: those of a row whose last one is short.
        let are_whole = scales.len() == TOGETHER && x.len() == TOGETHER * unit_elems;
        if !are_whole || !unit_elems.is_multiple_of(LANES) || unit_elems > SHORT_ELEMS {
            return false;
        }
        let squares = unit_elems / LANES;
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
    /// at most 8 bits that their values become; whether there are any, as there are none where [`sums`](super::sums) has none of some
    /// unit, or a scale is tiny or huge.
    pub(in super::super) fn find(
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

    pub(in super::super) fn sums(&self, unit: usize) -> UnitSums {
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

    pub(in super::super) fn loss(&self, unit: usize) -> UnitLoss {
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
        let in_each_byte = |byte: i32| (byte & 0xff).wrapping_mul(0x0101_0101);
        let (plus, mask) = (z.map(in_each_byte), [in_each_byte(mask(scheme).cast_signed()); LANES]);
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
