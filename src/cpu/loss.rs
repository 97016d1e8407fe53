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
/// [`Error::LengthMismatch`] when the two tensors' shapes differ.
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
        return Err(Error::LengthMismatch {
            what: "quantized tensor",
            found_elems: q.codes().len(),
            expected_elems: x.data().len(),
        });
    }
    let units = q.units();
    let data = |run: &Run| (&x.data()[run.elems.clone()], &q.codes_i8()[run.elems.clone()], q.scales()[run.unit]);
    // The largest loss first: it decides a clipped unit's grid.
    let mut max_bits = fold_units(
        units,
        &0u32,
        |max, run| {
            let (x, codes, s) = data(&run);
            for_each_block(x, codes, s, run.ieee, |x, _, out| *max = (*max).max(largest(x, out, run.ieee)));
        },
        |a, b| *a = (*a).max(b),
    )
    .into_iter();
    let grids: Vec<(u32, i32)> = q
        .scales()
        .iter()
        .map(|s| (s.to_bits(), max_bits.next().unwrap_or(0)))
        .map(|(s, max)| (max, grid_exp(s, max)))
        .collect();
    let sums = fold_units(
        units,
        &(UnitSums::default(), 0u64, 0u64),
        |(sums, elems, nonfinite_out), run| {
            let (max, g) = grids[run.unit];
            sums.max_bits = max;
            let (x, codes, s) = data(&run);
            for_each_block(x, codes, s, run.ieee, |x, codes, out| {
                *elems += add(sums, x, codes, out, g, run.ieee);
                *nonfinite_out += out.iter().filter(|v| !is_finite(**v)).count() as u64;
            });
        },
        |a, b| {
            a.0.merge(&b.0);
            a.1 += b.1;
            a.2 += b.2;
        },
    );
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
    let elems = sums.iter().map(|sum| sum.1).sum();
    let nonfinite_out = sums.iter().map(|sum| sum.2).sum();
    let unit_sums: Vec<UnitSums> = sums.into_iter().map(|sum| sum.0).collect();
    Ok(Loss::new(&unit_sums, q.scales(), elems, nonfinite_out, abs_errors))
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

fn largest(x: &[f32], out: &[f32], ieee: bool) -> u32 {
    let mut max = 0;
    for (&x, &out) in x.iter().zip(out) {
        let counts = is_finite(x) & is_finite(out);
        max = max.max(if counts { abs_error(x, out, ieee) } else { 0 });
    }
    max
}

/// Adds a block to its unit's sums and returns the number of elements that count.
fn add(sums: &mut UnitSums, x: &[f32], codes: &[i8], out: &[f32], g: i32, ieee: bool) -> u64 {
    // A block's sums fit in 64 bits but for the squares' (2^60 each).
    let (mut elems, mut abs, mut noise, mut squares, mut cross) = (0u64, 0u64, 0u128, 0u64, 0i64);
    // The step is a power of two, so that the quotients below are exact before they are rounded.
    let per_step = f64::from_bits(((1023 - i64::from(g)) as u64) << 52);
    for ((&x, &code), &out) in x.iter().zip(codes).zip(out) {
        if !is_finite(x) || !is_finite(out) {
            continue;
        }
        let d = if ieee {
            let steps = |v: f32| (f64::from(v) * per_step).round_ties_even();
            (steps(out) - steps(x)) as i64
        } else {
            exact::loss::distance_on_grid(x.to_bits(), out.to_bits(), g).into()
        };
        let size = d.unsigned_abs();
        elems += 1;
        abs += size;
        noise += u128::from(size * size);
        squares += u64::from(i32::from(code).unsigned_abs().pow(2));
        cross += i64::from(code) * d;
    }
    sums.abs += u128::from(abs);
    sums.noise += noise;
    sums.codes += u128::from(squares);
    sums.cross += i128::from(cross);
    elems
}
