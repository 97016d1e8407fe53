//! From values to codes and back in one go; twin of `shaders/fake_quantize.wgsl`.

use super::fold::{backwards, recycled, task_elems};
use super::quantize::{Scaling, add, by_units};
use super::simd::is_past_caches;
use super::units::stretch;
use crate::error::Result;
use crate::quantized::{Counts, FakeQuantizeOutput, Spec};
use crate::tensor::Tensor;
use crate::threads::share;

/// Quantizes a tensor and de-quantizes it in one go, as training and evaluation want it.
///
/// ```text
/// x' = dequantize(quantize(x))
/// ```
///
/// bit for bit, with each rounding of [`quantize`](super::quantize()) and [`dequantize`](super::dequantize()); no code
/// is stored. [`Spec::loss`] is ignored.
///
/// One value per element, in row-major order, whatever the rows' pitch; one scale and one zero point per range unit.
///
/// NaN gives +0 (of a cast NaN), infinities the last code's value (of a cast infinity, unless it saturates), -0 gives
/// +0 (of a cast -0); subnormals are kept; a unit of zeros gives zeros; an empty tensor no values.
///
/// # Errors
/// Those of [`quantize`](super::quantize()).
///
/// ```
/// use wgpu_quant::{Scheme, Spec, Tensor, cpu};
/// let out = cpu::fake_quantize(Tensor::new(&[0.0, 7.6, 15.0], &[3])?, &Spec::new(Scheme::UINT4_AFFINE))?;
/// assert_eq!((out.values, out.scales, out.zero_points), (vec![0.0, 8.0, 15.0], vec![1.0], vec![0]));
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn fake_quantize(x: Tensor<'_>, spec: &Spec) -> Result<FakeQuantizeOutput> {
    let mut out = FakeQuantizeOutput::empty();
    fake_quantize_into(x, spec, &mut out)?;
    Ok(out)
}

/// [`fake_quantize`] into the memory of an earlier output: where that was as large, no values' memory is allocated and
/// cleared again.
///
/// The formula and all that is said there hold here.
///
/// `out` may be of any length before, and is what [`fake_quantize`] returns afterwards.
///
/// # Errors
/// Those of [`fake_quantize`]; `out` stays as it is then.
///
/// ```
/// use wgpu_quant::{Scheme, Spec, Tensor, cpu};
/// let spec = Spec::new(Scheme::UINT4_AFFINE);
/// let mut out = cpu::fake_quantize(Tensor::new(&[0.0, 7.6, 15.0], &[3])?, &spec)?;
/// cpu::fake_quantize_into(Tensor::new(&[30.0, 15.1], &[2])?, &spec, &mut out)?;
/// assert_eq!((out.values, out.scales), (vec![30.0, 16.0], vec![2.0]));
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn fake_quantize_into(x: Tensor<'_>, spec: &Spec, out: &mut FakeQuantizeOutput) -> Result<()> {
    let units = spec.units(x.shape())?;
    let FakeQuantizeOutput { values, mut scales, mut zero_points, .. } =
        std::mem::replace(out, FakeQuantizeOutput::empty());
    match stretch(units, x.row_elems(), 8) {
        Some(stretch) if !spec.scheme.is_cast() => {
            let mut values = recycled(values, x.elems());
            scales = recycled(scales, units.units);
            zero_points = recycled(zero_points, if spec.scheme.has_zero_point() { units.units } else { 0 });
            let per_unit = (&mut scales[..], &mut zero_points[..], &mut [][..]);
            let (counts, _) = by_units(x, spec, units, stretch, &mut values, per_unit, None);
            *out = FakeQuantizeOutput::new(values, scales, zero_points, counts);
        }
        _ => *out = made(x, spec, Scaling::found(x, spec, units, scales, zero_points), values),
    }
    Ok(())
}

/// [`fake_quantize`] with given scales and zero points, one per range unit.
///
/// What is given is taken as by [`quantize_with_scales`](super::quantize_with_scales); all else is as there.
///
/// # Errors
/// Those of [`quantize_with_scales`](super::quantize_with_scales).
///
/// ```
/// use wgpu_quant::{Scheme, Spec, Tensor, cpu};
/// let x = Tensor::new(&[-3.0, 0.7, 100.0], &[3])?;
/// let out = cpu::fake_quantize_with_scales(x, &Spec::new(Scheme::UINT4_AFFINE), &[0.5], &[4])?;
/// assert_eq!(out.values, [-2.0, 0.5, 5.5]);
/// assert_eq!(out.counts.clipped_elems, 2);
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn fake_quantize_with_scales(
    x: Tensor<'_>,
    spec: &Spec,
    scales: &[f32],
    zero_points: &[i32],
) -> Result<FakeQuantizeOutput> {
    Ok(made(x, spec, Scaling::given(x, spec, scales, zero_points)?, vec![]))
}

fn made(x: Tensor<'_>, spec: &Spec, scaling: Scaling<'_>, values: Vec<f32>) -> FakeQuantizeOutput {
    let mut values = recycled(values, x.elems());
    let task_len = task_elems(scaling.units).max(1);
    let past_caches = is_past_caches(x.bytes().len(), 4 * values.len());
    let counts = share(backwards(&mut values, task_len), Counts::default, |counts, (task, out)| {
        let first = task * task_len;
        counts.merge(scaling.encode(x, spec, first..first + out.len(), out, past_caches, None));
    });
    let counts = counts.into_iter().fold(Counts::default(), add);
    let Scaling { scales, zero_points, .. } = scaling;
    FakeQuantizeOutput::new(values, scales.into_owned(), zero_points.into_owned(), counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{dequantize, quantize, quantize_with_scales};
    use crate::layout::Granularity::{self, Channel, Group};
    use crate::scheme::{CodeType, Scheme};
    use crate::test_data::{KINDS, Rng, data};

    #[test]
    fn it_is_dequantize_of_quantize_over_all_schemes_and_kinds_of_data() {
        let mut rng = Rng::new(31);
        for &scheme in Scheme::ALL {
            for (i, kind) in KINDS.iter().enumerate() {
                let shape = [[3, 41, 67], [1, 5000, 1], [2, 1, 2111], [40, 0, 3]][i % 4];
                let x = data(kind, shape.iter().product(), i as u64);
                let x = Tensor::new(&x, &shape).unwrap();
                for granularity in [Granularity::Tensor, Channel(1), Channel(-1), Group(32), Group(3)] {
                    let saturate = scheme.code() == CodeType::F16 && i % 2 == 0;
                    let spec = Spec::new(scheme).per(granularity).saturate(saturate);
                    if scheme.is_cast() && granularity != Granularity::Tensor {
                        assert!(fake_quantize(x, &spec).is_err());
                        continue;
                    }
                    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    let (fake, real) = (fake_quantize(x, &spec).unwrap(), quantize(x, &spec).unwrap());
                    assert_eq!(bits(&fake.values), bits(&dequantize(&real.tensor).unwrap()), "{spec:?} {kind}");
                    assert_eq!((&*fake.scales, &*fake.zero_points), (real.tensor.scales(), real.tensor.zero_points()));
                    assert_eq!(fake.counts, real.counts);

                    let given = |v: &f32| f32::from_bits((v.to_bits() ^ rng.below(1 << 24)).clamp(1, 0x7f7f_ffff));
                    let scales: Vec<f32> = fake.scales.iter().map(given).collect();
                    let fake = fake_quantize_with_scales(x, &spec, &scales, &fake.zero_points).unwrap();
                    let real = quantize_with_scales(x, &spec, &scales, &fake.zero_points).unwrap();
                    assert_eq!(bits(&fake.values), bits(&dequantize(&real.tensor).unwrap()), "{spec:?} {kind}");
                    assert_eq!((fake.counts, &*fake.scales), (real.counts, real.tensor.scales()));
                }
            }
        }
    }
}
