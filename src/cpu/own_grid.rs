//! The loss of codes that come of their values, on the grid of their scale: sums that vector units gather in lanes.

use super::code::{Coder, Field};
use super::loss::SUM_ELEMS;
use super::simd::{self, Kernel, LANES, Unit};
use crate::loss::UnitSums;
use crate::scheme::CodeType;

/// Units whose sums are computed together.
pub(super) const TOGETHER: usize = 16;

/// Room for what units that are taken together have of [`Lanes`], and for what that makes of each.
#[derive(Default)]
pub(super) struct Room {
    largest: Aligned<[[i32; LANES]; TOGETHER]>,
    most: [i32; TOGETHER],
    sums: [[i32; SUMS + 1]; TOGETHER],
}

impl Room {
    /// Those of a unit with this scale, once [`OwnSumsOfEach`] has found them.
    pub(super) fn sums(&self, unit: usize, s: f32) -> UnitSums {
        let [abs, hh, ll, qq, hl, hq, lq, _] = self.sums[unit].map(i64::from);
        // None of the others fills 32 bits.
        let sums = [abs, hh & 0xffff_ffff, ll, qq, hl, hq, lq];
        unit_sums(self.most[unit], sums, [0; WIDE_SUMS], s)
    }
}

/// Where vectors lie in whole lines of a cache: they are read again at once.
#[derive(Default)]
#[repr(align(64))]
struct Aligned<T>(T);

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
    fn add<const WIDE: bool>(&mut self, unit: impl Unit, grid: OwnGrid, x: &[f32; CHUNK], steps: [[i32; LANES]; 2]) {
        let mut d = [[0; LANES]; 2];
        let [abs, hh, ll, qq, hl, hq, lq] = &mut self.sums;
        // Each loop is short enough to become one of vectors.
        for half in 0..2 {
            let (d, mut errors) = (&mut d[half], [0.0; LANES]);
            for i in 0..LANES {
                errors[i] = steps[half][i] as f32 * grid.s - x[LANES * half + i] * grid.per_step;
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
        unit.add_products(hh, h, h);
        unit.add_products(ll, l, l);
        unit.add_products(qq, q, q);
        unit.add_products(hl, h, l);
        unit.add_products(hq, h, q);
        unit.add_products(lq, l, q);
        if WIDE {
            let [pp, pq, hp, lp] = &mut self.wide_sums;
            let p = pairs(steps, |q| q >> 8);
            unit.add_products(pp, p, p);
            unit.add_products(pq, p, q);
            unit.add_products(hp, h, p);
            unit.add_products(lp, l, p);
        }
    }
}

/// The steps that codes become.
#[inline(always)]
fn steps_of<T: Field>(codes: &[T; CHUNK], steps: impl Fn(u32) -> i32) -> [[i32; LANES]; 2] {
    let mut of = [[0; LANES]; 2];
    for (of, code) in of.as_flattened_mut().iter_mut().zip(codes) {
        *of = steps(code.bits());
    }
    of
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

/// What [`Lanes`] make together.
#[inline(always)]
fn unit_sums(largest: i32, sums: [i64; SUMS], wide_sums: [i64; WIDE_SUMS], s: f32) -> UnitSums {
    let ([abs, hh, ll, qq, hl, hq, lq], [pp, pq, hp, lp]) = (sums, wide_sums);
    let unsigned = |sum: i64| u128::from(sum.cast_unsigned());
    UnitSums {
        max_bits: OwnGrid::loss_bits(largest, s),
        abs: unsigned(abs),
        noise: unsigned((hh << 24) + (hl << 13) + ll),
        codes: unsigned((pp << 16) + (pq << 9) + qq),
        cross: ((hp << 20) + (lp << 8) + (hq << 12) + lq).into(),
    }
}

/// [`OwnSums`] of each of some whole units of so many [`CHUNK`]s, with codes of at most 8 bits; whether every unit has them.
pub(super) struct OwnSumsOfEach<'a, T, S> {
    pub(super) x: &'a [f32],
    pub(super) codes: &'a [T],
    /// Without zero points.
    pub(super) steps: S,
    pub(super) chunks: usize,
    pub(super) scales: &'a [f32],
    pub(super) zero_points: &'a [i32],
    pub(super) room: &'a mut Room,
}

/// Elements of a unit that are taken at once.
pub(super) const CHUNK: usize = 32;

impl<T: Field, S: Fn(u32) -> i32> Kernel for OwnSumsOfEach<'_, T, S> {
    type Output = bool;

    #[inline(always)]
    fn run(self, vector_unit: impl Unit) -> bool {
        // A length that the compiler knows is a loop less for each unit. Of more, a unit's sums do not fit in 32 bits.
        match self.chunks {
            1 => self.sums::<1>(vector_unit),
            2 => self.sums::<2>(vector_unit),
            3 => self.sums::<3>(vector_unit),
            4 => self.sums::<4>(vector_unit),
            _ => false,
        }
    }
}

impl<T: Field, S: Fn(u32) -> i32> OwnSumsOfEach<'_, T, S> {
    #[inline(always)]
    fn sums<const CHUNKS: usize>(self, vector_unit: impl Unit) -> bool {
        let Self { x, codes, steps, scales, zero_points, room, .. } = self;
        if !scales.iter().fold(true, |all, &s| all & OwnGrid::has(s)) {
            return false;
        }
        let chunks = x.as_chunks::<CHUNK>().0.as_chunks::<CHUNKS>().0.iter();
        let units = chunks.zip(codes.as_chunks::<CHUNK>().0.as_chunks::<CHUNKS>().0).zip(scales);
        for (unit, (((x, codes), &s), (largest, sums))) in
            units.zip(room.largest.0.iter_mut().zip(&mut room.sums)).enumerate()
        {
            let (z, grid) = (zero_points.get(unit).copied().unwrap_or(0), OwnGrid::of(s));
            let mut lanes = Lanes::default();
            let steps = |bits| steps(bits) - z;
            for (x, codes) in x.iter().zip(codes) {
                lanes.add::<false>(vector_unit, grid, x, steps_of(codes, steps));
            }
            *largest = lanes.largest;
            let [abs, hh, ll, qq, hl, hq, lq] = lanes.sums;
            let all = Aligned([abs, hh, ll, qq, hl, hq, lq, [0; LANES]]);
            let eights: Aligned<[i32; 64]> = halves(all.0.as_flattened(), i32::wrapping_add);
            let fours: Aligned<[i32; 32]> = halves(&eights.0, i32::wrapping_add);
            let twos: Aligned<[i32; 16]> = halves(&fours.0, i32::wrapping_add);
            *sums = halves::<8>(&twos.0, i32::wrapping_add).0;
        }
        // What lanes make together is found by halves, of neighbours, of what neighbours make and so on, each a loop over all.
        let eights: Aligned<[i32; 8 * TOGETHER]> = halves(room.largest.0.as_flattened(), i32::max);
        let fours: Aligned<[i32; 4 * TOGETHER]> = halves(&eights.0, i32::max);
        let twos: Aligned<[i32; 2 * TOGETHER]> = halves(&fours.0, i32::max);
        room.most = halves(&twos.0, i32::max).0;
        room.most[..scales.len()].iter().fold(true, |all, &size| all & (size < OwnGrid::MOST))
    }
}

#[inline(always)]
fn halves<const HALF: usize>(lanes: &[i32], merge: impl Fn(i32, i32) -> i32) -> Aligned<[i32; HALF]> {
    let mut merged = Aligned([0; HALF]);
    for (to, &[a, b]) in merged.0.iter_mut().zip(&lanes.as_chunks().0[..HALF]) {
        *to = merge(a, b);
    }
    merged
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
        let ((chunks, x), (of_chunks, rest)) = (x.as_chunks(), codes.as_chunks::<CHUNK>());
        for (x, codes) in chunks.iter().zip(of_chunks) {
            simd::prefetch(x, ahead_bytes);
            simd::prefetch(x, ahead_bytes + 64);
            lanes.add::<WIDE>(unit, grid, x, steps_of(codes, &steps));
        }
        if !x.is_empty() {
            let (mut last, mut last_steps) = ([0.0; CHUNK], [0; CHUNK]);
            last[..x.len()].copy_from_slice(x);
            last_steps.iter_mut().zip(rest).for_each(|(step, code)| *step = steps(code.bits()));
            lanes.add::<WIDE>(unit, grid, &last, bytemuck::cast(last_steps));
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
