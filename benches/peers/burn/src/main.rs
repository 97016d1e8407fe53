//! burn's `quantize_dynamic` and our kernels on the best adapter, on data that is there already, in turn.
//!
//!     cargo run --release --manifest-path benches/peers/burn/Cargo.toml -- 16 9      Mi elements, rounds

use burn::tensor::quantization::{QuantMode, QuantScheme, QuantStore, QuantValue, ScaleDtype};
use burn::tensor::{Device, DeviceKind, Tensor, TensorData};
use std::hint::black_box;
use std::time::Instant;
use wgpu_quant::gpu::{Operation, Role, Select};
use wgpu_quant::{ElemType, Gpu, Granularity, Scheme, Spec, cpu, wgpu};

const COLUMNS: usize = 4096;

/// What a sample takes at least, unless one call takes longer.
const SAMPLE_SECONDS: f64 = 0.02;

struct Case<'a> {
    name: &'static str,
    /// So many times, and then wait.
    run: Box<dyn Fn(usize) + 'a>,
    seconds: Vec<f64>,
}

fn main() {
    let mut arguments =
        std::env::args().skip(1).map(|text| text.parse::<usize>().expect("numbers: Mi elements, rounds"));
    let (mi, rounds) = (arguments.next().unwrap_or(16), arguments.next().unwrap_or(9));
    let shape = [(mi << 20) / COLUMNS, COLUMNS];
    let x = normal(mi << 20);

    let device = Device::wgpu(DeviceKind::DefaultDevice);
    let tensor = Tensor::<2>::from_data(TensorData::new(x.clone(), shape), &device);
    let gpu = Gpu::open(&Select::Best).expect("an adapter");
    println!("{} (burn: {device:?}), {mi} Mi elements of f32, {rounds} rounds", gpu.info());

    let symmetric = QuantScheme::default()
        .with_value(QuantValue::Q8S)
        .with_mode(QuantMode::Symmetric)
        .with_store(QuantStore::PackedU32(0));
    let mut cases = vec![];
    for (per, scheme, names) in [
        (
            Granularity::Tensor,
            symmetric.per_tensor(ScaleDtype::F32),
            [
                "burn, quantize per tensor",
                "ours, quantize per tensor",
                "burn, dequantize per tensor",
                "ours, dequantize per tensor",
            ],
        ),
        (
            Granularity::Group(32),
            symmetric.per_block([32u8], ScaleDtype::F32),
            ["burn, quantize per 32", "ours, quantize per 32", "burn, dequantize per 32", "ours, dequantize per 32"],
        ),
    ] {
        let spec = Spec::new(Scheme::INT8_ABSMAX).per(per);
        let expected =
            cpu::quantize(wgpu_quant::Tensor::new(&x, &shape).expect("a shape"), &spec).expect("codes").tensor;
        let quantized = tensor.clone().quantize_dynamic(&scheme);
        // burn's is a peer only if it does the same, give or take its roundings.
        let theirs = quantized.clone().dequantize().into_data().try_to_vec::<f32>().expect("floats");
        let largest = expected.scales().iter().fold(0f32, |most, &s| most.max(s));
        assert!(theirs.iter().zip(&x).all(|(a, b)| (a - b).abs() <= 0.51 * largest), "burn's values are far off");

        let (device, tensor) = (device.clone(), tensor.clone());
        let synced = device.clone();
        cases.push(case(names[0], move |n| {
            (0..n).for_each(|_| drop(black_box(tensor.clone().quantize_dynamic(&scheme))));
            synced.sync().expect("burn's device");
        }));
        cases.push(ours(&gpu, names[1], Operation::Quantize, &spec, &shape, bytemuck::cast_slice(&x), &expected));
        cases.push(case(names[2], move |n| {
            (0..n).for_each(|_| drop(black_box(quantized.clone().dequantize())));
            device.sync().expect("burn's device");
        }));
        cases.push(ours(&gpu, names[3], Operation::Dequantize, &spec, &shape, expected.codes(), &expected));
    }

    let repeats: Vec<usize> = cases
        .iter()
        .map(|case| {
            (case.run)(1);
            let started = Instant::now();
            (case.run)(1);
            ((SAMPLE_SECONDS / started.elapsed().as_secs_f64()).ceil() as usize).clamp(1, 100)
        })
        .collect();
    let mut state = 1u64;
    for _ in 0..rounds {
        let mut order: Vec<usize> = (0..cases.len()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, (random(&mut state) % (i as u64 + 1)) as usize);
        }
        for i in order {
            let started = Instant::now();
            (cases[i].run)(repeats[i]);
            let seconds = started.elapsed().as_secs_f64() / repeats[i] as f64;
            cases[i].seconds.push(seconds);
        }
    }
    println!("| case | ms, median | best | GB/s of f32 | ours / burn |\n|---|--:|--:|--:|--:|");
    for pair in cases.chunks(2) {
        let by_burn = median(pair[1].seconds.iter().zip(&pair[0].seconds).map(|(ours, burn)| ours / burn).collect());
        for (case, ratio) in pair.iter().zip([String::new(), format!("{by_burn:.2}")]) {
            let (middle, best) = (median(case.seconds.clone()), case.seconds.iter().fold(f64::MAX, |a, &b| a.min(b)));
            let rate = 4.0 * x.len() as f64 / middle / 1e9;
            println!("| {} | {:.2} | {:.2} | {rate:.2} | {ratio} |", case.name, middle * 1e3, best * 1e3);
        }
    }
}

fn case<'a>(name: &'static str, run: impl Fn(usize) + 'a) -> Case<'a> {
    Case { name, run: Box::new(run), seconds: vec![] }
}

/// A plan of ours on buffers that stay on the device, checked against the CPU path.
fn ours<'a>(
    gpu: &'a Gpu,
    name: &'static str,
    operation: Operation,
    spec: &Spec,
    shape: &[usize],
    input: &[u8],
    expected: &wgpu_quant::Quantized,
) -> Case<'a> {
    let plan = gpu.plan(operation, spec, shape, ElemType::F32).expect("a plan");
    let mut buffers = vec![];
    for role in [Role::Input, Role::Output, Role::Scales, Role::Counts, Role::Scratch] {
        let Ok(buffer) = plan.create(role) else { continue };
        match role {
            Role::Input => gpu.queue().write_buffer(&buffer, 0, input),
            Role::Scales => gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(expected.scales())),
            _ => {}
        }
        buffers.push((role, buffer));
    }
    let places: Vec<_> = buffers.iter().map(|(role, buffer)| (*role, buffer, 0)).collect();
    let bound = plan.bind(&places).expect("a binding");
    let run = move |n: usize| {
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        (0..n).for_each(|_| bound.record(&mut encoder));
        gpu.queue().submit([encoder.finish()]);
        gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("our device");
    };
    run(1);
    let output = &buffers.iter().find(|(role, _)| *role == Role::Output).expect("an output").1;
    let found = read(gpu, output);
    let values;
    let right: &[u8] = if operation == Operation::Quantize {
        expected.codes()
    } else {
        values = cpu::dequantize(expected).expect("values");
        bytemuck::cast_slice(&values)
    };
    assert!(found.starts_with(right), "{name}: not the CPU path's");
    case(name, run)
}

fn read(gpu: &Gpu, buffer: &wgpu::Buffer) -> Vec<u8> {
    let (size, usage) = (buffer.size(), wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
    let staged =
        gpu.device().create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &staged, 0, size);
    gpu.queue().submit([encoder.finish()]);
    staged.map_async(wgpu::MapMode::Read, .., |result| result.expect("it can be mapped"));
    gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("our device");
    staged.get_mapped_range(..).expect("it is mapped").to_vec()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
}

/// Near enough to normal(0, 1).
fn normal(n: usize) -> Vec<f32> {
    let mut state = 7;
    let mut sum = || (0..4).map(|_| random(&mut state) & 0xffff).sum::<u64>() as f32;
    (0..n).map(|_| (sum() - 131_070.0) * 2.642_3e-5).collect()
}
