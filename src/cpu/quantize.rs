//! From values to codes; twin of `shaders/quantize.wgsl`.

use super::code::{Coder, Field, Made};
use super::fold::{
    BLOCK_ELEMS, FEW_ELEMS, Run, Slots, Spread, Values, backwards, blocks_of, recycled, runs, task_elems,
};
use super::loss::{self, loss};
use super::min_max::{Part, parts};
use super::nibble;
use super::scale::scale_and_zero_point;
use super::simd::{ASK_BYTES, Ask, Output, is_past_caches};
use super::units::{CountsAndLoss, Maker, Parcel, PerUnit, Stretch, stretch};
use crate::error::Result;
use crate::float_env;
use crate::layout::RangeUnits;
use crate::loss::UnitLoss;
use crate::quantized::{Counts, LossDetail, QuantizeOutput, Quantized, Spec, check_given, code_bytes};
use crate::tensor::Tensor;
use crate::threads::share;
use std::borrow::Cow;
use std::mem;
use std::ops::Range;

/// Quantizes a tensor: finds the ranges, computes scales and zero points, rounds and clamps every value to its code.
///
/// ```text
/// q = clamp(rne(x / s) + z, qmin, qmax)     z = 0 of a scheme without zero points
/// q = x as the narrow float                 of a cast
/// ```
///
/// with one binary32 division and `rne` to nearest, ties to even, before the whole number `z` is added; `s` and `z` as
/// in [`scale`](super::scale()) and [`zero_point`](super::zero_point). A cast rounds once, to nearest, ties to even.
///
/// The output has one code per element in row-major order, stored as [`code_bytes`] says, and one
/// scale and zero point per range unit; the spare half of an odd row of 4-bit codes holds the zero point of the row's
/// last element. A cast has neither scales nor range units, so that its granularity is `tensor`.
///
/// NaN gets the zero point's code, infinities saturate, -0 is as +0, subnormals are kept; a unit of zeros has
/// the scale and zero point that [`scale`](super::scale()) names; an empty tensor has no codes and, per tensor, the
/// scale of zeros. Casts follow IEEE instead: infinities, NaN (made quiet) and -0 stay; beyond the largest finite
/// value stands infinity, or with [`Spec::saturate`] that value, in infinity's place too. [`Counts`] tells what was
/// not ordinary.
///
/// # Errors
/// Those of [`Spec::units`].
///
/// The mappings are those of [`Scheme`](crate::Scheme); the code of affine is ONNX's `QuantizeLinear`.
///
/// ```
/// use wgpu_quant::{LossDetail, Scheme, Spec, Tensor, cpu};
/// let x = [-10.0, -5.0, 0.0, 5.0, 10.0];
/// let spec = Spec::new(Scheme::INT8_MINMAX).loss(LossDetail::PerElement);
/// let out = cpu::quantize(Tensor::new(&x, &[5])?, &spec)?;
/// assert_eq!(out.tensor.scales()[0].to_bits(), 0x3da0a0a1);
/// assert_eq!(out.tensor.code_values(), [-127, -64, 0, 64, 127]); // x / s is -127.49999
/// assert_eq!(cpu::dequantize(&out.tensor)?, [-9.960785, -5.019608, 0.0, 5.019608, 9.960785]);
/// let errors = out.loss.unwrap().abs_errors.unwrap();
/// let errors: Vec<String> = errors.iter().map(|e| format!("{e:.6}")).collect();
/// assert_eq!(errors, ["0.039215", "0.019608", "0.000000", "0.019608", "0.039215"]);
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn quantize(x: Tensor<'_>, spec: &Spec) -> Result<QuantizeOutput> {
    let mut out = QuantizeOutput::empty();
    quantize_into(x, spec, &mut out)?;
    Ok(out)
}

/// [`quantize`] into the memory of an earlier output: where that was as large, no codes' memory is allocated and cleared
/// again.
///
/// The formula and all that is said there hold here.
///
/// `out` may be of any shape and scheme before, and is what [`quantize`] returns afterwards.
///
/// # Errors
/// Those of [`quantize`]; `out` stays as it is then.
///
/// ```
/// use wgpu_quant::{Scheme, Spec, Tensor, cpu};
/// let spec = Spec::new(Scheme::INT8_ABSMAX);
/// let mut out = cpu::quantize(Tensor::new(&[1.0, -2.0], &[2])?, &spec)?;
/// cpu::quantize_into(Tensor::new(&[0.5, 1.0], &[2])?, &spec, &mut out)?;
/// assert_eq!(out.tensor.code_values(), [64, 127]);
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn quantize_into(x: Tensor<'_>, spec: &Spec, out: &mut QuantizeOutput) -> Result<()> {
    let units = spec.units(x.shape())?;
    let mut to = Room::new(x, spec, out)?;
    let bits = spec.scheme.code().bits();
    let (counts, sums) = match stretch(units, x.row_elems(), bits) {
        Some(stretch) if !spec.scheme.is_cast() => {
            let is_lossy = spec.loss != LossDetail::None;
            to.scales = recycled(mem::take(&mut to.scales), units.units);
            to.zero_points =
                recycled(mem::take(&mut to.zero_points), if spec.scheme.has_zero_point() { units.units } else { 0 });
            to.losses = recycled(mem::take(&mut to.losses), if is_lossy { units.units } else { 0 });
            let per_unit = (&mut to.scales[..], &mut to.zero_points[..], &mut to.losses[..]);
            let (counts, found) = match bits {
                4 => packed_units(x, spec, units, stretch, &mut to.codes, per_unit),
                8 => {
                    let adding = is_lossy.then_some(loss::Adding::OWN);
                    by_units(x, spec, units, stretch, &mut to.codes, per_unit, adding)
                }
                _ => {
                    let adding = is_lossy.then_some(loss::Adding::OWN);
                    by_units(x, spec, units, stretch, to.codes.as_chunks_mut::<2>().0, per_unit, adding)
                }
            };
            (counts, Sums::Found(Box::new(found)))
        }
        _ => {
            let scaling = Scaling::found(x, spec, units, mem::take(&mut to.scales), mem::take(&mut to.zero_points));
            let (counts, parts) = encode(x, spec, &scaling, &mut to.codes);
            (to.scales, to.zero_points) = (scaling.scales.into_owned(), scaling.zero_points.into_owned());
            (counts, Sums::Parts(parts))
        }
    };
    *out = to.output(x, spec, counts, sums)?;
    Ok(())
}

/// Quantizes a tensor with given scales and zero points: [`quantize`] without its first two stages.
///
/// The same formula with the same roundings. `scales` holds one scale per range unit, `zero_points` one zero point
/// per range unit of a scheme that has them; otherwise they are empty. All else is as there.
///
/// # Errors
/// [`Error::LengthMismatch`](crate::Error::LengthMismatch) when there is not one per range unit,
/// [`Error::InvalidScale`](crate::Error::InvalidScale) when a scale is not positive and finite,
/// [`Error::InvalidZeroPoint`](crate::Error::InvalidZeroPoint) when a zero point is no code,
/// [`Error::CastHasNoScale`](crate::Error::CastHasNoScale), and those of [`Spec::units`].
///
/// ```
/// use wgpu_quant::{Scheme, Spec, Tensor, cpu};
/// let x = Tensor::new(&[-1.5, 0.25, 1000.0], &[3])?;
/// let out = cpu::quantize_with_scales(x, &Spec::new(Scheme::INT8_ABSMAX), &[0.5], &[])?;
/// assert_eq!(out.tensor.code_values(), [-3, 0, 127]); // 0.25 / 0.5 is a tie, and 0 is even
/// assert_eq!(out.counts.clipped_elems, 1);
/// let out = cpu::quantize_with_scales(x, &Spec::new(Scheme::UINT8_AFFINE), &[0.5], &[128])?;
/// assert_eq!(out.tensor.code_values(), [125, 128, 255]);
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn quantize_with_scales(x: Tensor<'_>, spec: &Spec, scales: &[f32], zero_points: &[i32]) -> Result<QuantizeOutput> {
    let mut out = QuantizeOutput::empty();
    quantize_with_scales_into(x, spec, scales, zero_points, &mut out)?;
    Ok(out)
}

/// [`quantize_with_scales`] into the memory of an earlier output, as [`quantize_into`] does it.
///
/// The formula and all that is said there hold here.
///
/// # Errors
/// Those of [`quantize_with_scales`]; `out` stays as it is then.
///
/// ```
/// use wgpu_quant::{Scheme, Spec, Tensor, cpu};
/// let spec = Spec::new(Scheme::INT8_ABSMAX);
/// let mut out = cpu::quantize(Tensor::new(&[1.0, -2.0], &[2])?, &spec)?;
/// cpu::quantize_with_scales_into(Tensor::new(&[-1.5, 0.25], &[2])?, &spec, &[0.5], &[], &mut out)?;
/// assert_eq!(out.tensor.code_values(), [-3, 0]);
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn quantize_with_scales_into(
    x: Tensor<'_>,
    spec: &Spec,
    scales: &[f32],
    zero_points: &[i32],
    out: &mut QuantizeOutput,
) -> Result<()> {
    let scaling = Scaling::given(x, spec, scales, zero_points)?;
    let mut to = Room::new(x, spec, out)?;
    let (counts, sums) = encode(x, spec, &scaling, &mut to.codes);
    to.scales.clear();
    to.scales.extend_from_slice(scales);
    to.zero_points.clear();
    to.zero_points.extend_from_slice(zero_points);
    *out = to.output(x, spec, counts, Sums::Parts(sums))?;
    Ok(())
}

/// What is known of the loss before it is told.
enum Sums {
    /// Of each range unit.
    Parts(Vec<loss::Part>),
    /// Of all together; each unit's own is in [`Room`].
    Found(Box<loss::Found>),
}

/// The memory that an output goes to.
struct Room {
    codes: Vec<u8>,
    scales: Vec<f32>,
    zero_points: Vec<i32>,
    losses: Vec<UnitLoss>,
}

impl Room {
    /// That of an earlier output, as far as it reaches.
    fn new(x: Tensor<'_>, spec: &Spec, out: &mut QuantizeOutput) -> Result<Self> {
        let bytes = code_bytes(x.shape(), spec.scheme.code())?;
        let QuantizeOutput { tensor, loss, .. } = mem::replace(out, QuantizeOutput::empty());
        let (codes, scales, zero_points) = tensor.into_parts();
        let losses = loss.map_or_else(Vec::new, |loss| loss.units);
        Ok(Self { codes: recycled(codes, bytes), scales, zero_points, losses })
    }

    fn output(self, x: Tensor<'_>, spec: &Spec, counts: Counts, sums: Sums) -> Result<QuantizeOutput> {
        let Self { codes, scales, zero_points, losses } = self;
        let tensor = Quantized::computed(spec.scheme, spec.granularity, x.shape().to_vec(), codes, scales, zero_points);
        let per_element = spec.loss == LossDetail::PerElement;
        let loss = match sums {
            _ if spec.loss == LossDetail::None => None,
            _ if spec.scheme.is_cast() => Some(loss(x, &tensor, per_element)?),
            Sums::Parts(parts) => Some(loss::finish(x, &tensor, tensor.scales(), parts, per_element)),
            Sums::Found(found) => Some(loss::finish_units(x, &tensor, *found, losses, per_element)),
        };
        Ok(QuantizeOutput::new(tensor, counts, loss))
    }
}

/// Range, scale and codes of unit after unit: for units that fit in the cache.
pub(super) fn by_units<T: Made>(
    x: Tensor<'_>,
    spec: &Spec,
    units: RangeUnits,
    stretch: Stretch,
    out: &mut [T],
    per_unit: PerUnit<'_>,
    adding: Option<loss::Adding<T>>,
) -> CountsAndLoss {
    let past_caches = is_past_caches(x.bytes().len(), size_of_val(out));
    let tasks = Parcel::tasks(units, stretch, out, stretch.elems, per_unit).into_iter();
    let makers = share(tasks, || Maker::new(x, spec, units, past_caches, adding), Maker::encode);
    makers.into_iter().map(Maker::finish).fold(CountsAndLoss::default(), add_both)
}

/// The same of codes that lie two in a byte.
fn packed_units(
    x: Tensor<'_>,
    spec: &Spec,
    units: RangeUnits,
    stretch: Stretch,
    bytes: &mut [u8],
    per_unit: PerUnit<'_>,
) -> CountsAndLoss {
    let adding = (spec.loss != LossDetail::None).then_some(loss::Adding::OWN);
    let row_elems = x.row_elems();
    let row_bytes = row_elems.div_ceil(2);
    // A stretch ends with a row or within a byte of no row.
    let stretch_bytes =
        if stretch.elems.is_multiple_of(row_elems) { stretch.elems / row_elems * row_bytes } else { stretch.elems / 2 };
    let tasks = Parcel::tasks(units, stretch, bytes, stretch_bytes, per_unit).into_iter();
    let start = || (Maker::new(x, spec, units, false, adding), vec![]);
    let work = |(maker, codes): &mut (Maker<'_, u8>, Vec<u8>), parcel: Parcel<'_, u8>| {
        let Parcel { elems, out, scales, zero_points, losses } = parcel;
        codes.resize(elems.len(), 0);
        let (first, first_unit) = (elems.start, units.unit_of(elems.start));
        maker.encode(Parcel { elems, out: codes, scales, zero_points: &mut *zero_points, losses });
        let pad = |elem| zero_points.get(units.unit_of(elem) - first_unit).copied().unwrap_or(0);
        nibble::pack(codes, first, row_elems, pad, out);
    };
    let makers = share(tasks, start, work);
    makers.into_iter().map(|(maker, _)| maker.finish()).fold(CountsAndLoss::default(), add_both)
}

fn add_both((counts, found): CountsAndLoss, (more_counts, more): CountsAndLoss) -> CountsAndLoss {
    (add(counts, more_counts), found.merged(more))
}

pub(super) fn add(mut counts: Counts, more: Counts) -> Counts {
    counts.merge(more);
    counts
}

/// What is called with each run's values and what was made of them, or is still to be made by it: of values all of which are
/// ordinary.
type Visit<'a, T> = Option<&'a mut dyn FnMut(&Run, &Coder, &[f32], Codes<'_, T>)>;

/// See [`Visit`].
pub(super) enum Codes<'a, T> {
    Made(&'a [T]),
    Ordinary(&'a mut [T]),
}

/// Range units of a task that computes scales.
const TASK_UNITS: usize = 1 << 12;

/// Scales and zero points that are known before the first code.
pub(super) struct Scaling<'a> {
    pub(super) units: RangeUnits,
    pub(super) scales: Cow<'a, [f32]>,
    pub(super) zero_points: Cow<'a, [i32]>,
    /// Whether all values of a unit are finite and none is clipped; of given scales nobody knows.
    ordinary: Vec<bool>,
    all_ordinary: bool,
}

impl<'a> Scaling<'a> {
    /// From the ranges, into these vectors.
    pub(super) fn found(
        x: Tensor<'_>,
        spec: &Spec,
        units: RangeUnits,
        scales: Vec<f32>,
        zero_points: Vec<i32>,
    ) -> Scaling<'static> {
        let scheme = spec.scheme;
        if scheme.is_cast() {
            return Scaling {
                units,
                scales: Cow::default(),
                zero_points: Cow::default(),
                ordinary: vec![],
                all_ordinary: false,
            };
        }
        let parts = parts(x, units);
        let mut scales = recycled(scales, units.units);
        let mut zero_points = recycled(zero_points, units.units);
        let mut ordinary = vec![false; units.units];
        let to = scales.chunks_mut(TASK_UNITS).zip(zero_points.chunks_mut(TASK_UNITS));
        let tasks = parts.chunks(TASK_UNITS).zip(to).zip(ordinary.chunks_mut(TASK_UNITS));
        share(
            tasks,
            || (),
            |(), ((parts, (scales, zero_points)), ordinary)| {
                let ieee = float_env::is_ieee_default();
                for (((part, s), z), ordinary) in parts.iter().zip(scales).zip(zero_points).zip(ordinary) {
                    (*s, *z) = scale_and_zero_point(part.range(), scheme, ieee);
                    let coder = Coder { scheme, saturate: false, s: *s, z: *z, ieee };
                    *ordinary = part.is_finite() && coder.is_ordinary(part.range());
                }
            },
        );
        if !scheme.has_zero_point() {
            zero_points.clear();
        }
        let all_ordinary = ordinary.iter().all(|&ordinary| ordinary);
        Scaling { units, scales: Cow::Owned(scales), zero_points: Cow::Owned(zero_points), ordinary, all_ordinary }
    }

    /// From what the caller knows.
    pub(super) fn given(x: Tensor<'_>, spec: &Spec, scales: &'a [f32], zero_points: &'a [i32]) -> Result<Self> {
        let units = spec.units(x.shape())?;
        check_given(spec.scheme, units, scales, zero_points)?;
        Ok(Self {
            units,
            scales: Cow::Borrowed(scales),
            zero_points: Cow::Borrowed(zero_points),
            ordinary: vec![],
            all_ordinary: false,
        })
    }

    fn coder(&self, spec: &Spec, run: &Run) -> Coder {
        let s = self.scales.get(run.unit).copied().unwrap_or(1.0);
        Coder { scheme: spec.scheme, saturate: spec.saturate, s, z: self.zero_point(run.unit), ieee: run.ieee }
    }

    fn zero_point(&self, unit: usize) -> i32 {
        self.zero_points.get(unit).copied().unwrap_or(0)
    }

    /// Makes something of each of these elements, and, if asked to, visits each run.
    pub(super) fn encode<T: Made>(
        &self,
        x: Tensor<'_>,
        spec: &Spec,
        elems: Range<usize>,
        out: &mut [T],
        past_caches: bool,
        mut visit: Visit<'_, T>,
    ) -> Counts {
        let (first, mut counts, mut values) = (elems.start, Counts::default(), Values::new(x));
        let mut out = Output::new(out, past_caches);
        // The loss would rather have more at a time.
        let block_elems = if visit.is_some() { BLOCK_ELEMS } else { out.block_elems() };
        let ask = if visit.is_some() { Ask::NOTHING } else { Ask::ALL };
        if self.units.inner_elems < FEW_ELEMS && !spec.scheme.is_cast() && float_env::is_ieee_default() {
            let mut spread = Spread::default();
            let ordinary = self.all_ordinary;
            for block in blocks_of(block_elems, elems) {
                let (x, of_each) =
                    (values.get(block.clone()), spread.of(self.units, &block, &self.scales, &self.zero_points));
                out.write(block.start - first..block.end - first, |out| {
                    counts.merge(Coder::encode_each(spec.scheme, x, of_each, ordinary, out));
                    if let Some(visit) = &mut visit {
                        for run in runs(self.units, block.clone()) {
                            let place = run.elems.start - block.start..run.elems.end - block.start;
                            visit(&run, &self.coder(spec, &run), &x[place.clone()], Codes::Made(&out[place]));
                        }
                    }
                });
            }
            return counts;
        }
        for run in runs(self.units, elems) {
            let coder = self.coder(spec, &run);
            // What another thread has found is of use to one that may use float arithmetic.
            let ordinary = run.ieee && self.ordinary.get(run.unit).copied().unwrap_or(false);
            for block in blocks_of(block_elems, run.elems.clone()) {
                let x = values.get(block.clone());
                // To look at the ends of a block costs less than to look at each quotient.
                let (ordinary, ask) = if ordinary || !run.ieee || spec.scheme.is_cast() {
                    (ordinary, ask)
                } else {
                    let [ask, ask_again] = Ask::halves(4 * block_elems);
                    let part = Part::of(x, true, ask);
                    (part.is_finite() && coder.is_ordinary(part.range()), ask_again)
                };
                out.write(block.start - first..block.end - first, |out| match (&mut visit, ordinary) {
                    (Some(visit), true) => visit(&run, &coder, x, Codes::Ordinary(out)),
                    (Some(visit), false) => {
                        counts.merge(coder.encode(x, out));
                        visit(&run, &coder, x, Codes::Made(out));
                    }
                    (None, true) => coder.encode_ordinary(x, ask, out),
                    (None, false) => counts.merge(coder.encode(x, out)),
                });
            }
        }
        counts
    }
}

/// Stores all codes.
fn encode(x: Tensor<'_>, spec: &Spec, scaling: &Scaling<'_>, bytes: &mut [u8]) -> (Counts, Vec<loss::Part>) {
    let task_elems = task_elems(scaling.units);
    let past_caches = is_past_caches(x.bytes().len(), bytes.len());
    match spec.scheme.code().bits() {
        4 => {
            let row_elems = x.row_elems();
            let row_bytes = row_elems.div_ceil(2);
            let elem_of = |byte: usize| byte / row_bytes * row_elems + byte % row_bytes * 2;
            let pad = |elem| scaling.zero_point(scaling.units.unit_of(elem));
            // Tasks own whole bytes, so that none shares one with another.
            in_tasks(spec, scaling, bytes, task_elems / 2, |codes: &mut Vec<u8>, first_byte, bytes| {
                let elems = elem_of(first_byte)..elem_of(first_byte + bytes.len());
                codes.resize(elems.len(), 0);
                let made = encode_task(x, spec, scaling, elems.clone(), codes, false);
                nibble::pack(codes, elems.start, row_elems, pad, bytes);
                made
            })
        }
        8 => in_tasks(spec, scaling, bytes, task_elems, |_, first, codes| {
            encode_task(x, spec, scaling, first..first + codes.len(), codes, past_caches)
        }),
        _ => in_tasks(spec, scaling, bytes.as_chunks_mut::<2>().0, task_elems, |_, first, codes| {
            encode_task(x, spec, scaling, first..first + codes.len(), codes, past_caches)
        }),
    }
}

type MadeByTask = (Counts, Option<Slots<loss::Part>>);

/// Runs `work(buffer, first, out)` on stretches of `out`, and brings together what they return.
fn in_tasks<T: Send>(
    spec: &Spec,
    scaling: &Scaling<'_>,
    out: &mut [T],
    task_len: usize,
    work: impl Fn(&mut Vec<u8>, usize, &mut [T]) -> MadeByTask + Sync,
) -> (Counts, Vec<loss::Part>) {
    let all = share(backwards(out, task_len), Default::default, |(made, buffer): &mut (Vec<_>, _), (task, out)| {
        made.push(work(buffer, task * task_len, out));
    });
    let mut counts = Counts::default();
    let lossy = spec.loss != LossDetail::None && !spec.scheme.is_cast();
    let mut sums = vec![loss::Part::default(); if lossy { scaling.units.units } else { 0 }];
    for (more, slots) in all.into_iter().flat_map(|(made, _)| made) {
        counts.merge(more);
        if let Some(slots) = slots {
            slots.merge_into(&mut sums, |a, b| a.merge(&b));
        }
    }
    (counts, sums)
}

fn encode_task<T: Field>(
    x: Tensor<'_>,
    spec: &Spec,
    scaling: &Scaling<'_>,
    elems: Range<usize>,
    out: &mut [T],
    past_caches: bool,
) -> MadeByTask {
    if spec.loss == LossDetail::None || spec.scheme.is_cast() {
        return (scaling.encode(x, spec, elems, out, past_caches, None), None);
    }
    let mut slots = Slots::new(scaling.units, &elems, &loss::Part::default());
    let mut add = |run: &Run, coder: &Coder, x: &[f32], codes: Codes<'_, T>| {
        let part = slots.of(run.unit);
        match codes {
            Codes::Made(codes) => part.add_own(coder, x, codes, ASK_BYTES),
            Codes::Ordinary(codes) => part.make_own(coder, x, codes, ASK_BYTES),
        }
    };
    let counts = scaling.encode(x, spec, elems, out, past_caches, Some(&mut add));
    (counts, Some(slots))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Granularity::{self, Channel, Group};
    use crate::scheme::Scheme;
    use crate::tensor::ElemType;
    use crate::test_data::{KINDS, Rng, data};

    #[test]
    fn each_scheme_gives_the_codes_that_its_formula_gives_by_hand() {
        // Values, scale, zero point, codes, clipped.
        type Example = (Scheme, &'static [f32], f32, i32, &'static [i32], u64);
        let examples: [Example; 15] = [
            (Scheme::INT4_MINMAX, &[-8.0, 7.0, 0.5, 1.5, -2.5], 1.0, 0, &[-8, 7, 0, 2, -2], 0),
            (Scheme::INT8_MINMAX, &[10.0, 265.0, 12.5], 1.0, 0, &[10, 127, 12], 1),
            (Scheme::INT16_MINMAX, &[-32768.0, 32767.0, -1.5], 1.0, 0, &[-32768, 32767, -2], 0),
            (Scheme::INT4_ABSMAX, &[-7.0, -3.5, 0.5, 2.5, 7.0], 1.0, 0, &[-7, -4, 0, 2, 7], 0),
            (Scheme::INT8_ABSMAX, &[-254.0, 1.0, 3.0, 7.0], 2.0, 0, &[-127, 0, 2, 4], 0),
            (Scheme::INT16_ABSMAX, &[-32767.0, 2.5, 3.5], 1.0, 0, &[-32767, 2, 4], 0),
            (Scheme::INT4_AFFINE, &[0.0, 3.0, 15.0], 1.0, -8, &[-8, -5, 7], 0),
            (Scheme::UINT4_AFFINE, &[-8.0, 7.0, 0.5, -1.5], 1.0, 8, &[0, 15, 8, 6], 0),
            (Scheme::INT8_AFFINE, &[0.5, 255.0, 1.5], 1.0, -128, &[-128, 127, -126], 0),
            (Scheme::UINT8_AFFINE, &[-100.0, 155.0, 2.5], 1.0, 100, &[0, 255, 102], 0),
            (Scheme::INT16_AFFINE, &[0.0, 65535.0, 1.5], 1.0, -32768, &[-32768, 32767, -32766], 0),
            (Scheme::UINT16_AFFINE, &[-5.0, 65530.0, -1.5], 1.0, 5, &[0, 65535, 3], 0),
            (Scheme::ONNX_DYNAMIC_UINT8, &[-2.5, 252.5, 0.5], 1.0, 2, &[0, 254, 2], 0),
            (Scheme::CT_INT8, &[-127.5, 127.5, -0.5], 1.0, 0, &[-128, 127, 0], 1),
            (Scheme::CT_INT4, &[-7.5, 7.5, 1.5], 1.0, 0, &[-8, 7, 2], 1),
        ];
        for (scheme, x, s, z, codes, clipped) in examples {
            let shape = [x.len()];
            let out = quantize(Tensor::new(x, &shape).unwrap(), &Spec::new(scheme)).unwrap();
            assert_eq!((out.tensor.scales(), out.tensor.zero_point(0)), (&[s][..], z), "{scheme}");
            assert_eq!((&*out.tensor.code_values(), out.counts.clipped_elems), (codes, clipped), "{scheme}");
        }
        let cast = |scheme, saturate| {
            let x = [1.0, -0.0, 1e6, f32::INFINITY, 1.004];
            let out = quantize(Tensor::new(&x, &[5]).unwrap(), &Spec::new(scheme).saturate(saturate)).unwrap();
            assert!(out.tensor.scales().is_empty() && out.tensor.zero_points().is_empty());
            (out.tensor.code_values(), out.counts.clipped_elems, out.counts.inf_elems)
        };
        assert_eq!(cast(Scheme::F16, false), (vec![0x3c00, 0x8000, 0x7c00, 0x7c00, 0x3c04], 1, 1));
        assert_eq!(cast(Scheme::F16, true), (vec![0x3c00, 0x8000, 0x7bff, 0x7bff, 0x3c04], 1, 1));
        // 1.004 lies a little beyond 1 + 2^-8, halfway between two bf16.
        assert_eq!(cast(Scheme::BF16, false), (vec![0x3f80, 0x8000, 0x4974, 0x7f80, 0x3f81], 0, 1));
    }

    #[test]
    fn an_odd_row_of_4_bit_codes_ends_with_its_last_zero_point() {
        let x = [0.0, 1.0, 15.0, -15.0, -1.0, 0.0];
        let x = Tensor::new(&x, &[2, 3]).unwrap();
        let bytes =
            |scheme, granularity| quantize(x, &Spec::new(scheme).per(granularity)).unwrap().tensor.codes().to_vec();
        // One row's zero point is 0, the other's 15.
        assert_eq!(bytes(Scheme::UINT4_AFFINE, Channel(0)), [0x10, 0x0f, 0xe0, 0xff]);
        // -8 and 7, in two's complement.
        assert_eq!(bytes(Scheme::INT4_AFFINE, Channel(0)), [0x98, 0x87, 0x68, 0x77]);
        // The last group of the first row holds 15 alone, that of the second 0, whose scale is 1.
        assert_eq!(bytes(Scheme::UINT4_AFFINE, Group(2)), [0xf0, 0x0f, 0xe0, 0x00]);
        // Per column the last zero point is that of [15, 0].
        assert_eq!(bytes(Scheme::INT4_AFFINE, Channel(1))[1], 0x87);
        // Without zero points there is nothing but 0 to fill up with.
        assert_eq!(bytes(Scheme::INT4_ABSMAX, Channel(0)), [0x00, 0x07, 0x09, 0x00]);
        let scalar = quantize(Tensor::new(&[-3.0], &[]).unwrap(), &Spec::new(Scheme::UINT4_AFFINE)).unwrap();
        assert_eq!((scalar.tensor.codes(), scalar.tensor.zero_points()), (&[0xf0][..], &[15][..]));
    }

    #[test]
    fn every_4_bit_code_and_pad_stands_in_its_place_across_tasks() {
        for shape in [[70_000, 3], [3, 100_001], [2, 131_072], [200_001, 1]] {
            for granularity in [Granularity::Tensor, Channel(0), Channel(1), Group(2), Group(33)] {
                let x = data("gauss", shape[0] * shape[1], 41);
                let x = Tensor::new(&x, &shape).unwrap();
                let (four, eight) = (Spec::new(Scheme::UINT4_AFFINE), Spec::new(Scheme::UINT8_AFFINE));
                let four = quantize(x, &four.per(granularity)).unwrap().tensor;
                // The same scales and zero points in whole bytes; codes are those of 8 bits, clamped.
                let (s, z) = (four.scales(), four.zero_points());
                let eight = quantize_with_scales(x, &eight.per(granularity), s, z).unwrap().tensor;
                let mut expected = vec![];
                for (row, codes) in eight.codes().chunks(shape[1]).enumerate() {
                    let pad = four.zero_point(four.units().unit_of((row + 1) * shape[1] - 1)) as u8;
                    let pair = |pair: &[u8]| pair[0].min(15) | pair.get(1).map_or(pad, |&odd| odd.min(15)) << 4;
                    expected.extend(codes.chunks(2).map(pair));
                }
                assert!(four.codes() == expected, "{shape:?} {granularity}");
            }
        }
    }

    #[test]
    fn a_row_pitch_and_the_type_of_elements_change_nothing() {
        let mut rng = Rng::new(42);
        let (rows, row, pitch) = (70, 1001, 1003);
        let shape = [rows, row];
        for &elem_type in ElemType::ALL {
            let mut bytes = vec![0u8; rows * pitch * elem_type.bytes()];
            match elem_type {
                // Random bits of an f64 are hardly ever within f32.
                ElemType::F64 => {
                    for bytes in bytes.as_chunks_mut::<8>().0 {
                        let value = f64::from(f32::from_bits(rng.float_bits())) * 1.000_000_04;
                        *bytes = value.to_ne_bytes();
                    }
                }
                _ => bytes.iter_mut().for_each(|byte| *byte = rng.next_u32() as u8),
            }
            let padded = Tensor::strided(elem_type, &bytes, &shape, &[pitch, 1]).unwrap();
            let mut values = vec![0f32; rows * row];
            padded.read(0, &mut values);
            let values = Tensor::new(&values, &shape).unwrap();
            let dense: Vec<u8> = bytes
                .chunks(pitch * elem_type.bytes())
                .flat_map(|bytes| &bytes[..row * elem_type.bytes()])
                .copied()
                .collect();
            let dense = Tensor::from_bytes(elem_type, &dense, &shape).unwrap();
            for &scheme in Scheme::ALL {
                for granularity in [Granularity::Tensor, Channel(0), Channel(1), Group(32), Group(7)] {
                    if scheme.is_cast() && granularity != Granularity::Tensor {
                        continue;
                    }
                    let spec = Spec::new(scheme).per(granularity).loss(LossDetail::PerElement);
                    let expected = quantize(values, &spec).unwrap();
                    for x in [padded, dense] {
                        assert!(quantize(x, &spec).unwrap() == expected, "{elem_type:?} {scheme} {granularity}");
                    }
                    let fake = |x| super::super::fake_quantize(x, &spec).unwrap();
                    assert!(fake(padded) == fake(values), "{elem_type:?} {scheme} {granularity}");
                }
            }
        }
    }

    #[test]
    fn counts_are_those_of_the_values_and_empty_tensors_have_the_scale_of_zeros() {
        for &scheme in Scheme::ALL {
            for kind in KINDS {
                let x = data(kind, 500, 43);
                let counts = quantize(Tensor::new(&x, &[500]).unwrap(), &Spec::new(scheme)).unwrap().counts;
                assert_eq!(counts.nan_elems, x.iter().filter(|v| v.is_nan()).count() as u64, "{scheme} {kind}");
                assert_eq!(counts.inf_elems, x.iter().filter(|v| v.is_infinite()).count() as u64, "{scheme} {kind}");
            }
            let spec = Spec::new(scheme).loss(LossDetail::Summary);
            let empty = quantize(Tensor::new(&[], &[3, 0]).unwrap(), &spec).unwrap();
            let zeros = quantize(Tensor::new(&[0.0], &[1]).unwrap(), &spec).unwrap();
            assert!(empty.tensor.codes().is_empty());
            assert_eq!(empty.tensor.scales(), zeros.tensor.scales(), "{scheme}");
            assert_eq!(empty.tensor.zero_points(), zeros.tensor.zero_points(), "{scheme}");
            assert_eq!(empty.loss.unwrap().summary().mse, None);
        }
    }

    #[test]
    fn scales_and_zero_points_that_do_not_fit_are_refused() {
        let x = Tensor::new(&[1.0, 2.0], &[2]).unwrap();
        let refused = |scheme, granularity, scales: &[f32], zero_points: &[i32]| {
            quantize_with_scales(x, &Spec::new(scheme).per(granularity), scales, zero_points).unwrap_err().to_string()
        };
        let tensor = Granularity::Tensor;
        assert!(refused(Scheme::INT8_ABSMAX, Channel(0), &[1.0], &[]).contains("1 elements, expected 2"));
        assert!(refused(Scheme::INT8_ABSMAX, tensor, &[1.0], &[0]).contains("zero points holds 1 elements"));
        assert!(refused(Scheme::UINT8_AFFINE, tensor, &[1.0], &[]).contains("zero points holds 0 elements"));
        assert!(refused(Scheme::UINT4_AFFINE, tensor, &[1.0], &[16]).contains("0 to 15"));
        assert!(refused(Scheme::INT8_ABSMAX, tensor, &[0.0], &[]).contains("not a positive finite number"));
        assert!(refused(Scheme::F16, tensor, &[1.0], &[]).contains("has no scale"));
        assert!(refused(Scheme::BF16, Channel(0), &[], &[]).contains("has no scale"));
        let saturate = Spec::new(Scheme::BF16).saturate(true);
        assert!(quantize(x, &saturate).unwrap_err().to_string().contains("cannot saturate"));
    }
}
