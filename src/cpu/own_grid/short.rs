//! Short units side by side, one to a lane: their scales and codes, and the loss.

use super::super::code::{WHOLE, are_ordinary, mask, quotients};
use super::super::scale::{plain_scales, plain_zero_points};
use super::super::simd::{self, ASK_BYTES, Floats, Kernel, LANES, Square, Unit, Whole};
use super::super::units::{key, key_value};
use super::{Grids, Lanes, OwnGrid, Steps, noise_of};
use crate::loss::{Adder, Terms, UnitLoss};
use crate::scheme::Scheme;

/// Vectors of columns that are taken at once: their codes are the bytes of one.
const VECTORS: usize = 4;

/// The most elements of such a unit: sums of more do not fit in a lane's 32 bits.
pub(in super::super) const SHORT_ELEMS: usize = 128;

/// The most rounds of [`LANES`] units that are taken at once, so that none waits for another's scales.
const ROUNDS: usize = 4;
const TOGETHER: usize = ROUNDS * LANES;

/// How many of units that follow are best taken at once: what they are made of fits in a core's first cache.
pub(in super::super) fn together(units: usize, unit_elems: usize) -> usize {
    let most = LANES * (SHORT_ELEMS / unit_elems.next_multiple_of(LANES)).clamp(1, ROUNDS);
    // Whole rounds first.
    if units < LANES { units } else { units.min(most) / LANES * LANES }
}

/// The loss of each unit.
struct Each {
    largest: [f32; TOGETHER],
    noise: [i64; TOGETHER],
    /// The noise as what it is, rounded once.
    rounded_noise: [f64; TOGETHER],
}

/// Short units that are taken together, and their sums.
pub(in super::super) struct Short {
    x: [f32; LANES * SHORT_ELEMS],
    columns: [Square; SHORT_ELEMS / LANES],
    magnitudes: [Magnitudes; ROUNDS],
    keys: [Keys; ROUNDS],
    scales: [f32; TOGETHER],
    zero_points: [i32; TOGETHER],
    lanes: [Lanes; ROUNDS],
    rounds: usize,
    each: Each,
    totals: Totals,
}

impl Short {
    pub(in super::super) fn new() -> Self {
        Self {
            x: [0.0; LANES * SHORT_ELEMS],
            columns: std::array::from_fn(|_| Square([[0.0; LANES]; LANES])),
            magnitudes: [Magnitudes::NONE; ROUNDS],
            keys: [Keys::NONE; ROUNDS],
            scales: [1.0; TOGETHER],
            zero_points: [0; TOGETHER],
            lanes: [Lanes::default(); ROUNDS],
            rounds: 0,
            each: Each { largest: [0.0; TOGETHER], noise: [0; TOGETHER], rounded_noise: [0.0; TOGETHER] },
            totals: Totals::default(),
        }
    }

    /// Finds scales, zero points, codes of at most 8 bits, and the sums of units of the same number of elements, as many as come
    /// [`together`]; whether it has. It has not where [`find`](Self::find) would not, or something is not ordinary; nor of units
    /// that do not fill vectors.
    pub(in super::super) fn make(
        &mut self,
        scheme: Scheme,
        x: &[f32],
        unit_elems: usize,
        scales: &mut [f32],
        zero_points: &mut [i32],
        codes: &mut [u8],
    ) -> bool {
        let (units, squares) = (scales.len(), unit_elems / LANES);
        // As many units may be fewer elements: those of a row whose last one is short.
        let are_whole =
            x.len() == units * unit_elems && unit_elems.is_multiple_of(LANES) && units.is_multiple_of(LANES);
        if !are_whole || units > TOGETHER || x.len() > LANES * SHORT_ELEMS {
            return false;
        }
        let Self { columns, magnitudes, keys, scales: s, zero_points: z, lanes, rounds, each, .. } = self;
        *rounds = units / LANES;
        let (columns, lanes) = (&mut columns[..*rounds * squares], &mut lanes[..*rounds]);
        // What one kernel stores and the next one loads stays in place: a copy in between, by parts, would be waited for.
        let ends = if scheme.mapping().is_by_magnitude() {
            let see = &mut magnitudes[..*rounds];
            simd::run(Turn { x, squares, columns, see });
            Ends::OfMagnitude(see)
        } else {
            let see = &mut keys[..*rounds];
            simd::run(Turn { x, squares, columns, see });
            Ends::Both(see)
        };
        let (s, z) = (&mut s[..units], &mut z[..units]);
        if !simd::run(Scale { ends, scheme, scales: s, zero_points: z }) {
            return false;
        }
        scales.copy_from_slice(s);
        if !zero_points.is_empty() {
            zero_points.copy_from_slice(z);
        }
        let gather = Gather::<true, true> { columns, squares, scheme, s, z, x, codes, lanes };
        if !simd::run(gather) {
            simd::run(Gather::<true, false> { columns, squares, scheme, s, z, x: &[], codes, lanes });
        }
        simd::run(Tell { lanes, scales: s, each })
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
        let (units, squares) = (scales.len(), unit_elems.div_ceil(LANES));
        if !scales.iter().all(|&s| is_scale(s)) {
            return false;
        }
        let Self { x: padded, columns, scales: s, zero_points: z, lanes, rounds, each, .. } = self;
        *rounds = units.div_ceil(LANES);
        let all = *rounds * LANES;
        s[..units].copy_from_slice(scales);
        z[..zero_points.len()].copy_from_slice(zero_points);
        let lane_elems = squares * LANES;
        let x = if x.len() == all * lane_elems {
            x
        } else {
            // Zeros add nothing, with any scale.
            let padded = &mut padded[..all * lane_elems];
            padded.fill(0.0);
            for (padded, x) in padded.chunks_mut(lane_elems).zip(x.chunks(unit_elems)) {
                padded[..x.len()].copy_from_slice(x);
            }
            padded
        };
        let (columns, lanes) = (&mut columns[..*rounds * squares], &mut lanes[..*rounds]);
        simd::run(Turn { x, squares, columns, see: &mut [Nothing; ROUNDS] });
        let (s, z) = (&s[..all], &z[..all]);
        simd::run(Gather::<false, false> { columns, squares, scheme, s, z, x: &[], codes: &mut [], lanes });
        simd::run(Tell { lanes, scales: s, each })
    }

    /// Adds up what was found.
    pub(in super::super) fn add_to(&mut self, adder: &mut Adder, losses: &mut [UnitLoss]) {
        let Self { scales, lanes, rounds, each, totals, .. } = self;
        totals.add(&Units { lanes: &lanes[..*rounds], scales, each }, adder);
        for ((loss, &max_abs_error), &noise) in losses.iter_mut().zip(&each.largest).zip(&each.rounded_noise) {
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

/// Turns rows of squares, so many to a unit, into columns, and sees each.
struct Turn<'a, S> {
    x: &'a [f32],
    squares: usize,
    columns: &'a mut [Square],
    /// Of each round.
    see: &'a mut [S],
}

/// What is found of columns while they are made.
trait See: Copy {
    /// Having seen no column.
    const NONE: Self;

    fn see(&mut self, unit: impl Unit, column: Floats);
}

#[derive(Clone, Copy)]
struct Nothing;

impl See for Nothing {
    const NONE: Self = Self;

    #[inline(always)]
    fn see(&mut self, _: impl Unit, _: Floats) {}
}

/// Each lane's largest pattern of a magnitude.
#[derive(Clone, Copy)]
struct Magnitudes(Whole);

impl See for Magnitudes {
    const NONE: Self = Self([0; LANES]);

    #[inline(always)]
    fn see(&mut self, unit: impl Unit, column: Floats) {
        self.0 = unit.larger(self.0, unit.magnitudes(column));
    }
}

/// Each lane's largest inverted [`key`], and key.
#[derive(Clone, Copy)]
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
        let Self { x, squares, columns, see } = self;
        let (rounds, mut see) = (x.as_chunks().0.chunks_exact(LANES * squares), see.iter_mut());
        for (rows, columns) in rounds.zip(columns.chunks_exact_mut(squares)) {
            let rows: [&[Floats]; LANES] = std::array::from_fn(|i| &rows[i * squares..][..squares]);
            let mut seen = S::NONE;
            for (square, columns) in columns.iter_mut().enumerate() {
                unit.columns(std::array::from_fn(|i| &rows[i][square]), columns);
                for column in &columns.0 {
                    seen.see(unit, *column);
                }
            }
            if let Some(see) = see.next() {
                *see = seen;
            }
        }
    }
}

/// What [`Turn`] found of each unit.
enum Ends<'a> {
    OfMagnitude(&'a [Magnitudes]),
    Both(&'a [Keys]),
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
    fn run(self, unit: impl Unit) -> bool {
        let Self { ends, scheme, scales, zero_points } = self;
        let n = scales.len().min(TOGETHER);
        let scales = &mut scales[..n];
        let (mut lo, mut hi) = ([0.0; TOGETHER], [0.0; TOGETHER]);
        let rounds = lo.as_chunks_mut().0.iter_mut().zip(hi.as_chunks_mut::<LANES>().0);
        match ends {
            Ends::OfMagnitude(see) => {
                for ((lo, hi), Magnitudes(most)) in rounds.zip(see) {
                    // Of magnitudes these are patterns.
                    *hi = bytemuck::cast(*most);
                    *lo = unit.product(*hi, [-1.0; LANES]);
                }
            }
            Ends::Both(see) => {
                for ((lo, hi), Keys([least, most])) in rounds.zip(see) {
                    (*lo, *hi) = (least.map(|least| key_value(!least)), most.map(key_value));
                }
            }
        }
        let (lo, hi) = (&mut lo[..n], &mut hi[..n]);
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

/// What lanes gather of columns; `ORDINARY` values are not clipped, and their codes are told. Whether they are what the values
/// become: a `GUESS` is a quotient's, but for the last places, and the loss tells of each.
struct Gather<'a, const ORDINARY: bool, const GUESS: bool> {
    columns: &'a [Square],
    squares: usize,
    scheme: Scheme,
    s: &'a [f32],
    z: &'a [i32],
    /// Like the columns, in rows; of these memory is asked for ahead.
    x: &'a [f32],
    codes: &'a mut [u8],
    /// Of each round.
    lanes: &'a mut [Lanes],
}

impl<const ORDINARY: bool, const GUESS: bool> Kernel for Gather<'_, ORDINARY, GUESS> {
    type Output = bool;

    #[inline(always)]
    fn run(self, unit: impl Unit) -> bool {
        let Self { columns, squares, scheme, s, z, x, codes, lanes } = self;
        let in_each_byte = |byte: i32| (byte & 0xff).wrapping_mul(0x0101_0101);
        let mask = [in_each_byte(mask(scheme).cast_signed()); LANES];
        let mut squares_of_x = x.as_chunks::<{ LANES * LANES }>().0.iter();
        let mut codes = codes.as_chunks_mut::<LANES>().0.chunks_exact_mut(LANES * squares);
        let (mut are_nearest, rounds) = (true, s.as_chunks().0.iter().zip(z.as_chunks::<LANES>().0));
        for ((columns, lanes), (s, z)) in columns.chunks_exact(squares).zip(lanes).zip(rounds) {
            let (mut first, mut last, mut per_s) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
            for i in 0..LANES {
                if !ORDINARY {
                    (first[i], last[i]) = quotients(scheme.qmin(), scheme.qmax(), z[i]);
                }
                per_s[i] = 1.0 / s[i];
            }
            let (plus, grid, none) = (z.map(in_each_byte), Grids::of(s), Lanes::default());
            let mut each = Gathering::<ORDINARY, GUESS> { grid, s: *s, per_s, first, last, plus, mask, lanes: none };
            let mut codes = codes.next();
            for (square, square_columns) in columns.iter().enumerate() {
                let [a, b, c, d]: &[[Floats; VECTORS]; LANES / VECTORS] = bytemuck::cast_ref(&square_columns.0);
                let lines = squares_of_x.next().unwrap_or(&[0.0; LANES * LANES]);
                let [e, f, g, h]: &[[f32; VECTORS * LANES]; LANES / VECTORS] = bytemuck::cast_ref(lines);
                // Said four times, so that codes stay in registers.
                let (a, b) = (each.add(unit, a, e), each.add(unit, b, f));
                let (c, d) = (each.add(unit, c, g), each.add(unit, d, h));
                if let Some(codes) = &mut codes {
                    for (i, row) in unit.byte_rows([a, b, c, d]).into_iter().enumerate() {
                        codes[i * squares + square] = row;
                    }
                }
            }
            *lanes = each.lanes;
            are_nearest &= !GUESS || lanes.are_codes_nearest(s, scheme);
        }
        are_nearest
    }
}

/// See [`Gather`].
struct Gathering<const ORDINARY: bool, const GUESS: bool> {
    grid: Grids,
    s: Floats,
    per_s: Floats,
    first: Floats,
    last: Floats,
    plus: Whole,
    mask: Whole,
    lanes: Lanes,
}

impl<const ORDINARY: bool, const GUESS: bool> Gathering<ORDINARY, GUESS> {
    /// Adds columns; of ordinary ones the codes are told, a byte each. Of guesses memory is asked for meanwhile, ahead of a line.
    #[inline(always)]
    fn add(&mut self, unit: impl Unit, x: &[Floats; VECTORS], line: &[f32; VECTORS * LANES]) -> Whole {
        if GUESS {
            simd::ask_ahead::<4>(line, ASK_BYTES);
        }
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
        let add_products = |to: &mut Whole, a, b| unit.add_products(to, a, b);
        self.lanes.add::<false, ORDINARY, VECTORS>(unit, &self.grid, add_products, x, &steps);
        if ORDINARY {
            let [a, b, c, d] = steps.whole;
            unit.bytes([unit.pairs([a, c]), unit.pairs([b, d])], self.plus, self.mask)
        } else {
            [0; LANES]
        }
    }
}

/// What lanes say of each unit; whether each has its sums.
struct Tell<'a> {
    lanes: &'a [Lanes],
    scales: &'a [f32],
    each: &'a mut Each,
}

impl Kernel for Tell<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self, _: impl Unit) -> bool {
        let (Self { lanes, scales, each }, mut have_sums) = (self, true);
        let Each { largest: to_largest, noise: to_noise, rounded_noise: to_rounded } = each;
        let to_noise = to_noise.as_chunks_mut::<LANES>().0.iter_mut().zip(to_rounded.as_chunks_mut::<LANES>().0);
        let to = to_largest.as_chunks_mut::<LANES>().0.iter_mut().zip(to_noise);
        for ((lanes, s), (to_largest, (to_noise, to_rounded))) in
            lanes.iter().zip(scales.as_chunks::<LANES>().0).zip(to)
        {
            let Lanes { largest, sums: [_, hh, ll, _, hl, ..], .. } = lanes;
            for i in 0..LANES {
                to_largest[i] = f32::from_bits(OwnGrid::loss_bits(largest[i], s[i]));
                let noise = noise_of(hh[i].cast_unsigned().into(), hl[i].into(), ll[i].into());
                // The square of the grid's step, which a float holds.
                let square = f64::from_bits(u64::from(2 * (s[i].to_bits() >> 23) + 1023 - 2 * 151) << 52);
                (to_noise[i], to_rounded[i]) = (noise, noise as f64 * square);
                have_sums &= largest[i] < OwnGrid::MOST;
            }
        }
        have_sums
    }
}

/// Sums of units whose scales are of much the same size, each lane for itself, before they go to wider ones.
///
/// They count in steps of the least exponent: a unit's, whose scale is `m 2^(e + d)`, are times `2^d` and `4^d`, those of codes
/// times `m` and `m^2` too. So are the two parts of a number that would not fit in 64 bits.
#[derive(Default)]
struct Totals {
    exponent_field: i32,
    rounds: usize,
    largest: [i32; LANES],
    /// Of losses, of the lower and upper 32 bits of noise, of the lower 24 bits and the others of codes, of `h q` and `l q`.
    sums: [[i64; LANES]; 7],
}

impl Totals {
    /// How many exponents there are: `m 4^d` fits in 30 bits.
    const EXPONENTS: u32 = 4;
    /// Sums of `h q` are below 2^27, and so 2^57 with what they are times: of so many rounds they fit.
    const ROUNDS: usize = 63;

    fn add(&mut self, units: &Units<'_>, adder: &mut Adder) {
        let mut left = [[-1; LANES]; ROUNDS];
        loop {
            if self.rounds + units.lanes.len() > Self::ROUNDS {
                self.flush(adder);
            }
            self.rounds += units.lanes.len();
            if simd::run(Add { units, left: &mut left, totals: &mut *self }) {
                return;
            }
            self.flush(adder);
            // The next ones may be smaller.
            let scales =
                units.scales.iter().zip(left[..units.lanes.len()].as_flattened()).filter(|(_, left)| **left != 0);
            let exponents = scales.map(|(s, _)| (s.to_bits() >> 23).cast_signed());
            self.exponent_field = exponents.min().unwrap_or(1) - 1;
        }
    }

    fn flush(&mut self, adder: &mut Adder) {
        let sums = self.sums.map(|lanes| lanes.into_iter().map(i128::from).sum::<i128>());
        let [abs, noise_low, noise_high, codes_low, codes_high, hq, lq] = sums;
        let terms = Terms {
            abs,
            noise: noise_low + (noise_high << 32),
            codes: codes_low + (codes_high << 24),
            cross: (hq << 12) + lq,
        };
        let largest = self.largest.into_iter().fold(0, i32::max);
        adder.add_terms(self.exponent_field - 150, largest.cast_unsigned(), &terms);
        *self = Self { exponent_field: self.exponent_field, ..Self::default() };
    }
}

/// What [`Totals`] are of.
struct Units<'a> {
    /// Of each round.
    lanes: &'a [Lanes],
    scales: &'a [f32; TOGETHER],
    each: &'a Each,
}

/// Adds to each lane. What is added to is not what anything is made of, as compilers see then.
macro_rules! plus {
    ($to:ident, |$i:ident| $of_lane:expr) => {
        let mut sums = *$to;
        for $i in 0..LANES {
            sums[$i] += $of_lane;
        }
        *$to = sums;
    };
}

/// Adds what has one of the exponents, of units that are left; whether none is.
struct Add<'a> {
    units: &'a Units<'a>,
    /// Of those all bits are set.
    left: &'a mut [Whole; ROUNDS],
    totals: &'a mut Totals,
}

impl Kernel for Add<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self, _: impl Unit) -> bool {
        let Self { units: Units { lanes, scales, each }, left, totals } = self;
        let (mut any_left, exponent_field) = (0, totals.exponent_field);
        let rounds = left.iter_mut().zip(scales.as_chunks().0).zip(each.largest.as_chunks().0);
        for ((lanes, ((left, scales), largest)), noise) in lanes.iter().zip(rounds).zip(each.noise.as_chunks().0) {
            let ([abs, _, _, qq, _, hq, lq], scales, largest): (_, Floats, Floats) = (lanes.sums, *scales, *largest);
            let (noise, mut now_left): ([i64; LANES], _) = (*noise, *left);
            let ([mut power, mut square, mut digits, mut times], mut codes) = ([[0; LANES]; 4], [0; LANES]);
            for i in 0..LANES {
                let bits = scales[i].to_bits();
                let above = (bits >> 23).wrapping_sub(exponent_field.cast_unsigned());
                let takes = if above < Totals::EXPONENTS { now_left[i] } else { 0 };
                // Nothing has no exponent.
                now_left[i] &= if abs[i] | qq[i] == 0 { 0 } else { !takes };
                any_left |= now_left[i];
                power[i] = (1 << (above & 31)) & takes.cast_unsigned();
                square[i] = power[i] * power[i];
                digits[i] = bits & 0x007f_ffff | 1 << 23;
                times[i] = digits[i] * square[i];
            }
            *left = now_left;
            for i in 0..LANES {
                codes[i] = u64::from(qq[i].cast_unsigned()) * u64::from(digits[i]);
            }
            let product = |a: u64, b: u32| ((a & 0xffff_ffff) * u64::from(b)).cast_signed();
            let signed_product = |a: i32, b: u32| i64::from(a) * i64::from(b.cast_signed());
            let Totals { largest: to_largest, sums, .. } = &mut *totals;
            let [to_abs, to_noise, to_high_noise, to_codes, to_high_codes, to_hq, to_lq] = sums;
            let mut all_largest = *to_largest;
            for i in 0..LANES {
                all_largest[i] = all_largest[i].max(largest[i].to_bits().cast_signed());
            }
            *to_largest = all_largest;
            plus!(to_abs, |i| product(abs[i].cast_unsigned().into(), power[i]));
            plus!(to_noise, |i| product(noise[i].cast_unsigned(), square[i]));
            plus!(to_high_noise, |i| product(noise[i].cast_unsigned() >> 32, square[i]));
            plus!(to_codes, |i| product(codes[i] & 0xff_ffff, times[i]));
            plus!(to_high_codes, |i| product(codes[i] >> 24, times[i]));
            plus!(to_hq, |i| signed_product(hq[i], times[i]));
            plus!(to_lq, |i| signed_product(lq[i], times[i]));
        }
        any_left == 0
    }
}
