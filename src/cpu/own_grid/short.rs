//! Short units side by side, one to a lane: their scales and codes, and the loss.

mod totals;

use super::super::code::{are_ordinary, quotients};
use super::super::scale::{plain_scales, plain_zero_points};
use super::super::simd::{self, ASK_BYTES, Floats, Kernel, MOST_LANES, Unit, Whole};
use super::super::units::{key, key_value};
use super::{LANE_ELEMS, Lanes, Making, OwnGrid, SUMS, VECTORS, guess_margin, in_chunks, noise_of};
use crate::loss::{Adder, UnitLoss};
use crate::scheme::Scheme;
use totals::Totals;

/// The most elements of such a unit: it has a lane for itself.
pub(in super::super) const SHORT_ELEMS: usize = LANE_ELEMS;

/// Elements of a unit that are taken at once: their codes are the bytes of four lanes.
const ROW_ELEMS: usize = 16;

/// The most units that are taken at once, so that none waits for another's scales, and the most of their elements.
const TOGETHER: usize = 4 * MOST_LANES;
const TOGETHER_ELEMS: usize = MOST_LANES * SHORT_ELEMS;

/// How many of units that follow are best taken at once: what they are made of fits in a core's first cache.
pub(in super::super) fn together(units: usize, unit_elems: usize) -> usize {
    let most = TOGETHER_ELEMS / unit_elems.next_multiple_of(ROW_ELEMS) / MOST_LANES * MOST_LANES;
    // Whole registers first.
    if units < MOST_LANES { units } else { units.min(most.clamp(MOST_LANES, TOGETHER)) / MOST_LANES * MOST_LANES }
}

/// What is found of units that are taken together.
struct Found {
    /// The largest inverted [`key`] and the largest key of each, or the pattern of the largest magnitude.
    ends: [[i32; TOGETHER]; 2],
    scales: [f32; TOGETHER],
    zero_points: [i32; TOGETHER],
    /// Of [`Lanes`], one to a unit.
    largest: [i32; TOGETHER],
    sums: [[i32; TOGETHER]; SUMS],
    noise: [i64; TOGETHER],
    losses: [f32; TOGETHER],
    /// The noise as what it is, rounded once.
    rounded_noise: [f64; TOGETHER],
}

/// Values of registers, one register after the other.
#[repr(align(64))]
struct Values([f32; TOGETHER_ELEMS]);

/// Short units that are taken together, and their sums.
pub(in super::super) struct Short {
    x: Values,
    columns: Values,
    /// How many units are taken, and those of no element that fill registers.
    units: usize,
    found: Found,
    totals: Totals,
}

impl Short {
    pub(in super::super) fn new() -> Self {
        Self {
            x: Values([0.0; TOGETHER_ELEMS]),
            columns: Values([0.0; TOGETHER_ELEMS]),
            units: 0,
            found: Found {
                ends: [[0; TOGETHER]; 2],
                scales: [1.0; TOGETHER],
                zero_points: [0; TOGETHER],
                largest: [0; TOGETHER],
                sums: [[0; TOGETHER]; SUMS],
                noise: [0; TOGETHER],
                losses: [0.0; TOGETHER],
                rounded_noise: [0.0; TOGETHER],
            },
            totals: Totals::default(),
        }
    }

    /// Finds scales, zero points, codes of at most 8 bits, and the sums of units of the same number of elements, as many as come
    /// [`together`]; whether it has. It has not where [`find`](Self::find) would not, or something is not ordinary; nor of units
    /// that do not fill registers.
    pub(in super::super) fn make(
        &mut self,
        scheme: Scheme,
        x: &[f32],
        unit_elems: usize,
        scales: &mut [f32],
        zero_points: &mut [i32],
        codes: &mut [u8],
    ) -> bool {
        let units = scales.len();
        // As many units may be fewer elements: those of a row whose last one is short.
        let are_whole =
            x.len() == units * unit_elems && unit_elems.is_multiple_of(ROW_ELEMS) && units.is_multiple_of(MOST_LANES);
        if !are_whole || units > TOGETHER || x.len() > TOGETHER_ELEMS {
            return false;
        }
        let Self { columns, found, .. } = self;
        self.units = units;
        let columns = &mut columns.0[..x.len()];
        // What one kernel stores and the next one loads stays in place: a copy in between, by parts, would be waited for.
        if scheme.mapping().is_by_magnitude() {
            simd::run(Turn { x, unit_elems, columns, see: Magnitudes, ends: &mut found.ends });
        } else {
            simd::run(Turn { x, unit_elems, columns, see: Keys, ends: &mut found.ends });
        }
        if !simd::run(Scale { scheme, units, found }) {
            return false;
        }
        scales.copy_from_slice(&found.scales[..units]);
        if !zero_points.is_empty() {
            zero_points.copy_from_slice(&found.zero_points[..units]);
        }
        simd::run(Gather::<true> { columns, unit_elems, scheme, x, codes, found });
        simd::run(Tell { units, found })
    }

    /// Finds the sums of units of at most [`SHORT_ELEMS`], as many as come [`together`], the last of which may be short, and of
    /// codes of at most 8 bits that their values become; whether there are any, as there are none where [`sums`](super::sums) has
    /// none of some unit, or a scale is tiny or huge.
    pub(in super::super) fn find(
        &mut self,
        scheme: Scheme,
        x: &[f32],
        unit_elems: usize,
        scales: &[f32],
        zero_points: &[i32],
    ) -> bool {
        if !scales.iter().all(|&s| is_scale(s)) {
            return false;
        }
        let Self { x: padded, columns, found, .. } = self;
        let (units, lane_elems) = (scales.len().next_multiple_of(MOST_LANES), unit_elems.next_multiple_of(ROW_ELEMS));
        self.units = units;
        found.scales[..scales.len()].copy_from_slice(scales);
        found.zero_points[..zero_points.len()].copy_from_slice(zero_points);
        let x = if x.len() == units * lane_elems {
            x
        } else {
            // Zeros add nothing, with any scale.
            let padded = &mut padded.0[..units * lane_elems];
            padded.fill(0.0);
            for (padded, x) in padded.chunks_mut(lane_elems).zip(x.chunks(unit_elems)) {
                padded[..x.len()].copy_from_slice(x);
            }
            padded
        };
        let (unit_elems, columns) = (lane_elems, &mut columns.0[..x.len()]);
        simd::run(Turn { x, unit_elems, columns, see: Nothing, ends: &mut found.ends });
        simd::run(Gather::<false> { columns, unit_elems, scheme, x, codes: &mut [], found });
        simd::run(Tell { units, found })
    }

    /// Adds up what was found.
    pub(in super::super) fn add_to(&mut self, adder: &mut Adder, losses: &mut [UnitLoss]) {
        let Self { units, found, totals, .. } = self;
        totals.add(*units, found, adder);
        for ((loss, &max_abs_error), &noise) in losses.iter_mut().zip(&found.losses).zip(&found.rounded_noise) {
            *loss = UnitLoss { max_abs_error, noise };
        }
    }

    /// Adds what is still to be added.
    pub(in super::super) fn finish(&mut self, adder: &mut Adder) {
        self.totals.flush(adder);
    }
}

/// Whether a unit of this scale may be taken with others.
#[inline(always)]
fn is_scale(s: f32) -> bool {
    OwnGrid::has(s) & simd::is_divisor(s)
}

/// Turns units' rows into columns, as many units to a round as a register has lanes, and sees each.
struct Turn<'a, S> {
    x: &'a [f32],
    unit_elems: usize,
    columns: &'a mut [f32],
    see: S,
    ends: &'a mut [[i32; TOGETHER]; 2],
}

/// What is found of columns while they are made.
trait See: Copy {
    fn see<const LANES: usize>(self, unit: impl Unit<LANES>, ends: &mut [Whole<LANES>; 2], column: Floats<LANES>);
}

#[derive(Clone, Copy)]
struct Nothing;

impl See for Nothing {
    #[inline(always)]
    fn see<const LANES: usize>(self, _: impl Unit<LANES>, _: &mut [Whole<LANES>; 2], _: Floats<LANES>) {}
}

/// Each lane's largest pattern of a magnitude.
#[derive(Clone, Copy)]
struct Magnitudes;

impl See for Magnitudes {
    #[inline(always)]
    fn see<const LANES: usize>(self, unit: impl Unit<LANES>, [_, most]: &mut [Whole<LANES>; 2], column: Floats<LANES>) {
        *most = unit.larger(*most, unit.magnitudes(column));
    }
}

/// Each lane's largest inverted [`key`], and key.
#[derive(Clone, Copy)]
struct Keys;

impl See for Keys {
    #[inline(always)]
    fn see<const LANES: usize>(
        self,
        unit: impl Unit<LANES>,
        [least, most]: &mut [Whole<LANES>; 2],
        column: Floats<LANES>,
    ) {
        let keys = column.map(key);
        (*least, *most) = (unit.larger(*least, keys.map(|key| !key)), unit.larger(*most, keys));
    }
}

impl<S: See> Kernel for Turn<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<const LANES: usize>(self, unit: impl Unit<LANES>) {
        let Self { x, unit_elems, columns, see, ends: [least, most] } = self;
        let squares = unit_elems / LANES;
        let rounds = x.as_chunks().0.chunks_exact(unit_elems);
        let ends = least.as_chunks_mut().0.iter_mut().zip(most.as_chunks_mut().0);
        for ((rows, columns), (least, most)) in
            rounds.zip(columns.as_chunks_mut().0.chunks_exact_mut(unit_elems)).zip(ends)
        {
            let rows: [&[Floats<LANES>]; LANES] = std::array::from_fn(|i| &rows[i * squares..][..squares]);
            let mut seen = [[i32::MIN; LANES]; 2];
            for (square, columns) in columns.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                let made = unit.columns(std::array::from_fn(|i| &rows[i][square]));
                for column in made {
                    see.see(unit, &mut seen, column);
                }
                *columns = made;
            }
            [*least, *most] = seen;
        }
    }
}

/// Finds scales and zero points of what [`Turn`] has found; whether all values are ordinary. That lengths are not known here
/// makes loops of vectors.
struct Scale<'a> {
    scheme: Scheme,
    units: usize,
    found: &'a mut Found,
}

impl Kernel for Scale<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<const LANES: usize>(self, _: impl Unit<LANES>) -> bool {
        let Self { scheme, units, found: Found { ends: [least, most], scales, zero_points, .. } } = self;
        let n = units.min(TOGETHER);
        let (scales, zero_points) = (&mut scales[..n], &mut zero_points[..n]);
        let (mut lo, mut hi) = ([0.0; TOGETHER], [0.0; TOGETHER]);
        let (lo, hi) = (&mut lo[..n], &mut hi[..n]);
        if scheme.mapping().is_by_magnitude() {
            for ((lo, hi), &most) in lo.iter_mut().zip(&mut *hi).zip(&*most) {
                // Of magnitudes these are patterns.
                *hi = f32::from_bits(most.cast_unsigned());
                *lo = -*hi;
            }
        } else {
            for (((lo, hi), &least), &most) in lo.iter_mut().zip(&mut *hi).zip(&*least).zip(&*most) {
                (*lo, *hi) = (key_value(!least), key_value(most));
            }
        }
        plain_scales([lo, hi], scheme, scales);
        let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
        // Nor are quotients of infinities or NaN within the last ones.
        let mut is_ordinary = scales.iter().fold(true, |all, &s| all & is_scale(s));
        if scheme.mapping().is_by_magnitude() {
            // Below the middle there are as many codes, if not one more.
            let last = quotients(qmin, qmax, 0).1;
            for (&hi, &s) in hi.iter().zip(&*scales) {
                is_ordinary &= hi / s <= last;
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

/// Makes sums of columns; of `ORDINARY` values, which are not clipped, codes too.
struct Gather<'a, const ORDINARY: bool> {
    columns: &'a [f32],
    unit_elems: usize,
    scheme: Scheme,
    /// Like the columns, in rows.
    x: &'a [f32],
    codes: &'a mut [u8],
    found: &'a mut Found,
}

impl<const ORDINARY: bool> Kernel for Gather<'_, ORDINARY> {
    type Output = ();

    #[inline(always)]
    fn run<const LANES: usize>(self, unit: impl Unit<LANES>) {
        let Self { columns, unit_elems, scheme, x, codes, found } = self;
        let Found { scales, zero_points, largest: to_largest, sums: to_sums, .. } = found;
        let (rows, chunks) = (unit_elems / ROW_ELEMS, unit_elems / VECTORS);
        let mut codes = codes.as_chunks_mut::<ROW_ELEMS>().0.chunks_exact_mut(LANES * rows);
        let rounds = in_chunks(columns).0.chunks_exact(chunks).zip(in_chunks::<_, LANES>(x).0.chunks_exact(chunks));
        let of_each = scales.as_chunks().0.iter().zip(zero_points.as_chunks().0);
        let (margin, mut bytes) = (guess_margin(scheme), [[0; LANES]; SHORT_ELEMS / VECTORS]);
        for (round, ((columns, x), (s, z))) in rounds.zip(of_each).enumerate() {
            let lanes = if ORDINARY {
                let guesses = Making::<LANES, true, true>::new(scheme, s, z);
                let lanes = guesses.gather(unit, columns, x, &mut bytes);
                if guesses.are_codes_nearest(&lanes, margin) {
                    lanes
                } else {
                    Making::<LANES, true, false>::new(scheme, s, z).gather(unit, columns, x, &mut bytes)
                }
            } else {
                Making::<LANES, false, false>::new(scheme, s, z).gather(unit, columns, x, &mut bytes)
            };
            if let Some(codes) = codes.next() {
                for (row, fours) in bytes.as_chunks().0.iter().enumerate().take(rows) {
                    let codes_of_rows = unit.byte_rows(*fours);
                    for i in 0..LANES {
                        codes[i * rows + row] = codes_of_rows[i];
                    }
                }
            }
            let own = round * LANES..(round + 1) * LANES;
            to_largest[own.clone()].copy_from_slice(&lanes.largest);
            for (to, sums) in to_sums.iter_mut().zip(&lanes.sums) {
                to[own.clone()].copy_from_slice(sums);
            }
        }
    }
}

impl<const LANES: usize, const ORDINARY: bool, const GUESS: bool> Making<LANES, ORDINARY, GUESS> {
    /// Adds columns, and tells their codes; guesses ask for the memory ahead of so many rows meanwhile.
    #[inline(always)]
    fn gather(
        &self,
        unit: impl Unit<LANES>,
        columns: &[[Floats<LANES>; VECTORS]],
        x: &[[Floats<LANES>; VECTORS]],
        bytes: &mut [Whole<LANES>],
    ) -> Lanes<LANES> {
        let mut lanes = Lanes::NONE;
        for ((columns, x), bytes) in columns.iter().zip(x).zip(bytes) {
            if GUESS {
                simd::ask_beside(x, ASK_BYTES);
            }
            *bytes = self.add(unit, &mut lanes, columns);
        }
        lanes
    }
}

/// What sums say of each unit; whether each has them.
struct Tell<'a> {
    units: usize,
    found: &'a mut Found,
}

impl Kernel for Tell<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<const LANES: usize>(self, _: impl Unit<LANES>) -> bool {
        let (Self { units, found }, mut have_sums) = (self, true);
        let Found { scales, largest, sums: [_, hh, ll, _, hl, ..], noise, losses, rounded_noise, .. } = found;
        // Whole numbers of 32 bits, and 2^32 times as much, as what a float of this size has above it.
        let float = |bits: u64, size: f64| f64::from_bits(size.to_bits() | bits) - size;
        for i in 0..units.min(TOGETHER) {
            losses[i] = f32::from_bits(OwnGrid::loss_bits(largest[i], scales[i]));
            let sum = noise_of(hh[i].cast_unsigned().into(), hl[i].into(), ll[i].into());
            // The square of the grid's step, which a float holds.
            let square = f64::from_bits(u64::from(2 * (scales[i].to_bits() >> 23) + 1023 - 2 * 151) << 52);
            let bits = sum.cast_unsigned();
            // Rounded once; in a form that every vector unit has.
            let rounded = float(bits >> 32, 2f64.powi(84)) + float(bits & 0xffff_ffff, 2f64.powi(52));
            (noise[i], rounded_noise[i]) = (sum, rounded * square);
            have_sums &= largest[i] < OwnGrid::MOST;
        }
        have_sums
    }
}
