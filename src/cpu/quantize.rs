//! From values to codes; twin of `shaders/quantize.wgsl`.

use super::code::Coder;
use super::fold::{Run, TASK_ELEMS, for_each_run, map_tasks};
use super::min_max::min_max;
use super::{loss, scale, zero_point};
use crate::error::Result;
use crate::layout::{Granularity, RangeUnits};
use crate::quantized::{Counts, LossDetail, QuantizeOutput, Quantized, Spec, check_given, code_bytes};
use crate::tensor::Tensor;
use rayon::prelude::*;
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
    encode(x, spec, Scaling::found(x, spec)?)
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
    encode(x, spec, Scaling::given(x, spec, scales, zero_points)?)
}

/// What must be known before the first code: scales, zero points, and the counts but `clipped_elems`.
pub(super) struct Scaling {
    pub(super) units: RangeUnits,
    pub(super) scales: Vec<f32>,
    pub(super) zero_points: Vec<i32>,
    pub(super) counts: Counts,
}

impl Scaling {
    /// From the ranges.
    pub(super) fn found(x: Tensor<'_>, spec: &Spec) -> Result<Self> {
        let (units, scheme) = (spec.units(x.shape())?, spec.scheme);
        let ranges = min_max(x, spec.granularity)?;
        let scales: Vec<f32> = match scheme.is_cast() {
            true => vec![],
            false => ranges.units.par_iter().map(|&range| scale(range, scheme)).collect(),
        };
        let zero_points = match scheme.has_zero_point() {
            true => ranges.units.par_iter().zip(&scales).map(|(&range, &s)| zero_point(range, s, scheme)).collect(),
            false => vec![],
        };
        let counts = Counts { clipped_elems: 0, nan_elems: ranges.nan_elems, inf_elems: ranges.inf_elems };
        Ok(Self { units, scales, zero_points, counts })
    }

    /// From what the caller knows.
    pub(super) fn given(x: Tensor<'_>, spec: &Spec, scales: &[f32], zero_points: &[i32]) -> Result<Self> {
        let units = spec.units(x.shape())?;
        check_given(spec.scheme, units, scales, zero_points)?;
        // The range is not needed, but the counts of NaN and Inf come with it.
        let ranges = min_max(x, Granularity::Tensor)?;
        let counts = Counts { clipped_elems: 0, nan_elems: ranges.nan_elems, inf_elems: ranges.inf_elems };
        Ok(Self { units, scales: scales.to_vec(), zero_points: zero_points.to_vec(), counts })
    }

    pub(super) fn coder(&self, spec: &Spec, run: &Run) -> Coder {
        let s = self.scales.get(run.unit).copied().unwrap_or(1.0);
        Coder { scheme: spec.scheme, saturate: spec.saturate, s, z: self.zero_point(run.unit), ieee: run.ieee }
    }

    fn zero_point(&self, unit: usize) -> i32 {
        self.zero_points.get(unit).copied().unwrap_or(0)
    }
}

fn encode(x: Tensor<'_>, spec: &Spec, scaling: Scaling) -> Result<QuantizeOutput> {
    let mut codes = vec![0u8; code_bytes(x.shape(), spec.scheme.code())?];
    let clipped_elems = match spec.scheme.code().bits() {
        4 => nibbles(x, spec, &scaling, &mut codes),
        8 => map_tasks(&mut codes, TASK_ELEMS, |first, out| {
            encode_elems(x, spec, &scaling, first..first + out.len(), out, |code| code as u8)
        }),
        _ => map_tasks(codes.as_chunks_mut::<2>().0, TASK_ELEMS, |first, out| {
            encode_elems(x, spec, &scaling, first..first + out.len(), out, |code| (code as u16).to_le_bytes())
        }),
    };
    let Scaling { scales, zero_points, counts, .. } = scaling;
    let shape = x.shape().to_vec();
    let tensor = Quantized::from_parts(spec.scheme, spec.granularity, shape, codes, scales, zero_points)?;
    let loss = match spec.loss {
        LossDetail::None => None,
        detail => Some(loss(x, &tensor, detail == LossDetail::PerElement)?),
    };
    Ok(QuantizeOutput::new(tensor, Counts { clipped_elems, ..counts }, loss))
}

/// Stores the codes of these elements; returns the number of clipped ones.
fn encode_elems<T>(
    x: Tensor<'_>,
    spec: &Spec,
    scaling: &Scaling,
    elems: Range<usize>,
    out: &mut [T],
    store: impl Fn(i32) -> T,
) -> u64 {
    let (first, mut clipped) = (elems.start, 0);
    for_each_run(x, scaling.units, elems, |run, x| {
        clipped += scaling.coder(spec, &run).encode(x, &mut out[run.within(first)], &store);
    });
    clipped
}

/// Stores 4-bit codes: tasks own whole bytes, so that none shares one with another.
fn nibbles(x: Tensor<'_>, spec: &Spec, scaling: &Scaling, bytes: &mut [u8]) -> u64 {
    let row_elems = x.row_elems();
    let row_bytes = row_elems.div_ceil(2);
    let elem_of = |byte: usize| byte / row_bytes * row_elems + byte % row_bytes * 2;
    map_tasks(bytes, TASK_ELEMS / 2, |first_byte, bytes| {
        let elems = elem_of(first_byte)..elem_of(first_byte + bytes.len());
        let mut codes = vec![0u8; elems.len()];
        let clipped = encode_elems(x, spec, scaling, elems.clone(), &mut codes, |code| code as u8 & 0xf);
        // Row by row, each of which begins with a byte of its own.
        let (mut at, mut rest, mut codes) = (first_byte, bytes, &codes[..]);
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(rest.len().min(row_bytes - at % row_bytes));
            let (own, others) = codes.split_at(elem_of(at + now.len()) - elem_of(at));
            let (pairs, spare) = own.as_chunks::<2>();
            for (byte, [even, odd]) in now.iter_mut().zip(pairs) {
                *byte = even | odd << 4;
            }
            if let ([last], Some(byte)) = (spare, now.last_mut()) {
                let unit = scaling.units.unit_of(elem_of(at + own.len().div_ceil(2)) - 1);
                *byte = last | (scaling.zero_point(unit) as u8) << 4;
            }
            (at, rest, codes) = (at + own.len().div_ceil(2), later, others);
        }
        clipped
    })
}
