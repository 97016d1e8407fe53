//! The loss of a quantized tensor; twin of `shaders/loss.wgsl` and `shaders/abs_error.wgsl`.

use super::dequantize::values;
use super::fold::{Run, fold_units, map_runs};
use crate::error::{Error, Result};
use crate::exact;
use crate::exact::loss::grid_exp;
use crate::layout::Tensor;
use crate::loss::{Loss, UnitSums};
use crate::quantized::Quantized;

/// The bits of every NaN in [`Loss::abs_errors`].
const NAN: u32 = 0x7fc0_0000;
/// De-quantized values that a task holds at a time.
const BLOCK_ELEMS: usize = 1024;

/// The loss of a quantized tensor against its original.
///
/// ```text
/// |x' - x|   one binary32 subtraction, rounded to nearest, ties to even
/// ```
///
/// Per range unit the maximum and the sum of squares; for the tensor the maximum, mean, MSE, SQNR and cosine
/// of [`LossSummary`](crate::LossSummary); and on request `|x' - x|` of every element. Elements with a NaN
/// or infinite x, or an infinite x', are left out of the figures. An empty tensor has no figures. How the
/// sums are defined, so that they do not depend on order: [`crate::loss`].
///
/// # Errors
/// [`Error::ShapeMismatch`] when the two tensors' shapes differ.
///
/// ```
/// use wgpu_quant::{Granularity, Quantized, Scheme, Tensor, cpu};
/// let q = Quantized::from_parts(Scheme::INT8_ABSMAX, Granularity::Tensor, vec![2], vec![3, 0], vec![0.5])?;
/// let summary = cpu::loss(Tensor::new(&[1.25, 0.0], &[2])?, &q, false)?.summary();
/// assert_eq!((summary.max_abs_error, summary.mean_abs_error), (Some(0.25), Some(0.125)));
/// assert_eq!(summary.mse, Some(0.03125));
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn loss(x: Tensor<'_>, q: &Quantized, per_element: bool) -> Result<Loss> {
    if x.shape() != q.shape() {
        return Err(Error::ShapeMismatch { found: q.shape().to_vec(), expected: x.shape().to_vec() });
    }
    let units = q.units();
    let data = |run: &Run| (&x.data()[run.elems.clone()], &q.codes_i8()[run.elems.clone()], q.scales()[run.unit]);
    // On the scale's own grid first; the units that turn out to be clipped need a coarser one, and go again.
    let mut parts = fold_units(
        units,
        &Part::default(),
        |part, run| {
            let (x, codes, s) = data(&run);
            let g = grid_exp(s.to_bits(), 0);
            for_each_block(x, codes, s, run.ieee, |x, codes, out| part.add(x, codes, out, g, run.ieee));
        },
        |a, b| a.merge(&b),
    );
    let coarse: Vec<Option<i32>> = parts
        .iter()
        .zip(q.scales())
        .map(|(part, s)| (part.sums.max_bits > s.to_bits()).then(|| grid_exp(s.to_bits(), part.sums.max_bits)))
        .collect();
    if coarse.iter().any(Option::is_some) {
        let again = fold_units(
            units,
            &Part::default(),
            |part, run| {
                let Some(g) = coarse[run.unit] else { return };
                let (x, codes, s) = data(&run);
                for_each_block(x, codes, s, run.ieee, |x, codes, out| part.add(x, codes, out, g, run.ieee));
            },
            |a, b| a.merge(&b),
        );
        for ((part, again), coarse) in parts.iter_mut().zip(again).zip(&coarse) {
            if coarse.is_some() {
                *part = again;
            }
        }
    }
    let abs_errors = per_element.then(|| {
        let mut errors = vec![0f32; x.data().len()];
        map_runs(units, &mut errors, |errors, run| {
            let (x, codes, s) = data(&run);
            let mut rest = errors;
            for_each_block(x, codes, s, run.ieee, |x, _, out| {
                let (block, tail) = std::mem::take(&mut rest).split_at_mut(x.len());
                for ((error, &x), &out) in block.iter_mut().zip(x).zip(out) {
                    *error = f32::from_bits(abs_error(x, out, run.ieee));
                }
                rest = tail;
            });
            0
        });
        errors
    });
    let elems = parts.iter().map(|part| part.elems).sum();
    let nonfinite_out_elems = parts.iter().map(|part| part.nonfinite_out_elems).sum();
    let unit_sums: Vec<UnitSums> = parts.into_iter().map(|part| part.sums).collect();
    Ok(Loss::new(&unit_sums, q.scales(), elems, nonfinite_out_elems, abs_errors))
}

/// Calls `visit(x, codes, x')` block by block, so that the values fit in a core's cache.
fn for_each_block(x: &[f32], codes: &[i8], s: f32, ieee: bool, mut visit: impl FnMut(&[f32], &[i8], &[f32])) {
    let mut out = [0f32; BLOCK_ELEMS];
    for (x, codes) in x.chunks(BLOCK_ELEMS).zip(codes.chunks(BLOCK_ELEMS)) {
        let out = &mut out[..x.len()];
        values(codes, s, ieee, out);
        visit(x, codes, out);
    }
}

/// On bits: true in every float environment.
fn is_finite(v: f32) -> bool {
    v.to_bits() & 0x7fff_ffff < 0x7f80_0000
}

fn abs_error(x: f32, out: f32, ieee: bool) -> u32 {
    if !ieee {
        return exact::code::abs_error_of(x.to_bits(), out.to_bits());
    }
    let error = (out - x).abs();
    if error.is_nan() { NAN } else { error.to_bits() }
}

/// What a run contributes.
#[derive(Clone, Default)]
struct Part {
    sums: UnitSums,
    elems: u64,
    nonfinite_out_elems: u64,
}

/// Adding and subtracting it rounds a magnitude below 2^51 to a whole number, ties to even, as
/// `round_ties_even` does, but in a form that every vector unit has; and the sum's low bits are that number.
const WHOLE: f64 = 6_755_399_441_055_744.0;

impl Part {
    fn merge(&mut self, other: &Self) {
        self.sums.merge(&other.sums);
        self.elems += other.elems;
        self.nonfinite_out_elems += other.nonfinite_out_elems;
    }

    /// Adds a block. On a grid that is too fine for its losses the sums are worthless, but the largest loss
    /// is right.
    fn add(&mut self, x: &[f32], codes: &[i8], out: &[f32], g: i32, ieee: bool) {
        // The step is a power of two, so that quotients by it are exact before they are rounded.
        let per_step = f64::from_bits(((1023 - i64::from(g)) as u64) << 52);
        let (mut elems, mut nonfinite_out, mut max) = (0u32, 0u32, 0i32);
        // The block's sums in 64 bits: |D| < 2^30, so its square is summed in two halves.
        let (mut abs, mut noise_lo, mut noise_hi, mut squares, mut cross) = (0u64, 0u64, 0u64, 0u64, 0i64);
        for ((&x, &code), &out) in x.iter().zip(codes).zip(out) {
            let counts = is_finite(x) & is_finite(out);
            elems += u32::from(counts);
            nonfinite_out += u32::from(!is_finite(out));
            let (x, out, code) = if counts { (x, out, i32::from(code)) } else { (0.0, 0.0, 0) };
            let (d, error) = if ieee {
                let steps = |v: f32| (f64::from(v) * per_step + WHOLE) - WHOLE;
                let d = ((steps(out) - steps(x)) + WHOLE).to_bits() as i32;
                (d, (out - x).abs().to_bits())
            } else {
                let (x, out) = (x.to_bits(), out.to_bits());
                (exact::loss::distance_on_grid(x, out, g), exact::code::abs_error_of(x, out))
            };
            // As numbers of the same sign, patterns order as their values do.
            max = max.max(error.cast_signed());
            let size = u64::from(d.unsigned_abs());
            abs += size;
            noise_lo += (size * size) & 0xffff_ffff;
            noise_hi += (size * size) >> 32;
            squares += u64::from(code.unsigned_abs().pow(2));
            cross += i64::from(code) * i64::from(d);
        }
        self.elems += u64::from(elems);
        self.nonfinite_out_elems += u64::from(nonfinite_out);
        self.sums.merge(&UnitSums {
            max_bits: max.cast_unsigned(),
            abs: abs.into(),
            noise: u128::from(noise_lo) + (u128::from(noise_hi) << 32),
            codes: squares.into(),
            cross: cross.into(),
        });
    }
}
