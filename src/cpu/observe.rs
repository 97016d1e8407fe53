//! Ranges over many batches; twin of `shaders/observe.wgsl`.

use super::min_max::{Range, parts};
use super::scale::{scale, zero_point};
use crate::error::{Error, Result};
use crate::exact::observe::merged;
use crate::layout::{Granularity, RangeUnits};
use crate::range::{ObservedRanges, Observer};
use crate::scheme::Scheme;
use crate::tensor::Tensor;

/// The ranges of one batch.
///
/// ```text
/// lo = min x, hi = max x, over finite x
/// ```
///
/// as [`min_max`](super::min_max()) finds them, but that a unit without a finite value stays apart from one of zeros.
///
/// One range per range unit.
///
/// NaN and infinities are left out; -0 is as +0; subnormals count exactly; an empty batch has no finite value.
///
/// # Errors
/// Those of [`RangeUnits::new`].
///
/// ```
/// use wgpu_quant::{Granularity, Tensor, cpu};
/// let x = [1.0, -2.0, f32::NAN, f32::NAN];
/// let seen = cpu::observe(Tensor::new(&x, &[2, 2])?, Granularity::Channel(0))?;
/// assert_eq!((seen.get(0), seen.get(1)), (Some(cpu::Range { lo: -2.0, hi: 1.0 }), None));
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn observe(x: Tensor<'_>, granularity: Granularity) -> Result<ObservedRanges> {
    let units = RangeUnits::new(x.shape(), granularity)?;
    let keys = parts(x, units).iter().map(|part| merged([0; 2], [part.hi_key, part.lo_key], 0)).collect();
    Ok(ObservedRanges::from_keys(keys, 1))
}

/// What was observed, after one more batch.
///
/// ```text
/// min-max         lo' = min(lo, lo_b),          hi' = max(hi, hi_b)
/// moving average  lo' = lo + c * (lo_b - lo),   hi' = hi + c * (hi_b - hi)
/// ```
///
/// with `c` the averaging constant; each operation is one binary32 operation, rounded to nearest, ties to even.
///
/// One range per range unit on both sides. Under min-max the order of batches does not matter, and what several devices
/// or processes observed may be merged; a moving average takes `batch` for the later one, and for one step.
///
/// A unit of which `batch` has no finite value stays as it is; the first range of a unit is taken as it is. Where
/// `lo_b - lo` or the sum overflows, `lo' = lo - c * lo + c * lo_b`; where rounding makes the ends cross, `hi' = lo'`.
///
/// # Errors
/// [`Error::LengthMismatch`] when the two have not as many range units.
///
/// The arithmetic of torch's `MinMaxObserver` and `MovingAverageMinMaxObserver`, wherever theirs gives a range.
///
/// ```
/// use wgpu_quant::{Granularity, Observer, Tensor, cpu};
/// let mut seen = cpu::observe(Tensor::new(&[-1.0, 3.0], &[2])?, Granularity::Tensor)?;
/// let batch = cpu::observe(Tensor::new(&[-2.0, 2.0], &[2])?, Granularity::Tensor)?;
/// let widest = cpu::merge_ranges(&seen, &batch, Observer::MIN_MAX)?;
/// assert_eq!(widest.get(0), Some(cpu::Range { lo: -2.0, hi: 3.0 }));
/// seen = cpu::merge_ranges(&seen, &batch, Observer::moving_average(0.25)?)?;
/// assert_eq!((seen.get(0), seen.batches()), (Some(cpu::Range { lo: -1.25, hi: 2.75 }), 2));
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn merge_ranges(seen: &ObservedRanges, batch: &ObservedRanges, observer: Observer) -> Result<ObservedRanges> {
    let (found_elems, expected_elems) = (batch.units(), seen.units());
    if found_elems != expected_elems {
        return Err(Error::LengthMismatch { what: "a batch's ranges", found_elems, expected_elems });
    }
    let both = seen.keys().iter().zip(batch.keys());
    let keys = both.map(|(&seen, &batch)| merged(seen, batch, observer.averaging_bits())).collect();
    Ok(ObservedRanges::from_keys(keys, seen.batches().saturating_add(batch.batches())))
}

/// The scales and zero points that a scheme gives what was observed, for [`quantize_with_scales`].
///
/// [`scale`](super::scale()) and [`zero_point`](super::zero_point) of each range unit; no zero points of a scheme without
/// them.
///
/// A unit without a finite value is as one of zeros.
///
/// # Errors
/// [`Error::CastHasNoScale`]
///
/// ```
/// use wgpu_quant::{Granularity, Scheme, Spec, Tensor, cpu};
/// let x = Tensor::new(&[-1.0, 2.0], &[2])?;
/// let seen = cpu::observe(x, Granularity::Tensor)?;
/// let (scales, zero_points) = cpu::scales(&seen, Scheme::UINT8_AFFINE)?;
/// assert_eq!((scales[0], zero_points[0]), (3.0 / 255.0, 85));
/// let out = cpu::quantize_with_scales(x, &Spec::new(Scheme::UINT8_AFFINE), &scales, &zero_points)?;
/// assert_eq!(out.tensor.code_values(), [0, 255]);
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
///
/// [`quantize_with_scales`]: super::quantize_with_scales
pub fn scales(seen: &ObservedRanges, scheme: Scheme) -> Result<(Vec<f32>, Vec<i32>)> {
    if scheme.is_cast() {
        return Err(Error::CastHasNoScale { scheme, found: "an observed range".to_owned() });
    }
    let ranges: Vec<Range> = seen.ranges();
    let scales: Vec<f32> = ranges.iter().map(|&range| scale(range, scheme)).collect();
    let zero_points = if scheme.has_zero_point() {
        ranges.iter().zip(&scales).map(|(&range, &s)| zero_point(range, s, scheme)).collect()
    } else {
        vec![]
    };
    Ok((scales, zero_points))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{Rng, edge_bits};

    fn seen(lo: f32, hi: f32) -> ObservedRanges {
        observe(Tensor::new(&[lo, hi], &[2]).unwrap(), Granularity::Tensor).unwrap()
    }

    #[test]
    fn a_moving_average_is_that_of_its_formula_in_binary32() {
        let mut rng = Rng::new(9);
        let edges: Vec<u32> = edge_bits().into_iter().filter(|b| f32::from_bits(*b).is_finite()).collect();
        let constants = [0.01, 0.1, 0.5, 0.9, 1.0, f32::from_bits(0x3f7f_ffff), f32::from_bits(1), f32::MIN_POSITIVE];
        let (mut plain, mut other) = (0, 0);
        for i in 0..400_000 {
            let mut value = |k: usize| {
                let bits = if i % 2 == 0 { edges[(i / 2 * 31 + k * 17) % edges.len()] } else { rng.float_bits() };
                f32::from_bits(if f32::from_bits(bits).is_finite() { bits } else { bits & 0xbfff_ffff })
            };
            let mut ends = [value(0), value(1)];
            let mut batch = [value(2), value(3)];
            // Ends close to each other, and to the largest value.
            if i % 5 == 1 {
                ends[1] = ends[0];
                batch[0] = f32::MAX - ends[0].abs().min(1e32);
                batch[1] = batch[0];
            }
            ends.sort_by(f32::total_cmp);
            batch.sort_by(f32::total_cmp);
            let c = constants[i % constants.len()];
            let step = |v: f32, b: f32| {
                let (v, b) = (v + 0.0, b + 0.0);
                let moved = v + c * (b - v);
                if moved.is_finite() { (moved, true) } else { ((v - c * v) + c * b, false) }
            };
            let (lo, first) = step(ends[0], batch[0]);
            let (hi, last) = step(ends[1], batch[1]);
            plain += usize::from(first && last);
            other += usize::from(!(first && last));
            let expected = Range { lo, hi: if hi < lo { lo } else { hi } };
            let observer = Observer::moving_average(c).unwrap();
            let found = merge_ranges(&seen(ends[0], ends[1]), &seen(batch[0], batch[1]), observer).unwrap();
            let found = found.get(0).unwrap();
            let bits = |range: Range| (range.lo.to_bits(), range.hi.to_bits());
            assert_eq!(bits(found), bits(expected), "{ends:?} {batch:?} c {c:e}");
            assert!(found.lo.is_finite() && found.hi.is_finite() && found.lo <= found.hi, "{found:?}");
            assert!(found.lo.to_bits() != 0x8000_0000 && found.hi.to_bits() != 0x8000_0000, "{ends:?} {batch:?}");
        }
        assert!(plain > 100_000 && other > 1000, "{plain} {other}");
    }

    #[test]
    fn ends_that_rounding_makes_cross_become_one() {
        // The ends lie beside 1.5, so that of their differences to a far batch one rounds up and the other down.
        let (lo, hi) = (f32::from_bits(0x3fbf_ffff), f32::from_bits(0x3fc0_0001));
        let mut rng = Rng::new(11);
        let mut crossed = 0;
        for _ in 0..200_000 {
            let batch = f32::from_bits(0x4b00_0000 + rng.next_u32() % 0x0080_0000);
            let c = f32::from_bits(0x3f00_0000 + rng.next_u32() % 0x0080_0000);
            let plain = |v: f32| v + c * (batch - v);
            crossed += usize::from(plain(hi) < plain(lo));
            let found = merge_ranges(&seen(lo, hi), &seen(batch, batch), Observer::moving_average(c).unwrap()).unwrap();
            let found = found.get(0).unwrap();
            assert_eq!((found.lo, found.hi), (plain(lo), plain(hi).max(plain(lo))));
        }
        assert!(crossed > 50_000, "{crossed}");
    }

    #[test]
    fn a_batch_without_a_finite_value_changes_nothing_and_the_first_is_taken_as_it_is() {
        let per = Granularity::Channel(0);
        let of = |x: &[f32]| observe(Tensor::new(x, &[2, x.len() / 2]).unwrap(), per).unwrap();
        for observer in [Observer::MIN_MAX, Observer::moving_average(0.1).unwrap()] {
            let mut all = ObservedRanges::new(2);
            for batch in [of(&[f32::NAN, 1.0]), of(&[]), of(&[f32::INFINITY, f32::NAN])] {
                all = merge_ranges(&all, &batch, observer).unwrap();
            }
            assert_eq!((all.get(0), all.get(1), all.batches()), (None, Some(Range { lo: 1.0, hi: 1.0 }), 3));
            all = merge_ranges(&all, &of(&[-0.0, f32::NAN]), observer).unwrap();
            assert_eq!(all.get(0).map(|range| range.lo.to_bits()), Some(0));
            assert_eq!(scales(&all, Scheme::INT8_ABSMAX).unwrap().0, [1.0, 1.0 / 127.0]);
        }
    }

    #[test]
    fn ranges_merge_in_any_order_under_min_max() {
        let (a, b, c) = (seen(-1.0, 2.0), seen(-3.0, 0.5), seen(4.0, 5.0));
        let merge = |a: &_, b: &_| merge_ranges(a, b, Observer::MIN_MAX).unwrap();
        let all = merge(&merge(&a, &b), &c);
        assert_eq!(all, merge(&c, &merge(&b, &a)));
        assert_eq!(all.get(0), Some(Range { lo: -3.0, hi: 5.0 }));
        let other = ObservedRanges::new(2);
        let error = merge_ranges(&a, &other, Observer::MIN_MAX).unwrap_err().to_string();
        assert!(error.contains("a batch's ranges holds 2 elements, expected 1"), "{error}");
        assert!(scales(&a, Scheme::F16).unwrap_err().to_string().contains("an observed range"));
    }
}
