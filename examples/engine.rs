//! A tiny inference engine that quantizes its activations in the middle of its own command buffer.
//!
//! From the root of the repository: `cargo run --release --example engine`
//!
//! One layer: y = relu(x) * W^T. The engine owns device, queue, encoder and buffers. In one command buffer it
//!
//! 1. runs a kernel of its own, which writes the activations in f32;
//! 2. records a plan of wgpu-quant, which makes int8 codes and one scale per row of them;
//! 3. multiplies the codes with `dot4I8Packed`, four products and their sum in one instruction where a GPU has it,
//!    reading the buffer that wgpu-quant wrote.
//!
//! Nothing goes to the host in between. The weights are quantized in the same way, once, beforehand. At the end the
//! example compares the product with the same sums of whole numbers on the host: they are equal, not just close.

use std::error::Error;
use wgpu::util::DeviceExt;
use wgpu_quant::gpu::{Bound, Operation, Plan, Role};
use wgpu_quant::{ElemType, Gpu, Granularity, Scheme, Spec, Tensor, cpu, wgpu};

/// Rows of activations, outputs, and inputs of the layer. Rows of codes are read as words, four codes each.
const ROWS: u32 = 48;
const OUTPUTS: u32 = 96;
const INPUTS: u32 = 256;

/// The engine's own kernels.
const RELU: &str = "
    @group(0) @binding(0) var<storage, read> x: array<f32>;
    @group(0) @binding(1) var<storage, read_write> out: array<f32>;
    @compute @workgroup_size(64)
    fn relu(@builtin(global_invocation_id) id: vec3<u32>) {
        if (id.x < arrayLength(&out)) { out[id.x] = max(x[id.x], 0.0); }
    }";
const MATMUL: &str = "
    @group(0) @binding(0) var<storage, read> a: array<u32>;         // rows of int8 codes, four to a word
    @group(0) @binding(1) var<storage, read> b: array<u32>;
    @group(0) @binding(2) var<storage, read_write> out: array<i32>;
    override words: u32;                                            // of a row
    override outputs: u32;
    @compute @workgroup_size(8, 8)
    fn matmul(@builtin(global_invocation_id) id: vec3<u32>) {
        if (id.x >= outputs || id.y * outputs + id.x >= arrayLength(&out)) { return; }
        var sum = 0;
        for (var k = 0u; k < words; k++) { sum += dot4I8Packed(a[id.y * words + k], b[id.x * words + k]); }
        out[id.y * outputs + id.x] = sum;
    }";

/// The codes and scales of a matrix, and the recording that writes them. In an engine they are parts of its own arenas.
struct Codes {
    codes: wgpu::Buffer,
    scales: wgpu::Buffer,
    bound: Bound,
}

impl Codes {
    /// Binds a plan to a matrix. All objects are made here, none when it is recorded.
    fn of(plan: &Plan, x: &wgpu::Buffer) -> wgpu_quant::Result<Self> {
        let codes = plan.create(Role::Output)?;
        let scales = plan.create(Role::Scales)?;
        let (counts, scratch) = (plan.create(Role::Counts)?, plan.create(Role::Scratch)?);
        let bound = plan.bind(&[
            (Role::Input, x, 0),
            (Role::Output, &codes, 0),
            (Role::Scales, &scales, 0),
            (Role::Counts, &counts, 0),
            (Role::Scratch, &scratch, 0),
        ])?;
        Ok(Self { codes, scales, bound })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    pollster::block_on(run())
}

async fn run() -> Result<(), Box<dyn Error>> {
    // The engine's device: wgpu-quant needs no feature, and no more than the default limits.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await?;
    let (device, queue) = adapter.request_device(&wgpu::DeviceDescriptor::default()).await?;
    println!("adapter: {}", adapter.get_info().name);

    // Any numbers will do.
    let mut state = 1u32;
    let mut random = |count: u32| -> Vec<f32> {
        let step = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..count).map(step).collect()
    };
    let (x, weights) = (random(ROWS * INPUTS), random(OUTPUTS * INPUTS));
    let upload = |values: &[f32]| {
        device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: None,
            contents: bytemuck::cast_slice(values),
            usage: wgpu::BufferUsages::STORAGE,
        })
    };
    let empty = |bytes: u32| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes.into(),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        })
    };
    let (x_buffer, weights_buffer) = (upload(&x), upload(&weights));
    let (activations, product) = (empty(4 * ROWS * INPUTS), empty(4 * ROWS * OUTPUTS));

    // Plans: one per shape, whatever is bound to them later. One scale per row: of activations that is per token, of
    // weights per output.
    let gpu = Gpu::from_device(device.clone(), queue.clone());
    let spec = Spec::new(Scheme::INT8_ABSMAX).per(Granularity::Channel(0));
    let plan = |rows: u32| gpu.plan(Operation::Quantize, &spec, &[rows as usize, INPUTS as usize], ElemType::F32);
    let quantized_weights = Codes::of(&plan(OUTPUTS)?, &weights_buffer)?;
    let quantized = Codes::of(&plan(ROWS)?, &activations)?;

    // The weights, once.
    let mut encoder = device.create_command_encoder(&Default::default());
    quantized_weights.bound.record(&mut encoder);
    queue.submit([encoder.finish()]);

    // A step of the engine: its own kernels and ours in one command buffer, here even in one pass.
    let relu = pipeline(&device, RELU, &[]);
    let constants = [("words", f64::from(INPUTS / 4)), ("outputs", f64::from(OUTPUTS))];
    let matmul = pipeline(&device, MATMUL, &constants);
    let relu_group = bind_group(&device, &relu, &[&x_buffer, &activations]);
    let matmul_group = bind_group(&device, &matmul, &[&quantized.codes, &quantized_weights.codes, &product]);
    let mut encoder = device.create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&relu);
        pass.set_bind_group(0, &relu_group, &[]);
        pass.dispatch_workgroups((ROWS * INPUTS).div_ceil(64), 1, 1);
        quantized.bound.record_in(&mut pass);
        pass.set_pipeline(&matmul);
        pass.set_bind_group(0, &matmul_group, &[]);
        pass.dispatch_workgroups(OUTPUTS.div_ceil(8), ROWS.div_ceil(8), 1);
    }
    queue.submit([encoder.finish()]);

    // Only the example looks at the results; an engine goes on with them where they are.
    let sums: Vec<i32> = read(&device, &queue, &product);
    let [scales, weight_scales]: [Vec<f32>; 2] =
        [&quantized.scales, &quantized_weights.scales].map(|buffer| read(&device, &queue, buffer));

    // The reference: codes by wgpu-quant's CPU path, which are the same bits, and sums of whole numbers.
    let codes = |values: &[f32], rows: u32| -> wgpu_quant::Result<(Vec<i32>, Vec<f32>)> {
        let out = cpu::quantize(Tensor::new(values, &[rows as usize, INPUTS as usize])?, &spec)?;
        Ok((out.tensor.code_values(), out.tensor.scales().to_vec()))
    };
    let rectified: Vec<f32> = x.iter().map(|x| x.max(0.0)).collect();
    let ((a, a_scales), (b, b_scales)) = (codes(&rectified, ROWS)?, codes(&weights, OUTPUTS)?);
    let width = INPUTS as usize;
    let mut largest_error = 0f32;
    for (i, row) in a.chunks(width).enumerate() {
        for (j, column) in b.chunks(width).enumerate() {
            let at = i * OUTPUTS as usize + j;
            let expected: i32 = row.iter().zip(column).map(|(a, b)| a * b).sum();
            assert_eq!(sums[at], expected, "row {i}, output {j}");
            let exact: f32 =
                rectified[i * width..][..width].iter().zip(&weights[j * width..][..width]).map(|(a, b)| a * b).sum();
            largest_error = largest_error.max((sums[at] as f32 * scales[i] * weight_scales[j] - exact).abs());
        }
    }
    assert!((scales.as_slice(), weight_scales.as_slice()) == (&a_scales[..], &b_scales[..]), "scales");
    println!("{} sums equal those of whole numbers on the host", sums.len());
    println!("the largest difference from the f32 layer is {largest_error:.4}");
    Ok(())
}

fn pipeline(device: &wgpu::Device, text: &str, constants: &[(&str, f64)]) -> wgpu::ComputePipeline {
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl(text.into()),
    });
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: None,
        compilation_options: wgpu::PipelineCompilationOptions { constants, ..Default::default() },
        cache: None,
    })
}

fn bind_group(device: &wgpu::Device, pipeline: &wgpu::ComputePipeline, buffers: &[&wgpu::Buffer]) -> wgpu::BindGroup {
    let entries: Vec<_> = (0..)
        .zip(buffers)
        .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
        .collect();
    let layout = &pipeline.get_bind_group_layout(0);
    device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries })
}

fn read<T: bytemuck::Pod>(device: &wgpu::Device, queue: &wgpu::Queue, buffer: &wgpu::Buffer) -> Vec<T> {
    let staging = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: buffer.size(),
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut encoder = device.create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size());
    queue.submit([encoder.finish()]);
    staging.map_async(wgpu::MapMode::Read, .., |result| result.expect("the device maps what it has written"));
    device.poll(wgpu::PollType::wait_indefinitely()).expect("the device finishes");
    let view = staging.get_mapped_range(..).expect("it is mapped");
    view.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}
