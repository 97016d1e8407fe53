//! Ten threads on one `Gpu`: calls, recordings and futures.

use crate::corpus::{Rng, data};
use crate::{Test, another, assert_same, assert_same_values, equality, record};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use wgpu_quant::gpu::{Operation, Scales};
use wgpu_quant::{ElemType, Gpu, Granularity, LossDetail, Observer, Scheme, Spec, Tensor, cpu};

pub(crate) const TESTS: &[Test] = &[("ten_threads_agree_for_two_seconds", |gpu| ten_threads(gpu, 2))];

/// What each thread quantizes.
const TENSORS: [(Scheme, Granularity, ElemType, &[usize]); 10] = [
    (Scheme::INT8_ABSMAX, Granularity::Tensor, ElemType::F32, &[5001]),
    (Scheme::UINT8_AFFINE, Granularity::Channel(0), ElemType::F32, &[30, 301]),
    (Scheme::UINT4_AFFINE, Granularity::Channel(1), ElemType::F32, &[41, 30]),
    (Scheme::INT4_ABSMAX, Granularity::Group(32), ElemType::Bf16, &[10, 77]),
    (Scheme::INT16_MINMAX, Granularity::Group(64), ElemType::F16, &[12, 256]),
    (Scheme::CT_INT8, Granularity::Channel(0), ElemType::F64, &[7, 130]),
    (Scheme::F16, Granularity::Tensor, ElemType::F32, &[4000]),
    (Scheme::BF16, Granularity::Tensor, ElemType::F64, &[3, 5, 70]),
    (Scheme::UINT16_AFFINE, Granularity::Tensor, ElemType::F32, &[200, 300]),
    (Scheme::ONNX_DYNAMIC_UINT8, Granularity::Channel(1), ElemType::F16, &[500, 20]),
];

/// Each thread makes call after call for so long, and compares every result with the CPU path's.
pub(crate) fn ten_threads(gpu: &Gpu, seconds: u64) {
    let gpu = another(gpu);
    let calls = AtomicU64::new(0);
    let until = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        for (i, tensor) in TENSORS.into_iter().enumerate() {
            let (gpu, calls) = (&gpu, &calls);
            scope.spawn(move || one_thread(gpu, i, tensor, until, calls));
        }
    });
    let calls = calls.into_inner();
    println!("{calls} calls of ten threads in {seconds} s and more, 0 differences");
    assert!(calls >= 10);
}

fn one_thread(
    gpu: &Gpu,
    i: usize,
    (scheme, granularity, elem_type, shape): (Scheme, Granularity, ElemType, &[usize]),
    until: Instant,
    calls: &AtomicU64,
) {
    let mut rng = Rng::new(100 + i as u64);
    let values = data("mixed", shape.iter().product(), 100 + i as u64);
    let bytes = equality::bytes_of(elem_type, &values, &mut rng);
    let x = Tensor::from_bytes(elem_type, &bytes, shape).unwrap();
    let spec = Spec::new(scheme).per(granularity).loss(LossDetail::Summary);
    let case = format!("thread {i}: {spec:?} of {shape:?}");
    let reference = cpu::quantize(x, &spec).unwrap();
    let q = &reference.tensor;
    let given = cpu::quantize_with_scales(x, &spec, q.scales(), q.zero_points()).unwrap();
    let fake = cpu::fake_quantize(x, &spec).unwrap();
    let restored = cpu::dequantize(q).unwrap();
    let seen = cpu::observe(x, granularity).unwrap();
    let scales = Scales::Host(q.scales(), q.zero_points());
    // Each begins with another kind of call.
    for turn in i.. {
        match turn % 8 {
            0 => assert_same(&case, &gpu.quantize(x, &spec).unwrap(), &reference),
            1 => assert_same(&case, &gpu.quantize_with_scales(x, &spec, scales).unwrap(), &given),
            2 => assert_eq!(gpu.fake_quantize(x, &spec).unwrap().value, fake, "{case}"),
            3 => assert_same_values(&case, &gpu.dequantize(q).unwrap(), &restored),
            4 => assert_eq!(Some(gpu.loss(x, q, false).unwrap().value), reference.loss, "{case}"),
            5 => assert_same(&case, &pollster::block_on(gpu.quantize_async(x, &spec)).unwrap(), &reference),
            6 => {
                let mut ranges = gpu.range_accumulator(shape, granularity, Observer::MIN_MAX).unwrap();
                gpu.observe(&mut ranges, x).unwrap();
                assert_eq!(gpu.observed(&ranges).unwrap().value, seen, "{case}");
            }
            _ => {
                let operation = record::OPERATIONS[turn / 8 % record::OPERATIONS.len()];
                let plan = gpu.plan(operation, &spec.loss(LossDetail::None), shape, elem_type).unwrap();
                let input = if operation == Operation::Dequantize { q.codes() } else { &bytes };
                let ours = record::recorded(gpu, &case, &plan, input, q, turn as u64 % 11);
                assert_eq!(ours, record::expected(operation, &spec, x, q), "{case}");
            }
        }
        calls.fetch_add(1, Relaxed);
        if Instant::now() > until {
            break;
        }
    }
}
