//! The CPU path under other float environments: flush-to-zero, denormals-are-zero and every rounding mode,
//! on the calling thread, on the workers and on both, give the bits of the default environment.
//!
//! Hosts really run like that: training and inference frameworks set these modes for speed, libraries built
//! with fast-math do it unasked, and threads inherit them.

#![cfg(target_arch = "x86_64")]
#![allow(unsafe_code, reason = "the mode register can only be set by its instruction")]

#[path = "common/corpus.rs"]
mod corpus;
#[path = "../src/rng.rs"]
mod rng;

use rayon::{ThreadPool, ThreadPoolBuilder};
use std::arch::asm;
use std::hint::black_box;
use wgpu_quant::{Granularity, Loss, LossDetail, QuantizeOutput, Scheme, Spec, Tensor, cpu};

/// MXCSR with every exception masked: what programs start with.
const DEFAULT: u32 = 0x1f80;
const FLUSH_TO_ZERO: u32 = 1 << 15;
const DENORMALS_ARE_ZERO: u32 = 1 << 6;
const DOWN: u32 = 1 << 13;
const UP: u32 = 2 << 13;
const TOWARD_ZERO: u32 = 3 << 13;

const MODES: [(&str, u32); 8] = [
    ("flush to zero", FLUSH_TO_ZERO),
    ("denormals are zero", DENORMALS_ARE_ZERO),
    ("both", FLUSH_TO_ZERO | DENORMALS_ARE_ZERO),
    ("round down", DOWN),
    ("round up", UP),
    ("round toward zero", TOWARD_ZERO),
    ("flush and round down", FLUSH_TO_ZERO | DENORMALS_ARE_ZERO | DOWN),
    ("flush and round up", FLUSH_TO_ZERO | DENORMALS_ARE_ZERO | UP),
];

fn set_mxcsr(value: u32) {
    // SAFETY: the bits are defined, all exceptions stay masked, and only this thread's own float arithmetic
    // changes; the callers compute nothing with floats but what is under test.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const value, options(readonly, nostack)) };
}

fn mxcsr() -> u32 {
    let mut value = 0u32;
    // SAFETY: stores the register in a local.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack)) };
    value
}

/// Runs `task` under a mode on this thread; the default is back at the end, after a panic too.
fn under<T>(mode: u32, task: impl FnOnce() -> T) -> T {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            set_mxcsr(DEFAULT);
        }
    }
    let _restore = Restore;
    set_mxcsr(DEFAULT | mode);
    task()
}

/// A pool whose workers have these modes.
fn pool(mode_of: impl Fn(usize) -> u32 + Send + Sync + 'static) -> ThreadPool {
    let set = move |worker| set_mxcsr(DEFAULT | mode_of(worker));
    ThreadPoolBuilder::new().num_threads(3).start_handler(set).build().unwrap()
}

/// Panics unless plain arithmetic on this thread shows every sign of the mode, and of no other.
fn assert_in_force(mode: u32) {
    // Hidden operands: the compiler must not compute the results itself, at build time.
    let product = |a: f32, b: f32| (black_box(a) * black_box(b)).to_bits();
    let sum = |a: f32, b: f32| (black_box(a) + black_box(b)).to_bits();
    let (one, minus_one, ulp) = (1f32.to_bits(), (-1f32).to_bits(), f32::EPSILON);
    let subnormal_result = product(f32::MIN_POSITIVE, 0.5);
    let subnormal_operand = product(f32::from_bits(1), 8_388_608.0);
    let rounded = [sum(1.0, 0.25 * ulp), sum(-1.0, -0.25 * ulp), sum(1.0, 0.75 * ulp)];
    assert_eq!(mxcsr() & !0x3f, DEFAULT | mode);
    assert_eq!(subnormal_result, if mode & FLUSH_TO_ZERO == 0 { 0x0040_0000 } else { 0 });
    assert_eq!(subnormal_operand, if mode & DENORMALS_ARE_ZERO == 0 { 0x0080_0000 } else { 0 });
    let expected = match mode & TOWARD_ZERO {
        DOWN => [one, minus_one + 1, one],
        UP => [one + 1, minus_one, one + 1],
        TOWARD_ZERO => [one, minus_one, one],
        _ => [one, minus_one, one + 1],
    };
    assert_eq!(rounded, expected);
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// All that the CPU path returns of some tensors, as bits.
type Everything = Vec<(String, Vec<u64>)>;

struct Input {
    name: String,
    x: Vec<f32>,
    shape: Vec<usize>,
    /// A scale to quantize with besides the scales of its own range.
    scale: f32,
}

/// Inputs whose results a wrong mode would change, made under the default.
fn inputs() -> Vec<Input> {
    let mut inputs = Vec::new();
    let mut add = |name: String, x: Vec<f32>, shape: &[usize], scale: f32| {
        inputs.push(Input { name, x, shape: shape.to_vec(), scale });
    };
    for kind in corpus::KINDS {
        add(kind.to_owned(), corpus::data(kind, 12 * 7 * 11, 1), &[12, 7, 11], 0.01);
    }
    for scale in corpus::SCALES.map(f32::from_bits) {
        let x = corpus::halfway_neighbours(scale);
        let shape = [x.len()];
        add(format!("halfway points of {:#010x}", scale.to_bits()), x, &shape, scale);
    }
    // Long enough for several tasks, so that several workers take part.
    add("long".to_owned(), corpus::data("mixed", 150_000, 2), &[3, 50_000], 0.01);
    add("long subnormal".to_owned(), corpus::data("subnormal", 150_000, 2), &[3, 50_000], f32::from_bits(300));
    add("empty".to_owned(), vec![], &[0, 2], 1.0);
    inputs
}

fn of_loss(loss: &Loss) -> Vec<u64> {
    let summary = loss.summary();
    let optional = |value: Option<f64>| value.map_or([0, 0], |v| [1, v.to_bits()]);
    let mut out = vec![summary.elems, summary.nonfinite_out_elems];
    out.extend(summary.max_abs_error.map_or(u64::MAX, |v| v.to_bits().into()).to_be_bytes().map(u64::from));
    for value in [summary.mean_abs_error, summary.mse, summary.sqnr_db, summary.cosine] {
        out.extend(optional(value));
    }
    out.extend(loss.units.iter().flat_map(|unit| [unit.max_abs_error.to_bits().into(), unit.noise.to_bits()]));
    out.extend(loss.abs_errors.iter().flatten().map(|e| u64::from(e.to_bits())));
    out
}

fn of_output(out: &QuantizeOutput) -> Vec<u64> {
    let mut all = vec![out.counts.clipped_elems, out.counts.nan_elems, out.counts.inf_elems];
    all.extend(out.tensor.codes().iter().map(|&code| u64::from(code)));
    all.extend(out.tensor.scales().iter().map(|s| u64::from(s.to_bits())));
    all.extend(out.loss.iter().flat_map(of_loss));
    all
}

/// One of each kind of rule and code.
const SCHEMES: [Scheme; 8] = [
    Scheme::INT8_ABSMAX,
    Scheme::INT8_MINMAX,
    Scheme::UINT8_AFFINE,
    Scheme::INT4_AFFINE,
    Scheme::INT16_ABSMAX,
    Scheme::CT_INT4,
    Scheme::F16,
    Scheme::BF16,
];

/// Runs every function of `cpu` on every input.
fn everything(inputs: &[Input]) -> Everything {
    let mut all = Everything::new();
    for Input { name, x, shape, scale } in inputs {
        for granularity in [Granularity::Tensor, Granularity::Channel(0)] {
            let tensor = Tensor::new(x, shape).unwrap();
            let ranges = cpu::min_max(tensor, granularity).unwrap();
            let mut add = |what: &str, value: Vec<u64>| all.push((format!("{name}, {granularity}, {what}"), value));
            let ends = ranges.units.iter().flat_map(|r| [r.lo.to_bits(), r.hi.to_bits(), r.amax().to_bits()]);
            let counts = [ranges.nan_elems, ranges.inf_elems];
            add("min_max", ends.map(u64::from).chain(counts).collect());
            let casts = |scheme: &&Scheme| granularity == Granularity::Tensor || !scheme.is_cast();
            for scheme in SCHEMES.iter().filter(casts).copied() {
                let scales: Vec<f32> = ranges.units.iter().map(|&range| cpu::scale(range, scheme)).collect();
                add("scale", bits(&scales).into_iter().map(u64::from).collect());
                let spec = Spec::new(scheme).per(granularity).loss(LossDetail::PerElement);
                let out = cpu::quantize(tensor, &spec).unwrap();
                add("quantize", of_output(&out));
                let values = cpu::dequantize(&out.tensor).unwrap();
                add("dequantize", bits(&values).into_iter().map(u64::from).collect());
                add("loss", of_loss(&cpu::loss(tensor, &out.tensor, true).unwrap()));
                let zero = |(range, &s): (&cpu::Range, &f32)| cpu::zero_point(*range, s, scheme);
                let zero_points: Vec<i32> = ranges.units.iter().zip(&scales).map(zero).collect();
                add("zero points", zero_points.iter().map(|z| u64::from(z.cast_unsigned())).collect());
                let fake = cpu::fake_quantize(tensor, &spec).unwrap();
                add("fake_quantize", bits(&fake.values).into_iter().map(u64::from).collect());
                if !scheme.is_cast() {
                    let given = vec![*scale; scales.len()];
                    let zero_points = if scheme.has_zero_point() { zero_points } else { vec![] };
                    let out = cpu::quantize_with_scales(tensor, &spec, &given, &zero_points).unwrap();
                    add("quantize_with_scales", of_output(&out));
                }
            }
        }
    }
    all
}

#[track_caller]
fn assert_same(place: &str, found: &Everything, expected: &Everything) {
    assert_eq!(found.len(), expected.len());
    for ((what, found), (_, expected)) in found.iter().zip(expected) {
        if let Some(i) = (0..expected.len()).find(|&i| found.get(i) != Some(&expected[i])) {
            panic!("{place}: {what}: value {i} is {:x?}, not {:x}", found.get(i), expected[i]);
        }
        assert_eq!(found.len(), expected.len(), "{place}: {what}");
    }
}

#[test]
fn every_mode_on_the_calling_thread_or_on_workers_leaves_every_bit_as_it_is() {
    let inputs = inputs();
    assert_in_force(0);
    // This also starts the global pool's workers, under the default: threads inherit the mode.
    let expected = everything(&inputs);
    for (name, mode) in MODES {
        let caller = under(mode, || {
            assert_in_force(mode);
            let all = everything(&inputs);
            assert_in_force(mode);
            all
        });
        assert_in_force(0);
        assert_same(&format!("{name} on the calling thread"), &caller, &expected);

        let workers = pool(move |_| mode);
        workers.broadcast(|_| assert_in_force(mode));
        let all = workers.install(|| everything(&inputs));
        workers.broadcast(|_| assert_in_force(mode));
        assert_same(&format!("{name} on every worker"), &all, &expected);

        let some = pool(move |worker| if worker == 1 { mode } else { 0 });
        let all = some.install(|| everything(&inputs));
        assert_same(&format!("{name} on one worker"), &all, &expected);
    }
}

#[test]
fn the_contracts_worked_example_holds_under_every_mode() {
    let x = [-10.0, -5.0, 0.0, 5.0, 10.0];
    let values = bits(&[-9.960785, -5.019608, 0.0, 5.019608, 9.960785]);
    // The default first, so that an answer remembered from then would be found out.
    for (name, mode) in [("default", 0)].into_iter().chain(MODES) {
        let (out, found) = under(mode, || {
            let out = cpu::quantize(Tensor::new(&x, &[5]).unwrap(), &Spec::new(Scheme::INT8_MINMAX)).unwrap();
            let values = cpu::dequantize(&out.tensor).unwrap();
            (out, values)
        });
        assert_eq!(bits(out.tensor.scales()), [0x3da0_a0a1], "{name}");
        assert_eq!(out.tensor.code_values(), [-127, -64, 0, 64, 127], "{name}");
        assert_eq!(bits(&found), values, "{name}");
    }
}
