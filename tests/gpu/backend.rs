//! A backend whose device is lost: what takes its place, and what is said of it.

use crate::corpus::data;
use crate::{Test, another, assert_same, bits};
use wgpu_quant::gpu::Fault;
use wgpu_quant::{Backend, Gpu, Granularity, LossDetail, Result, Scheme, Spec, Tensor, cpu};

pub(crate) const TESTS: &[Test] = &[
    ("a_named_adapter_that_is_lost_is_opened_again", named),
    ("an_adapter_that_auto_chose_gives_way_to_the_cpu_path", auto),
    ("threads_that_lose_an_adapter_open_it_once", threads),
    ("what_is_too_large_for_an_adapter_that_auto_chose_is_left_to_the_cpu_path", outgrown),
];

fn spec() -> Spec {
    Spec::new(Scheme::UINT8_AFFINE).per(Granularity::Channel(0)).loss(LossDetail::PerElement)
}

fn lose(backend: &Backend) {
    backend.opened().expect("an adapter is open").device().destroy();
}

/// Every call on a backend, each after `before`, and its result compared with the CPU path's; what computed them.
fn calls(backend: &Backend, before: impl Fn()) -> Result<Vec<wgpu_quant::DeviceInfo>> {
    let x = data("mixed", 3000, 91);
    let x = Tensor::new(&x, &[30, 100]).unwrap();
    let reference = cpu::quantize(x, &spec()).unwrap();
    let q = &reference.tensor;
    let (scales, zero_points) = (q.scales(), q.zero_points());
    let mut devices = vec![];
    before();
    let ours = backend.quantize(x, &spec())?;
    assert_same("quantize", &ours, &reference);
    devices.push(ours.device);
    before();
    let ours = backend.quantize_with_scales(x, &spec(), scales, zero_points)?;
    assert_same("with scales", &ours, &cpu::quantize_with_scales(x, &spec(), scales, zero_points).unwrap());
    devices.push(ours.device);
    before();
    let ours = backend.fake_quantize(x, &spec())?;
    assert_eq!(ours.value, cpu::fake_quantize(x, &spec()).unwrap());
    devices.push(ours.device);
    before();
    let ours = backend.fake_quantize_with_scales(x, &spec(), scales, zero_points)?;
    assert_eq!(ours.value, cpu::fake_quantize_with_scales(x, &spec(), scales, zero_points).unwrap());
    devices.push(ours.device);
    before();
    let ours = backend.dequantize(q)?;
    assert_eq!(bits(&ours), bits(&cpu::dequantize(q).unwrap()));
    devices.push(ours.device);
    before();
    let ours = backend.loss(x, q, true)?;
    assert_eq!(Some(ours.value), reference.loss);
    devices.push(ours.device);
    Ok(devices)
}

fn named(gpu: &Gpu) {
    let index = gpu.info().index.unwrap().to_string();
    let backend = Backend::open(&index).unwrap();
    assert_eq!(backend.take_notice(), None);
    let (info, reason) = (backend.info().clone(), backend.reason().to_owned());
    // Lost before each call.
    let devices = calls(&backend, || lose(&backend)).unwrap();
    assert!(devices.iter().all(|device| device == gpu.info()), "{devices:?}");
    let notice = backend.take_notice().unwrap();
    println!("{notice}");
    let name = &gpu.info().name;
    assert!(notice.starts_with(name) && notice.contains("was lost (Destroyed") && notice.contains("was opened"));
    // Said once, and nothing to say of calls that go well.
    calls(&backend, || ()).unwrap();
    assert_eq!(backend.take_notice(), None);
    assert_eq!((backend.info(), backend.reason()), (&info, &*reason));
    // What is wrong with the input stays the caller's.
    let x = Tensor::new(&[1.0], &[1]).unwrap();
    lose(&backend);
    let error = backend.quantize(x, &spec().per(Granularity::Channel(3))).unwrap_err();
    assert!(error.to_string().contains("axis 3"), "{error}");
}

fn auto(gpu: &Gpu) {
    let backend = Backend::auto_over(another(gpu));
    assert_eq!(backend.info(), gpu.info());
    let devices = calls(&backend, || ()).unwrap();
    assert!(devices.iter().all(|device| device == gpu.info()), "{devices:?}");
    assert_eq!(backend.take_notice(), None);
    lose(&backend);
    let devices = calls(&backend, || ()).unwrap();
    assert!(devices.iter().all(wgpu_quant::DeviceInfo::is_cpu_path), "{devices:?}");
    let notice = backend.take_notice().unwrap();
    println!("{notice}");
    assert!(
        notice.contains("was lost (Destroyed") && notice.ends_with("the CPU path computes from here on"),
        "{notice}"
    );
    assert!(backend.opened().is_none() && backend.info().is_cpu_path() && backend.reason().contains("was lost"));
    calls(&backend, || ()).unwrap();
    assert_eq!(backend.take_notice(), None);
}

fn threads(gpu: &Gpu) {
    let named = Backend::open(&gpu.info().index.unwrap().to_string()).unwrap();
    for backend in [named, Backend::auto_over(another(gpu))] {
        calls(&backend, || ()).unwrap();
        lose(&backend);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| calls(&backend, || ()).unwrap());
            }
        });
        assert!(backend.take_notice().is_some() && backend.take_notice().is_none());
    }
}

fn outgrown(gpu: &Gpu) {
    let backend = Backend::auto_over(another(gpu));
    let fails = || backend.opened().unwrap().fail(Fault::Buffer, Some(2));
    let devices = calls(&backend, fails).unwrap();
    assert!(devices.iter().all(wgpu_quant::DeviceInfo::is_cpu_path), "{devices:?}");
    let notice = backend.take_notice().unwrap();
    println!("{notice}");
    assert!(notice.contains("out of device memory") && notice.ends_with("what is too large for it"), "{notice}");
    // The adapter still computes what it can, and it was said once.
    let devices = calls(&backend, || ()).unwrap();
    assert!(devices.iter().all(|device| device == gpu.info()), "{devices:?}");
    calls(&backend, fails).unwrap();
    backend.opened().unwrap().fail(Fault::Buffer, None);
    assert_eq!((backend.take_notice(), backend.info()), (None, gpu.info()));
    // A named adapter was asked for, and nothing takes its place.
    let named = Backend::open(&gpu.info().index.unwrap().to_string()).unwrap();
    named.opened().unwrap().fail(Fault::Buffer, Some(0));
    let error = named.quantize(Tensor::new(&[1.0], &[1]).unwrap(), &spec()).unwrap_err();
    assert!(matches!(error, wgpu_quant::Error::OutOfMemory { .. }), "{error}");
}
