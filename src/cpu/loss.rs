//! The loss of a quantized tensor; twin of `shaders/loss.wgsl` and `shaders/abs_error.wgsl`.

use super::code::{Coder, Field, is_finite};
use super::fold::{BLOCK_ELEMS, Slots, TASK_ELEMS, Values, blocks, fold_units, map_tasks, runs};
pub(super) use super::own_grid::together;
use super::own_grid::{self, OwnGrid, SHORT_ELEMS, Short};
use super::simd::{self, ASK_BYTES, Ask, Kernel, Map, Unit};
use super::{min_max, scale};
use crate::error::{Error, Result};
use crate::exact;
use crate::exact::loss::{CAST_STEP_EXP, CAST_STEPS, grid_exp};
use crate::layout::Granularity;
use crate::loss::{Adder, Loss, LossSums, UnitLoss, UnitSums};
use crate::quantized::Quantized;
use crate::scheme::Scheme;
use crate::tensor::Tensor;
use std::borrow::Cow;

/// The bits of every NaN in [`Loss::abs_errors`].
const NAN: u32 = 0x7fc0_0000;

/// The loss of a quantized tensor against its original.
///
/// ```text
/// |x' - x|   one binary32 subtraction, rounded to nearest, ties to even
/// ```
///
/// Per range unit the maximum and the sum of squares; for the tensor the maximum, mean, MSE, SQNR and cosine
/// of [`LossSummary`](crate::LossSummary); and on request `|x' - x|` of every element. Elements with a NaN
/// or infinite x or x' are left out of the figures. An empty tensor has no figures. How the sums are defined,
/// so that they do not depend on order, and what a cast's are counted in: [`crate::loss`].
///
/// # Errors
/// [`Error::ShapeMismatch`] when the two tensors' shapes differ.
///
/// ```
/// use wgpu_quant::{Granularity, Quantized, Scheme, Tensor, cpu};
/// let (shape, codes) = (vec![2], vec![3, 0]);
/// let q = Quantized::from_parts(Scheme::INT8_ABSMAX, Granularity::Tensor, shape, codes, vec![0.5], vec![])?;
/// let summary = cpu::loss(Tensor::new(&[1.25, 0.0], &[2])?, &q, false)?.summary();
/// assert_eq!((summary.max_abs_error, summary.mean_abs_error), (Some(0.25), Some(0.125)));
/// assert_eq!(summary.mse, Some(0.03125));
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn loss(x: Tensor<'_>, q: &Quantized, per_element: bool) -> Result<Loss> {
    if x.shape() != q.shape() {
        return Err(Error::ShapeMismatch { found: q.shape().to_vec(), expected: x.shape().to_vec() });
    }
    let scales = scales_of(x, q)?;
    let parts = sums(x, q, &scales, |unit| Some(fine(scales[unit])));
    Ok(finish(x, q, &scales, parts, per_element))
}

/// The loss of a part of a tensor, to be merged with those of the others: a cast's in steps of the whole tensor's nominal
/// scale, and on the grids of the largest losses of the whole tensor's units, as bits, once they are known.
pub(super) fn loss_of_part(x: Tensor<'_>, q: &Quantized, nominal: Option<f32>, largest: Option<&[u32]>) -> Loss {
    let scales = nominal.map_or(Cow::Borrowed(q.scales()), |scale| Cow::Owned(vec![scale]));
    let Some(largest) = largest else {
        let parts = sums(x, q, &scales, |unit| Some(fine(scales[unit])));
        return finish(x, q, &scales, parts, false);
    };
    let grid = |unit: usize| grid_exp(scales[unit].to_bits(), largest[unit]);
    let mut parts = sums(x, q, &scales, |unit| Some(grid(unit)));
    for (part, &largest) in parts.iter_mut().zip(largest) {
        // What the sums count in follows from it.
        part.sums.max_bits = largest;
    }
    total(q, &scales, parts, None)
}

/// The scales; a cast has none, and its values' magnitude stands in.
fn scales_of<'a>(x: Tensor<'_>, q: &'a Quantized) -> Result<Cow<'a, [f32]>> {
    if !q.scheme().is_cast() {
        return Ok(Cow::Borrowed(q.scales()));
    }
    let range = min_max(x, Granularity::Tensor)?.units[0];
    Ok(Cow::Owned(vec![scale(range, q.scheme())]))
}

/// The scale's own grid, on which a unit's losses lie unless values were clipped.
fn fine(scale: f32) -> i32 {
    grid_exp(scale.to_bits(), 0)
}

/// Each range unit's sums on the grid that `grid` names; of a unit for which it names none, nothing.
fn sums(x: Tensor<'_>, q: &Quantized, scales: &[f32], grid: impl Fn(usize) -> Option<i32> + Sync) -> Vec<Part> {
    match q.scheme().code().bits() {
        16 => sums_of::<[u8; 2]>(x, q, scales, grid),
        _ => sums_of::<u8>(x, q, scales, grid),
    }
}

fn sums_of<T: Field>(
    x: Tensor<'_>,
    q: &Quantized,
    scales: &[f32],
    grid: impl Fn(usize) -> Option<i32> + Sync,
) -> Vec<Part> {
    let visit = |slots: &mut Slots<Part>, elems| {
        let (mut values, mut buffer) = (Values::new(x), vec![]);
        for run in runs(q.units(), elems) {
            let Some(g) = grid(run.unit) else { continue };
            let (coder, s) = (Coder::of(q, &run), scales[run.unit]);
            for block in blocks(run.elems) {
                slots.of(run.unit).add(&coder, values.get(block.clone()), T::read(q, block, &mut buffer), s, g);
            }
        }
    };
    fold_units(q.units(), &Part::default(), visit, |a, b| a.merge(&b))
}

/// The loss, of sums on the scales' own grids: the units that turn out to need a coarser one, and they only, go again.
pub(super) fn finish(x: Tensor<'_>, q: &Quantized, scales: &[f32], mut parts: Vec<Part>, per_element: bool) -> Loss {
    let coarse: Vec<Option<i32>> = parts
        .iter()
        .zip(scales)
        .map(|(part, s)| Some(grid_exp(s.to_bits(), part.sums.max_bits)).filter(|&g| g != fine(*s)))
        .collect();
    if coarse.iter().any(Option::is_some) {
        let again = sums(x, q, scales, |unit| coarse[unit]);
        for ((part, again), _) in parts.iter_mut().zip(again).zip(&coarse).filter(|(_, coarse)| coarse.is_some()) {
            *part = again;
        }
    }
    total(q, scales, parts, per_element.then(|| abs_errors(x, q)))
}

/// The loss, of what tasks over whole units found: the units that need a coarser grid, and they only, go again.
pub(super) fn finish_units(
    x: Tensor<'_>,
    q: &Quantized,
    found: Found,
    mut units: Vec<UnitLoss>,
    per_element: bool,
) -> Loss {
    let Found { mut sums, coarse } = found;
    if !coarse.is_empty() {
        let mut grids = vec![None; units.len()];
        for &unit in &coarse {
            grids[unit] = Some(grid_exp(q.scales()[unit].to_bits(), units[unit].max_abs_error.to_bits()));
        }
        let again = self::sums(x, q, q.scales(), |unit| grids[unit]);
        let mut adder = Adder::new(false);
        for unit in coarse {
            let (part, scale_bits) = (&again[unit], q.scales()[unit].to_bits());
            adder.add(&part.sums, scale_bits);
            sums.count(part.elems, part.nonfinite_out_elems);
            units[unit] = part.sums.loss(scale_bits);
        }
        sums.merge(&adder.finish());
    }
    Loss { units, sums, abs_errors: per_element.then(|| abs_errors(x, q)) }
}

fn total(q: &Quantized, scales: &[f32], parts: Vec<Part>, abs_errors: Option<Vec<f32>>) -> Loss {
    let elems = parts.iter().map(|part| part.elems).sum();
    let nonfinite_out_elems = parts.iter().map(|part| part.nonfinite_out_elems).sum();
    let unit_sums: Vec<UnitSums> = parts.into_iter().map(|part| part.sums).collect();
    Loss::new(&unit_sums, scales, q.scheme().is_cast(), elems, nonfinite_out_elems, abs_errors)
}

fn abs_errors(x: Tensor<'_>, q: &Quantized) -> Vec<f32> {
    match q.scheme().code().bits() {
        16 => abs_errors_of::<[u8; 2]>(x, q),
        _ => abs_errors_of::<u8>(x, q),
    }
}

fn abs_errors_of<T: Field>(x: Tensor<'_>, q: &Quantized) -> Vec<f32> {
    let mut errors = vec![0f32; x.elems()];
    map_tasks(&mut errors, TASK_ELEMS, |first, errors| {
        let (mut values, mut buffer, mut out) = (Values::new(x), vec![], [0f32; BLOCK_ELEMS]);
        for run in runs(q.units(), first..first + errors.len()) {
            let coder = Coder::of(q, &run);
            for block in blocks(run.elems) {
                let errors = &mut errors[block.start - first..block.end - first];
                let out = &mut out[..block.len()];
                coder.decode(T::read(q, block.clone(), &mut buffer), out);
                simd::run(AbsErrors { x: values.get(block), out, ieee: run.ieee, errors });
            }
        }
    });
    errors
}

struct AbsErrors<'a> {
    x: &'a [f32],
    out: &'a [f32],
    ieee: bool,
    errors: &'a mut [f32],
}

impl Kernel for AbsErrors<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const LANES: usize>(self, _: impl Unit<LANES>) {
        let all = self.errors.iter_mut().zip(self.x).zip(self.out);
        if self.ieee {
            all.for_each(|((to, x), out)| {
                let error = (out - x).abs();
                *to = if error.is_nan() { f32::from_bits(NAN) } else { error };
            });
        } else {
            all.for_each(|((to, x), out)| *to = f32::from_bits(exact::code::abs_error_of(x.to_bits(), out.to_bits())));
        }
    }
}

/// A cast's value in steps of `2^12` times the last place of its nominal scale.
#[inline(always)]
fn cast_steps(s: u32, ieee: bool) -> impl Fn(f32) -> i32 {
    // The nominal scale is a power of two, whose last place is 2^-23 of it.
    let per_step = 2f64.powi(23 - CAST_STEP_EXP) / f64::from(f32::from_bits(s));
    let most = f64::from(CAST_STEPS);
    move |v| {
        if ieee {
            ((f64::from(v) * per_step).clamp(-most, most) + WHOLE).to_bits() as i32
        } else {
            exact::loss::cast_steps(v.to_bits(), s)
        }
    }
}

/// What a run contributes.
#[derive(Clone, Default)]
pub(super) struct Part {
    sums: UnitSums,
    elems: u64,
    nonfinite_out_elems: u64,
}

/// Adding and subtracting it rounds a magnitude below 2^51 to a whole number, ties to even, as
/// `round_ties_even` does, but in a form that every vector unit has; and the sum's low bits are that number.
const WHOLE: f64 = 6_755_399_441_055_744.0;

/// So many elements' sums fit in 64 bits. |Q D| is at most 2^47 of whole numbers.
pub(super) const SUM_ELEMS: usize = 1024;
/// Of casts |Q D| is at most 2^57.
const CAST_SUM_ELEMS: usize = 32;

/// 2^e as an f64, which holds it.
#[inline(always)]
fn power(e: i32) -> f64 {
    f64::from_bits(((i64::from(e) + 1023) as u64) << 52)
}

impl Part {
    pub(super) fn merge(&mut self, other: &Self) {
        self.sums.merge(&other.sums);
        self.elems += other.elems;
        self.nonfinite_out_elems += other.nonfinite_out_elems;
    }

    /// Adds values and the codes that they become, on the scale's own grid; meanwhile asks for the memory so many bytes
    /// ahead.
    pub(super) fn add_own<T: Field>(&mut self, coder: &Coder, x: &[f32], codes: &[T], ahead_bytes: usize) {
        let (s, g) = (coder.s, fine(coder.s));
        if !(coder.ieee && OwnGrid::has(s)) {
            return self.add_any(coder, x, codes, s, g);
        }
        for (x, codes) in x.chunks(SUM_ELEMS).zip(codes.chunks(SUM_ELEMS)) {
            match own_grid::sums(coder, x, codes, ahead_bytes) {
                Some(sums) => {
                    self.sums.merge(&sums);
                    self.elems += x.len() as u64;
                }
                None => self.add_any(coder, x, codes, s, g),
            }
        }
    }

    /// Makes the codes of values as ordinary as [`Coder::is_ordinary`] says, and adds them as [`add_own`](Self::add_own) does.
    pub(super) fn make_own<T: Field>(&mut self, coder: &Coder, x: &[f32], codes: &mut [T], ahead_bytes: usize) {
        if size_of::<T>() > 1 || !OwnGrid::has(coder.s) {
            coder.encode_ordinary(x, Ask::NOTHING, codes);
            return self.add_own(coder, x, codes, ahead_bytes);
        }
        match own_grid::make(coder, x, bytemuck::cast_slice_mut(codes), ahead_bytes) {
            Some(sums) => {
                self.sums.merge(&sums);
                self.elems += x.len() as u64;
            }
            None => self.add_own(coder, x, codes, ahead_bytes),
        }
    }

    /// Adds values and codes; `s` is a cast's nominal scale. On a grid that is too fine for its losses the sums are
    /// worthless, but the largest loss is right.
    fn add<T: Field>(&mut self, coder: &Coder, x: &[f32], codes: &[T], s: f32, g: i32) {
        if coder.scheme.is_cast() || g != fine(s) {
            return self.add_any(coder, x, codes, s, g);
        }
        // Most are asked for the loss of codes that come of the values: to see that costs little.
        for (x, codes) in x.chunks(SUM_ELEMS).zip(codes.chunks(SUM_ELEMS)) {
            let mut own = [T::zeroed(); SUM_ELEMS];
            let own = &mut own[..x.len()];
            coder.encode(x, own);
            if bytemuck::cast_slice::<T, u8>(own) == bytemuck::cast_slice::<T, u8>(codes) {
                self.add_own(coder, x, codes, ASK_BYTES);
            } else {
                self.add_any(coder, x, codes, s, g);
            }
        }
    }

    fn add_any<T: Field>(&mut self, coder: &Coder, x: &[f32], codes: &[T], s: f32, g: i32) {
        let cast = coder.scheme.is_cast();
        let sum_elems = if cast { CAST_SUM_ELEMS } else { SUM_ELEMS };
        for (x, codes) in x.chunks(sum_elems).zip(codes.chunks(sum_elems)) {
            let (mut steps, mut out) = ([0; SUM_ELEMS], [0.0; SUM_ELEMS]);
            let (steps, out) = (&mut steps[..x.len()], &mut out[..x.len()]);
            coder.decode(codes, out);
            if cast {
                simd::run(Map { from: out, to: steps, f: cast_steps(s.to_bits(), coder.ieee) });
            } else {
                let value = coder.steps();
                simd::run(Map { from: codes, to: steps, f: |code: T| value(code.bits()) });
            }
            self.merge(&simd::run(AnySums { x, steps, out, g, ieee: coder.ieee }));
        }
    }
}

/// What tasks over whole range units found.
#[derive(Default)]
pub(super) struct Found {
    sums: LossSums,
    /// The units whose losses are beyond their scales' own grids; they are not among the sums.
    coarse: Vec<usize>,
}

impl Found {
    pub(super) fn merged(mut self, mut more: Self) -> Self {
        self.sums.merge(&more.sums);
        self.coarse.append(&mut more.coarse);
        self
    }
}

/// The loss of a task's range units, one after the other.
pub(super) struct Tally {
    adder: Adder,
    elems: u64,
    nonfinite_out_elems: u64,
    coarse: Vec<usize>,
    short: Short,
}

impl Tally {
    pub(super) fn new() -> Self {
        let (adder, short) = (Adder::new(false), Short::new());
        Self { adder, elems: 0, nonfinite_out_elems: 0, coarse: vec![], short }
    }

    /// Adds a whole unit, of its sums on its scale's own grid.
    pub(super) fn add(&mut self, unit: usize, part: &Part, scale: f32) -> UnitLoss {
        let (sums, scale_bits) = (&part.sums, scale.to_bits());
        if grid_exp(scale_bits, sums.max_bits) == fine(scale) {
            self.elems += part.elems;
            self.nonfinite_out_elems += part.nonfinite_out_elems;
            self.adder.add(sums, scale_bits);
        } else {
            self.coarse.push(unit);
        }
        sums.loss(scale_bits)
    }

    pub(super) fn finish(mut self) -> Found {
        self.short.finish(&mut self.adder);
        let mut sums = self.adder.finish();
        sums.count(self.elems, self.nonfinite_out_elems);
        Found { sums, coarse: self.coarse }
    }

    /// Makes all of short units in one go, and adds the loss; whether it has.
    fn make<T: Field>(&mut self, few: &mut Made<'_, T>) -> bool {
        let Made { scheme, x, unit_elems, scales, zero_points, codes, losses } = few;
        let made = size_of::<T>() == 1
            && self.short.make(*scheme, x, *unit_elems, scales, zero_points, bytemuck::cast_slice_mut(codes));
        if made {
            self.add_short(x.len(), losses);
        }
        made
    }

    fn add_short(&mut self, elems: usize, losses: &mut [UnitLoss]) {
        self.elems += elems as u64;
        self.short.add_to(&mut self.adder, losses);
    }

    /// Adds short units and the codes that their values become.
    fn add_few<T: Field>(&mut self, few: &Few<'_>, x: &[f32], codes: &[T], losses: &mut [UnitLoss]) {
        let &Few { scheme, first_unit, unit_elems, scales, zero_points, .. } = few;
        let mut next = 0;
        while next < losses.len() {
            let own = next..next + together(losses.len() - next, unit_elems);
            next = own.end;
            let elems = own.start * unit_elems..x.len().min(own.end * unit_elems);
            let (x, codes, losses) = (&x[elems.clone()], &codes[elems], &mut losses[own.clone()]);
            let (scales, zero_points) = (&scales[own.clone()], zero_points.get(own.clone()).unwrap_or_default());
            if size_of::<T>() == 1
                && unit_elems <= SHORT_ELEMS
                && self.short.find(scheme, x, unit_elems, scales, zero_points)
            {
                self.add_short(x.len(), losses);
                continue;
            }
            let units = x.chunks(unit_elems).zip(codes.chunks(unit_elems)).zip(losses);
            for (unit, ((x, codes), loss)) in units.enumerate() {
                let (s, z) = (scales[unit], zero_points.get(unit).copied().unwrap_or(0));
                let (mut part, coder) = (Part::default(), Coder { scheme, saturate: false, s, z, ieee: true });
                part.add_own(&coder, x, codes, ASK_BYTES);
                *loss = self.add(first_unit + own.start + unit, &part, s);
            }
        }
    }
}

/// Consecutive range units of so many elements; the last may be short.
pub(super) struct Few<'a> {
    pub(super) scheme: Scheme,
    pub(super) first_unit: usize,
    pub(super) unit_elems: usize,
    pub(super) scales: &'a [f32],
    /// One per unit, or none.
    pub(super) zero_points: &'a [i32],
}

/// Consecutive range units, as many as come [`together`], and what becomes of them.
pub(super) struct Made<'a, T> {
    pub(super) scheme: Scheme,
    pub(super) x: &'a [f32],
    /// The last one may be short.
    pub(super) unit_elems: usize,
    pub(super) scales: &'a mut [f32],
    /// One per unit, or none.
    pub(super) zero_points: &'a mut [i32],
    pub(super) codes: &'a mut [T],
    pub(super) losses: &'a mut [UnitLoss],
}

/// How the loss of values and what was made of them is added up.
#[derive(Clone, Copy)]
pub(super) struct Adding<T> {
    /// Of a stretch of a unit.
    pub(super) run: fn(&mut Part, &Coder, &[f32], &[T], usize),
    /// Of ordinary values of a unit, and makes their codes.
    pub(super) make_run: fn(&mut Part, &Coder, &[f32], &mut [T], usize),
    /// Of short units, and makes all else of them; or does not, if they are not for that.
    pub(super) make: fn(&mut Tally, &mut Made<'_, T>) -> bool,
    /// Of short units of which all else is made.
    pub(super) few: fn(&mut Tally, &Few<'_>, &[f32], &[T], &mut [UnitLoss]),
}

impl<T: Field> Adding<T> {
    /// Of codes.
    pub(super) const OWN: Self =
        Self { run: Part::add_own, make_run: Part::make_own, make: Tally::make, few: Tally::add_few };
}

/// The sums of any values on any grid.
struct AnySums<'a> {
    x: &'a [f32],
    steps: &'a [i32],
    out: &'a [f32],
    g: i32,
    ieee: bool,
}

impl Kernel for AnySums<'_> {
    type Output = Part;

    // A loop without branches or signed products, so that it becomes one of vectors.
    #[inline(always)]
    fn run<const LANES: usize>(self, _: impl Unit<LANES>) -> Part {
        let Self { x, steps, out, g, ieee } = self;
        // The step is a power of two, so that quotients by it are exact before they are rounded.
        let per_step = power(-g);
        let (mut elems, mut nonfinite_out, mut max) = (0u32, 0u32, 0i32);
        // A D of 31 bits may come, so its square is summed in two halves.
        let (mut abs, mut noise_lo, mut noise_hi, mut squares, mut cross) = (0u64, 0u64, 0u64, 0u64, 0i64);
        for ((&x, &q), &out) in x.iter().zip(steps).zip(out) {
            let counts = is_finite(x) & is_finite(out);
            elems += u32::from(counts);
            nonfinite_out += u32::from(!is_finite(out));
            // What does not count is 0.
            let mask = 0u32.wrapping_sub(counts.into());
            let masked = |v: f32| f32::from_bits(v.to_bits() & mask);
            let (x, out, q) = (masked(x), masked(out), q & mask.cast_signed());
            let (size, negative, error) = if ieee {
                let on_grid = |v: f32| (f64::from(v) * per_step + WHOLE) - WHOLE;
                let d = on_grid(out) - on_grid(x);
                let size = (d.abs() + WHOLE).to_bits() & 0x7fff_ffff;
                (size, d.is_sign_negative(), (out - x).abs().to_bits())
            } else {
                let (x, out) = (x.to_bits(), out.to_bits());
                let d = exact::loss::distance_on_grid(x, out, g);
                (d.unsigned_abs().into(), d < 0, exact::code::abs_error_of(x, out))
            };
            // As numbers of the same sign, patterns order as their values do.
            max = max.max(error.cast_signed());
            abs += size;
            noise_lo += (size * size) & 0xffff_ffff;
            noise_hi += (size * size) >> 32;
            let steps = u64::from(q.unsigned_abs());
            squares += steps * steps;
            let product = (steps * size).cast_signed();
            cross += if negative != (q < 0) { -product } else { product };
        }
        let noise = u128::from(noise_lo) + (u128::from(noise_hi) << 32);
        let (abs, codes, cross) = (abs.into(), squares.into(), cross.into());
        let sums = UnitSums { max_bits: max.cast_unsigned(), abs, noise, codes, cross };
        Part { sums, elems: elems.into(), nonfinite_out_elems: nonfinite_out.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::fold::Run;
    use crate::cpu::quantize;
    use crate::layout::Granularity::{self, Channel, Group};
    use crate::quantized::{LossDetail, Spec};
    use crate::scheme::Scheme;
    use crate::test_data::{KINDS, Rng, data, edge_bits};
    use approx::assert_relative_eq;

    /// The figures in binary64 from x and x', over elements with finite ones: mean, MSE, SQNR, cosine.
    fn expected(x: &[f32], q: &Quantized) -> [f64; 4] {
        let (mut n, mut abs, mut noise, mut signal, mut recon, mut dot) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
        for (&x, out) in x.iter().zip(crate::cpu::dequantize(q).unwrap()) {
            if x.is_finite() && out.is_finite() {
                let (x, out) = (f64::from(x), f64::from(out));
                n += 1.0;
                abs += (out - x).abs();
                noise += (out - x).powi(2);
                signal += x * x;
                recon += out * out;
                dot += x * out;
            }
        }
        [abs / n, noise / n, 10.0 * (signal / noise).log10(), dot / (signal * recon).sqrt()]
    }

    #[test]
    fn the_figures_are_those_of_binary64_over_all_schemes() {
        for &scheme in Scheme::ALL {
            for kind in ["gauss", "bf16", "one-sided", "far-from-zero", "ints", "mixed"] {
                for granularity in [Granularity::Tensor, Channel(0), Group(7)] {
                    if scheme.is_cast() && granularity != Granularity::Tensor {
                        continue;
                    }
                    // Random magnitudes of a narrow span, f16's largest included.
                    let mut x = data(kind, 4000, 51);
                    if kind == "mixed" {
                        x.iter_mut().for_each(|v| *v = if v.abs() < 6e4 { *v * 1e4 } else { 1.0 });
                    }
                    let spec = Spec::new(scheme).per(granularity).loss(LossDetail::Summary);
                    let x_tensor = Tensor::new(&x, &[40, 100]).unwrap();
                    let out = quantize(x_tensor, &spec).unwrap();
                    let (found, [mean, mse, db, cos]) = (out.loss.unwrap().summary(), expected(&x, &out.tensor));
                    // The largest scale; of a cast the nominal one.
                    let nominal = scale(min_max(x_tensor, Granularity::Tensor).unwrap().units[0], scheme);
                    let s = out.tensor.scales().iter().copied().reduce(f32::max).unwrap_or(nominal);
                    let (s, what) = (f64::from(s), format!("{scheme} {kind} {granularity}"));
                    let epsilon = s * 2f64.powi(-16);
                    assert_relative_eq!(found.mean_abs_error.unwrap(), mean, max_relative = 1e-5, epsilon = epsilon);
                    let epsilon = s * s * 2f64.powi(-32);
                    assert_relative_eq!(found.mse.unwrap(), mse, max_relative = 1e-5, epsilon = epsilon);
                    assert_relative_eq!(found.cosine.unwrap(), cos, max_relative = 1e-6);
                    match found.sqnr_db {
                        Some(found) => assert_relative_eq!(found, db, max_relative = 1e-4, epsilon = 1e-4),
                        None => assert_eq!(mse, 0.0, "{what}"),
                    }
                }
            }
        }
    }

    #[test]
    fn the_loss_of_a_cast_is_what_its_rounding_took() {
        // 2049 has 12 bits, of which f16 keeps 11: 2048 is the even neighbour. 2^-12 and 65504 are f16.
        let x = [2049.0, -1.0, 0.0, 2f32.powi(-12), f32::NAN, f32::INFINITY];
        let spec = Spec::new(Scheme::F16).loss(LossDetail::PerElement);
        let loss = quantize(Tensor::new(&x, &[6]).unwrap(), &spec).unwrap().loss.unwrap();
        let summary = loss.summary();
        assert_eq!((summary.elems, summary.nonfinite_out_elems, summary.max_abs_error), (4, 2, Some(1.0)));
        assert_eq!((summary.mean_abs_error, summary.mse), (Some(0.25), Some(0.25)));
        let db = 10.0 * (2049f64.powi(2) + 1.0 + 2f64.powi(-24)).log10();
        assert_relative_eq!(summary.sqnr_db.unwrap(), db, max_relative = 1e-7);
        let errors: Vec<u32> = loss.abs_errors.unwrap().iter().map(|e| e.to_bits()).collect();
        assert_eq!(errors, [1f32.to_bits(), 0, 0, 0, NAN, NAN]);
        // An overflow is infinitely far off, and left out of the figures.
        let x = [1e6, 1.0];
        let loss = quantize(Tensor::new(&x, &[2]).unwrap(), &spec).unwrap().loss.unwrap();
        assert_eq!((loss.summary().elems, loss.summary().nonfinite_out_elems), (1, 1));
        assert_eq!(loss.abs_errors.unwrap(), [f32::INFINITY, 0.0]);
        // With saturation it counts: 1e6 - 65504.
        let loss = quantize(Tensor::new(&x, &[2]).unwrap(), &spec.saturate(true)).unwrap().loss.unwrap();
        assert_eq!(loss.summary().max_abs_error, Some(934_496.0));
        assert_eq!(loss.summary().mean_abs_error, Some(467_248.0));
    }

    #[test]
    fn sums_of_the_largest_losses_of_all_elements_overflow_nowhere() {
        // All are half a step or just below it, which is nearly 2^24 steps of the grid: products fill a lane's 32 bits.
        let s = f32::from_bits(0x3f80_0000 - 1);
        let check = |x: &[f32], spec: &Spec, scales: Option<&[f32]>| {
            let shape = [x.len()];
            let tensor = Tensor::new(x, &shape).unwrap();
            let zero_points = if spec.scheme.has_zero_point() { &[0][..] } else { &[] };
            let found = match scales {
                Some(scales) => crate::cpu::quantize_with_scales(tensor, spec, scales, zero_points),
                None => quantize(tensor, spec),
            };
            let found = found.unwrap();
            let one = (crate::cpu::dequantize(&found.tensor).unwrap()[0] - x[0]).abs();
            let (summary, what) = (found.loss.unwrap().summary(), format!("{} {}", spec.scheme, x[0]));
            assert_eq!(summary.max_abs_error, Some(one), "{what}");
            assert_eq!(summary.mean_abs_error, Some(one.into()), "{what}");
            assert_eq!(summary.mse, Some(f64::from(one).powi(2)), "{what}");
        };
        simd::for_each_level(|_| {
            for scheme in [Scheme::INT8_ABSMAX, Scheme::UINT8_AFFINE, Scheme::INT16_ABSMAX] {
                let spec = Spec::new(scheme).loss(LossDetail::Summary);
                for end in [scheme.qmax() as f32 + 0.5, scheme.qmin() as f32 - 0.5] {
                    check(&[f32::from_bits((end * s).to_bits() - 1); SUM_ELEMS], &spec, Some(&[s]));
                }
            }
            // Of each unit's own scale the largest value is half a step beyond the last code, here 2^24 - 1000 on the grid.
            let s = f32::from_bits(0x3f80_0000 - 1000);
            let spec = Spec::new(Scheme::CT_INT8).loss(LossDetail::Summary);
            for per in [Group(32), Group(64), Group(128), Group(5000), Granularity::Tensor] {
                check(&[127.5 * s; 11 * SUM_ELEMS + 77], &spec.per(per), None);
            }
        });
    }

    #[test]
    fn sums_of_many_units_of_the_largest_losses_overflow_nowhere() {
        // Of codes near the ends, nearly half a step off, all the same way; of scales with 24 ones, and of some exponents.
        let digits = f32::from_bits(0x3fff_ffff);
        let check = |scheme: Scheme, end: f32, unit_elems: usize, exponents: usize| {
            let units = (1 << 21) / unit_elems;
            let scale = |unit: usize| digits * 2f32.powi((unit % exponents).try_into().unwrap());
            let mut x = vec![0.0; units * unit_elems];
            for (unit, x) in x.chunks_mut(unit_elems).enumerate() {
                x.fill((end - 0.501) * scale(unit));
                x[0] = end * scale(unit);
            }
            let shape = [units * unit_elems];
            let x = Tensor::new(&x, &shape).unwrap();
            let out = quantize(x, &Spec::new(scheme).per(Group(unit_elems)).loss(LossDetail::PerElement)).unwrap();
            let (found, what) = (out.loss.unwrap(), format!("{scheme} {unit_elems} {exponents}"));
            assert_eq!(found, loss(x, &out.tensor, true).unwrap(), "{what}");
            for (unit, errors) in found.abs_errors.as_ref().unwrap().chunks(unit_elems).enumerate() {
                let step = f64::from(scale(unit)).log2().floor().exp2() / 2f64.powi(24);
                let noise: u128 = errors.iter().map(|&error| (f64::from(error) / step) as u128).map(|d| d * d).sum();
                assert_eq!(found.units[unit].noise, noise as f64 * step * step, "{what}");
                assert!(found.units[unit].max_abs_error > 0.49 * scale(unit), "{what}");
            }
        };
        for (scheme, end) in [(Scheme::INT8_ABSMAX, 127.0), (Scheme::UINT8_AFFINE, 255.0), (Scheme::INT4_ABSMAX, 7.0)] {
            for (unit_elems, exponents) in [(128, 1), (128, 3), (32, 4), (32, 9)] {
                check(scheme, end, unit_elems, exponents);
            }
            simd::for_each_level(|_| check(scheme, end, 1 << 14, 2));
        }
    }

    #[test]
    fn short_units_become_the_same_together_with_their_loss_and_apart() {
        let mut rng = Rng::new(53);
        for &scheme in Scheme::ALL.iter().filter(|scheme| !scheme.is_cast()) {
            // In rows of whole units, and in rows of as many of which the last one is short.
            let whole = [16, 32, 48, 64, 96, 112, 128, 144, 17, 8].map(|unit_elems| (unit_elems, None));
            let short_last = [(33, 512), (17, 256), (65, 1024), (127, 1920), (32, 500)]
                .map(|(unit_elems, row)| (unit_elems, Some(row)));
            for (i, (unit_elems, row)) in whole.into_iter().chain(short_last).enumerate() {
                for kind in ["gauss", "one-sided", "ints", "mixed", "edges"] {
                    // Whole rounds of units, and some that are left.
                    let shape = [[1, 40], [37, 3], [5, 16]][i % 3];
                    let shape = row.map_or([shape[0], shape[1] * unit_elems], |row| [shape[0], row]);
                    let mut x = match kind {
                        "edges" => data("gauss", shape[0] * shape[1], i as u64),
                        _ => data(kind, shape[0] * shape[1], i as u64),
                    };
                    if kind == "edges" {
                        // In few units, so that others of the same round are ordinary.
                        for bits in [0x7f80_0000, 0xffc0_0001, 1, 0x7f7f_ffff, 0x0080_0000, 0x8000_0000] {
                            let at = rng.next_u32() as usize % x.len();
                            x[at] = f32::from_bits(bits);
                        }
                        let zeros = rng.next_u32() as usize % (x.len() - 2 * unit_elems);
                        x[zeros..zeros + 2 * unit_elems].fill(0.0);
                    }
                    let x = Tensor::new(&x, &shape).unwrap();
                    let spec = Spec::new(scheme).per(Group(unit_elems));
                    let (apart, both) =
                        (quantize(x, &spec).unwrap(), quantize(x, &spec.loss(LossDetail::Summary)).unwrap());
                    let what = format!("{scheme} {unit_elems} {kind}");
                    assert_eq!((&apart.tensor, apart.counts), (&both.tensor, both.counts), "{what}");
                    assert_eq!(both.loss.unwrap(), loss(x, &apart.tensor, false).unwrap(), "{what}");
                }
            }
        }
    }

    #[test]
    fn codes_beside_ties_are_the_same_with_their_loss_and_without() {
        simd::for_each_level(|level| {
            let mut rng = Rng::new(61);
            for scheme in [Scheme::INT8_ABSMAX, Scheme::CT_INT8, Scheme::UINT8_AFFINE, Scheme::INT4_ABSMAX] {
                for per in [Granularity::Tensor, Channel(0), Group(1000), Group(128), Group(32)] {
                    let end = f32::from_bits(0x3f80_0000 | rng.below(1 << 23));
                    let (lo, q) =
                        if scheme.has_zero_point() { (0.0, 255) } else { (-end, scheme.qmax().cast_unsigned()) };
                    let s = crate::cpu::scale(crate::cpu::Range { lo, hi: end }, scheme);
                    let mut x: Vec<f32> = (0..20 * 4100)
                        .map(|_| {
                            let tie = (rng.below(q) as f32 + 0.5) * s;
                            let beside = f32::from_bits(tie.to_bits() + rng.below(5) - 2);
                            if lo < 0.0 && rng.below(2) == 0 { -beside } else { beside }
                        })
                        .collect();
                    // Every unit has the same range.
                    x.chunks_mut(4100).for_each(|x| x.iter_mut().step_by(4).for_each(|x| *x = end));
                    let x = Tensor::new(&x, &[20, 4100]).unwrap();
                    let spec = Spec::new(scheme).per(per);
                    let (apart, both) =
                        (quantize(x, &spec).unwrap(), quantize(x, &spec.loss(LossDetail::Summary)).unwrap());
                    let what = format!("{level} {scheme} {per}");
                    assert!(apart.tensor.scales().iter().all(|&found| found == s), "{what}");
                    assert!(apart.tensor == both.tensor && apart.counts == both.counts, "{what}");
                    assert!(both.loss.unwrap() == loss(x, &apart.tensor, false).unwrap(), "{what}");
                }
            }
        });
    }

    #[test]
    #[ignore = "2^32 values of x for each of seven scales: minutes"]
    fn every_value_has_the_same_code_and_loss_at_every_level() {
        let (values, shape, mut ordinary) = (1 << 24, [1 << 24], 0);
        for (scheme, scale, z) in [
            (Scheme::INT8_ABSMAX, 0x3c23_d70a, 0),
            (Scheme::INT8_ABSMAX, 0x3fff_ffff, 0),
            (Scheme::INT8_ABSMAX, 0x3f80_0000, 0),
            (Scheme::UINT8_AFFINE, 0x3d4c_cccd, 131),
            (Scheme::UINT8_AFFINE, 0x3f80_0001, 3),
            (Scheme::INT4_ABSMAX, 0x3e12_3456, 0),
            (Scheme::UINT4_AFFINE, 0x40b0_5a77, 7),
        ] {
            let (spec, scales) = (Spec::new(scheme), [f32::from_bits(scale)]);
            let zero_points = if scheme.has_zero_point() { vec![z] } else { vec![] };
            for first in (0..1u64 << 32).step_by(values) {
                let x: Vec<f32> = (first..first + values as u64).map(|bits| f32::from_bits(bits as u32)).collect();
                let x = Tensor::new(&x, &shape).unwrap();
                let mut expected = None;
                simd::for_each_level(|level| {
                    let of = |spec| crate::cpu::quantize_with_scales(x, spec, &scales, &zero_points).unwrap();
                    let (apart, both) = (of(&spec), of(&spec.loss(LossDetail::Summary)));
                    let (tensor, counts, loss) = expected.get_or_insert_with(|| {
                        ordinary += u64::from(apart.counts.clipped_elems == 0);
                        (apart.tensor.clone(), apart.counts, both.loss.clone())
                    });
                    let what = format!("{level} {scheme} {scale:#x} {first:#x}");
                    assert!(*tensor == apart.tensor && *tensor == both.tensor && *loss == both.loss, "{what}");
                    assert!(*counts == apart.counts && *counts == both.counts, "{what}");
                });
            }
        }
        assert!(ordinary > 7 * 100, "{ordinary}");
    }

    #[test]
    fn plain_and_exact_sums_agree_over_all_schemes() {
        for &scheme in Scheme::ALL {
            for (i, kind) in KINDS.iter().enumerate() {
                let x = data(kind, 3000, i as u64);
                let x_tensor = Tensor::new(&x, &[3000]).unwrap();
                let q = quantize(x_tensor, &Spec::new(scheme)).unwrap().tensor;
                let nominal = scale(min_max(x_tensor, Granularity::Tensor).unwrap().units[0], scheme).to_bits();
                let s = q.scales().first().map_or(nominal, |s| s.to_bits());
                let sums = |ieee, g| {
                    let mut part = Part::default();
                    let coder = Coder::of(&q, &Run { unit: 0, elems: 0..3000, ieee });
                    match q.scheme().code().bits() {
                        16 => {
                            let codes = <[u8; 2]>::read(&q, 0..3000, &mut vec![]).to_vec();
                            part.add(&coder, &x, &codes, f32::from_bits(s), g);
                        }
                        _ => {
                            let codes = u8::read(&q, 0..3000, &mut vec![]).to_vec();
                            part.add(&coder, &x, &codes, f32::from_bits(s), g);
                        }
                    }
                    (part.sums, part.elems, part.nonfinite_out_elems)
                };
                let max = sums(true, grid_exp(s, 0)).0.max_bits;
                assert_eq!(max, sums(false, grid_exp(s, 0)).0.max_bits, "{scheme} {kind}");
                let g = grid_exp(s, max);
                assert_eq!(sums(true, g), sums(false, g), "{scheme} {kind}");
            }
        }
    }

    #[test]
    fn plain_and_exact_steps_of_a_cast_agree() {
        let mut rng = Rng::new(52);
        let mut out: Vec<f32> = edge_bits().into_iter().map(f32::from_bits).filter(|v| !v.is_nan()).collect();
        for exponent in -149..=115 {
            let s = scale(crate::cpu::Range { lo: 0.0, hi: 2f64.powi(exponent + 12) as f32 }, Scheme::F16);
            assert_eq!(f64::from(s), 2f64.powi(exponent));
            // Around halfway points of the steps, up to beyond the last, and anything.
            out.truncate(60);
            for _ in 0..300 {
                let half = f64::from(rng.below(1 << 28)) * 2f64.powi(exponent - 12 - rng.below(26).cast_signed());
                let near = (half as f32).to_bits().saturating_add_signed(rng.below(3).cast_signed() - 1);
                out.extend([f32::from_bits(near), -f32::from_bits(near), f32::from_bits(rng.float_bits())]);
            }
            out.retain(|v| v.is_finite());
            let steps = |ieee| out.iter().copied().map(cast_steps(s.to_bits(), ieee)).collect::<Vec<i32>>();
            assert_eq!(steps(true), steps(false), "2^{exponent}");
        }
    }

    #[test]
    fn the_largest_codes_and_losses_do_not_overflow() {
        // |Q| = 65535 of every element, and losses of 2^29 steps of the grid.
        let units = 3000;
        let codes = vec![0xff; 2 * units];
        let (scheme, shape) = (Scheme::UINT16_AFFINE, vec![units]);
        let q = Quantized::from_parts(scheme, Granularity::Tensor, shape.clone(), codes, vec![1.0], vec![0]).unwrap();
        let x = vec![f32::MIN; units];
        let summary = loss(Tensor::new(&x, &shape).unwrap(), &q, false).unwrap().summary();
        assert_eq!(summary.max_abs_error, Some(f32::MAX));
        assert_relative_eq!(summary.mean_abs_error.unwrap(), f64::from(f32::MAX), max_relative = 1e-7);
        // A cast's codes that belong to another tensor.
        let codes = [0xff, 0x7b].repeat(units);
        let q = Quantized::from_parts(Scheme::F16, Granularity::Tensor, shape.clone(), codes, vec![], vec![]).unwrap();
        for value in [0.0, 1e-40, -1e-3, f32::MIN] {
            let x = vec![value; units];
            let summary = loss(Tensor::new(&x, &shape).unwrap(), &q, false).unwrap().summary();
            let mean = 65504.0 - f64::from(value);
            assert_relative_eq!(summary.mean_abs_error.unwrap(), mean, max_relative = 1e-7);
        }
    }
}
