//! One wgpu device, shared by the compute language cubecl and by wgpu-quant: f32 that a cubecl kernel wrote are quantized
//! where they lie, and the codes go to another cubecl kernel. Nothing goes to the host in between.
//!
//! From the root of the repository: `cargo run --manifest-path examples/shared-device/Cargo.toml`
//!
//! 1. The host opens a device, and hands it to cubecl and to wgpu-quant.
//! 2. A plan of wgpu-quant is bound, once, to the memory that cubecl will write the activations to.
//! 3. In each step a cubecl kernel computes activations,
//! 4. wgpu-quant quantizes them to int8, one scale per row, and codes and scales are copied, on the device, into memory of
//!    cubecl's,
//! 5. and a cubecl kernel sums the codes of each row.
//!
//! After each step the example reads the activations, and compares codes, scales and sums with what wgpu-quant's CPU path
//! makes of them: they are equal, not just close.
//!
//! Both crates are to be built with the same major version of wgpu; then their devices and buffers are one type.

use cubecl::Device;
use cubecl::prelude::*;
use cubecl::server::Handle;
use cubecl::wgpu::{AutoCompiler, RuntimeOptions, WgpuServer, WgpuSetup};
use std::error::Error;
use wgpu_quant::gpu::{OPTIONAL_FEATURES, Operation, Role};
use wgpu_quant::{ElemType, Gpu, Granularity, Scheme, Spec, Tensor, cpu, wgpu};

/// Rows and columns of the activations. Rows of codes are read as words, four codes each.
const ROWS: usize = 48;
const COLUMNS: usize = 256;
const STEPS: usize = 3;
/// Invocations of a workgroup, which cubecl calls units of a cube.
const UNITS: usize = 64;

/// What cubecl uses where the adapter has it. It asks the adapter, not the device, so the device is to have it too.
const CUBECL_FEATURES: wgpu::Features = wgpu::Features::SUBGROUP
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::SHADER_F64)
    .union(wgpu::Features::SHADER_INT64)
    .union(wgpu::Features::SHADER_FLOAT32_ATOMIC)
    .union(wgpu::Features::TIMESTAMP_QUERY);

/// x * sigmoid(x). Adapters may differ in its last bits; whatever these are, the codes made of them are the CPU path's.
#[cube(launch)]
fn silu(x: &[f32], out: &mut [f32]) {
    if ABSOLUTE_POS < out.len() {
        let value = x[ABSOLUTE_POS];
        out[ABSOLUTE_POS] = value / (1.0 + (-value).exp());
    }
}

/// The sum of each row's codes, int8, four to a word.
#[cube(launch)]
fn sum_codes(words: &[u32], sums: &mut [i32]) {
    if ABSOLUTE_POS < sums.len() {
        let width = words.len() / sums.len();
        let mut sum = 0i32;
        for i in 0..width {
            let word = words[ABSOLUTE_POS * width + i];
            for code in 0..4u32 {
                // Up to the top of the word, then down again with the sign.
                sum += i32::reinterpret(word << (24 - 8 * code)) >> 24;
            }
        }
        sums[ABSOLUTE_POS] = sum;
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    pollster::block_on(run())
}

async fn run() -> Result<(), Box<dyn Error>> {
    // The host's device. cubecl takes its limits of workgroups from the adapter, so the device is to allow all of them.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await?;
    let descriptor = wgpu::DeviceDescriptor {
        required_features: adapter.features() & (CUBECL_FEATURES | OPTIONAL_FEATURES),
        required_limits: adapter.limits(),
        ..Default::default()
    };
    let (device, queue) = adapter.request_device(&descriptor).await?;
    let info = adapter.get_info();
    println!("adapter: {} ({})", info.name, info.backend);

    // To both crates: handles of wgpu are counted references, and clones of them are the same device. cubecl installs
    // its handlers of errors and of the device's loss, wgpu-quant none: it returns its own errors.
    let setup = WgpuSetup { instance, adapter, device: device.clone(), queue: queue.clone(), backend: info.backend };
    let client = Device::Wgpu(cubecl::wgpu::init_device(setup, RuntimeOptions::default())).client();
    let gpu = Gpu::from_device(device.clone(), queue.clone());

    // Memory of cubecl's, which lasts as long as its handles.
    let spec = Spec::new(Scheme::INT8_ABSMAX).per(Granularity::Channel(0));
    let plan = gpu.plan(Operation::Quantize, &spec, &[ROWS, COLUMNS], ElemType::F32)?;
    let bytes_of = |role| plan.need(role).map_or(0, |need| need.bytes);
    let codes = client.empty(bytes_of(Role::Output) as usize);
    let scales = client.empty(bytes_of(Role::Scales) as usize);
    let sums = client.empty(4 * ROWS);
    let activations = client.empty(4 * ROWS * COLUMNS);

    // Where it lies: a buffer of wgpu's, and the byte of it at which the memory begins. cubecl moves its memory about at
    // times, but not what `get_resource` has returned, as long as that is held: here, to the end.
    let [held_activations, held_codes, held_scales] =
        [&activations, &codes, &scales].map(|handle| client.get_resource::<WgpuServer<AutoCompiler>>(handle.clone()));
    let (held_activations, held_codes, held_scales) = (held_activations?, held_codes?, held_scales?);
    let (from, to, scales_to) = (held_activations.resource(), held_codes.resource(), held_scales.resource());

    // It begins at a multiple of what the device binds storage at. wgpu-quant asks for less: whole vectors of four.
    let device_alignment = device.limits().min_storage_buffer_offset_alignment;
    let alignment = plan.need(Role::Input).map_or(1, |need| need.offset_alignment_bytes);
    assert!(from.offset.is_multiple_of(alignment), "activations at byte {}", from.offset);
    println!(
        "activations begin at byte {} of a buffer of cubecl's, codes at byte {} of {}; the device binds at multiples \
         of {device_alignment}, wgpu-quant of {alignment}",
        from.offset,
        to.offset,
        if to.buffer == from.buffer { "the same" } else { "another" },
    );

    // What wgpu-quant reads is cubecl's buffer, what it writes are buffers of its own: cubecl's memories may all lie in
    // one buffer, and wgpu lets no dispatch write a buffer that it reads.
    let [own_codes, own_scales, counts, scratch] =
        [Role::Output, Role::Scales, Role::Counts, Role::Scratch].map(|role| plan.create(role));
    let (own_codes, own_scales, counts, scratch) = (own_codes?, own_scales?, counts?, scratch?);
    let bound = plan.bind(&[
        (Role::Input, &from.buffer, from.offset),
        (Role::Output, &own_codes, 0),
        (Role::Scales, &own_scales, 0),
        (Role::Counts, &counts, 0),
        (Role::Scratch, &scratch, 0),
    ])?;

    // All that was made once; now steps of the engine, on any numbers.
    let mut state = 1u32;
    for step in 0..STEPS {
        let x: Vec<f32> = (0..ROWS * COLUMNS)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / 2_097_152.0 - 4.0
            })
            .collect();
        let x = client.create_from_slice(f32::as_bytes(&x));
        let units = CubeDim::new_1d(UNITS as u32);
        silu::launch(&client, cubes(ROWS * COLUMNS), units, argument(&x), argument(&activations));

        // A queue runs what it is given in the order of submission. cubecl collects launches, each thread's for itself,
        // and submits them when it likes; `flush` has it submit this thread's now, before ours.
        client.flush()?;
        let mut encoder = device.create_command_encoder(&Default::default());
        bound.record(&mut encoder);
        encoder.copy_buffer_to_buffer(&own_codes, 0, &to.buffer, to.offset, bytes_of(Role::Output));
        encoder.copy_buffer_to_buffer(&own_scales, 0, &scales_to.buffer, scales_to.offset, bytes_of(Role::Scales));
        queue.submit([encoder.finish()]);

        // What is launched after our submission cubecl submits after it.
        sum_codes::launch(&client, cubes(ROWS), units, argument(&codes), argument(&sums));

        // Only the example looks at all this; an engine goes on with it where it is.
        let [activations, codes, scales, sums] =
            [&activations, &codes, &scales, &sums].map(|handle| client.read_one(handle.clone()));
        let (activations, codes, scales, sums) = (activations?, codes?, scales?, sums?);
        let expected = cpu::quantize(Tensor::new(f32::from_bytes(&activations), &[ROWS, COLUMNS])?, &spec)?.tensor;
        let expected_scales: Vec<u32> = expected.scales().iter().map(|scale| scale.to_bits()).collect();
        let expected_sums: Vec<i32> = expected.code_values().chunks(COLUMNS).map(|row| row.iter().sum()).collect();
        assert!(codes[..] == *expected.codes(), "step {step}: codes");
        assert_eq!(u32::from_bytes(&scales), expected_scales, "step {step}: scales");
        assert_eq!(i32::from_bytes(&sums), expected_sums, "step {step}: sums");
    }
    println!("{STEPS} steps: all codes, scales and sums of codes equal those of the CPU path");
    Ok(())
}

/// How many cubes have at least so many units.
fn cubes(units: usize) -> CubeCount {
    CubeCount::Static(units.div_ceil(UNITS) as u32, 1, 1)
}

/// All of a handle, which here always holds elements of four bytes.
fn argument(handle: &Handle) -> BufferArg {
    // SAFETY: the length is that of the memory.
    unsafe { BufferArg::from_raw_parts(handle.clone(), handle.size_in_used() as usize / 4) }
}
