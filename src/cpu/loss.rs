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
        let mut block = Block::new(q);
        for_each_run(x, units, elems, |run, x| {
            let Some(g) = grid(run.unit) else { return };
            let (part, s) = (slots.of(run.unit), scales[run.unit].to_bits());
            block.each(&run, x, s, |_, x, steps, out| part.add(x, steps, out, g, run.ieee));
        });
    };
    // On the scale's own grid first; the units that turn out to need a coarser one, and they only, go again.
    let fine = |unit: usize| grid_exp(scales[unit].to_bits(), 0);
    let none = Part::default();
    let first = |slots: &mut Slots<Part>, elems| add(slots, elems, &|unit| Some(fine(unit)));
    let mut parts = fold_units(units, &none, first, |a, b| a.merge(&b));
    let of_unit = |(unit, part): (usize, &Part)| {
        let g = grid_exp(scales[unit].to_bits(), part.sums.max_bits);
        (g != fine(unit)).then_some(g)
    };
    let coarse: Vec<Option<i32>> = parts.iter().enumerate().map(of_unit).collect();
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
            let mut block = Block::new(q);
            for_each_run(x, units, first..first + errors.len(), |run, x| {
                block.each(&run, x, scales[run.unit].to_bits(), |start, x, _, out| {
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

/// Room for what a task takes from the codes at a time, so that it fits in a core's cache.
struct Block<'a> {
    q: &'a Quantized,
    steps: [i32; BLOCK_ELEMS],
    out: [f32; BLOCK_ELEMS],
}

impl<'a> Block<'a> {
    fn new(q: &'a Quantized) -> Self {
        Self { q, steps: [0; BLOCK_ELEMS], out: [0.0; BLOCK_ELEMS] }
    }

    /// Calls `visit(start, x, Q, x')` block by block; `s` is a cast's nominal scale.
    fn each(&mut self, run: &Run, x: &[f32], s: u32, mut visit: impl FnMut(usize, &[f32], &[i32], &[f32])) {
        let (q, coder) = (self.q, Coder::of(self.q, run));
        // The sums of one visit must fit in 64 bits: |Q D| is at most 2^47 of whole numbers and 2^57 of casts.
        let block_elems = if q.scheme().is_cast() { 32 } else { BLOCK_ELEMS };
        for (start, x) in run.elems.clone().step_by(block_elems).zip(x.chunks(block_elems)) {
            let (steps, out) = (&mut self.steps[..x.len()], &mut self.out[..x.len()]);
            q.read_steps(start, coder.z, steps);
            coder.decode(steps, out);
            if q.scheme().is_cast() {
                cast_steps(out, s, run.ieee, steps);
            }
            visit(start, x, steps, out);
        }
    }
}

/// A cast's values in steps of `2^12` times the last place of its nominal scale.
fn cast_steps(out: &[f32], s: u32, ieee: bool, steps: &mut [i32]) {
    // The nominal scale is a power of two, whose last place is 2^-23 of it.
    let per_step = 2f64.powi(23 - CAST_STEP_EXP) / f64::from(f32::from_bits(s));
    let most = f64::from(CAST_STEPS);
    for (q, &v) in steps.iter_mut().zip(out) {
        *q = if ieee {
            ((f64::from(v) * per_step).clamp(-most, most) + WHOLE).to_bits() as i32
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
    // A function of its own, and a loop without branches or signed products, so that it becomes one of vectors.
    #[inline(never)]
    fn add(&mut self, x: &[f32], steps: &[i32], out: &[f32], g: i32, ieee: bool) {
        // The step is a power of two, so that quotients by it are exact before they are rounded.
        let per_step = f64::from_bits(((1023 - i64::from(g)) as u64) << 52);
        let (mut elems, mut nonfinite_out, mut max) = (0u32, 0u32, 0i32);
        // The block's sums in 64 bits; a D of 31 bits may come, so its square is summed in two halves.
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

#[cfg(test)]
mod tests {
    use super::*;
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
    fn plain_and_exact_sums_agree_over_all_schemes() {
        for &scheme in Scheme::ALL {
            for (i, kind) in KINDS.iter().enumerate() {
                let x = data(kind, 3000, i as u64);
                let x_tensor = Tensor::new(&x, &[3000]).unwrap();
                let q = quantize(x_tensor, &Spec::new(scheme)).unwrap().tensor;
                let nominal = scale(min_max(x_tensor, Granularity::Tensor).unwrap().units[0], scheme).to_bits();
                let s = q.scales().first().map_or(nominal, |s| s.to_bits());
                let sums = |ieee, g| {
                    let (mut part, run) = (Part::default(), Run { unit: 0, elems: 0..3000, ieee });
                    Block::new(&q).each(&run, &x, s, |_, x, steps, out| part.add(x, steps, out, g, ieee));
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
            let steps = |ieee| {
                let mut steps = vec![0; out.len()];
                cast_steps(&out, s.to_bits(), ieee, &mut steps);
                steps
            };
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
