//! The device layer: what it opens, how often it goes there, and what its failures become.

use crate::corpus::data;
use crate::{Test, another, assert_same};
use wgpu_quant::gpu::{
    Kernel, OPTIONAL_FEATURES, Operation, REQUIRED_FEATURES, Role, Scales, Select, Tuning, required_limits,
};
use wgpu_quant::{
    ElemType, Error, Gpu, Granularity, LossDetail, ObservedRanges, Observer, Quantized, Scheme, Spec, Tensor, cpu,
    selftest, wgpu,
};

pub(crate) const TESTS: &[Test] = &[
    ("a_call_is_one_submission_and_one_read_back", traffic),
    ("a_result_says_which_adapter_made_it", provenance),
    ("the_async_calls_give_the_same", asynchronous),
    ("a_callers_device_with_default_limits_works", borrowed),
    ("a_device_with_the_required_limits_works_through_a_pipeline_cache", cached),
    ("two_threads_share_one_gpu", threads),
    ("an_adapter_that_is_not_there_is_an_error_that_lists_what_was_tried", missing),
    ("a_lost_device_is_an_error", lost),
    ("a_callers_lost_device_is_an_error", borrowed_lost),
    ("more_channels_than_fit_a_buffer_agree", too_many_units),
    ("bad_input_is_the_same_error_on_both_paths", bad_input),
    ("an_impossible_tuning_is_refused", tuning),
    ("kernels_are_timed_when_asked_for", timestamps),
    ("the_self_test_finds_the_adapter_exact", self_test),
];

/// Tests that only a software Vulkan adapter on Linux can run: its memory is the process's and can be limited
/// (elsewhere there is no way to run out of it that leaves the machine usable), and it is slow enough to be
/// waited for, while GL has no wait to cut short.
pub(crate) const SOFTWARE_VULKAN_TESTS: &[Test] =
    &[("running_out_of_device_memory_is_an_error", out_of_memory), ("waiting_too_long_is_an_error", timeout)];

fn spec() -> Spec {
    Spec::new(Scheme::INT8_ABSMAX).loss(LossDetail::PerElement)
}

fn traffic(gpu: &Gpu) {
    let gpu = gpu.tuned(gpu.tuning().chunk_elems(4096)).unwrap();
    let x = data("gauss", 10_000, 31);
    let x = Tensor::new(&x, &[100, 100]).unwrap();
    let count = |call: &dyn Fn()| {
        let before = gpu.traffic();
        call();
        let after = gpu.traffic();
        assert_eq!((after.submissions - before.submissions, after.readbacks - before.readbacks), (1, 1));
    };
    let q = cpu::quantize(x, &spec()).unwrap().tensor;
    for spec in [spec(), Spec::new(Scheme::INT8_MINMAX).per(Granularity::Channel(1)).loss(LossDetail::Summary)] {
        count(&|| drop(gpu.quantize(x, &spec).unwrap()));
    }
    count(&|| drop(gpu.quantize_with_scales(x, &spec(), Scales::Host(&[0.1], &[])).unwrap()));
    count(&|| drop(gpu.dequantize(&q).unwrap()));
    count(&|| drop(gpu.loss(x, &q, true).unwrap()));
}

fn provenance(gpu: &Gpu) {
    let out = gpu.quantize(Tensor::new(&[1.0], &[1]).unwrap(), &spec()).unwrap();
    assert_eq!(&out.device, gpu.info());
    assert!(!out.device.is_cpu_path() && !out.device.name.is_empty());
    let index = out.device.index.expect("an opened adapter has an index");
    assert_eq!(Gpu::adapters()[index].info, out.device);
}

fn asynchronous(gpu: &Gpu) {
    let x = data("mixed", 5000, 32);
    let x = Tensor::new(&x, &[50, 100]).unwrap();
    let spec = spec().per(Granularity::Channel(0));
    let reference = cpu::quantize(x, &spec).unwrap();
    pollster::block_on(async {
        assert_same("async", &gpu.quantize_async(x, &spec).await.unwrap(), &reference);
        let values = gpu.dequantize_async(&reference.tensor).await.unwrap();
        assert_eq!(crate::bits(&values), crate::bits(&cpu::dequantize(&reference.tensor).unwrap()));
        assert_eq!(gpu.loss_async(x, &reference.tensor, true).await.unwrap().value, reference.loss.clone().unwrap());
        let scales = reference.tensor.scales();
        assert_same(
            "async",
            &gpu.quantize_with_scales_async(x, &spec, Scales::Host(scales, &[])).await.unwrap(),
            &reference,
        );
    });
}

/// The same adapter as another program would find it.
pub(crate) fn own_adapter(gpu: &Gpu) -> wgpu::Adapter {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let is_same = |adapter: &wgpu::Adapter| {
        let info = adapter.get_info();
        info.name == gpu.info().name && info.backend.to_string() == gpu.info().backend
    };
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    adapters.into_iter().find(is_same).unwrap()
}

/// Its device: no features, default limits.
pub(crate) fn own_device(gpu: &Gpu) -> (wgpu::Device, wgpu::Queue) {
    pollster::block_on(own_adapter(gpu).request_device(&wgpu::DeviceDescriptor::default())).unwrap()
}

fn cached(gpu: &Gpu) {
    let adapter = own_adapter(gpu);
    assert!(REQUIRED_FEATURES.is_empty());
    let features = OPTIONAL_FEATURES & adapter.features();
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        required_features: REQUIRED_FEATURES | features,
        required_limits: required_limits(&adapter),
        ..Default::default()
    }))
    .unwrap();
    let mut gpu = Gpu::from_device(device.clone(), queue);
    let cache = features.contains(wgpu::Features::PIPELINE_CACHE).then(|| {
        let descriptor = wgpu::PipelineCacheDescriptor { label: None, data: None, fallback: true };
        #[allow(unsafe_code, reason = "wgpu's call is unsafe for the sake of the data")]
        // SAFETY: there is no data.
        unsafe {
            device.create_pipeline_cache(&descriptor)
        }
    });
    if let Some(cache) = &cache {
        gpu = gpu.with_pipeline_cache(cache.clone());
    }
    let x = data("mixed", 40_000, 33);
    let x = Tensor::new(&x, &[400, 100]).unwrap();
    assert_same("cached", &gpu.quantize(x, &spec()).unwrap(), &cpu::quantize(x, &spec()).unwrap());
    println!("a cache of {:?} bytes", cache.map(|cache| cache.get_data().map(|data| data.len())));
}

fn borrowed(gpu: &Gpu) {
    let (device, queue) = own_device(gpu);
    let gpu = Gpu::from_device(device, queue);
    let x = data("mixed", 40_000, 33);
    let x = Tensor::new(&x, &[400, 100]).unwrap();
    for granularity in [Granularity::Tensor, Granularity::Channel(0), Granularity::Channel(1)] {
        let spec = spec().per(granularity);
        assert_same("borrowed", &gpu.quantize(x, &spec).unwrap(), &cpu::quantize(x, &spec).unwrap());
    }
    assert_eq!(gpu.info().index, None);
}

fn threads(gpu: &Gpu) {
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                for _ in 0..5 {
                    let x = data("mixed", 3000, seed);
                    let x = Tensor::new(&x, &[3000]).unwrap();
                    assert_same("thread", &gpu.quantize(x, &spec()).unwrap(), &cpu::quantize(x, &spec()).unwrap());
                }
            });
        }
    });
}

fn missing(gpu: &Gpu) {
    for select in [Select::Index(1000), Select::Name("no such adapter".to_owned())] {
        let error = Gpu::open(&select).unwrap_err();
        assert!(matches!(error, Error::NoAdapter { .. }), "{error}");
        assert!(error.to_string().contains(&gpu.info().name), "{error}");
    }
}

fn lost(gpu: &Gpu) {
    let gpu = another(gpu);
    let x = Tensor::new(&[1.0, 2.0], &[2]).unwrap();
    gpu.quantize(x, &spec()).unwrap();
    gpu.device().destroy();
    for _ in 0..2 {
        let error = gpu.quantize(x, &spec()).err().unwrap();
        assert!(matches!(error, Error::DeviceLost { .. }), "{error:?}");
    }
}

fn borrowed_lost(gpu: &Gpu) {
    let (device, queue) = own_device(gpu);
    let gpu = Gpu::from_device(device.clone(), queue);
    let x = Tensor::new(&[1.0, 2.0], &[2]).unwrap();
    gpu.quantize(x, &spec()).unwrap();
    device.destroy();
    let error = gpu.quantize(x, &spec()).err().unwrap();
    assert!(matches!(error, Error::DeviceLost { .. }), "{error:?}");
    let q = cpu::quantize(x, &spec()).unwrap().tensor;
    assert!(gpu.dequantize(&q).is_err() && gpu.loss(x, &q, false).is_err());
}

fn too_many_units(gpu: &Gpu) {
    // More channels than one buffer of 128 MiB holds recipes for, on an axis that is not the first.
    let (device, queue) = own_device(gpu);
    assert!(device.limits().max_storage_buffer_binding_size <= 128 << 20, "the default limits have grown");
    let gpu = Gpu::from_device(device, queue);
    let shape = [2, (4 << 20) + 100];
    let x = data("mixed", shape[0] * shape[1], 35);
    let x = Tensor::new(&x, &shape).unwrap();
    let spec = Spec::new(Scheme::INT8_ABSMAX).per(Granularity::Channel(1));
    assert_same("4 Mi channels", &gpu.quantize(x, &spec).unwrap(), &cpu::quantize(x, &spec).unwrap());
}

/// In a process of its own for each call, whose memory is limited once the device is open.
fn out_of_memory(gpu: &Gpu) {
    for (call, mebibytes) in OOM_CALLS {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .env(OOM_CHILD, format!("{} {mebibytes} {call}", gpu.info().index.unwrap()))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout);
        let error = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{call}: {text}\n{error}");
        println!("{call} with {mebibytes} MiB: {}", text.trim());
        assert!(text.starts_with("out of device memory: "), "{call}: {text}");
    }
}

/// Set in the process that runs out of memory, to the adapter's index, the MiB that there are, and the call.
pub(crate) const OOM_CHILD: &str = "WGPU_QUANT_TEST_OUT_OF_MEMORY";

/// The calls, and how many MiB there are for each.
const OOM_CALLS: [(&str, u64); 4] =
    [("quantize", 200), ("dequantize", 40), ("restore_ranges", 200), ("Plan::create", 200)];

/// The child's part: prints the error, and that the device works again once there is memory.
pub(crate) fn run_out_of_memory(asked: &str) {
    let [index, mebibytes, call] = asked.split(' ').collect::<Vec<_>>()[..] else { panic!("{asked}") };
    let mebibytes: u64 = mebibytes.parse().unwrap();
    // Small and large by the same kernels: a driver's compiler that runs out of memory ends the process.
    let gpu = Gpu::open(&Select::parse(index)).unwrap();
    let gpu = gpu.with_tuning(Tuning::default().one_pass(false)).unwrap();
    let small = Tensor::new(&[1.0, 2.0], &[2]).unwrap();
    let q = cpu::quantize(small, &spec()).unwrap().tensor;
    let works = |gpu: &Gpu| {
        assert_same("small", &gpu.quantize(small, &spec()).unwrap(), &cpu::quantize(small, &spec()).unwrap());
        assert_eq!(gpu.dequantize(&q).unwrap().value, cpu::dequantize(&q).unwrap());
    };
    works(&gpu);
    let elems = 1 << 27;
    let x = if call == "quantize" { vec![1.0f32; elems] } else { vec![] };
    let codes = if call == "dequantize" { vec![1; elems] } else { vec![] };
    let large =
        Quantized::from_parts(Scheme::INT8_ABSMAX, Granularity::Tensor, vec![codes.len()], codes, vec![1.0], vec![]);
    let large = large.unwrap();
    let ranges = ObservedRanges::new(elems / 8);
    let plan = gpu.plan(Operation::Quantize, &Spec::new(Scheme::INT8_ABSMAX), &[elems], ElemType::F32).unwrap();
    let limit = |bytes: &str| {
        let pid = std::process::id().to_string();
        let done = std::process::Command::new("prlimit").args(["--pid", &pid, &format!("--as={bytes}:")]).status();
        assert!(done.unwrap().success(), "prlimit (util-linux) is needed");
    };
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    limit(&(pages * 4096 + (mebibytes << 20)).to_string());
    let error = match call {
        "quantize" => gpu.quantize(Tensor::new(&x, &[x.len()]).unwrap(), &spec()).err(),
        "dequantize" => gpu.dequantize(&large).err(),
        "restore_ranges" => gpu.restore_ranges(&ranges, Granularity::Channel(0), Observer::MIN_MAX).err(),
        _ => plan.create(Role::Input).err(),
    };
    limit("unlimited");
    let error = error.unwrap();
    println!("{error}");
    works(&gpu);
}

fn timeout(gpu: &Gpu) {
    let gpu = another(gpu).with_tuning(gpu.tuning().timeout_seconds(0)).unwrap();
    let x = vec![1.0; 1 << 22];
    let error = gpu.quantize(Tensor::new(&x, &[x.len()]).unwrap(), &spec()).err().unwrap();
    assert!(matches!(error, Error::Timeout { seconds: 0 }), "{error:?}");
}

fn tuning(gpu: &Gpu) {
    for tuning in [
        Tuning::default().workgroup(0),
        Tuning::default().workgroup(1 << 20),
        Tuning::default().chunk_elems(0),
        Tuning::default().slab_units(0),
        Tuning::default().workgroups_per_dimension(0),
    ] {
        let error = gpu.tuned(tuning).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    }
}

fn timestamps(gpu: &Gpu) {
    let gpu = gpu.tuned(gpu.tuning().timestamps(true)).unwrap();
    let x = data("gauss", 100_000, 34);
    let x = Tensor::new(&x, &[100_000]).unwrap();
    assert_same("timed", &gpu.quantize(x, &spec()).unwrap(), &cpu::quantize(x, &spec()).unwrap());
    let times = gpu.kernel_seconds();
    if gpu.device().features().contains(wgpu::Features::TIMESTAMP_QUERY) {
        assert_eq!(times.len(), 4, "{times:?}");
        assert!(times.iter().all(|(_, seconds)| (0.0..10.0).contains(seconds)), "{times:?}");
    } else {
        assert!(times.is_empty());
    }
}

fn self_test(gpu: &Gpu) {
    // One scheme of each codec and rule; the tool's `selftest` runs them all.
    let schemes =
        [Scheme::INT8_ABSMAX, Scheme::UINT4_AFFINE, Scheme::INT16_MINMAX, Scheme::CT_INT8, Scheme::F16, Scheme::BF16];
    let report = selftest::run(gpu, &schemes).unwrap();
    assert!(report.is_exact(), "{report}");
    for &kernel in Kernel::ALL {
        // Of clearing only counts tell.
        let words = if kernel == Kernel::Clear { 6 } else { 1000 };
        assert!(report.rows.iter().any(|row| row.kernel == kernel && row.words >= words), "{kernel:?}");
    }
    println!("{report}");
}

fn bad_input(gpu: &Gpu) {
    let x = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
    let (wide, tall) = (Tensor::new(&x, &[2, 3]).unwrap(), Tensor::new(&x, &[3, 2]).unwrap());
    let same = |ours: Option<Error>, reference: Option<Error>, holds: &str| {
        let (ours, reference) = (ours.unwrap().to_string(), reference.unwrap().to_string());
        assert_eq!(ours, reference);
        assert!(ours.contains(holds), "{ours}");
    };
    let absent = spec().per(Granularity::Channel(2));
    same(gpu.quantize(wide, &absent).err(), cpu::quantize(wide, &absent).err(), "axis 2");
    for (scales, holds) in [(&[1.0, 2.0][..], "2 elements, expected 1"), (&[0.0], "scale 0"), (&[f32::NAN], "NaN")] {
        let ours = gpu.quantize_with_scales(wide, &spec(), Scales::Host(scales, &[])).err();
        same(ours, cpu::quantize_with_scales(wide, &spec(), scales, &[]).err(), holds);
    }
    let q = cpu::quantize(wide, &spec()).unwrap().tensor;
    same(gpu.loss(tall, &q, false).err(), cpu::loss(tall, &q, false).err(), "[2, 3]");
    assert!(Tensor::new(&x, &[7]).unwrap_err().to_string().contains("6 elements, expected 7"));
}
