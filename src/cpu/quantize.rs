//! From values to codes; twin of `shaders/quantize.wgsl`.

use super::fold::{Run, map_runs};
use super::min_max::{Range, Ranges, min_max};
use super::{loss, scale};
use crate::error::{Error, Result};
use crate::exact;
use crate::layout::{RangeUnits, Tensor};
use crate::quantized::{Counts, LossDetail, QuantizeOutput, Quantized, Spec, check_scales};
use crate::scheme::Scheme;
use rayon::prelude::*;

/// Quantizes a tensor: finds the ranges, computes the scales, rounds and clamps every value to its code.
///
/// ```text
/// q = clamp(rne(x / s), qmin, qmax)
/// ```
///
/// with one binary32 division and `rne` to nearest, ties to even; `s` as in [`scale`](super::scale()).
///
/// The output has one code per element in the tensor's order and one scale per range unit. NaN gets code 0,
/// infinities saturate, -0 is as +0, subnormals are kept; a tensor of zeros has scale 1; an empty tensor
/// has no codes and, per tensor, scale 1. [`Counts`] tells what was not ordinary.
///
/// # Errors
/// Those of [`RangeUnits::new`].
///
/// ```
/// use wgpu_quant::{LossDetail, Scheme, Spec, Tensor, cpu};
/// let x = [-10.0, -5.0, 0.0, 5.0, 10.0];
/// let spec = Spec::new(Scheme::INT8_MINMAX).loss(LossDetail::PerElement);
/// let out = cpu::quantize(Tensor::new(&x, &[5])?, &spec)?;
/// assert_eq!(out.tensor.scales()[0].to_bits(), 0x3da0a0a1);
/// assert_eq!(out.tensor.codes_i8(), [-127, -64, 0, 64, 127]); // x / s is -127.49999
/// assert_eq!(cpu::dequantize(&out.tensor)?, [-9.960785, -5.019608, 0.0, 5.019608, 9.960785]);
/// let errors = out.loss.unwrap().abs_errors.unwrap();
/// let errors: Vec<String> = errors.iter().map(|e| format!("{e:.6}")).collect();
/// assert_eq!(errors, ["0.039215", "0.019608", "0.000000", "0.019608", "0.039215"]);
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn quantize(x: Tensor<'_>, spec: &Spec) -> Result<QuantizeOutput> {
    let ranges = min_max(x, spec.granularity)?;
    let scales = ranges.units.par_iter().map(|&range| scale(range, spec.scheme)).collect();
    encode(x, spec, scales, &ranges)
}

/// Quantizes a tensor with given scales, one per range unit: [`quantize`] without its first two stages.
///
/// # Errors
/// [`Error::LengthMismatch`] when there is not one scale per range unit, [`Error::InvalidScale`] when one is
/// not positive and finite, and those of [`RangeUnits::new`].
///
/// ```
/// use wgpu_quant::{Scheme, Spec, Tensor, cpu};
/// let x = Tensor::new(&[-1.5, 0.25, 1000.0], &[3])?;
/// let out = cpu::quantize_with_scales(x, &Spec::new(Scheme::INT8_ABSMAX), &[0.5])?;
/// assert_eq!(out.tensor.codes_i8(), [-3, 0, 127]); // 0.25 / 0.5 is a tie, and 0 is even
/// assert_eq!(out.counts.clipped_elems, 1);
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn quantize_with_scales(x: Tensor<'_>, spec: &Spec, scales: &[f32]) -> Result<QuantizeOutput> {
    let units = RangeUnits::new(x.shape(), spec.granularity)?;
    if scales.len() != units.units {
        return Err(Error::LengthMismatch { what: "scales", found_elems: scales.len(), expected_elems: units.units });
    }
    check_scales(scales)?;
    // The ranges are not needed for the codes, but the counts of NaN and Inf come with them.
    encode(x, spec, scales.to_vec(), &min_max(x, spec.granularity)?)
}

fn encode(x: Tensor<'_>, spec: &Spec, scales: Vec<f32>, ranges: &Ranges) -> Result<QuantizeOutput> {
    let units = RangeUnits::new(x.shape(), spec.granularity)?;
    let mut codes = vec![0u8; x.data().len()];
    let clipped_elems = map_runs(units, &mut codes, |codes, run: Run| {
        let (x, s) = (&x.data()[run.elems.clone()], scales[run.unit]);
        if run.ieee { plain(x, s, spec.scheme, codes) } else { exact(x, s, ranges.units[run.unit], spec.scheme, codes) }
    });
    let counts = Counts { clipped_elems, nan_elems: ranges.nan_elems, inf_elems: ranges.inf_elems };
    let tensor = Quantized::from_parts(spec.scheme, spec.granularity, x.shape().to_vec(), codes, scales)?;
    let loss = match spec.loss {
        LossDetail::None => None,
        detail => Some(loss(x, &tensor, detail == LossDetail::PerElement)?),
    };
    Ok(QuantizeOutput::new(tensor, counts, loss))
}

/// Adding and subtracting it rounds a magnitude below 2^22 to a whole number, ties to even: above 2^23 the
/// floats are the whole numbers. It is `round_ties_even` in a form that every vector unit has.
const WHOLE: f32 = 12_582_912.0;

fn plain(x: &[f32], s: f32, scheme: Scheme, codes: &mut [u8]) -> u64 {
    let (qmin, qmax) = (scheme.qmin() as f32, scheme.qmax() as f32);
    // A run is no longer than a task; 32 bits keep the loop's lanes alike.
    let mut clipped = 0u32;
    for (code, &v) in codes.iter_mut().zip(x) {
        let y = v / s;
        // Far beyond the codes one value is as good as another; a NaN stays.
        let near = y.clamp(-65536.0, 65536.0);
        let whole = (near + WHOLE) - WHOLE;
        let finite = v.abs() < f32::INFINITY;
        clipped += u32::from(finite & ((whole < qmin) | (whole > qmax)));
        let q = if v.is_nan() { 0.0 } else { whole.clamp(qmin, qmax) };
        *code = (q + WHOLE).to_bits() as u8;
    }
    clipped.into()
}

fn exact(x: &[f32], s: f32, range: Range, scheme: Scheme, codes: &mut [u8]) -> u64 {
    let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
    let recipe = exact::code::recipe(s.to_bits(), range.lo.to_bits(), range.hi.to_bits(), qmin, qmax);
    let mut clipped = 0;
    for (code, v) in codes.iter_mut().zip(x) {
        *code = exact::code::encode(v.to_bits(), &recipe, qmin, qmax) as u8;
        clipped += u64::from(exact::code::is_clipped(v.to_bits(), &recipe));
    }
    clipped
}
