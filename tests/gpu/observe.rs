//! Ranges over many batches: the device's against the CPU path's.

use crate::corpus::data;
use crate::{Cases, Test, another, assert_all_equal, assert_same};
use wgpu_quant::gpu::{RangeAccumulator, Scales};
use wgpu_quant::{
    ElemType, Error, Gpu, Granularity, LossDetail, ObservedRanges, Observer, Scheme, Spec, Tensor, cpu, wgpu,
};

pub(crate) const TESTS: &[Test] = &[
    ("ranges_over_many_batches_agree", batches),
    ("quantizing_with_observed_ranges_agrees", quantize),
    ("an_accumulator_is_read_back_only_when_it_is_asked", traffic),
    ("restored_ranges_go_on_where_they_were_left", restored),
    ("a_batch_that_does_not_fit_is_an_error_and_changes_nothing", errors),
];

fn observers() -> [Observer; 4] {
    let average = |constant| Observer::moving_average(constant).unwrap();
    [Observer::MIN_MAX, average(0.01), average(0.7), average(1.0)]
}

#[track_caller]
fn assert_same_ranges(case: &str, ours: &ObservedRanges, reference: &ObservedRanges) {
    let ends = |ranges: &ObservedRanges| -> Vec<_> {
        (0..ranges.units()).map(|unit| ranges.get(unit).map(|range| (range.lo.to_bits(), range.hi.to_bits()))).collect()
    };
    assert_all_equal("ranges", case, &ends(ours), &ends(reference));
    assert_eq!(ours, reference, "{case}");
}

/// Observes a batch on both sides.
fn observe(gpu: &Gpu, ranges: &mut RangeAccumulator, reference: &mut ObservedRanges, x: Tensor<'_>) {
    gpu.observe(ranges, x).unwrap();
    let batch = cpu::observe(x, ranges.granularity()).unwrap();
    *reference = cpu::merge_ranges(reference, &batch, ranges.observer()).unwrap();
}

/// Batches of these dimensions: ordinary ones of growing size, extreme ones, and one without a finite value.
fn batch(i: usize, n: usize) -> Vec<f32> {
    match i % 5 {
        3 => vec![[f32::NAN, f32::INFINITY, f32::NEG_INFINITY][n % 3]; n],
        k => {
            let kind = ["gauss", "mixed", "huge", "", "bits"][k];
            data(kind, n, 70 + i as u64).iter().map(|v| v * (i + 1) as f32).collect()
        }
    }
}

fn batches(gpu: &Gpu) {
    let mut cases = Cases::of(gpu, 5);
    // Whole, and cut into small chunks, slabs and dispatches.
    let tuning = gpu.tuning().chunk_elems(1000).slab_units(9).workgroups_per_dimension(3);
    let cut = gpu.tuned(tuning).unwrap();
    for (shape, granularity) in [
        (vec![5001], Granularity::Tensor),
        (vec![30, 301], Granularity::Channel(0)),
        (vec![41, 30], Granularity::Channel(1)),
        (vec![7, 5, 20], Granularity::Channel(1)),
        (vec![10, 77], Granularity::Group(32)),
        (vec![10, 96], Granularity::Group(32)),
        (vec![3, 0], Granularity::Channel(0)),
        (vec![], Granularity::Tensor),
    ] {
        for observer in observers() {
            for (name, gpu) in [("whole", gpu), ("cut", &cut)] {
                if !cases.take() {
                    continue;
                }
                let case = format!("{shape:?} {granularity} {observer:?} {name}");
                let mut ranges = gpu.range_accumulator(&shape, granularity, observer).unwrap();
                let mut reference = ObservedRanges::new(ranges.units());
                assert_same_ranges(&case, &gpu.observed(&ranges).unwrap(), &reference);
                for i in 0..6 {
                    let x = batch(i, shape.iter().product());
                    let x = Tensor::new(&x, &shape).unwrap();
                    observe(gpu, &mut ranges, &mut reference, x);
                    // Not after each: what is not read must be there all the same.
                    if i % 2 == 1 {
                        assert_same_ranges(&format!("{case} after {i}"), &gpu.observed(&ranges).unwrap(), &reference);
                    }
                }
                assert_eq!((ranges.batches(), ranges.units()), (6, reference.units()));
            }
        }
    }
    cases.print();
    // Batches of other lengths, types and pitches that have as many range units.
    let mut ranges = gpu.range_accumulator(&[4, 1], Granularity::Channel(0), observers()[1]).unwrap();
    let mut reference = ObservedRanges::new(4);
    let x = data("mixed", 4 * 100, 81);
    observe(gpu, &mut ranges, &mut reference, Tensor::new(&x, &[4, 100]).unwrap());
    let wide: Vec<f64> = x.iter().map(|&v| f64::from(v) * 1.000_000_1).collect();
    observe(gpu, &mut ranges, &mut reference, Tensor::f64(&wide, &[4, 100]).unwrap());
    let bytes: Vec<u8> = (0..400u16).flat_map(|i| (0x3000 + 37 * i).to_le_bytes()).collect();
    for elem_type in [ElemType::F16, ElemType::Bf16] {
        let x = Tensor::strided(elem_type, &bytes, &[4, 37], &[53, 1]).unwrap();
        observe(gpu, &mut ranges, &mut reference, x);
    }
    assert_same_ranges("types", &gpu.observed(&ranges).unwrap(), &reference);
    pollster::block_on(async {
        assert_same_ranges("async", &gpu.observed_async(&ranges).await.unwrap(), &reference);
    });
}

fn quantize(gpu: &Gpu) {
    let mut cases = Cases::of(gpu, 3);
    for (shape, granularity) in [
        (vec![5001], Granularity::Tensor),
        (vec![30, 301], Granularity::Channel(0)),
        (vec![41, 30], Granularity::Channel(1)),
        (vec![10, 77], Granularity::Group(32)),
    ] {
        let observer = Observer::moving_average(0.25).unwrap();
        let mut ranges = gpu.range_accumulator(&shape, granularity, observer).unwrap();
        let mut reference = ObservedRanges::new(ranges.units());
        for i in 0..3 {
            let x = batch(i, shape.iter().product());
            observe(gpu, &mut ranges, &mut reference, Tensor::new(&x, &shape).unwrap());
        }
        let x = data("gauss", shape.iter().product(), 91);
        let x = Tensor::new(&x, &shape).unwrap();
        for (i, &scheme) in Scheme::ALL.iter().filter(|scheme| !scheme.is_cast()).enumerate() {
            let detail = [LossDetail::None, LossDetail::Summary, LossDetail::PerElement][i % 3];
            let spec = Spec::new(scheme).per(granularity).loss(detail);
            if !cases.take() {
                continue;
            }
            let case = format!("{shape:?} {spec:?}");
            let (scales, zero_points) = cpu::scales(&reference, scheme).unwrap();
            let expected = cpu::quantize_with_scales(x, &spec, &scales, &zero_points).unwrap();
            let ours = gpu.quantize_with_scales(x, &spec, Scales::Observed(&ranges)).unwrap();
            assert_same(&case, &ours, &expected);
            let expected = cpu::fake_quantize_with_scales(x, &spec, &scales, &zero_points).unwrap();
            let ours = gpu.fake_quantize_with_scales(x, &spec, Scales::Observed(&ranges)).unwrap();
            assert_eq!(*ours, expected, "{case}");
        }
        // Quantizing has not changed what was observed.
        assert_same_ranges("after", &gpu.observed(&ranges).unwrap(), &reference);
    }
    cases.print();
}

fn traffic(gpu: &Gpu) {
    let gpu = another(gpu);
    let mut ranges = gpu.range_accumulator(&[10, 100], Granularity::Channel(0), Observer::MIN_MAX).unwrap();
    let x = data("gauss", 1000, 92);
    let x = Tensor::new(&x, &[10, 100]).unwrap();
    let before = gpu.traffic();
    for _ in 0..20 {
        gpu.observe(&mut ranges, x).unwrap();
    }
    let after = gpu.traffic();
    assert_eq!((after.submissions - before.submissions, after.readbacks - before.readbacks), (20, 0));
    let spec = Spec::new(Scheme::UINT8_AFFINE).per(Granularity::Channel(0));
    gpu.quantize_with_scales(x, &spec, Scales::Observed(&ranges)).unwrap();
    gpu.observed(&ranges).unwrap();
    let end = gpu.traffic();
    assert_eq!((end.submissions - after.submissions, end.readbacks - after.readbacks), (2, 2));
}

fn restored(gpu: &Gpu) {
    let per = Granularity::Group(10);
    for observer in observers() {
        let mut reference = ObservedRanges::new(30);
        let mut ranges = gpu.range_accumulator(&[3, 97], per, observer).unwrap();
        for i in 0..8 {
            let x = batch(i, 291);
            observe(gpu, &mut ranges, &mut reference, Tensor::new(&x, &[3, 97]).unwrap());
            let saved = gpu.observed(&ranges).unwrap().to_bytes();
            ranges = another(gpu)
                .restore_ranges(&ObservedRanges::from_bytes(&saved).unwrap(), per, observer)
                .and_then(|_| gpu.restore_ranges(&ObservedRanges::from_bytes(&saved).unwrap(), per, observer))
                .unwrap();
        }
        assert_same_ranges(&format!("{observer:?}"), &gpu.observed(&ranges).unwrap(), &reference);
        assert_eq!(ranges.batches(), 8);
    }
}

fn errors(gpu: &Gpu) {
    let mut ranges = gpu.range_accumulator(&[2, 3], Granularity::Channel(0), Observer::MIN_MAX).unwrap();
    let x = Tensor::new(&[1.0, 2.0, 3.0, -4.0, 5.0, 6.0], &[2, 3]).unwrap();
    gpu.observe(&mut ranges, x).unwrap();
    let before = gpu.observed(&ranges).unwrap().value;
    let three = Tensor::new(&[9.0; 6], &[3, 2]).unwrap();
    let error = gpu.observe(&mut ranges, three).unwrap_err().to_string();
    assert!(error.contains("the range units of a batch holds 3 elements, expected 2"), "{error}");
    let flat = Tensor::new(&[9.0], &[]).unwrap();
    assert!(matches!(gpu.observe(&mut ranges, flat), Err(Error::AxisOutOfRange { .. })));
    let other = another(gpu);
    assert!(matches!(other.observe(&mut ranges, x), Err(Error::OtherDevice { .. })));
    assert!(matches!(other.observed(&ranges), Err(Error::OtherDevice { .. })));
    let spec = Spec::new(Scheme::INT8_ABSMAX).per(Granularity::Channel(0));
    let error = other.quantize_with_scales(x, &spec, Scales::Observed(&ranges)).err().unwrap();
    assert!(error.to_string().contains("the range accumulator belongs to another Gpu"), "{error}");
    let error = gpu.quantize_with_scales(three, &spec, Scales::Observed(&ranges)).err().unwrap();
    assert!(matches!(error, Error::LengthMismatch { .. }), "{error}");
    let error = gpu.quantize_with_scales(x, &Spec::new(Scheme::F16), Scales::Observed(&ranges)).err().unwrap();
    assert!(matches!(error, Error::CastHasNoScale { .. }), "{error}");
    assert_eq!((gpu.observed(&ranges).unwrap().value, ranges.batches()), (before, 1));
    // A lost device says so.
    let mut lost = other.range_accumulator(&[2, 3], Granularity::Channel(0), Observer::MIN_MAX).unwrap();
    other.device().destroy();
    // While work is under way, wgpu has not said yet why the call failed.
    let error = other.observe(&mut lost, x).unwrap_err();
    assert!(matches!(error, Error::DeviceLost { .. } | Error::Gpu { .. }), "{error:?}");
    let _ = other.device().poll(wgpu::PollType::wait_indefinitely());
    assert!(matches!(other.observe(&mut lost, x), Err(Error::DeviceLost { .. })));
    assert!(matches!(other.observed(&lost), Err(Error::DeviceLost { .. })));
    assert_eq!(lost.batches(), 0);
}
