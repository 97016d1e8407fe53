//! A backend whose device is lost: what takes its place, and what is said of it.

use crate::corpus::data;
use crate::{Test, another, assert_same, bits};
use std::sync::Mutex;
use wgpu_quant::gpu::Fault;
use wgpu_quant::{
    Backend, Computed, DeviceInfo, Gpu, Granularity, LossDetail, Quantized, QuantizedParts, Result, Scheme, Spec,
    Streamed, Tensor, code_bytes, cpu,
};

pub(crate) const TESTS: &[Test] = &[
    ("a_named_adapter_that_is_lost_is_opened_again", named),
    ("an_adapter_that_auto_chose_gives_way_to_the_cpu_path", auto),
    ("threads_that_lose_an_adapter_open_it_once", threads),
    ("a_large_tensor_of_a_file_is_streamed", large),
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
    assert_eq!(Some(ours.value), reference.loss.clone());
    devices.push(ours.device);
    before();
    let (codes, ours) = streamed(backend, x, &spec())?;
    assert_eq!((&*codes, bits(&ours.scales), &*ours.zero_points), (q.codes(), bits(scales), zero_points));
    assert_eq!((ours.counts, ours.loss), (reference.counts, reference.loss.map(|loss| loss.sums)));
    devices.push(ours.device);
    before();
    devices.push(streamed_back(backend, q)?);
    Ok(devices)
}

/// Codes as written, which must be those that were digested.
fn streamed(backend: &Backend, x: Tensor<'_>, spec: &Spec) -> Result<(Vec<u8>, Computed<Streamed>)> {
    let bytes = code_bytes(x.shape(), spec.scheme.code()).unwrap();
    let (written, mut digested) = (Mutex::new(vec![0; bytes]), vec![]);
    let read = |offset, bytes: &mut [u8]| {
        bytes.copy_from_slice(&x.bytes()[offset as usize..][..bytes.len()]);
        Ok(())
    };
    let write = |offset: u64, bytes: &[u8]| {
        written.lock().unwrap()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    };
    let digest = |offset, bytes: &[u8]| {
        digested.truncate(offset as usize);
        digested.extend_from_slice(bytes);
    };
    let out = backend.quantize_stream(x.elem_type(), x.shape(), spec, read, write, digest)?;
    let written = written.into_inner().unwrap();
    assert!(written == digested);
    Ok((written, out))
}

fn streamed_back(backend: &Backend, q: &Quantized) -> Result<DeviceInfo> {
    let parts = QuantizedParts {
        scheme: q.scheme(),
        granularity: q.granularity(),
        shape: q.shape(),
        codes: q.codes(),
        scales: q.scales(),
        zero_points: q.zero_points(),
    };
    let values = Mutex::new(vec![f32::NAN; q.elems()]);
    let write = |first: u64, piece: &[f32]| {
        values.lock().unwrap()[first as usize..][..piece.len()].copy_from_slice(piece);
        Ok(())
    };
    let done = backend.dequantize_stream(&parts, write)?;
    assert!(bits(&values.into_inner().unwrap()) == bits(&cpu::dequantize(q).unwrap()));
    Ok(done.device)
}

/// Large enough that an adapter takes it in pieces.
fn large(gpu: &Gpu) {
    let backend = Backend::auto_over(another(gpu));
    let x: Vec<f32> = (0..17u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 - 8e6).collect();
    let x = Tensor::new(&x, &[17 << 10, 1 << 10]).unwrap();
    for spec in [Spec::new(Scheme::INT8_ABSMAX), Spec::new(Scheme::UINT4_AFFINE).per(Granularity::Channel(0))] {
        let whole = cpu::quantize(x, &spec).unwrap();
        let (codes, ours) = streamed(&backend, x, &spec).unwrap();
        assert!(codes == whole.tensor.codes() && bits(&ours.scales) == bits(whole.tensor.scales()));
        assert_eq!((&*ours.zero_points, ours.counts), (whole.tensor.zero_points(), whole.counts));
        assert_eq!((&ours.device, &streamed_back(&backend, &whole.tensor).unwrap()), (gpu.info(), gpu.info()));
    }
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
