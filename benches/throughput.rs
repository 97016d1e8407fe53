//! What the stages cost, as ratios against a copy of the same bytes in the same run.
//!
//! `cargo bench` (or `cargo bench --bench throughput -- 1 16`, sizes in Mi elements). Rows are interleaved, in
//! another order every round; the figure is the median over the rounds. Every result is checked against the
//! CPU path before it is timed, and a wrong one ends the run.
//!
//! Three kinds of rows, never to be mixed: `cpu` runs in memory; `kernel` is the device's own time on resident
//! data, by timestamps; `gpu host to host` adds upload, submission and read-back. A kernel's yardstick is the
//! copy kernel on the same queue, everything else's a copy by all the CPU's threads.

#[path = "../tests/common/corpus.rs"]
mod corpus;
#[path = "../src/rng.rs"]
mod rng;

use rayon::prelude::*;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;
use wgpu_quant::gpu::{Kernel, Select, Tuning};
use wgpu_quant::{Gpu, Granularity, LossDetail, Scheme, Spec, Tensor, cpu, wgpu};

const ROUNDS: usize = 9;
const COLUMNS: usize = 4096;

/// The yardstick's name among the rows.
const MEMCPY: &str = "cpu copy of the input";
const COPY: &str = "kernel copy 4N -> 4N";
const COPY_QUARTER: &str = "kernel copy 4N -> N";

fn main() {
    // `cargo bench` passes flags of its own; `cargo test --benches` asks for a mere run.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--test") {
        return;
    }
    let mut sizes: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![1, 16, 64];
    }
    let gpu = Gpu::open(&Select::from_env()).map(|gpu| gpu.with_tuning(Tuning::default().timestamps(true)));
    let gpu = match gpu {
        Ok(Ok(gpu)) => Some(gpu),
        Ok(Err(error)) | Err(error) => {
            println!("no GPU rows: {error}");
            None
        }
    };
    if let Some(gpu) = &gpu {
        println!("adapter: {} ({})", gpu.info(), gpu.info().device_type);
    }
    println!("cpu: {} threads; {ROUNDS} rounds, median", rayon::current_num_threads());
    for mi in sizes {
        Bench::new(mi << 20, gpu.as_ref()).run();
    }
}

struct Bench<'a> {
    gpu: Option<&'a Gpu>,
    x: Vec<f32>,
    shape: [usize; 2],
    seconds: BTreeMap<String, Vec<f64>>,
}

impl<'a> Bench<'a> {
    fn new(n: usize, gpu: Option<&'a Gpu>) -> Self {
        let x = (0..n >> 16).into_par_iter().flat_map_iter(|i| corpus::data("gauss", 1 << 16, i as u64)).collect();
        Self { gpu, x, shape: [n / COLUMNS, COLUMNS], seconds: BTreeMap::new() }
    }

    fn time<T>(&mut self, row: &str, work: impl FnOnce(&Self) -> T) -> T {
        let started = Instant::now();
        let result = black_box(work(self));
        let seconds = started.elapsed().as_secs_f64();
        self.seconds.entry(row.to_owned()).or_default().push(seconds);
        result
    }

    fn specs() -> [(&'static str, Spec); 3] {
        let tensor = Spec::new(Scheme::INT8_ABSMAX);
        [
            ("int8-absmax tensor", tensor),
            ("int8-absmax channel=0", tensor.per(Granularity::Channel(0))),
            ("int8-absmax tensor + loss", tensor.loss(LossDetail::Summary)),
        ]
    }

    fn run(mut self) {
        let n = self.x.len();
        self.check();
        let mut copy = vec![0f32; n];
        let copier = self.gpu.map(|gpu| Copier::new(gpu, n));
        let mut rng = corpus::Rng::new(1);
        for _ in 0..ROUNDS {
            let mut jobs: Vec<usize> = (0..6).collect();
            for i in (1..jobs.len()).rev() {
                jobs.swap(i, rng.below(i as u32 + 1) as usize);
            }
            for job in jobs {
                match job {
                    0 => self.time(MEMCPY, |bench| {
                        copy.par_chunks_mut(1 << 18).zip(bench.x.par_chunks(1 << 18)).for_each(|(to, from)| {
                            to.copy_from_slice(from);
                        });
                    }),
                    1 => self.cpu_rows(),
                    2 => {
                        if let Some(copier) = &copier {
                            for (row, seconds) in copier.seconds() {
                                self.seconds.entry(row.to_owned()).or_default().push(seconds);
                            }
                        }
                    }
                    spec => self.gpu_rows(spec - 3),
                }
            }
        }
        self.print(n);
    }

    fn tensor(&self) -> Tensor<'_> {
        Tensor::new(&self.x, &self.shape).expect("the shape is the data's")
    }

    /// A fast wrong kernel must not win.
    fn check(&self) {
        let Some(gpu) = self.gpu else { return };
        for (name, spec) in Self::specs() {
            let reference = cpu::quantize(self.tensor(), &spec).expect("the CPU path works");
            let ours = gpu.quantize(self.tensor(), &spec).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(ours.value == reference, "{name}: the GPU's result is not the CPU's");
            let values = gpu.dequantize(&reference.tensor).unwrap_or_else(|e| panic!("dequantize: {e}"));
            assert!(*values == cpu::dequantize(&reference.tensor).expect("the CPU path works"));
        }
    }

    fn cpu_rows(&mut self) {
        drop(self.time("cpu min_max", |bench| cpu::min_max(bench.tensor(), Granularity::Tensor)));
        for (name, spec) in Self::specs() {
            let out = self.time(&format!("cpu quantize {name}"), |bench| cpu::quantize(bench.tensor(), &spec));
            if name == "int8-absmax tensor" {
                let q = out.expect("the CPU path works").tensor;
                drop(self.time("cpu dequantize", |_| cpu::dequantize(&q)));
            }
        }
    }

    fn gpu_rows(&mut self, which: usize) {
        let Some(gpu) = self.gpu else { return };
        let (name, spec) = Self::specs()[which];
        let out = self.time(&format!("gpu host to host quantize {name}"), |bench| gpu.quantize(bench.tensor(), &spec));
        let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
        for (kernel, seconds) in gpu.kernel_seconds() {
            *sums.entry(kernel.label()).or_default() += seconds;
        }
        let all = sums.values().sum();
        let mut rows: Vec<(String, f64)> = vec![(format!("kernel quantize {name}, all dispatches"), all)];
        if which < 2 {
            let unit = name.rsplit(' ').next().unwrap_or_default();
            for kernel in [Kernel::MinMax, Kernel::Scale, Kernel::Quantize] {
                rows.push((
                    format!("kernel {} {unit}", kernel.label()),
                    sums.get(kernel.label()).copied().unwrap_or(0.0),
                ));
            }
        } else {
            let label = Kernel::QuantizeLoss.label();
            rows.push((format!("kernel {label} tensor"), sums.get(label).copied().unwrap_or(0.0)));
        }
        if which == 0 {
            let q = out.expect("it was checked").value.tensor;
            drop(self.time("gpu host to host dequantize", |_| gpu.dequantize(&q)));
            rows.push(("kernel dequantize".to_owned(), gpu.kernel_seconds().iter().map(|(_, seconds)| seconds).sum()));
        }
        if !gpu.kernel_seconds().is_empty() {
            for (row, seconds) in rows {
                self.seconds.entry(row).or_default().push(seconds);
            }
        }
    }

    fn print(&mut self, n: usize) {
        let median = |values: &Vec<f64>| {
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            sorted[sorted.len() / 2]
        };
        println!("\n{} Mi elements of f32, rows of {COLUMNS}", n >> 20);
        println!("| {:<58} | {:>9} | {:>8} | {:>9} |", "case", "ms", "GB/s in", "/ copy");
        println!("|{:-<60}|{:->11}|{:->10}|{:->11}|", "", ":", ":", ":");
        for (row, seconds) in &self.seconds {
            let yardstick = if row.starts_with("kernel") { COPY } else { MEMCPY };
            // Round by round, so that a slow moment of the machine slows both.
            let ratio = self
                .seconds
                .get(yardstick)
                .map(|copies| median(&seconds.iter().zip(copies).map(|(seconds, copy)| seconds / copy).collect()));
            let ratio = ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
            let time = median(seconds);
            let rate = 4.0 * n as f64 / time / 1e9;
            println!("| {row:<58} | {:>9.2} | {rate:>8.2} | {ratio:>9} |", time * 1e3);
        }
        if let Some(copies) = self.seconds.get(MEMCPY) {
            let (least, most) = copies.iter().fold((f64::MAX, 0f64), |(a, b), &s| (a.min(s), b.max(s)));
            println!("spread of the CPU copy over the rounds: {:.0} %", (most / least - 1.0) * 100.0);
        }
    }
}

type CopyDispatch = (wgpu::ComputePipeline, wgpu::BindGroup, u32);

/// The copy kernels, on buffers as large as a chunk.
struct Copier<'a> {
    gpu: &'a Gpu,
    passes: Vec<(&'static str, Vec<CopyDispatch>)>,
}

impl<'a> Copier<'a> {
    fn new(gpu: &'a Gpu, n: usize) -> Self {
        let device = gpu.device();
        let limits = device.limits();
        let most = limits.max_buffer_size.min(limits.max_storage_buffer_binding_size);
        let chunk_bytes = (4 * n as u64).min(most / 16384 * 16384);
        let chunks: Vec<u64> = (0..4 * n as u64)
            .step_by(usize::try_from(chunk_bytes).expect("a chunk is addressable"))
            .map(|start| chunk_bytes.min(4 * n as u64 - start))
            .collect();
        let buffer = |size| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("bench copy"),
                size,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        let pass = |all: bool| {
            chunks
                .iter()
                .map(|&bytes| {
                    let vectors = bytes / 16;
                    let text =
                        format!("const VECTORS = {vectors}u;\nconst COPY_ALL = {all};\n{}", include_str!("copy.wgsl"));
                    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
                        label: Some("bench copy"),
                        source: wgpu::ShaderSource::Wgsl(text.into()),
                    });
                    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                        label: Some("bench copy"),
                        layout: None,
                        module: &module,
                        entry_point: Some("copy"),
                        compilation_options: wgpu::PipelineCompilationOptions::default(),
                        cache: None,
                    });
                    let (from, to, quarter) =
                        (buffer(bytes), buffer(if all { bytes } else { 16 }), buffer(if all { 16 } else { bytes / 4 }));
                    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
                        label: Some("bench copy"),
                        layout: &pipeline.get_bind_group_layout(0),
                        entries: &[(0, &from), (1, &to), (2, &quarter)].map(|(binding, buffer)| wgpu::BindGroupEntry {
                            binding,
                            resource: buffer.as_entire_binding(),
                        }),
                    });
                    (pipeline, group, u32::try_from(vectors.div_ceil(1024)).expect("one dimension"))
                })
                .collect()
        };
        Self { gpu, passes: vec![(COPY, pass(true)), (COPY_QUARTER, pass(false))] }
    }

    /// Each copy's seconds on the device.
    fn seconds(&self) -> Vec<(&'static str, f64)> {
        let (device, queue) = (self.gpu.device(), self.gpu.queue());
        if !device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Vec::new();
        }
        let time = |dispatches: &[CopyDispatch]| {
            let queries = device.create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            });
            let buffer = |usage| {
                device.create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size: 16,
                    usage,
                    mapped_at_creation: false,
                })
            };
            let resolved = buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
            let staged = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
            let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                    label: None,
                    timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                        query_set: &queries,
                        beginning_of_pass_write_index: Some(0),
                        end_of_pass_write_index: Some(1),
                    }),
                });
                for (pipeline, group, workgroups) in dispatches {
                    pass.set_pipeline(pipeline);
                    pass.set_bind_group(0, group, &[]);
                    pass.dispatch_workgroups(*workgroups, 1, 1);
                }
            }
            encoder.resolve_query_set(&queries, 0..2, &resolved, 0);
            encoder.copy_buffer_to_buffer(&resolved, 0, &staged, 0, 16);
            queue.submit([encoder.finish()]);
            staged.map_async(wgpu::MapMode::Read, .., |result| result.expect("the timestamps can be read"));
            device.poll(wgpu::PollType::wait_indefinitely()).expect("the device answers");
            let view = staged.get_mapped_range(..).expect("it was mapped");
            let ticks: &[u64] = bytemuck::cast_slice(&view);
            (ticks[1] - ticks[0]) as f64 * f64::from(queue.get_timestamp_period()) * 1e-9
        };
        self.passes.iter().map(|(name, dispatches)| (*name, time(dispatches))).collect()
    }
}
