//! All 2^32 values of x, more bytes than 32 bits count, and a minute of ten threads. Ignored by default:
//! `cargo test --release --test gpu -- --ignored` (minutes a scale).

use crate::threads::ten_threads;
use crate::{Test, assert_all_equal};
use std::ops::Range;
use wgpu_quant::gpu::Scales;
use wgpu_quant::{ElemType, Gpu, Granularity, Scheme, Spec, Tensor, cpu};

pub(crate) const TESTS: &[Test] = &[
    ("all_2_to_the_32_values_agree_for_six_scales", all_values),
    ("all_2_to_the_32_values_agree_under_casts", casts),
    ("ten_threads_agree_for_a_minute", |gpu| ten_threads(gpu, 60)),
    ("more_than_4_gib_are_streamed_within_the_budget_and_agree", streamed),
];

/// A common scale, the ends of the significand, the least scale, one of the worked example, and a huge one.
const SCALES: [u32; 6] = [0x3c23_d70a, 0x3f7f_ffff, 0x3f80_0001, 0x0000_0003, 0x3da0_a0a1, 0x7dfc_cc44];

/// Compares codes and counts of all values of x.
fn check_all(gpu: &Gpu, case: &str, spec: &Spec, scales: &[f32], zero_points: &[i32]) {
    const CHUNK: u32 = 1 << 25;
    let mut x = vec![0f32; CHUNK as usize];
    let started = std::time::Instant::now();
    for chunk in 0..=u32::MAX / CHUNK {
        for (v, bits) in x.iter_mut().zip(chunk * CHUNK..) {
            *v = f32::from_bits(bits);
        }
        let x = Tensor::new(&x, &[CHUNK as usize]).unwrap();
        let ours = gpu.quantize_with_scales(x, spec, Scales::Host(scales, zero_points)).unwrap();
        let reference = cpu::quantize_with_scales(x, spec, scales, zero_points).unwrap();
        let case = format!("{case}, values from {:#010x}", chunk * CHUNK);
        assert_all_equal("codes", &case, ours.tensor.codes(), reference.tensor.codes());
        assert_eq!(ours.counts, reference.counts, "{case}");
    }
    println!("{case}: 2^32 values in {:.0} s", started.elapsed().as_secs_f64());
}

fn all_values(gpu: &Gpu) {
    // The first scale with each width of codes, and a zero point.
    for (scheme, zero_points) in [(Scheme::UINT4_AFFINE, &[7][..]), (Scheme::UINT16_AFFINE, &[40_000])] {
        check_all(gpu, scheme.name(), &Spec::new(scheme), &[f32::from_bits(SCALES[0])], zero_points);
    }
    for scale in SCALES {
        check_all(gpu, &format!("scale {scale:#010x}"), &Spec::new(Scheme::INT8_ABSMAX), &[f32::from_bits(scale)], &[]);
    }
}

fn casts(gpu: &Gpu) {
    for (scheme, saturate) in [(Scheme::F16, false), (Scheme::F16, true), (Scheme::BF16, false)] {
        let case = format!("{scheme}, saturating: {saturate}");
        check_all(gpu, &case, &Spec::new(scheme).saturate(saturate), &[], &[]);
    }
}

/// Rows of the streamed tensor, of more than 4 GiB.
const ROWS: usize = 270_000;
const ROW_ELEMS: usize = 4096;
/// Rows that the test looks at at once.
const BLOCK_ROWS: usize = 256;

/// An element of a tensor that nobody holds; rows have different ranges.
fn element(i: usize) -> f32 {
    let word = (i as u32).wrapping_mul(0x9e37_79b9) ^ (i >> 20) as u32;
    (word.cast_signed() >> 8) as f32 * (1 + i / ROW_ELEMS % 1000) as f32
}

fn elements(elems: Range<usize>) -> Vec<f32> {
    elems.map(element).collect()
}

/// A field of `/proc/self/status`, in bytes.
#[cfg(target_os = "linux")]
fn status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// How far a call raises the peak of the process's memory. Only software adapters allocate in it.
fn peak_bytes<T>(call: impl FnOnce() -> T) -> (T, Option<u64>) {
    #[cfg(target_os = "linux")]
    {
        // The peak begins anew.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = status("VmRSS:");
        let done = call();
        (done, Some(status("VmHWM:") - before))
    }
    #[cfg(not(target_os = "linux"))]
    (call(), None)
}

fn streamed(gpu: &Gpu) {
    let shape = [ROWS, ROW_ELEMS];
    assert!(4 * ROWS as u64 * ROW_ELEMS as u64 > 1 << 32);
    let tensor = Spec::new(Scheme::INT8_ABSMAX);
    let blocks = (0..ROWS).step_by(BLOCK_ROWS).map(|row| row..(row + BLOCK_ROWS).min(ROWS));
    let mut whole = cpu::Range::default();
    for rows in blocks {
        let x = elements(rows.start * ROW_ELEMS..rows.end * ROW_ELEMS);
        let range = cpu::min_max(Tensor::new(&x, &[x.len()]).unwrap(), Granularity::Tensor).unwrap().units[0];
        whole = cpu::Range { lo: whole.lo.min(range.lo), hi: whole.hi.max(range.hi) };
    }
    let whole = cpu::scale(whole, tensor.scheme);
    for (granularity, passes) in [(Granularity::Tensor, 2), (Granularity::Channel(0), 1)] {
        let spec = tensor.per(granularity);
        // Compiles the kernels, which are no part of the budget.
        let x = elements(0..64 * ROW_ELEMS);
        let small = [64, ROW_ELEMS];
        let fill = |offset: u64, to: &mut [u8]| {
            to.copy_from_slice(&bytemuck::cast_slice(&x)[offset as usize..offset as usize + to.len()]);
            Ok(())
        };
        gpu.stream(&small, &spec).budget_bytes(400_000).quantize(ElemType::F32, fill, |_| Ok(())).unwrap();
        let (mut read_bytes, mut next, mut reference_seconds) = (0, 0, 0.0);
        let read = |offset: u64, to: &mut [u8]| {
            let first = offset as usize / 4;
            for (i, bytes) in to.chunks_exact_mut(4).enumerate() {
                bytes.copy_from_slice(&element(first + i).to_ne_bytes());
            }
            read_bytes += to.len() as u64;
            Ok(())
        };
        let write = |codes: &[u8]| {
            let started = std::time::Instant::now();
            // Pieces of a whole tensor of these rows are whole rows.
            assert_eq!(codes.len() % ROW_ELEMS, 0);
            for codes in codes.chunks(BLOCK_ROWS * ROW_ELEMS) {
                let x = elements(next..next + codes.len());
                let shape = [codes.len() / ROW_ELEMS, ROW_ELEMS];
                let x = Tensor::new(&x, &shape).unwrap();
                let reference = match granularity {
                    Granularity::Tensor => cpu::quantize_with_scales(x, &spec, &[whole], &[]),
                    _ => cpu::quantize(x, &spec),
                };
                assert_all_equal("codes", &format!("from {next} on"), codes, reference.unwrap().tensor.codes());
                next += codes.len();
            }
            reference_seconds += started.elapsed().as_secs_f64();
            Ok(())
        };
        let started = std::time::Instant::now();
        let stream = gpu.stream(&shape, &spec);
        let (out, peak_bytes) = peak_bytes(|| stream.quantize(ElemType::F32, read, write).unwrap());
        let seconds = started.elapsed().as_secs_f64();
        let bytes = 4 * ROWS as u64 * ROW_ELEMS as u64;
        assert_eq!((next, read_bytes), (ROWS * ROW_ELEMS, passes * bytes), "{granularity}");
        if granularity == Granularity::Tensor {
            assert_eq!(out.scales, [whole]);
        } else {
            for (row, &scale) in out.scales.iter().enumerate().step_by(997) {
                let x = elements(row * ROW_ELEMS..(row + 1) * ROW_ELEMS);
                let x = Tensor::new(&x, &[ROW_ELEMS]).unwrap();
                assert_eq!(cpu::quantize(x, &tensor).unwrap().tensor.scales(), [scale], "row {row}");
            }
        }
        if let Some(peak_bytes) = peak_bytes {
            // Beside the default budget stands what is compared here, and the stacks.
            assert!(peak_bytes < (256 + 32) << 20, "{granularity}: {peak_bytes} bytes");
        }
        println!(
            "{granularity}: {:.2} GiB in {seconds:.1} s ({reference_seconds:.1} s of them compared), {:.3} GiB/s, \
             memory grew by {} MiB at most",
            bytes as f64 / (1u64 << 30) as f64,
            bytes as f64 / (1u64 << 30) as f64 / seconds,
            peak_bytes.map_or_else(|| "an unknown number of".to_owned(), |bytes| (bytes >> 20).to_string()),
        );
    }
}
