//! Range units that fit in a core's cache: range, scale and codes of one after the other, in one read of the tensor.

use super::code::{Coder, Made, ToBytes, WHOLE, are_ordinary, quotients};
use super::fold::{BLOCK_ELEMS, FEW_ELEMS, TASK_ELEMS, Values, blocks, blocks_of, runs};
use super::loss;
use super::min_max::Part;
use super::scale::{plain_scales, plain_zero_points, scale_and_zero_point};
use super::simd::{self, ASK_BYTES, Ask, Kernel, Output, Unit};
use crate::float_env;
use crate::layout::RangeUnits;
use crate::loss::UnitLoss;
use crate::quantized::{Counts, Spec};
use crate::scheme::{Mapping, Scheme};
use crate::tensor::Tensor;
use std::ops::Range;

/// The most elements of a unit that is read once: with its codes it fits in a core's second cache.
const CACHED_ELEMS: usize = 1 << 16;
/// Elements of units that are taken together.
const TOGETHER_ELEMS: usize = 1024;

/// The shortest stretch with whole range units that begins and ends with a whole byte of codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) elems: usize,
    pub(super) units: usize,
}

/// `None` where a unit comes more than once, or a stretch does not fit in the cache.
pub(super) fn stretch(units: RangeUnits, row_elems: usize, code_bits: u32) -> Option<Stretch> {
    let RangeUnits { outer, inner_elems, ragged_row_elems, .. } = units;
    if outer != 1 || units.elems() == 0 {
        return None;
    }
    // A byte of codes ends with its row.
    let whole_bytes = code_bits != 4 || inner_elems.is_multiple_of(row_elems) || inner_elems.is_multiple_of(2);
    let stretch = if ragged_row_elems == 0 && whole_bytes {
        Stretch { elems: inner_elems, units: 1 }
    } else {
        Stretch { elems: row_elems, units: row_elems.div_ceil(inner_elems) }
    };
    Some(stretch).filter(|stretch| stretch.elems <= CACHED_ELEMS)
}

/// What a task reads and writes.
pub(super) struct Parcel<'a, T> {
    pub(super) elems: Range<usize>,
    pub(super) out: &'a mut [T],
    pub(super) scales: &'a mut [f32],
    /// One per unit, or none.
    pub(super) zero_points: &'a mut [i32],
    /// The same.
    pub(super) losses: &'a mut [UnitLoss],
}

impl<'a, T> Parcel<'a, T> {
    /// Cuts a tensor into tasks of whole stretches, each of so many items of `out`.
    pub(super) fn tasks(
        units: RangeUnits,
        stretch: Stretch,
        mut out: &'a mut [T],
        stretch_items: usize,
        (mut scales, mut zero_points, mut losses): PerUnit<'a>,
    ) -> Vec<Self> {
        fn take<'a, V>(from: &mut &'a mut [V], n: usize) -> &'a mut [V] {
            let all = std::mem::take(from);
            let (now, later) = all.split_at_mut(n.min(all.len()));
            *from = later;
            now
        }
        let stretches = (TASK_ELEMS / stretch.elems).max(1);
        let task_elems = stretches * stretch.elems;
        let n = units.elems();
        (0..n)
            .step_by(task_elems)
            .map(|start| Parcel {
                elems: start..(start + task_elems).min(n),
                out: take(&mut out, stretches * stretch_items),
                scales: take(&mut scales, stretches * stretch.units),
                zero_points: take(&mut zero_points, stretches * stretch.units),
                losses: take(&mut losses, stretches * stretch.units),
            })
            .collect()
    }
}

/// Scales, and zero points and losses, if any, of each range unit.
pub(super) type PerUnit<'a> = (&'a mut [f32], &'a mut [i32], &'a mut [UnitLoss]);

/// What tasks count, and the loss.
pub(super) type CountsAndLoss = (Counts, loss::Found);

/// One thread's making of something of every value, parcel after parcel: finds scales and zero points first.
pub(super) struct Maker<'a, T> {
    values: Values<'a>,
    spec: &'a Spec,
    units: RangeUnits,
    past_caches: bool,
    ieee: bool,
    /// Made where it is used first.
    room: Option<Box<Room>>,
    counts: Counts,
    adding: Option<(loss::Adding<T>, Box<loss::Tally>)>,
}

impl<'a, T: Made> Maker<'a, T> {
    pub(super) fn new(
        x: Tensor<'a>,
        spec: &'a Spec,
        units: RangeUnits,
        past_caches: bool,
        adding: Option<loss::Adding<T>>,
    ) -> Self {
        let (values, ieee) = (Values::new(x), float_env::is_ieee_default());
        let adding = adding.map(|adding| (adding, Box::new(loss::Tally::new())));
        Self { values, spec, units, past_caches, ieee, room: None, counts: Counts::default(), adding }
    }

    pub(super) fn finish(self) -> CountsAndLoss {
        (self.counts, self.adding.map(|(_, tally)| tally.finish()).unwrap_or_default())
    }

    pub(super) fn encode(&mut self, parcel: Parcel<'_, T>) {
        let out = Output::new(&mut *parcel.out, self.past_caches);
        // The loss would rather have more at a time.
        let block_elems = if self.adding.is_some() { BLOCK_ELEMS } else { out.block_elems() };
        let (elems, per_unit) = (parcel.elems, (parcel.scales, parcel.zero_points, parcel.losses));
        if self.ieee && self.units.inner_elems < FEW_ELEMS {
            self.encode_short(elems, block_elems, out, per_unit);
        } else {
            self.encode_long(elems, block_elems, out, per_unit);
        }
    }

    fn encode_short(
        &mut self,
        elems: Range<usize>,
        block_elems: usize,
        mut out: Output<'_, T>,
        (scales, zero_points, losses): PerUnit<'_>,
    ) {
        let Self { values, spec, units, room, counts, adding, .. } = self;
        let room = room.get_or_insert_with(|| Box::new(Room::new()));
        let (first, first_unit) = (elems.start, units.unit_of(elems.start));
        // Units, or rows whose last unit is short.
        let whole = if units.ragged_row_elems == 0 { units.inner_elems } else { units.ragged_row_elems };
        let whole_units = whole.div_ceil(units.inner_elems);
        let step = (block_elems / whole).max(1);
        let mut unit = 0;
        for start in elems.clone().step_by(step * whole) {
            let block = start..(start + step * whole).min(elems.end);
            let n = block.len() / whole * whole_units;
            let x = values.get(block.clone());
            let scales = &mut scales[unit..unit + n];
            let zero_points = if zero_points.is_empty() { &mut [] } else { &mut zero_points[unit..unit + n] };
            let losses = if losses.is_empty() { &mut [] } else { &mut losses[unit..unit + n] };
            let block_unit = first_unit + unit;
            unit += n;
            out.write(block.start - first..block.end - first, |out| {
                let mut next = 0;
                while next < n {
                    // Rows whose last unit is short go one by one, and units whose loss is asked for some at a time.
                    let piece = match (units.ragged_row_elems, &adding) {
                        (0, None) => n,
                        (0, Some(_)) => loss::together(n - next, units.inner_elems),
                        _ => whole_units,
                    };
                    let own = next..next + piece;
                    next = own.end;
                    let elems = own.start / whole_units * whole..own.end / whole_units * whole;
                    let (x, out) = (&x[elems.clone()], &mut out[elems]);
                    let scales = &mut scales[own.clone()];
                    let zero_points = if zero_points.is_empty() { &mut [] } else { &mut zero_points[own.clone()] };
                    if let Some((adding, tally)) = &mut *adding {
                        let few = &mut loss::Made {
                            scheme: spec.scheme,
                            x,
                            unit_elems: units.inner_elems,
                            scales: &mut *scales,
                            zero_points: &mut *zero_points,
                            codes: &mut *out,
                            losses: &mut losses[own.clone()],
                        };
                        if (adding.make)(tally, few) {
                            continue;
                        }
                    }
                    counts.merge(simd::run(Few {
                        x,
                        scheme: spec.scheme,
                        unit_elems: units.inner_elems,
                        scales: &mut *scales,
                        zero_points: &mut *zero_points,
                        room: &mut *room,
                        out: &mut *out,
                    }));
                    if let Some((adding, tally)) = &mut *adding {
                        let few = loss::Few {
                            scheme: spec.scheme,
                            first_unit: block_unit + own.start,
                            unit_elems: units.inner_elems,
                            scales,
                            zero_points,
                        };
                        (adding.few)(tally, &few, x, out, &mut losses[own]);
                    }
                }
            });
        }
    }

    fn encode_long(
        &mut self,
        elems: Range<usize>,
        block_elems: usize,
        mut out: Output<'_, T>,
        (scales, zero_points, losses): PerUnit<'_>,
    ) {
        let Self { values, spec, units, ieee, counts, adding, .. } = self;
        let (first, first_unit) = (elems.start, units.unit_of(elems.start));
        for run in runs(*units, elems) {
            let mut loss = loss::Part::default();
            let (unit, run_elems) = (run.unit - first_unit, run.elems.len());
            let mut part = Part::default();
            // Where the loss follows, that asks for memory meanwhile.
            let [ask, ask_again] = if adding.is_some() { [Ask::NOTHING; 2] } else { Ask::halves(4 * run_elems) };
            for block in blocks(run.elems.clone()) {
                part.merge(&Part::of(values.get(block), *ieee, ask));
            }
            let (s, z) = scale_and_zero_point(part.range(), spec.scheme, *ieee);
            scales[unit] = s;
            if let Some(to) = zero_points.get_mut(unit) {
                *to = z;
            }
            let coder = Coder { scheme: spec.scheme, saturate: spec.saturate, s, z, ieee: *ieee };
            let ordinary = part.is_finite() && coder.is_ordinary(part.range());
            for block in blocks_of(block_elems, run.elems) {
                let x = values.get(block.clone());
                out.write(block.start - first..block.end - first, |out| match (&*adding, ordinary) {
                    (Some((adding, _)), true) => (adding.make_run)(&mut loss, &coder, x, out, 4 * run_elems),
                    (Some((adding, _)), false) => {
                        counts.merge(coder.encode(x, out));
                        (adding.run)(&mut loss, &coder, x, out, 4 * run_elems);
                    }
                    (None, true) => coder.encode_ordinary(x, ask_again, out),
                    (None, false) => counts.merge(coder.encode(x, out)),
                });
            }
            if let Some((_, tally)) = &mut *adding {
                losses[unit] = tally.add(run.unit, &loss, s);
            }
        }
    }
}

/// Consecutive units of so many elements; the last may be short.
struct Few<'a, T> {
    x: &'a [f32],
    scheme: Scheme,
    unit_elems: usize,
    scales: &'a mut [f32],
    zero_points: &'a mut [i32],
    room: &'a mut Room,
    out: &'a mut [T],
}

impl<T: Made> Kernel for Few<'_, T> {
    type Output = Counts;

    #[inline(always)]
    fn run<const LANES: usize>(self, unit: impl Unit<LANES>) -> Counts {
        match self.unit_elems {
            32 => self.each::<32, LANES>(unit),
            64 => self.each::<64, LANES>(unit),
            128 => self.each::<128, LANES>(unit),
            _ => self.each::<0, LANES>(unit),
        }
    }
}

impl<T: Made> Few<'_, T> {
    /// With units of `N` elements, if that is not 0.
    #[inline(always)]
    fn each<const N: usize, const LANES: usize>(self, vector_unit: impl Unit<LANES>) -> Counts {
        let Self { x, scheme, unit_elems, scales, zero_points, room, out } = self;
        let mut counts = Counts::default();
        let step_elems = (TOGETHER_ELEMS / unit_elems).max(1) * unit_elems;
        let mut unit = 0;
        for (x, out) in x.chunks(step_elems).zip(out.chunks_mut(step_elems)) {
            let own = unit..unit + x.len().div_ceil(unit_elems);
            unit = own.end;
            let scales = &mut scales[own.clone()];
            let zero_points = if zero_points.is_empty() { &mut [] } else { &mut zero_points[own] };
            let step = Step { scheme, scales, zero_points, room: &mut *room };
            let whole = (<&[f32; TOGETHER_ELEMS]>::try_from(x), <&mut [T; TOGETHER_ELEMS]>::try_from(&mut *out));
            counts.merge(match whole {
                // All lengths are known to the compiler.
                (Ok(x), Ok(out)) if N != 0 => step.encode::<N, T, LANES>(vector_unit, N, x, out),
                _ => step.encode::<0, T, LANES>(vector_unit, unit_elems, x, out),
            });
        }
        counts
    }
}

/// What is made together.
struct Step<'a> {
    scheme: Scheme,
    scales: &'a mut [f32],
    zero_points: &'a mut [i32],
    room: &'a mut Room,
}

impl Step<'_> {
    #[inline(always)]
    fn encode<const N: usize, T: Made, const LANES: usize>(
        self,
        vector_unit: impl Unit<LANES>,
        unit_elems: usize,
        x: &[f32],
        out: &mut [T],
    ) -> Counts {
        let Self { scheme, scales, zero_points, room } = self;
        let Room { keys: [a, b], lo, hi, s_of, z_of, no_zero_points } = room;
        let n = x.len().div_ceil(unit_elems);
        let (lo, hi, scales) = (&mut lo[..n], &mut hi[..n], &mut scales[..n]);
        let finite = ends::<N>(x, unit_elems, scheme.mapping(), [a, b], lo, hi);
        plain_scales([lo, hi], scheme, scales);
        let zero_points = if zero_points.is_empty() { &mut no_zero_points[..n] } else { &mut zero_points[..n] };
        if scheme.has_zero_point() {
            plain_zero_points(lo, scales, scheme, zero_points);
        }
        let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
        let mut ordinary = finite;
        for (((&lo, &hi), &s), &z) in lo.iter().zip(&*hi).zip(&*scales).zip(&*zero_points) {
            ordinary &= are_ordinary(lo, hi, s, quotients(qmin, qmax, z));
        }
        let made = T::from_sum(scheme);
        if !ordinary {
            let mut counts = Counts::default();
            let each = x.chunks(unit_elems).zip(out.chunks_mut(unit_elems)).zip(scales).zip(zero_points);
            for (((x, out), &mut s), &mut z) in each {
                let coder = Coder { scheme, saturate: false, s, z, ieee: true };
                counts.merge(coder.encode(x, out));
            }
            return counts;
        }
        if N != 0 {
            let per_s = lo;
            // The ends have done their part.
            per_s.iter_mut().zip(&*scales).for_each(|(per_s, s)| *per_s = 1.0 / s);
            let units = x.as_chunks::<N>().0.iter().zip(scales).zip(per_s).zip(zero_points);
            for (out, (((x, &mut s), &mut per_s), &mut z)) in out.as_chunks_mut::<N>().0.iter_mut().zip(units) {
                encode_unit(vector_unit, x, (s, per_s, z), &made, ToBytes::new(scheme, z), out);
            }
            return Counts::default();
        }
        // Every element's own scale, so that there is one loop over all of them.
        spread(scales, unit_elems, s_of);
        if scheme.has_zero_point() {
            spread(zero_points, unit_elems, z_of);
            encode_each(x, s_of, z_of, made, out);
        } else {
            // The zeros that stand there are no loop's affair.
            encode_each(x, s_of, &[0; TOGETHER_ELEMS], made, out);
        }
        Counts::default()
    }
}

/// Codes by one scale and zero point; meanwhile asks for memory. A function, since its arguments are known not to overlap.
#[inline(always)]
fn encode_unit<const N: usize, T: Made, const LANES: usize>(
    unit: impl Unit<LANES>,
    x: &[f32; N],
    (s, per_s, z): (f32, f32, i32),
    made: impl Fn(f32, f32, i32) -> T,
    to_bytes: ToBytes,
    out: &mut [T; N],
) {
    for x in x.chunks(64) {
        if N < 64 { simd::ask_ahead::<2>(x, ASK_BYTES) } else { simd::ask_ahead::<4>(x, ASK_BYTES) }
    }
    if ToBytes::is_for::<T, LANES>() {
        return to_bytes.encode(unit, x, (s, per_s), out);
    }
    for i in 0..N {
        out[i] = made(unit.quotient(x[i], s, per_s) + WHOLE, s, z);
    }
}

/// Codes by each element's own scale and zero point; meanwhile asks for memory. A function, since its arguments are known
/// not to overlap.
#[inline(always)]
fn encode_each<T>(
    x: &[f32],
    s: &[f32; TOGETHER_ELEMS],
    z: &[i32; TOGETHER_ELEMS],
    made: impl Fn(f32, f32, i32) -> T,
    out: &mut [T],
) {
    const CHUNK: usize = Ask::ELEMS;
    let (chunks, rest) = x.as_chunks::<CHUNK>();
    let (out_chunks, out_rest) = out.as_chunks_mut::<CHUNK>();
    let ((s_chunks, _), (z_chunks, _)) = (s.as_chunks::<CHUNK>(), z.as_chunks::<CHUNK>());
    for (((x, out), s), z) in chunks.iter().zip(out_chunks).zip(s_chunks).zip(z_chunks) {
        Ask::ALL.beside(x);
        for i in 0..CHUNK {
            out[i] = made(x[i] / s[i] + WHOLE, s[i], z[i]);
        }
    }
    let done = x.len() - rest.len();
    for (((out, &v), &s), &z) in out_rest.iter_mut().zip(rest).zip(&s[done..]).zip(&z[done..]) {
        *out = made(v / s + WHOLE, s, z);
    }
}

/// Each value so many times.
#[inline(always)]
fn spread<V: Copy>(values: &[V], times: usize, out: &mut [V]) {
    for (out, &value) in out.chunks_mut(times).zip(values) {
        out.fill(value);
    }
}

/// Room for what is computed of units that are taken together.
struct Room {
    keys: [[i32; TOGETHER_ELEMS]; 2],
    lo: [f32; TOGETHER_ELEMS],
    hi: [f32; TOGETHER_ELEMS],
    /// Of each element.
    s_of: [f32; TOGETHER_ELEMS],
    z_of: [i32; TOGETHER_ELEMS],
    no_zero_points: [i32; TOGETHER_ELEMS],
}

impl Room {
    fn new() -> Self {
        let (floats, whole) = ([0.0; TOGETHER_ELEMS], [0; TOGETHER_ELEMS]);
        Self { keys: [whole; 2], lo: floats, hi: floats, s_of: floats, z_of: whole, no_zero_points: whole }
    }
}

/// The least key of what is not finite.
const ENDLESS: i32 = 0x7f80_0000;

/// As signed numbers keys order as the values do, and those of NaN lie beyond the infinities'.
#[inline(always)]
pub(super) fn key(v: f32) -> i32 {
    let bits = v.to_bits().cast_signed();
    bits ^ ((bits >> 31) & 0x7fff_ffff)
}

/// The value of a key; 0 is +0.
#[inline(always)]
pub(super) fn key_value(key: i32) -> f32 {
    f32::from_bits((key ^ ((key >> 31) & 0x7fff_ffff)).cast_unsigned()) + 0.0
}

/// The ends of each unit; of rules that go by magnitude alone, the largest one and its opposite. Whether all values are
/// finite.
#[inline(always)]
fn ends<const N: usize>(
    x: &[f32],
    unit_elems: usize,
    mapping: Mapping,
    keys: [&mut [i32; TOGETHER_ELEMS]; 2],
    lo: &mut [f32],
    hi: &mut [f32],
) -> bool {
    let [a, b] = keys;
    let mut most = 0;
    if mapping.is_by_magnitude() {
        let keys = largest::<N>(x, unit_elems, a, b, |v| v.abs().to_bits().cast_signed());
        for ((&key, lo), hi) in keys.iter().zip(&mut *lo).zip(&mut *hi) {
            most = most.max(key);
            (*lo, *hi) = (-key_value(key), key_value(key));
        }
    } else {
        for (&key, hi) in largest::<N>(x, unit_elems, a, b, key).iter().zip(&mut *hi) {
            most = most.max(key);
            *hi = key_value(key);
        }
        for (&key, lo) in largest::<N>(x, unit_elems, a, b, |v| !key(v)).iter().zip(&mut *lo) {
            most = most.max(key);
            *lo = key_value(!key);
        }
    }
    if most < ENDLESS {
        return true;
    }
    for ((x, lo), hi) in x.chunks(unit_elems).zip(lo).zip(hi) {
        let range = Part::exact(x).range();
        (*lo, *hi) = (range.lo, range.hi);
    }
    false
}

/// The larger one of each two neighbours. A function, since its arguments are known not to overlap.
#[inline(always)]
fn larger(from: &[i32], to: &mut [i32]) {
    for (to, &[a, b]) in to.iter_mut().zip(from.as_chunks().0) {
        *to = a.max(b);
    }
}

/// Lanes in which a unit's keys are first brought together.
const LANES: usize = 16;

/// The largest key of each lane.
#[inline(always)]
fn lanes(unit: &[f32], key: impl Fn(f32) -> i32) -> [i32; LANES] {
    let mut most = [i32::MIN; LANES];
    for vector in unit.as_chunks::<LANES>().0 {
        for (most, &v) in most.iter_mut().zip(vector) {
            *most = key(v).max(*most);
        }
    }
    most
}

/// The largest key of each unit, found by halves: maxima of neighbours, of neighbours' maxima and so on, each a loop over
/// all units.
#[inline(always)]
fn largest<'a, const N: usize>(
    x: &[f32],
    unit_elems: usize,
    a: &'a mut [i32; TOGETHER_ELEMS],
    b: &'a mut [i32; TOGETHER_ELEMS],
    key: impl Fn(f32) -> i32,
) -> &'a [i32] {
    let whole = x.len() / unit_elems * unit_elems;
    let (mut from, mut to) = (&mut a[..], &mut b[..]);
    let (mut n, mut left) = (whole, unit_elems);
    if left.is_multiple_of(LANES) {
        // Vectors of a unit first: neighbours are brought together only of what is left.
        // That memory is asked for keeps these loops from becoming ones over the units, with gathers.
        let to = to.as_chunks_mut().0.iter_mut();
        if N == 0 {
            for (to, unit) in to.zip(x[..whole].chunks_exact(unit_elems)) {
                simd::ask_ahead::<1>(unit, ASK_BYTES);
                *to = lanes(unit, &key);
            }
        } else {
            for (to, unit) in to.zip(x.as_chunks::<N>().0) {
                simd::ask_ahead::<1>(unit, ASK_BYTES);
                *to = lanes(unit, &key);
            }
        }
        (n, left) = (n / left * LANES, LANES);
    } else if left.is_multiple_of(2) {
        for (to, &[a, b]) in to.iter_mut().zip(x[..whole].as_chunks().0) {
            *to = key(a).max(key(b));
        }
        (n, left) = (n / 2, left / 2);
    } else {
        for (to, &v) in to.iter_mut().zip(&x[..whole]) {
            *to = key(v);
        }
    }
    while left.is_multiple_of(2) {
        (from, to) = (to, from);
        larger(&from[..n], to);
        (n, left) = (n / 2, left / 2);
    }
    if left > 1 {
        (from, to) = (to, from);
        for (to, keys) in to.iter_mut().zip(from[..n].chunks(left)) {
            *to = keys.iter().copied().fold(i32::MIN, i32::max);
        }
        n /= left;
    }
    if whole < x.len() {
        to[n] = x[whole..].iter().map(|&v| key(v)).fold(i32::MIN, i32::max);
        n += 1;
    }
    &to[..n]
}
