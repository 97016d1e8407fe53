//! The GPU path: the CPU path's stages as integer-only WGSL, with the same bits on every adapter.
//!
//! A call uploads the tensor, runs its stages on the device one after the other and reads the result back:
//! one submission and one read-back, nothing in between. A tensor larger than one buffer is cut into chunks;
//! neither that nor the number of workgroups changes a bit.

mod adapter;
mod job;
mod shader;

pub use adapter::{AdapterDescription, DEVICE_VARIABLE, Select, adapters};
pub use shader::{Kernel, Params, Tuning, shader_source};

use crate::device::{Computed, DeviceInfo};
use crate::error::{Error, Result};
use crate::layout::{Chunk, RangeUnits, Tensor, saturate};
use crate::loss::{Loss, UnitSums};
use crate::quantized::{Counts, LossDetail, QuantizeOutput, Quantized, Spec, check_scales};
use crate::scheme::Scheme;
use job::{Dispatch, Finished, Job, Pending};
use shader::{LOSS_WORDS, MIN_RUN, RECIPE_WORDS, TALLIES};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// An open device, with the kernels compiled so far.
///
/// Every method gives exactly the bits of its namesake in [`cpu`](crate::cpu), whose documentation says what
/// it computes. Failures of the device come back as [`Error`]s; none panics.
///
/// ```no_run
/// use wgpu_quant::{Gpu, Granularity, Scheme, Spec, Tensor, gpu::Select};
/// let gpu = Gpu::open(&Select::from_env())?;
/// let weights = vec![0.25f32; 4096 * 1024];
/// let spec = Spec::new(Scheme::INT8_ABSMAX).per(Granularity::Channel(0));
/// let out = gpu.quantize(Tensor::new(&weights, &[4096, 1024])?, &spec)?;
/// println!("{} codes, made by {}", out.tensor.codes().len(), out.device);
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
#[derive(Debug)]
pub struct Gpu {
    info: DeviceInfo,
    device: wgpu::Device,
    queue: wgpu::Queue,
    limits: wgpu::Limits,
    tuning: Tuning,
    pipelines: Mutex<HashMap<(Kernel, Scheme), wgpu::ComputePipeline>>,
    lost: Arc<Mutex<Option<String>>>,
    submissions: AtomicU64,
    readbacks: AtomicU64,
    times: Mutex<Vec<(Kernel, f64)>>,
}

/// How often a [`Gpu`] has gone to its device and back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Command buffers submitted.
    pub submissions: u64,
    /// Waits for results.
    pub readbacks: u64,
}

/// A panic while a lock was held leaves nothing half done that matters here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Opens an adapter without a window, with all the limits that it offers.
    ///
    /// # Errors
    /// [`Error::NoAdapter`], with what was tried, when none fits; [`Error::RequestDevice`] when it gives no
    /// device.
    pub fn open(select: &Select) -> Result<Self> {
        pollster::block_on(Self::open_async(select))
    }

    /// [`open`](Self::open) without blocking.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub async fn open_async(select: &Select) -> Result<Self> {
        let (info, device, queue) = adapter::open(select).await?;
        let gpu = Self::with_info(device, queue, info);
        let lost = Arc::clone(&gpu.lost);
        gpu.device.set_device_lost_callback(move |reason, message| {
            *lock(&lost) = Some(format!("{reason:?}: {message}"));
        });
        Ok(gpu)
    }

    /// Every adapter of this machine.
    pub fn adapters() -> Vec<AdapterDescription> {
        pollster::block_on(adapters())
    }

    /// Runs on a caller's device. No handler is installed on it: its errors beyond these calls, and its loss,
    /// stay the caller's to watch.
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let info = adapter::info_of(&device.adapter_info(), None);
        Self::with_info(device, queue, info)
    }

    fn with_info(device: wgpu::Device, queue: wgpu::Queue, info: DeviceInfo) -> Self {
        let limits = device.limits();
        let workgroup = Tuning::default()
            .workgroup
            .min(limits.max_compute_invocations_per_workgroup)
            .min(limits.max_compute_workgroup_size_x);
        Self {
            info,
            device,
            queue,
            limits,
            tuning: Tuning::default().workgroup(workgroup),
            pipelines: Mutex::default(),
            lost: Arc::default(),
            submissions: AtomicU64::new(0),
            readbacks: AtomicU64::new(0),
            times: Mutex::default(),
        }
    }

    /// The same device, cut differently. The bits stay the same.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when the device cannot run so large a workgroup, or a count is 0.
    pub fn with_tuning(self, tuning: Tuning) -> Result<Self> {
        let within = |what, found: u32, allowed: u32| {
            let ok = (1..=allowed).contains(&found);
            if ok { Ok(()) } else { Err(Error::TooLarge { what, found: found.into(), allowed: allowed.into() }) }
        };
        let most = self.limits.max_compute_invocations_per_workgroup.min(self.limits.max_compute_workgroup_size_x);
        within("workgroup in invocations", tuning.workgroup, most.min(1024))?;
        within("chunk in vectors of 4 elements", tuning.chunk_elems / 4, 1 << 26)?;
        within("dispatch in workgroups per dimension", tuning.workgroups_per_dimension, u32::MAX)?;
        Ok(Self { tuning, pipelines: Mutex::default(), ..self })
    }

    /// What this is.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The wgpu device.
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// The wgpu queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// How the work is cut.
    pub fn tuning(&self) -> Tuning {
        self.tuning
    }

    /// How often the device was used since it was opened.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            submissions: self.submissions.load(Ordering::Relaxed),
            readbacks: self.readbacks.load(Ordering::Relaxed),
        }
    }

    /// The last call's kernels and their seconds on the device, in order; empty unless
    /// [`Tuning::timestamps`] asked for them and the device can.
    pub fn kernel_seconds(&self) -> Vec<(Kernel, f64)> {
        lock(&self.times).clone()
    }

    /// [`cpu::quantize`](crate::cpu::quantize) on the device; blocks until the result is there.
    ///
    /// # Errors
    /// Those of the CPU path; [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::Timeout`] and [`Error::Gpu`] when the device cannot.
    pub fn quantize(&self, x: Tensor<'_>, spec: &Spec) -> Result<Computed<QuantizeOutput>> {
        let call = self.start_quantize(x, spec, None)?;
        let (pending, reading) = call;
        self.output(reading.finish(&self.wait(pending)?)?)
    }

    /// [`quantize`](Self::quantize) without blocking.
    ///
    /// # Errors
    /// Those of [`quantize`](Self::quantize).
    pub async fn quantize_async(&self, x: Tensor<'_>, spec: &Spec) -> Result<Computed<QuantizeOutput>> {
        let (pending, reading) = self.start_quantize(x, spec, None)?;
        self.output(reading.finish(&self.finished(pending).await?)?)
    }

    /// [`cpu::quantize_with_scales`](crate::cpu::quantize_with_scales) on the device; blocks.
    ///
    /// # Errors
    /// Those of the CPU path and of [`quantize`](Self::quantize).
    pub fn quantize_with_scales(&self, x: Tensor<'_>, spec: &Spec, scales: &[f32]) -> Result<Computed<QuantizeOutput>> {
        let (pending, reading) = self.start_quantize(x, spec, Some(scales))?;
        self.output(reading.finish(&self.wait(pending)?)?)
    }

    /// [`quantize_with_scales`](Self::quantize_with_scales) without blocking.
    ///
    /// # Errors
    /// Those of [`quantize_with_scales`](Self::quantize_with_scales).
    pub async fn quantize_with_scales_async(
        &self,
        x: Tensor<'_>,
        spec: &Spec,
        scales: &[f32],
    ) -> Result<Computed<QuantizeOutput>> {
        let (pending, reading) = self.start_quantize(x, spec, Some(scales))?;
        self.output(reading.finish(&self.finished(pending).await?)?)
    }

    /// [`cpu::dequantize`](crate::cpu::dequantize) on the device; blocks.
    ///
    /// # Errors
    /// Those of [`quantize`](Self::quantize).
    pub fn dequantize(&self, q: &Quantized) -> Result<Computed<Vec<f32>>> {
        let (pending, chunks) = self.start_dequantize(q)?;
        self.output(values_of(&self.wait(pending)?, 0, &chunks)?)
    }

    /// [`dequantize`](Self::dequantize) without blocking.
    ///
    /// # Errors
    /// Those of [`quantize`](Self::quantize).
    pub async fn dequantize_async(&self, q: &Quantized) -> Result<Computed<Vec<f32>>> {
        let (pending, chunks) = self.start_dequantize(q)?;
        self.output(values_of(&self.finished(pending).await?, 0, &chunks)?)
    }

    /// [`cpu::loss`](crate::cpu::loss) on the device; blocks.
    ///
    /// # Errors
    /// Those of the CPU path and of [`quantize`](Self::quantize).
    pub fn loss(&self, x: Tensor<'_>, q: &Quantized, per_element: bool) -> Result<Computed<Loss>> {
        let (pending, reading) = self.start_loss(x, q, per_element)?;
        self.output(reading.loss(&self.wait(pending)?, q.scales(), 0)?)
    }

    /// [`loss`](Self::loss) without blocking.
    ///
    /// # Errors
    /// Those of [`loss`](Self::loss).
    pub async fn loss_async(&self, x: Tensor<'_>, q: &Quantized, per_element: bool) -> Result<Computed<Loss>> {
        let (pending, reading) = self.start_loss(x, q, per_element)?;
        self.output(reading.loss(&self.finished(pending).await?, q.scales(), 0)?)
    }

    fn output<T>(&self, value: T) -> Result<Computed<T>> {
        Ok(Computed { value, device: self.info.clone() })
    }

    fn wait(&self, pending: Pending) -> Result<Finished> {
        self.noted(pending.wait(self))
    }

    async fn finished(&self, pending: Pending) -> Result<Finished> {
        self.noted(pending.finished(self).await)
    }

    fn noted(&self, finished: Result<Finished>) -> Result<Finished> {
        match &finished {
            Ok(finished) => lock(&self.times).clone_from(&finished.times),
            // What failed may have left an invalid pipeline behind.
            Err(_) => lock(&self.pipelines).clear(),
        }
        finished
    }

    fn check_alive(&self) -> Result<()> {
        match &*lock(&self.lost) {
            Some(message) => Err(Error::DeviceLost { message: message.clone() }),
            None => Ok(()),
        }
    }

    fn count_submission(&self) {
        self.submissions.fetch_add(1, Ordering::Relaxed);
    }

    fn count_readback(&self) {
        self.readbacks.fetch_add(1, Ordering::Relaxed);
    }

    fn takes_timestamps(&self) -> bool {
        self.tuning.timestamps && self.device.features().contains(wgpu::Features::TIMESTAMP_QUERY)
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(self.tuning.timeout_seconds)
    }

    fn workgroups_per_dimension(&self) -> u32 {
        self.tuning.workgroups_per_dimension.min(self.limits.max_compute_workgroups_per_dimension)
    }

    fn pipeline(&self, kernel: Kernel, scheme: Scheme) -> wgpu::ComputePipeline {
        lock(&self.pipelines)
            .entry((kernel, scheme))
            .or_insert_with(|| {
                let label = format!("wgpu-quant {}+{scheme}", kernel.label());
                let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
                    label: Some(&label),
                    source: wgpu::ShaderSource::Wgsl(shader_source(kernel, scheme, self.tuning.workgroup).into()),
                });
                self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                    label: Some(&label),
                    layout: None,
                    module: &module,
                    entry_point: Some(kernel.entry_point()),
                    compilation_options: wgpu::PipelineCompilationOptions {
                        // The kernels clear what they use, so that the text that is tested is the text that runs.
                        zero_initialize_workgroup_memory: false,
                        ..Default::default()
                    },
                    cache: None,
                })
            })
            .clone()
    }

    /// The most elements that one buffer of f32 can hold here.
    fn chunk_elems(&self) -> u32 {
        let bytes = self.limits.max_buffer_size.min(self.limits.max_storage_buffer_binding_size);
        let elems = u32::try_from(bytes / 4).unwrap_or(u32::MAX).min(self.tuning.chunk_elems);
        (elems & !3).max(4)
    }

    /// The chunks of a tensor, each with its parameters.
    fn chunks(&self, units: RangeUnits) -> Vec<(Chunk, Params)> {
        let mut counters = 0;
        let mut place = |chunk: Chunk| {
            let params = Params {
                elems: chunk.elems,
                first_unit: saturate(chunk.first_unit),
                first_left: chunk.first_left,
                run: saturate(units.inner_elems),
                units: saturate(units.units),
                stride: 0,
                counters,
                given: 0,
                with_loss: 0,
            };
            counters += saturate(TALLIES);
            (chunk, params)
        };
        units.chunks(self.chunk_elems()).map(&mut place).collect()
    }

    /// A dispatch that visits every element of a chunk, as rows.
    fn over_rows(&self, kernel: Kernel, scheme: Scheme, params: Params, buffers: Vec<(u32, wgpu::Buffer)>) -> Dispatch {
        let tile_elems = u64::from(self.tuning.workgroup * kernel.vecs() * 4);
        let workgroups = u64::from(params.elems).div_ceil(tile_elems);
        Dispatch { kernel, scheme, params, buffers, workgroups }
    }

    /// The same for a reduction per range unit: as columns where runs are short.
    fn over_runs(&self, kernel: Kernel, scheme: Scheme, params: Params, buffers: Vec<(u32, wgpu::Buffer)>) -> Dispatch {
        if !is_columns(&params) {
            return self.over_rows(kernel, scheme, params, buffers);
        }
        // A whole number of periods, and enough neighbours to fill some workgroups. A chunk within one period
        // is a single row, of which every invocation sees one element.
        let period = u64::from(params.run) * u64::from(params.units);
        let wanted = u64::from(4 * self.tuning.workgroup);
        let stride = (period * wanted.div_ceil(period)).min(u64::from(params.elems));
        let rows = u64::from(params.elems).div_ceil(stride);
        let invocations = stride * rows.div_ceil(u64::from(4 * kernel.vecs()));
        let params = Params { stride: u32::try_from(stride).unwrap_or(u32::MAX), ..params };
        Dispatch { kernel, scheme, params, buffers, workgroups: invocations.div_ceil(self.tuning.workgroup.into()) }
    }

    fn start_quantize(&self, x: Tensor<'_>, spec: &Spec, given: Option<&[f32]>) -> Result<(Pending, Reading)> {
        let units = RangeUnits::new(x.shape(), spec.granularity)?;
        if let Some(scales) = given {
            if scales.len() != units.units {
                let found_elems = scales.len();
                return Err(Error::LengthMismatch { what: "scales", found_elems, expected_elems: units.units });
            }
            check_scales(scales)?;
        }
        let with_loss = spec.loss != LossDetail::None;
        let mut job = Job::new(self)?;
        let chunks = self.chunks(units);
        let shared = Shared::new(&job, units, chunks.len(), with_loss)?;
        let scales = match given {
            Some(scales) => job.upload("scales", bytemuck::cast_slice(scales))?,
            None => job.buffer("scales", 4 * units.units)?,
        };
        let recipes = job.buffer("recipes", 4 * RECIPE_WORDS * units.units)?;
        let mut tensors = Vec::new();
        for (chunk, params) in &chunks {
            let xs = job.upload("input", bytemuck::cast_slice(chunk_of(x.data(), chunk)))?;
            let codes = job.buffer("codes", chunk.elems as usize)?;
            let buffers = vec![(1, shared.counters.clone()), (2, xs.clone()), (3, shared.ranges.clone())];
            job.dispatch(self.over_runs(Kernel::MinMax, spec.scheme, *params, buffers));
            tensors.push((*params, xs, codes));
        }
        let params = Params {
            units: saturate(units.units),
            given: u32::from(given.is_some()),
            with_loss: u32::from(with_loss),
            ..Params::default()
        };
        if units.units > 0 {
            job.dispatch(Dispatch {
                kernel: Kernel::Scale,
                scheme: spec.scheme,
                params,
                buffers: vec![
                    (2, shared.ranges.clone()),
                    (3, scales.clone()),
                    (4, recipes.clone()),
                    (5, shared.losses.clone()),
                ],
                workgroups: (units.units as u64).div_ceil(self.tuning.workgroup.into()),
            });
        }
        // Where runs are short, neighbouring codes have different units, and the sums take a pass of their own.
        let fused = with_loss && !chunks.iter().any(|(_, params)| is_columns(params));
        for (params, xs, codes) in &tensors {
            let mut buffers =
                vec![(1, shared.counters.clone()), (2, xs.clone()), (3, recipes.clone()), (4, codes.clone())];
            if fused {
                buffers.push((5, shared.losses.clone()));
            }
            let kernel = if fused { Kernel::QuantizeLoss } else { Kernel::Quantize };
            job.dispatch(self.over_rows(kernel, spec.scheme, *params, buffers));
        }
        let store = spec.loss == LossDetail::PerElement;
        let errors = match with_loss && (store || !fused) {
            true => self.losses_of_codes(&mut job, spec.scheme, &shared, &scales, &tensors, store, !fused)?,
            false => Vec::new(),
        };
        let reading = Reading { spec: *spec, shape: x.shape().to_vec(), units, chunks };
        reading.read_shared(&mut job, &shared, with_loss);
        job.read(&scales, 4 * units.units);
        for (params, _, codes) in &tensors {
            job.read(codes, params.elems as usize);
        }
        for (errors, (params, ..)) in errors.iter().zip(&tensors) {
            job.read(errors, 4 * params.elems as usize);
        }
        Ok((job.submit()?, reading))
    }

    /// The passes over given codes: each unit's largest loss, with every element's if asked, and the sums.
    #[allow(clippy::too_many_arguments, reason = "they are one call's buffers")]
    fn losses_of_codes(
        &self,
        job: &mut Job<'_>,
        scheme: Scheme,
        shared: &Shared,
        scales: &wgpu::Buffer,
        tensors: &[(Params, wgpu::Buffer, wgpu::Buffer)],
        store: bool,
        sums: bool,
    ) -> Result<Vec<wgpu::Buffer>> {
        let mut all_errors = Vec::new();
        // A buffer that the composed kernel never writes still has to be bound.
        let unused = job.buffer("unused", 16)?;
        for (params, xs, codes) in tensors {
            let errors = if store { job.buffer("errors", 4 * params.elems as usize)? } else { unused.clone() };
            let buffers = vec![
                (2, xs.clone()),
                (3, scales.clone()),
                (4, codes.clone()),
                (5, shared.losses.clone()),
                (6, errors.clone()),
            ];
            let kernel = if store { Kernel::AbsErrorStore } else { Kernel::AbsError };
            job.dispatch(self.over_runs(kernel, scheme, *params, buffers));
            if store {
                all_errors.push(errors);
            }
        }
        for (params, xs, codes) in tensors.iter().filter(|_| sums) {
            let buffers = vec![
                (1, shared.counters.clone()),
                (2, xs.clone()),
                (3, scales.clone()),
                (4, codes.clone()),
                (5, shared.losses.clone()),
            ];
            job.dispatch(self.over_runs(Kernel::Loss, scheme, *params, buffers));
        }
        Ok(all_errors)
    }

    fn start_dequantize(&self, q: &Quantized) -> Result<(Pending, Vec<(Chunk, Params)>)> {
        let mut job = Job::new(self)?;
        let chunks = self.chunks(q.units());
        let scales = job.upload("scales", bytemuck::cast_slice(q.scales()))?;
        for (chunk, params) in &chunks {
            let codes = job.upload("codes", chunk_of(q.codes(), chunk))?;
            let out = job.buffer("output", 4 * chunk.elems as usize)?;
            let buffers = vec![(2, codes), (3, scales.clone()), (4, out.clone())];
            job.dispatch(self.over_rows(Kernel::Dequantize, q.scheme(), *params, buffers));
            job.read(&out, 4 * chunk.elems as usize);
        }
        Ok((job.submit()?, chunks))
    }

    fn start_loss(&self, x: Tensor<'_>, q: &Quantized, per_element: bool) -> Result<(Pending, Reading)> {
        if x.shape() != q.shape() {
            let (found_elems, expected_elems) = (q.codes().len(), x.data().len());
            return Err(Error::LengthMismatch { what: "quantized tensor", found_elems, expected_elems });
        }
        let units = q.units();
        let mut job = Job::new(self)?;
        let chunks = self.chunks(units);
        let shared = Shared::new(&job, units, chunks.len(), true)?;
        let scales = job.upload("scales", bytemuck::cast_slice(q.scales()))?;
        let mut tensors = Vec::new();
        for (chunk, params) in &chunks {
            let xs = job.upload("input", bytemuck::cast_slice(chunk_of(x.data(), chunk)))?;
            let codes = job.upload("codes", chunk_of(q.codes(), chunk))?;
            tensors.push((*params, xs, codes));
        }
        let errors = self.losses_of_codes(&mut job, q.scheme(), &shared, &scales, &tensors, per_element, true)?;
        let detail = if per_element { LossDetail::PerElement } else { LossDetail::Summary };
        let spec = Spec::new(q.scheme()).per(q.granularity()).loss(detail);
        let reading = Reading { spec, shape: q.shape().to_vec(), units, chunks };
        reading.read_shared(&mut job, &shared, true);
        for (errors, (params, ..)) in errors.iter().zip(&tensors) {
            job.read(errors, 4 * params.elems as usize);
        }
        Ok((job.submit()?, reading))
    }
}

fn is_columns(params: &Params) -> bool {
    params.units > 1 && params.run < MIN_RUN
}

fn chunk_of<'a, T>(data: &'a [T], chunk: &Chunk) -> &'a [T] {
    &data[chunk.start..chunk.start + chunk.elems as usize]
}

/// The buffers that a call's chunks share.
struct Shared {
    counters: wgpu::Buffer,
    ranges: wgpu::Buffer,
    losses: wgpu::Buffer,
}

impl Shared {
    fn new(job: &Job<'_>, units: RangeUnits, chunks: usize, with_loss: bool) -> Result<Self> {
        let loss_units = if with_loss { units.units } else { 0 };
        Ok(Self {
            counters: job.buffer("counters", 4 * TALLIES * chunks)?,
            ranges: job.buffer("ranges", 8 * units.units)?,
            losses: job.buffer("loss sums", 4 * LOSS_WORDS * loss_units)?,
        })
    }
}

/// What a call's reads will hold: the counters, the loss's sums, then what the call adds.
struct Reading {
    spec: Spec,
    shape: Vec<usize>,
    units: RangeUnits,
    chunks: Vec<(Chunk, Params)>,
}

impl Reading {
    fn read_shared(&self, job: &mut Job<'_>, shared: &Shared, with_loss: bool) {
        job.read(&shared.counters, 4 * TALLIES * self.chunks.len());
        let loss_units = if with_loss { self.units.units } else { 0 };
        job.read(&shared.losses, 4 * LOSS_WORDS * loss_units);
    }

    /// The counters' sums over the chunks, in the order of `shaders/tally.wgsl`.
    fn tallies(&self, finished: &Finished) -> Result<[u64; TALLIES]> {
        let words: Vec<u32> = finished.values(0, TALLIES * self.chunks.len())?;
        let mut sums = [0; TALLIES];
        for chunk in words.chunks(TALLIES) {
            for (sum, &word) in sums.iter_mut().zip(chunk) {
                *sum += u64::from(word);
            }
        }
        Ok(sums)
    }

    fn finish(self, finished: &Finished) -> Result<QuantizeOutput> {
        let [nan_elems, inf_elems, clipped_elems, ..] = self.tallies(finished)?;
        let scales: Vec<f32> = finished.values(2, self.units.units)?;
        let mut codes = Vec::with_capacity(self.units.elems());
        for (i, (chunk, _)) in self.chunks.iter().enumerate() {
            finished.append(3 + i, chunk.elems as usize, &mut codes)?;
        }
        let loss = match self.spec.loss {
            LossDetail::None => None,
            _ => Some(self.loss(finished, &scales, 1 + self.chunks.len())?),
        };
        let Spec { scheme, granularity, .. } = self.spec;
        let tensor = Quantized::from_parts(scheme, granularity, self.shape, codes, scales)?;
        Ok(QuantizeOutput::new(tensor, Counts { clipped_elems, nan_elems, inf_elems }, loss))
    }

    /// The loss; the elements' own, if they were asked for, stand this many reads after the sums.
    fn loss(&self, finished: &Finished, scales: &[f32], reads_between: usize) -> Result<Loss> {
        let [.., excluded_elems, nonfinite_out_elems] = self.tallies(finished)?;
        let words: Vec<u32> = finished.values(1, LOSS_WORDS * self.units.units)?;
        let sums: Vec<UnitSums> = words.chunks(LOSS_WORDS).map(unit_sums).collect();
        let abs_errors = match self.spec.loss {
            LossDetail::PerElement => Some(values_of(finished, 2 + reads_between, &self.chunks)?),
            _ => None,
        };
        let elems = self.units.elems() as u64 - excluded_elems;
        Ok(Loss::new(&sums, scales, elems, nonfinite_out_elems, abs_errors))
    }
}

/// A unit's sums from its words, laid out as `shaders/loss_sums.wgsl` says.
fn unit_sums(words: &[u32]) -> UnitSums {
    let unsigned = |words: &[u32]| words.iter().rev().fold(0u128, |sum, &word| (sum << 32) | u128::from(word));
    let cross = unsigned(&words[11..14]);
    UnitSums {
        max_bits: words[0],
        abs: unsigned(&words[1..4]),
        noise: unsigned(&words[4..8]),
        codes: unsigned(&words[8..11]),
        // 96 bits in two's complement.
        cross: (cross << 32).cast_signed() >> 32,
    }
}

/// One f32 per element, from the reads that begin at this one.
fn values_of(finished: &Finished, first_read: usize, chunks: &[(Chunk, Params)]) -> Result<Vec<f32>> {
    let mut values = Vec::with_capacity(chunks.iter().map(|(chunk, _)| chunk.elems as usize).sum());
    for (i, (chunk, _)) in chunks.iter().enumerate() {
        finished.append(first_read + i, chunk.elems as usize, &mut values)?;
    }
    Ok(values)
}
