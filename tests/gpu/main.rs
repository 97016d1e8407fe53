//! The central test: the GPU path equals the CPU path, bit for bit, on every adapter of this machine.
//!
//! Each test runs once per adapter, or on the one that `WGPU_QUANT_DEVICE` names; the adapter is the first part
//! of the test's name. Without an adapter there is one ignored test that says so; under `CI=true` that fails the
//! run instead.

#[path = "../common/corpus.rs"]
mod corpus;
#[path = "../../src/rng.rs"]
mod rng;

mod asynchronous;
mod backend;
mod device;
mod equality;
mod exhaustive;
mod faults;
mod invariance;
mod layouts;
mod observe;
mod record;
mod stream;
mod threads;

use libtest_mimic::{Arguments, Failed, Trial};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use wgpu_quant::gpu::{DEVICE_VARIABLE, Select};
use wgpu_quant::{DeviceInfo, Error, Gpu, QuantizeOutput, Quantized, Spec, Tensor, cpu};

type Test = (&'static str, fn(&Gpu));

/// An adapter under test, and how its tests ended.
struct Subject {
    /// The first part of its tests' names.
    slug: String,
    info: DeviceInfo,
    gpu: Result<Gpu, Error>,
    passed: AtomicUsize,
    failed: AtomicUsize,
}

impl Subject {
    fn new(info: DeviceInfo, gpu: Result<Gpu, Error>) -> Self {
        let word: String = info.name.chars().take_while(|c| c.is_alphanumeric()).collect();
        let slug = format!("{}-{}-{}", word.to_lowercase(), info.backend, info.index.unwrap_or_default());
        Self { slug, info, gpu, passed: AtomicUsize::new(0), failed: AtomicUsize::new(0) }
    }

    fn trial(self: &Arc<Self>, (name, test): Test, ignored: bool) -> Trial {
        let subject = Arc::clone(self);
        let run = move || {
            let started = std::time::Instant::now();
            let result = subject.run(test);
            // Where the time of a run goes.
            println!("{:.1} s", started.elapsed().as_secs_f64());
            if result.is_ok() { &subject.passed } else { &subject.failed }.fetch_add(1, Relaxed);
            result
        };
        Trial::test(format!("{}::{name}", self.slug), run).with_ignored_flag(ignored)
    }

    fn run(&self, test: fn(&Gpu)) -> Result<(), Failed> {
        let gpu = self.gpu.as_ref().map_err(ToString::to_string)?;
        catch_unwind(AssertUnwindSafe(|| test(gpu))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Failed::from(text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default())
        })
    }

    fn trials(self: &Arc<Self>) -> impl Iterator<Item = Trial> {
        let software_vulkan =
            cfg!(target_os = "linux") && self.info.device_type == "cpu" && self.info.backend == "vulkan";
        // It takes half a minute to compile the kernels for each device, and these tests open many.
        let compiles_long = self.info.name.contains("SwiftShader");
        let groups = [
            (equality::TESTS, false),
            (invariance::TESTS, false),
            (observe::TESTS, false),
            (record::TESTS, false),
            (layouts::TESTS, false),
            (stream::TESTS, false),
            (device::TESTS, false),
            (faults::TESTS, compiles_long),
            (asynchronous::TESTS, false),
            (backend::TESTS, compiles_long),
            (threads::TESTS, false),
            (faults::SOFTWARE_VULKAN_TESTS, !software_vulkan || compiles_long),
            (device::SOFTWARE_VULKAN_TESTS, !software_vulkan),
            (stream::SOFTWARE_VULKAN_TESTS, !software_vulkan),
            (exhaustive::TESTS, true),
        ];
        groups.into_iter().flat_map(move |(tests, ignored)| tests.iter().map(move |&test| self.trial(test, ignored)))
    }
}

/// What `WGPU_QUANT_DEVICE` names, or every adapter that can run the kernels.
fn subjects() -> Result<Vec<Arc<Subject>>, Error> {
    if std::env::var(DEVICE_VARIABLE).is_ok() {
        let gpu = Gpu::open(&Select::from_env())?;
        return Ok(vec![Arc::new(Subject::new(gpu.info().clone(), Ok(gpu)))]);
    }
    let fit = Gpu::open_all().into_iter().filter(|(_, gpu)| !matches!(gpu, Err(Error::UnfitAdapter { .. })));
    Ok(fit.map(|(info, gpu)| Arc::new(Subject::new(info, gpu))).collect())
}

/// The same adapter as another device.
fn another(gpu: &Gpu) -> Gpu {
    Gpu::open(&Select::Index(gpu.info().index.expect("an adapter of this machine has an index"))).unwrap()
}

/// The cases of a test that has many. SwiftShader is some twenty times slower than the other software adapters; it takes
/// one in so many, spread over the test.
struct Cases<'g> {
    gpu: &'g Gpu,
    one_in: usize,
    all: usize,
    taken: usize,
}

impl<'g> Cases<'g> {
    fn of(gpu: &'g Gpu, one_in: usize) -> Self {
        Self { gpu, one_in, all: 0, taken: 0 }
    }

    /// Counts a case, and whether this adapter takes it.
    fn take(&mut self) -> bool {
        // One of each row of `one_in` cases, the next one in the next row, so that no inner loop is always left out.
        let taken = self.all % self.one_in == self.all / self.one_in % self.one_in || !self.takes_a_part();
        self.all += 1;
        self.taken += usize::from(taken);
        taken
    }

    /// SwiftShader is slow. What is behind GL here is behind Vulkan too, unless it was asked for by name.
    fn takes_a_part(&self) -> bool {
        let info = self.gpu.info();
        info.name.contains("SwiftShader") || info.backend == "gl" && std::env::var_os(DEVICE_VARIABLE).is_none()
    }

    fn print(&self) {
        assert!(self.taken > 0);
        println!("{} of {} cases", self.taken, self.all);
    }
}

fn main() -> ExitCode {
    if let Ok(asked) = std::env::var(device::OOM_CHILD) {
        device::run_out_of_memory(&asked);
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    // One test at a time: software adapters use all cores for each, and compile kernels again when two tests have theirs in turn.
    arguments.test_threads.get_or_insert(1);
    let subjects = match subjects() {
        Ok(subjects) => subjects,
        Err(error) => {
            eprintln!("{DEVICE_VARIABLE}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut trials: Vec<Trial> = subjects.iter().flat_map(Subject::trials).collect();
    if subjects.is_empty() {
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        trials.push(Trial::test("there_is_an_adapter", || Err("no adapter".into())).with_ignored_flag(!ci));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        for Subject { info, passed, failed, .. } in subjects.iter().map(|subject| &**subject) {
            println!("adapter {info}: {} passed, {} failed", passed.load(Relaxed), failed.load(Relaxed));
        }
    }
    conclusion.exit_code()
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
    assert_all_equal("zero points", case, gpu.tensor.zero_points(), cpu.tensor.zero_points());
    assert_all_equal("codes", case, gpu.tensor.codes(), cpu.tensor.codes());
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
    check_tensor(gpu, case, Tensor::new(x, shape).unwrap(), spec)
}

/// The same of a tensor of any type.
#[track_caller]
fn check_tensor(gpu: &Gpu, case: &str, x: Tensor<'_>, spec: &Spec) -> Quantized {
    let ours = gpu.quantize(x, spec).unwrap_or_else(|e| panic!("{case}: {e}"));
    let reference = cpu::quantize(x, spec).unwrap();
    assert_same(case, &ours, &reference);
    let values = gpu.dequantize(&reference.tensor).unwrap();
    assert_same_values(case, &values, &cpu::dequantize(&reference.tensor).unwrap());
    reference.tensor
}
