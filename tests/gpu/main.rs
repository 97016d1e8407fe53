//! The central test: the GPU path equals the CPU path, bit for bit.
//!
//! Runs on the adapter that `WGPU_QUANT_DEVICE` names, else on the best. Without an adapter every test is
//! reported as ignored, with the reason; under `CI=true` that fails the run instead.

#[path = "../common/corpus.rs"]
mod corpus;

mod device;
mod equality;
mod exhaustive;
mod invariance;

use libtest_mimic::{Arguments, Failed, Trial};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use wgpu_quant::gpu::Select;
use wgpu_quant::{Gpu, QuantizeOutput, Quantized, Spec, Tensor, cpu};

type Test = (&'static str, fn(&Gpu));

fn main() -> ExitCode {
    if std::env::var(device::OOM_CHILD).is_ok() {
        device::run_out_of_memory();
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    let gpu = Gpu::open(&Select::from_env());
    if let Err(why) = &gpu {
        eprintln!("no GPU test can run: {why}");
        if std::env::var("CI").is_ok_and(|ci| ci == "true") {
            return ExitCode::FAILURE;
        }
    }
    let (gpu, kind) = match gpu {
        Ok(gpu) => {
            let kind = format!("{} {}", gpu.info().backend, gpu.info().driver);
            println!("adapter: {}", gpu.info());
            (Some(Arc::new(gpu)), kind)
        }
        Err(_) => (None, "no adapter".to_owned()),
    };
    let trial = |(name, test): &Test, ignored: bool| {
        let (gpu, test) = (gpu.clone(), *test);
        let ignored = ignored || gpu.is_none();
        Trial::test(*name, move || {
            let gpu = gpu.ok_or("no adapter")?;
            catch_unwind(AssertUnwindSafe(|| test(&gpu))).map_err(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                Failed::from(text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default())
            })
        })
        .with_kind(kind.as_str())
        .with_ignored_flag(ignored)
    };
    let software_vulkan = gpu.as_ref().is_some_and(|gpu| {
        cfg!(target_os = "linux") && gpu.info().device_type == "cpu" && gpu.info().backend == "vulkan"
    });
    let groups = [
        (equality::TESTS, false),
        (invariance::TESTS, false),
        (device::TESTS, false),
        (device::SOFTWARE_VULKAN_TESTS, !software_vulkan),
        (exhaustive::TESTS, true),
    ];
    let trials = groups.iter().flat_map(|(tests, ignored)| tests.iter().map(|test| trial(test, *ignored))).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Fails at the first value that differs, with its place and both values.
#[track_caller]
fn assert_all_equal<T: PartialEq + std::fmt::Debug + Copy>(what: &str, case: &str, gpu: &[T], cpu: &[T]) {
    assert_eq!(gpu.len(), cpu.len(), "{case}: number of {what}");
    if let Some(i) = (0..gpu.len()).find(|&i| gpu[i] != cpu[i]) {
        assert_eq!((i, gpu[i]), (i, cpu[i]), "{case}: first difference in {what}");
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[track_caller]
fn assert_same(case: &str, gpu: &QuantizeOutput, cpu: &QuantizeOutput) {
    assert_all_equal("scale bits", case, &bits(gpu.tensor.scales()), &bits(cpu.tensor.scales()));
    assert_all_equal("codes", case, gpu.tensor.codes_i8(), cpu.tensor.codes_i8());
    assert_eq!(gpu.counts, cpu.counts, "{case}: counts");
    match (&gpu.loss, &cpu.loss) {
        (Some(gpu), Some(cpu)) => {
            assert_all_equal("unit losses", case, &gpu.units, &cpu.units);
            assert_eq!(gpu.summary(), cpu.summary(), "{case}: loss");
            if let (Some(gpu), Some(cpu)) = (&gpu.abs_errors, &cpu.abs_errors) {
                assert_all_equal("errors", case, &bits(gpu), &bits(cpu));
            }
        }
        (gpu, cpu) => assert_eq!(gpu.is_some(), cpu.is_some(), "{case}: loss"),
    }
    // Whatever a field above missed.
    assert_eq!(gpu, cpu, "{case}");
}

#[track_caller]
fn assert_same_values(case: &str, gpu: &[f32], cpu: &[f32]) {
    assert_all_equal("values", case, &bits(gpu), &bits(cpu));
}

/// Quantizes and de-quantizes on both paths, and compares everything.
#[track_caller]
fn check(gpu: &Gpu, case: &str, x: &[f32], shape: &[usize], spec: &Spec) -> Quantized {
    let x = Tensor::new(x, shape).unwrap();
    let ours = gpu.quantize(x, spec).unwrap_or_else(|e| panic!("{case}: {e}"));
    let reference = cpu::quantize(x, spec).unwrap();
    assert_same(case, &ours, &reference);
    let values = gpu.dequantize(&reference.tensor).unwrap();
    assert_same_values(case, &values, &cpu::dequantize(&reference.tensor).unwrap());
    reference.tensor
}
