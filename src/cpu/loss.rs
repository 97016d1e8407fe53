//! The loss of a quantized tensor; twin of `shaders/loss.wgsl` and `shaders/abs_error.wgsl`.

use super::code::{Coder, is_finite};
use super::fold::{BLOCK_ELEMS, Run, Slots, TASK_ELEMS, fold_units, for_each_run, map_tasks};
use super::{min_max, scale};
use crate::error::{Error, Result};
use crate::exact;
use crate::exact::loss::{CAST_STEP_EXP, CAST_STEPS, grid_exp};
use crate::layout::Granularity;
use crate::loss::{Loss, UnitSums};
use crate::quantized::Quantized;
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
/// or infinite x, or an infinite x', are left out of the figures. An empty tensor has no figures. How the
/// sums are defined, so that they do not depend on order: [`crate::loss`].
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
    let units = q.units();
    // A cast has no scale; its values' magnitude stands in.
    let scales = match q.scheme().is_cast() {
        true => {
            let range = min_max(x, Granularity::Tensor)?.units[0];
            Cow::Owned(vec![scale(range, q.scheme())])
        }
        false => Cow::Borrowed(q.scales()),
    };
    let add = |slots: &mut Slots<Part>, elems, grid: &dyn Fn(usize) -> Option<i32>| {
        for_each_run(x, units, elems, |run, x| {
            let Some(g) = grid(run.unit) else { return };
            let (part, s) = (slots.of(run.unit), scales[run.unit].to_bits());
            for_each_block(q, &run, x, s, |_, x, steps, out| part.add(x, steps, out, g, run.ieee));
        });
    };
    // On the scale's own grid first; the units that turn out to be clipped need a coarser one, and go again.
    let fine = |unit: usize| Some(grid_exp(scales[unit].to_bits(), 0));
    let none = Part::default();
    let mut parts = fold_units(units, &none, |slots, elems| add(slots, elems, &fine), |a, b| a.merge(&b));
    let coarse: Vec<Option<i32>> = parts
        .iter()
        .zip(scales.iter())
        .map(|(part, s)| (part.sums.max_bits > s.to_bits()).then(|| grid_exp(s.to_bits(), part.sums.max_bits)))
        .collect();
    if coarse.iter().any(Option::is_some) {
        let again = |slots: &mut Slots<Part>, elems| add(slots, elems, &|unit| coarse[unit]);
        let again = fold_units(units, &none, again, |a, b| a.merge(&b));
        for ((part, again), coarse) in parts.iter_mut().zip(again).zip(&coarse) {
            if coarse.is_some() {
                *part = again;
            }
        }
    }
    let abs_errors = per_element.then(|| {
        let mut errors = vec![0f32; x.elems()];
        map_tasks(&mut errors, TASK_ELEMS, |first, errors| {
            for_each_run(x, units, first..first + errors.len(), |run, x| {
                for_each_block(q, &run, x, scales[run.unit].to_bits(), |start, x, _, out| {
                    for ((error, &x), &out) in errors[start - first..].iter_mut().zip(x).zip(out) {
                        *error = f32::from_bits(abs_error(x, out, run.ieee));
                    }
                });
            });
            0
        });
        errors
    });
    let elems = parts.iter().map(|part| part.elems).sum();
    let nonfinite_out_elems = parts.iter().map(|part| part.nonfinite_out_elems).sum();
    let unit_sums: Vec<UnitSums> = parts.into_iter().map(|part| part.sums).collect();
    Ok(Loss::new(&unit_sums, &scales, q.scheme().is_cast(), elems, nonfinite_out_elems, abs_errors))
}

/// Calls `visit(start, x, Q, x')` block by block, so that the values fit in a core's cache; `s` is a cast's nominal
/// scale.
fn for_each_block(q: &Quantized, run: &Run, x: &[f32], s: u32, mut visit: impl FnMut(usize, &[f32], &[i32], &[f32])) {
    let coder = Coder::of(q, run);
    let (mut steps, mut out) = ([0i32; BLOCK_ELEMS], [0f32; BLOCK_ELEMS]);
    for (start, x) in run.elems.clone().step_by(BLOCK_ELEMS).zip(x.chunks(BLOCK_ELEMS)) {
        let (steps, out) = (&mut steps[..x.len()], &mut out[..x.len()]);
        q.read_steps(start, coder.z, steps);
        coder.decode(steps, out);
        if q.scheme().is_cast() {
            cast_steps(out, s, run.ieee, steps);
        }
        visit(start, x, steps, out);
    }
}

/// A cast's values in steps of `2^12` times the last place of its nominal scale.
fn cast_steps(out: &[f32], s: u32, ieee: bool, steps: &mut [i32]) {
    // The nominal scale is a power of two, whose last place is 2^-23 of it.
    let per_step = 2f64.powi(23 - CAST_STEP_EXP) / f64::from(f32::from_bits(s));
    let most = f64::from(CAST_STEPS);
    for (q, &v) in steps.iter_mut().zip(out) {
        *q = if ieee {
            (f64::from(v) * per_step).round_ties_even().clamp(-most, most) as i32
        } else {
            exact::loss::cast_steps(v.to_bits(), s)
        };
    }
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
    fn add(&mut self, x: &[f32], steps: &[i32], out: &[f32], g: i32, ieee: bool) {
        // The step is a power of two, so that quotients by it are exact before they are rounded.
        let per_step = f64::from_bits(((1023 - i64::from(g)) as u64) << 52);
        let (mut elems, mut nonfinite_out, mut max) = (0u32, 0u32, 0i32);
        // The block's sums in 64 bits, of any D in 32 bits and |Q| <= 2^26: so D^2 is summed in two halves, and Q D
        // by the halves of D.
        let (mut abs, mut noise_lo, mut noise_hi) = (0u64, 0u64, 0u64);
        let (mut squares, mut cross_lo, mut cross_hi) = (0u64, 0i64, 0i64);
        for ((&x, &q), &out) in x.iter().zip(steps).zip(out) {
            let counts = is_finite(x) & is_finite(out);
            elems += u32::from(counts);
            nonfinite_out += u32::from(!is_finite(out));
            let (x, out, q) = if counts { (x, out, q) } else { (0.0, 0.0, 0) };
            let (d, error) = if ieee {
                let on_grid = |v: f32| (f64::from(v) * per_step + WHOLE) - WHOLE;
                let d = ((on_grid(out) - on_grid(x)) + WHOLE).to_bits() as i32;
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
            squares += u64::from(q.unsigned_abs()).pow(2);
            cross_lo += i64::from(q) * i64::from(d & 0xffff);
            cross_hi += i64::from(q) * i64::from(d >> 16);
        }
        self.elems += u64::from(elems);
        self.nonfinite_out_elems += u64::from(nonfinite_out);
        self.sums.merge(&UnitSums {
            max_bits: max.cast_unsigned(),
            abs: abs.into(),
            noise: u128::from(noise_lo) + (u128::from(noise_hi) << 32),
            codes: squares.into(),
            cross: i128::from(cross_lo) + (i128::from(cross_hi) << 16),
        });
    }
}
