//! The GPU path: the CPU path's stages as integer-only WGSL, with the same bits on every adapter.
//!
//! A call uploads the tensor, runs its stages on the device one after the other and reads the result back:
//! one submission and one read-back, nothing in between. A tensor larger than one buffer is cut into chunks;
//! neither that nor the number of workgroups changes a bit.

mod adapter;
mod bind;
mod call;
mod cut;
mod job;
mod observe;
mod params;
mod plan;
mod recorded;
mod ring;
mod role;
mod shader;
mod stages;
mod state;
mod stream;
mod tuning;

pub use adapter::{
    AdapterDescription, DEVICE_VARIABLE, OPTIONAL_FEATURES, REQUIRED_FEATURES, STORAGE_BUFFERS, Select, adapters,
    required_limits,
};
pub use bind::Bound;
pub use call::Scales;
pub(crate) use cut::has_short_runs;
pub use observe::RangeAccumulator;
pub use params::Params;
pub use plan::Plan;
pub use role::{Layout, Need, Operation, Role};
pub use shader::{Codec, Kernel, Program, RECIPE_WORDS, shader_source};
#[doc(hidden)]
pub use state::Fault;
pub use stream::{Stream, Streamed};
pub use tuning::Tuning;

use crate::device::{Computed, DeviceInfo};
use crate::error::{Error, Result};
use crate::layout::saturate;
use crate::loss::Loss;
use crate::quantized::{FakeQuantizeOutput, QuantizeOutput, Quantized, Spec};
use crate::tensor::Tensor;
use job::{Finished, Pending, Scopes};
use state::State;
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
    pipelines: Arc<Mutex<HashMap<Program, wgpu::ComputePipeline>>>,
    cache: Option<wgpu::PipelineCache>,
    state: Arc<State>,
    /// Whether we opened the device, and so are the ones who poll it.
    is_own: bool,
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
        let gpu = Self { is_own: true, ..Self::with_info(device, queue, info) };
        let state = Arc::clone(&gpu.state);
        gpu.device.set_device_lost_callback(move |reason, message| state.lose(format!("{reason:?}: {message}")));
        Ok(gpu)
    }

    /// Every adapter of this machine.
    pub fn adapters() -> Vec<AdapterDescription> {
        pollster::block_on(adapters())
    }

    /// Every adapter of this machine, opened, or with what keeps it from that: [`Error::UnfitAdapter`] of one that
    /// cannot run the kernels.
    pub fn open_all() -> Vec<(DeviceInfo, Result<Self>)> {
        let open = |(index, AdapterDescription { info, unfit, .. })| {
            let opened = match unfit {
                Some(reason) => Err(Error::UnfitAdapter { adapter: info.name.clone(), reason }),
                None => Self::open(&Select::Index(index)),
            };
            (info, opened)
        };
        Self::adapters().into_iter().enumerate().map(open).collect()
    }

    /// Runs on a caller's device. No handler is installed on it: its errors beyond these calls, and its loss,
    /// stay the caller's to watch.
    ///
    /// Nor does a thread poll it that the caller does not know of: futures of this [`Gpu`] resolve while the caller polls
    /// the device, as [`poll`](Self::poll) does, and have no timeout. Calls that block poll it themselves.
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let info = adapter::info_of(&device.adapter_info(), &device.limits(), None);
        Self::with_info(device, queue, info)
    }

    fn with_info(device: wgpu::Device, queue: wgpu::Queue, info: DeviceInfo) -> Self {
        let limits = device.limits();
        let workgroup = Tuning::default()
            .workgroup
            .min(limits.max_compute_invocations_per_workgroup)
            .min(limits.max_compute_workgroup_size_x);
        let spread = info.device_type != "cpu";
        Self {
            info,
            device,
            queue,
            limits,
            tuning: Tuning::default().workgroup(workgroup).spread(spread),
            pipelines: Arc::default(),
            cache: None,
            state: Arc::default(),
            is_own: false,
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
        self.check_tuning(tuning)?;
        Ok(Self { tuning, pipelines: self.pipelines_for(tuning), ..self })
    }

    /// Another handle of the same device, cut differently; the kernels that are compiled for one serve both, where their
    /// workgroups are alike.
    ///
    /// # Errors
    /// Those of [`with_tuning`](Self::with_tuning).
    ///
    /// ```no_run
    /// use wgpu_quant::{Gpu, gpu::Select};
    /// let gpu = Gpu::open(&Select::from_env())?;
    /// let hasty = gpu.tuned(gpu.tuning().timeout_seconds(2))?;
    /// # let _ = hasty;
    /// # Ok::<(), wgpu_quant::Error>(())
    /// ```
    pub fn tuned(&self, tuning: Tuning) -> Result<Self> {
        self.check_tuning(tuning)?;
        Ok(self.handle(tuning))
    }

    fn check_tuning(&self, tuning: Tuning) -> Result<()> {
        let within = |what, found: u32, allowed: u32| {
            let ok = (1..=allowed).contains(&found);
            if ok { Ok(()) } else { Err(Error::TooLarge { what, found: found.into(), allowed: allowed.into() }) }
        };
        let most = self.limits.max_compute_invocations_per_workgroup.min(self.limits.max_compute_workgroup_size_x);
        within("workgroup in invocations", tuning.workgroup, most.min(1024))?;
        let bytes = shader::workgroup_bytes(tuning.workgroup);
        within("workgroup memory in bytes", bytes, self.limits.max_compute_workgroup_storage_size)?;
        within("chunk in blocks of 8 elements", tuning.chunk_elems / 8, 1 << 25)?;
        within("slab in range units", saturate(tuning.slab_units), u32::MAX)?;
        within("dispatch in workgroups per dimension", tuning.workgroups_per_dimension, u32::MAX)
    }

    /// A tuning is part of kernels by its workgroup only.
    fn pipelines_for(&self, tuning: Tuning) -> Arc<Mutex<HashMap<Program, wgpu::ComputePipeline>>> {
        if tuning.workgroup == self.tuning.workgroup { Arc::clone(&self.pipelines) } else { Arc::default() }
    }

    /// The same device, compiling kernels through a cache of its own device's, whose data the caller keeps between runs.
    #[must_use]
    pub fn with_pipeline_cache(self, cache: wgpu::PipelineCache) -> Self {
        Self { cache: Some(cache), ..self }
    }

    /// The same device that always quantizes in two passes, and the same compiled kernels.
    pub(crate) fn in_two_passes(&self) -> Self {
        self.handle(self.tuning.one_pass(false))
    }

    /// The same device with smaller chunks, slabs and dispatches, and the same compiled kernels.
    pub(crate) fn cut(&self, chunk_elems: u32, slab_units: usize, workgroups_per_dimension: u32) -> Self {
        self.handle(Tuning { chunk_elems, slab_units, workgroups_per_dimension, ..self.tuning })
    }

    /// Another handle, of a tuning that was checked.
    fn handle(&self, tuning: Tuning) -> Self {
        Self {
            tuning,
            pipelines: self.pipelines_for(tuning),
            cache: self.cache.clone(),
            state: Arc::clone(&self.state),
            is_own: self.is_own,
            ..Self::with_info(self.device.clone(), self.queue.clone(), self.info.clone())
        }
    }

    /// Makes the `nth` from now on fail, counted from 0, or none: how tests see what failures become.
    #[doc(hidden)]
    pub fn fail(&self, fault: Fault, nth: Option<u64>) {
        self.state.fail(fault, nth);
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

    /// Lets wgpu make its callbacks, without blocking; false while the device has something left to do.
    ///
    /// The futures of a caller's device resolve in this call or in the caller's own [`wgpu::Device::poll`].
    ///
    /// ```no_run
    /// # use wgpu_quant::{Gpu, Scheme, Spec, Tensor};
    /// # async fn call(gpu: &Gpu, x: Tensor<'_>) -> wgpu_quant::Result<()> {
    /// // Wherever an engine goes round: `gpu.poll();`
    /// let codes = gpu.quantize_async(x, &Spec::new(Scheme::INT8_ABSMAX)).await?;
    /// # Ok(()) }
    /// ```
    pub fn poll(&self) -> bool {
        !matches!(job::poll(&self.device, wgpu::PollType::Poll), Ok(Ok(wgpu::PollStatus::Poll)))
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

    /// [`cpu::quantize`](crate::cpu::quantize) on the device; blocks.
    ///
    /// # Errors
    /// Those of the CPU path; [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::Timeout`] and [`Error::Gpu`] when the device cannot.
    pub fn quantize(&self, x: Tensor<'_>, spec: &Spec) -> Result<Computed<QuantizeOutput>> {
        let (pending, reading) = self.start_quantize(x, spec, None)?;
        self.output(reading.finish(&self.wait(pending)?))
    }

    /// [`quantize`](Self::quantize) without blocking.
    ///
    /// # Errors
    /// Those of [`quantize`](Self::quantize).
    pub async fn quantize_async(&self, x: Tensor<'_>, spec: &Spec) -> Result<Computed<QuantizeOutput>> {
        let (pending, reading) = self.start_quantize(x, spec, None)?;
        self.output(reading.finish(&self.finished(pending).await?))
    }

    /// [`cpu::quantize_with_scales`](crate::cpu::quantize_with_scales) on the device; blocks.
    ///
    /// # Errors
    /// Those of the CPU path; [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::Timeout`] and [`Error::Gpu`] when the device cannot.
    pub fn quantize_with_scales(
        &self,
        x: Tensor<'_>,
        spec: &Spec,
        scales: Scales<'_>,
    ) -> Result<Computed<QuantizeOutput>> {
        let (pending, reading) = self.start_quantize(x, spec, Some(scales))?;
        self.output(reading.finish(&self.wait(pending)?))
    }

    /// [`quantize_with_scales`](Self::quantize_with_scales) without blocking.
    ///
    /// # Errors
    /// Those of [`quantize_with_scales`](Self::quantize_with_scales).
    pub async fn quantize_with_scales_async(
        &self,
        x: Tensor<'_>,
        spec: &Spec,
        scales: Scales<'_>,
    ) -> Result<Computed<QuantizeOutput>> {
        let (pending, reading) = self.start_quantize(x, spec, Some(scales))?;
        self.output(reading.finish(&self.finished(pending).await?))
    }

    /// [`cpu::fake_quantize`](crate::cpu::fake_quantize) on the device; blocks.
    ///
    /// # Errors
    /// Those of the CPU path; [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::Timeout`] and [`Error::Gpu`] when the device cannot.
    pub fn fake_quantize(&self, x: Tensor<'_>, spec: &Spec) -> Result<Computed<FakeQuantizeOutput>> {
        let (pending, reading) = self.start_fake_quantize(x, spec, None)?;
        self.output(reading.values(&self.wait(pending)?))
    }

    /// [`fake_quantize`](Self::fake_quantize) without blocking.
    ///
    /// # Errors
    /// Those of [`fake_quantize`](Self::fake_quantize).
    pub async fn fake_quantize_async(&self, x: Tensor<'_>, spec: &Spec) -> Result<Computed<FakeQuantizeOutput>> {
        let (pending, reading) = self.start_fake_quantize(x, spec, None)?;
        self.output(reading.values(&self.finished(pending).await?))
    }

    /// [`cpu::fake_quantize_with_scales`](crate::cpu::fake_quantize_with_scales) on the device; blocks.
    ///
    /// # Errors
    /// Those of the CPU path; [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::Timeout`] and [`Error::Gpu`] when the device cannot.
    pub fn fake_quantize_with_scales(
        &self,
        x: Tensor<'_>,
        spec: &Spec,
        scales: Scales<'_>,
    ) -> Result<Computed<FakeQuantizeOutput>> {
        let (pending, reading) = self.start_fake_quantize(x, spec, Some(scales))?;
        self.output(reading.values(&self.wait(pending)?))
    }

    /// [`fake_quantize_with_scales`](Self::fake_quantize_with_scales) without blocking.
    ///
    /// # Errors
    /// Those of [`fake_quantize_with_scales`](Self::fake_quantize_with_scales).
    pub async fn fake_quantize_with_scales_async(
        &self,
        x: Tensor<'_>,
        spec: &Spec,
        scales: Scales<'_>,
    ) -> Result<Computed<FakeQuantizeOutput>> {
        let (pending, reading) = self.start_fake_quantize(x, spec, Some(scales))?;
        self.output(reading.values(&self.finished(pending).await?))
    }

    /// [`cpu::dequantize`](crate::cpu::dequantize) on the device; blocks.
    ///
    /// # Errors
    /// Those of [`quantize`](Self::quantize).
    pub fn dequantize(&self, q: &Quantized) -> Result<Computed<Vec<f32>>> {
        let (pending, reads) = self.start_dequantize(q)?;
        self.output(self.wait(pending)?.concat(&reads))
    }

    /// [`dequantize`](Self::dequantize) without blocking.
    ///
    /// # Errors
    /// Those of [`quantize`](Self::quantize).
    pub async fn dequantize_async(&self, q: &Quantized) -> Result<Computed<Vec<f32>>> {
        let (pending, reads) = self.start_dequantize(q)?;
        self.output(self.finished(pending).await?.concat(&reads))
    }

    /// [`cpu::loss`](crate::cpu::loss) on the device; blocks.
    ///
    /// # Errors
    /// Those of the CPU path and of [`quantize`](Self::quantize).
    pub fn loss(&self, x: Tensor<'_>, q: &Quantized, per_element: bool) -> Result<Computed<Loss>> {
        let (pending, reading) = self.start_loss(x, q, per_element)?;
        self.output(reading.loss(&self.wait(pending)?))
    }

    /// [`loss`](Self::loss) without blocking.
    ///
    /// # Errors
    /// Those of [`loss`](Self::loss).
    pub async fn loss_async(&self, x: Tensor<'_>, q: &Quantized, per_element: bool) -> Result<Computed<Loss>> {
        let (pending, reading) = self.start_loss(x, q, per_element)?;
        self.output(reading.loss(&self.finished(pending).await?))
    }

    /// What was read back, which may fail too.
    fn output<T>(&self, read: Result<T>) -> Result<Computed<T>> {
        Ok(Computed { value: self.noted(read)?, device: self.info.clone() })
    }

    fn wait(&self, pending: Pending) -> Result<Finished> {
        self.timed(pending.wait(self))
    }

    async fn finished(&self, pending: Pending) -> Result<Finished> {
        self.timed(pending.finished(self).await)
    }

    fn timed(&self, finished: Result<Finished>) -> Result<Finished> {
        if let Ok(finished) = &finished {
            lock(&self.times).clone_from(&finished.times);
        }
        self.noted(finished)
    }

    /// A failure, with what is behind it.
    fn noted<T>(&self, done: Result<T>) -> Result<T> {
        done.map_err(|error| job::cause(&self.device, &self.state, error))
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

    /// The largest buffer that a kernel can bind whole.
    fn max_buffer_bytes(&self) -> u64 {
        self.limits.max_buffer_size.min(self.limits.max_storage_buffer_binding_size)
    }

    fn workgroups_per_dimension(&self) -> u32 {
        self.tuning.workgroups_per_dimension.min(self.limits.max_compute_workgroups_per_dimension)
    }

    /// A compiled kernel. One that failed is not kept.
    fn pipeline(&self, program: Program) -> Result<wgpu::ComputePipeline> {
        let mut pipelines = lock(&self.pipelines);
        if let Some(pipeline) = pipelines.get(&program) {
            return Ok(pipeline.clone());
        }
        let [found, allowed] = [STORAGE_BUFFERS, self.limits.max_storage_buffers_per_shader_stage].map(u64::from);
        if found > allowed {
            return Err(Error::TooLarge { what: "the number of storage buffers of a kernel", found, allowed });
        }
        let scopes = Scopes::open(&self.device, &self.state);
        let label = format!("wgpu-quant {}", program.label());
        let text = match self.state.fails(Fault::Kernel) {
            true => "a test asked for it".into(),
            false => shader_source(program, self.tuning.workgroup).into(),
        };
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(&label),
            source: wgpu::ShaderSource::Wgsl(text),
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: None,
            module: &module,
            entry_point: Some(program.entry_point()),
            compilation_options: wgpu::PipelineCompilationOptions {
                // The kernels clear what they use, so that the text that is tested is the text that runs.
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: self.cache.as_ref(),
        });
        scopes.check()?;
        pipelines.insert(program, pipeline.clone());
        Ok(pipeline)
    }
}
