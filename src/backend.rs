//! The choice between the GPU and the CPU path; the only file that sees both halves.

use crate::cpu;
use crate::device::{Computed, DeviceInfo};
use crate::error::{Error, Result};
#[cfg(feature = "gpu")]
use crate::gpu::{Gpu, Scales, Select};
use crate::loss::Loss;
#[cfg(feature = "gpu")]
use crate::quantized::LossDetail;
use crate::quantized::{FakeQuantizeOutput, QuantizeOutput, Quantized, QuantizedParts, Spec, Streamed};
use crate::tensor::{ElemType, Tensor};
#[cfg(feature = "gpu")]
use std::borrow::Cow;
#[cfg(feature = "gpu")]
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// What runs the stages: the CPU path or an adapter. The bits are the same.
///
/// A call whose device is lost on the way is made again, once: by the same adapter, opened again, where one was asked for,
/// by the CPU path where `auto` chose, and by that path all calls from then on. What is too large for an adapter that `auto`
/// chose is made by the CPU path, which says so in its result. [`take_notice`](Self::take_notice) tells of both.
///
/// ```
/// use wgpu_quant::{Backend, Scheme, Spec, Tensor};
/// let backend = Backend::open("auto")?;
/// let out = backend.quantize(Tensor::new(&[0.5, -1.0], &[2])?, &Spec::new(Scheme::INT8_ABSMAX))?;
/// assert_eq!(out.tensor.code_values(), [64, -127]); // 0.5 / (1/127) is 63.5: the tie goes to the even code
/// println!("made by {}: {}", out.device, backend.reason());
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
#[derive(Debug)]
pub struct Backend {
    info: DeviceInfo,
    reason: String,
    /// What the CPU path streams through.
    ring: cpu::Ring,
    #[cfg(feature = "gpu")]
    adapter: Option<Adapter>,
}

/// An adapter that was opened.
#[cfg(feature = "gpu")]
#[derive(Debug)]
struct Adapter {
    gpu: Mutex<Arc<Gpu>>,
    /// How to open it again; the CPU path takes its place where `auto` chose it.
    select: Option<Select>,
    /// The CPU path, and why, once it has taken its place.
    fallen: OnceLock<(DeviceInfo, String)>,
    /// That something was too large for it, which is said once.
    outgrown: OnceLock<()>,
    notice: Mutex<Option<String>>,
}

#[cfg(feature = "gpu")]
impl Adapter {
    fn new(gpu: Gpu, select: Option<Select>) -> Self {
        let gpu = Mutex::new(Arc::new(gpu));
        Self { gpu, select, fallen: OnceLock::new(), outgrown: OnceLock::new(), notice: Mutex::default() }
    }

    /// What is open; `None` for the CPU path.
    fn gpu(&self) -> Option<Arc<Gpu>> {
        if self.fallen.get().is_some() { None } else { Some(Arc::clone(&lock(&self.gpu))) }
    }

    /// The CPU path makes a call that the adapter could not for its size.
    fn outgrown(&self, gpu: &Gpu, why: &Error) {
        if self.outgrown.set(()).is_ok() {
            let notice = format!("{} could not ({why}); the CPU path computes what is too large for it", gpu.info());
            *lock(&self.notice) = Some(notice);
        }
    }

    /// What takes the place of a device that was lost; `None` for the CPU path.
    fn instead_of(&self, lost: &Arc<Gpu>, why: &str) -> Result<Option<Arc<Gpu>>> {
        let mut gpu = lock(&self.gpu);
        if !Arc::ptr_eq(&gpu, lost) {
            // Another thread was here first.
            return Ok(Some(Arc::clone(&gpu)));
        }
        let was = format!("{} was lost ({why})", lost.info());
        let notice = match &self.select {
            Some(select) => match Gpu::open(select) {
                Ok(opened) => {
                    *gpu = Arc::new(opened);
                    format!("{was}; {} was opened, and the call made again", gpu.info())
                }
                Err(error) => {
                    let message = format!("{why}; it cannot be opened again: {error}");
                    return Err(Error::DeviceLost { message });
                }
            },
            None if self.fallen.set((DeviceInfo::cpu(), was.clone())).is_err() => return Ok(None),
            None => format!("{was}; the CPU path computes from here on"),
        };
        *lock(&self.notice) = Some(notice);
        Ok(self.select.is_some().then(|| Arc::clone(&gpu)))
    }
}

/// A panic while a lock was held leaves nothing half done that matters here.
#[cfg(feature = "gpu")]
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend {
    /// Opens what `wanted` names: `auto`, `cpu`, `gpu`, a backend, an adapter's index, or a part of its name.
    ///
    /// `auto` takes a hardware adapter where there is one and the CPU path otherwise, never a software
    /// adapter; the environment variable `WGPU_QUANT_DEVICE`, if set, speaks in its place. Anything else but
    /// `cpu` is an adapter, software allowed, or an error: never the CPU path instead.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] when no adapter is what was asked for, [`Error::RequestDevice`] when it gives no
    /// device.
    pub fn open(wanted: &str) -> Result<Self> {
        match wanted {
            "cpu" => Ok(Self::cpu("it was asked for")),
            "auto" => match std::env::var("WGPU_QUANT_DEVICE") {
                Ok(named) if named != "auto" && !named.is_empty() => Self::open(&named),
                _ => Self::auto(),
            },
            _ => Self::adapter(wanted),
        }
    }

    /// The CPU path and every adapter of this machine, each opened, or with what keeps it from that.
    ///
    /// [`Error::UnfitAdapter`] stands for an adapter that cannot run the kernels; any other error is a failure.
    pub fn open_all() -> Vec<(DeviceInfo, Result<Self>)> {
        let cpu = Self::cpu("all were asked for");
        std::iter::once((cpu.info.clone(), Ok(cpu))).chain(Self::adapters()).collect()
    }

    fn cpu(reason: impl Into<String>) -> Self {
        Self {
            info: DeviceInfo::cpu(),
            reason: reason.into(),
            ring: cpu::Ring::default(),
            #[cfg(feature = "gpu")]
            adapter: None,
        }
    }

    #[cfg(feature = "gpu")]
    fn auto() -> Result<Self> {
        Ok(match Gpu::open(&Select::Hardware) {
            Ok(gpu) => Self::gpu(gpu, None, "it is a hardware adapter"),
            Err(Error::NoAdapter { .. }) => Self::cpu("there is no hardware adapter"),
            Err(error) => Self::cpu(format!("the hardware adapter failed ({error})")),
        })
    }

    #[cfg(feature = "gpu")]
    fn adapter(wanted: &str) -> Result<Self> {
        let select = Select::parse(wanted);
        Ok(Self::gpu(Gpu::open(&select)?, Some(select), "it was asked for"))
    }

    #[cfg(feature = "gpu")]
    fn gpu(gpu: Gpu, select: Option<Select>, reason: &str) -> Self {
        Self {
            info: gpu.info().clone(),
            reason: reason.to_owned(),
            ring: cpu::Ring::default(),
            adapter: Some(Adapter::new(gpu, select)),
        }
    }

    /// What `auto` would be had it chosen this: for tests, where there is software only.
    #[cfg(feature = "gpu")]
    #[doc(hidden)]
    pub fn auto_over(gpu: Gpu) -> Self {
        Self::gpu(gpu, None, "a test chose it")
    }

    /// The adapter that is open, for tests to lose.
    #[cfg(feature = "gpu")]
    #[doc(hidden)]
    pub fn opened(&self) -> Option<Arc<Gpu>> {
        self.adapter.as_ref()?.gpu()
    }

    #[cfg(feature = "gpu")]
    fn adapters() -> Vec<(DeviceInfo, Result<Self>)> {
        let chosen = |(index, (info, gpu)): (usize, (DeviceInfo, Result<Gpu>))| {
            (info, gpu.map(|gpu| Self::gpu(gpu, Some(Select::Index(index)), "all were asked for")))
        };
        Gpu::open_all().into_iter().enumerate().map(chosen).collect()
    }

    #[cfg(not(feature = "gpu"))]
    fn adapters() -> Vec<(DeviceInfo, Result<Self>)> {
        vec![]
    }

    #[cfg(not(feature = "gpu"))]
    fn auto() -> Result<Self> {
        Ok(Self::cpu("this build has no GPU half"))
    }

    #[cfg(not(feature = "gpu"))]
    fn adapter(wanted: &str) -> Result<Self> {
        let tried = "this build has no GPU half (feature `gpu`)".to_owned();
        Err(Error::NoAdapter { wanted: format!("{wanted:?}"), tried })
    }

    /// What was chosen: by `auto` the CPU path once the adapter was lost.
    pub fn info(&self) -> &DeviceInfo {
        #[cfg(feature = "gpu")]
        if let Some((info, _)) = self.fallen() {
            return info;
        }
        &self.info
    }

    /// Why it was chosen, for people.
    pub fn reason(&self) -> &str {
        #[cfg(feature = "gpu")]
        if let Some((_, reason)) = self.fallen() {
            return reason;
        }
        &self.reason
    }

    #[cfg(feature = "gpu")]
    fn fallen(&self) -> Option<&(DeviceInfo, String)> {
        self.adapter.as_ref()?.fallen.get()
    }

    /// That a device was lost or outgrown and what took its place, for people; `None` when nothing has happened since it was last taken.
    ///
    /// ```
    /// let backend = wgpu_quant::Backend::open("cpu")?;
    /// assert_eq!(backend.take_notice(), None);
    /// # Ok::<(), wgpu_quant::Error>(())
    /// ```
    pub fn take_notice(&self) -> Option<String> {
        #[cfg(feature = "gpu")]
        return lock(&self.adapter.as_ref()?.notice).take();
        #[cfg(not(feature = "gpu"))]
        None
    }

    /// A call on the adapter, made again where its device is lost on the way; `None` when the CPU path is to make it.
    #[cfg(feature = "gpu")]
    fn on_adapter<T>(&self, mut call: impl FnMut(&Gpu) -> Result<Computed<T>>) -> Option<Result<Computed<T>>> {
        let adapter = self.adapter.as_ref()?;
        let gpu = adapter.gpu()?;
        match call(&gpu) {
            Err(Error::DeviceLost { message }) => match adapter.instead_of(&gpu, &message) {
                Ok(gpu) => gpu.map(|gpu| call(&gpu)),
                Err(error) => Some(Err(error)),
            },
            Err(error @ (Error::OutOfMemory { .. } | Error::TooLarge { .. })) if adapter.select.is_none() => {
                adapter.outgrown(&gpu, &error);
                None
            }
            done => Some(done),
        }
    }

    /// [`cpu::quantize`] or its equal on the adapter.
    ///
    /// # Errors
    /// Those of what was chosen.
    pub fn quantize(&self, x: Tensor<'_>, spec: &Spec) -> Result<Computed<QuantizeOutput>> {
        #[cfg(feature = "gpu")]
        if let Some(done) = self.on_adapter(|gpu| gpu.quantize(x, spec)) {
            return done;
        }
        Self::by_cpu(cpu::quantize(x, spec)?)
    }

    /// [`cpu::quantize_with_scales`] or its equal on the adapter.
    ///
    /// # Errors
    /// Those of what was chosen.
    pub fn quantize_with_scales(
        &self,
        x: Tensor<'_>,
        spec: &Spec,
        scales: &[f32],
        zero_points: &[i32],
    ) -> Result<Computed<QuantizeOutput>> {
        #[cfg(feature = "gpu")]
        if let Some(done) = self.on_adapter(|gpu| gpu.quantize_with_scales(x, spec, Scales::Host(scales, zero_points)))
        {
            return done;
        }
        Self::by_cpu(cpu::quantize_with_scales(x, spec, scales, zero_points)?)
    }

    /// [`cpu::quantize_stream`] or its equal on the adapter.
    ///
    /// An adapter streams what is large, unless the loss is asked for. Where a call is made again, `digest` begins again with
    /// offset 0.
    ///
    /// # Errors
    /// Those of what was chosen, and the first of `read` or `write`.
    pub fn quantize_stream(
        &self,
        elem_type: ElemType,
        shape: &[usize],
        spec: &Spec,
        read: impl Fn(u64, &mut [u8]) -> Result<()> + Sync,
        write: impl Fn(u64, &[u8]) -> Result<()> + Sync,
        digest: impl FnMut(u64, &[u8]) + Send,
    ) -> Result<Computed<Streamed>> {
        #[cfg(feature = "gpu")]
        let mut digest = digest;
        #[cfg(feature = "gpu")]
        if let Some(done) =
            self.on_adapter(|gpu| quantize_stream(gpu, elem_type, shape, spec, &read, &write, &mut digest))
        {
            return done;
        }
        Self::by_cpu(self.ring.quantize((elem_type, shape, spec), read, write, digest)?)
    }

    /// [`cpu::fake_quantize`] or its equal on the adapter.
    ///
    /// # Errors
    /// Those of what was chosen.
    pub fn fake_quantize(&self, x: Tensor<'_>, spec: &Spec) -> Result<Computed<FakeQuantizeOutput>> {
        #[cfg(feature = "gpu")]
        if let Some(done) = self.on_adapter(|gpu| gpu.fake_quantize(x, spec)) {
            return done;
        }
        Self::by_cpu(cpu::fake_quantize(x, spec)?)
    }

    /// [`cpu::fake_quantize_with_scales`] or its equal on the adapter.
    ///
    /// # Errors
    /// Those of what was chosen.
    pub fn fake_quantize_with_scales(
        &self,
        x: Tensor<'_>,
        spec: &Spec,
        scales: &[f32],
        zero_points: &[i32],
    ) -> Result<Computed<FakeQuantizeOutput>> {
        #[cfg(feature = "gpu")]
        if let Some(done) =
            self.on_adapter(|gpu| gpu.fake_quantize_with_scales(x, spec, Scales::Host(scales, zero_points)))
        {
            return done;
        }
        Self::by_cpu(cpu::fake_quantize_with_scales(x, spec, scales, zero_points)?)
    }

    /// [`cpu::dequantize`] or its equal on the adapter.
    ///
    /// # Errors
    /// Those of what was chosen.
    pub fn dequantize(&self, q: &Quantized) -> Result<Computed<Vec<f32>>> {
        #[cfg(feature = "gpu")]
        if let Some(done) = self.on_adapter(|gpu| gpu.dequantize(q)) {
            return done;
        }
        Self::by_cpu(cpu::dequantize(q)?)
    }

    /// [`cpu::dequantize_stream`] or its equal on the adapter.
    ///
    /// An adapter streams what is large.
    ///
    /// # Errors
    /// Those of what was chosen, and the first of `write`.
    pub fn dequantize_stream(
        &self,
        q: &QuantizedParts<'_>,
        write: impl Fn(u64, &[f32]) -> Result<()> + Sync,
    ) -> Result<Computed<()>> {
        #[cfg(feature = "gpu")]
        if let Some(done) = self.on_adapter(|gpu| dequantize_stream(gpu, q, &write)) {
            return done;
        }
        Self::by_cpu(cpu::dequantize_stream(q, write)?)
    }

    /// [`cpu::loss`] or its equal on the adapter.
    ///
    /// # Errors
    /// Those of what was chosen.
    pub fn loss(&self, x: Tensor<'_>, q: &Quantized, per_element: bool) -> Result<Computed<Loss>> {
        #[cfg(feature = "gpu")]
        if let Some(done) = self.on_adapter(|gpu| gpu.loss(x, q, per_element)) {
            return done;
        }
        Self::by_cpu(cpu::loss(x, q, per_element)?)
    }

    /// What the CPU path made.
    fn by_cpu<T>(value: T) -> Result<Computed<T>> {
        Ok(Computed { value, device: DeviceInfo::cpu() })
    }
}

/// Tensors of so many bytes and more are streamed: a ring's buffers cost more than they save of what is smaller.
#[cfg(feature = "gpu")]
const STREAM_BYTES: usize = 64 << 20;

#[cfg(feature = "gpu")]
fn quantize_stream(
    gpu: &Gpu,
    elem_type: ElemType,
    shape: &[usize],
    spec: &Spec,
    read: &(impl Fn(u64, &mut [u8]) -> Result<()> + Sync),
    write: &(impl Fn(u64, &[u8]) -> Result<()> + Sync),
    digest: &mut (impl FnMut(u64, &[u8]) + Send),
) -> Result<Computed<Streamed>> {
    let bytes = crate::elems(shape)?.saturating_mul(elem_type.bytes());
    if bytes >= STREAM_BYTES && spec.loss == LossDetail::None {
        let mut at = 0;
        let write = |codes: &[u8]| {
            write(at, codes)?;
            digest(at, codes);
            at += codes.len() as u64;
            Ok(())
        };
        return gpu.stream(shape, spec).quantize(elem_type, read, write);
    }
    let mut source = vec![0; bytes];
    read(0, &mut source)?;
    let Computed { value, device } = gpu.quantize(Tensor::from_bytes(elem_type, &source, shape)?, spec)?;
    let QuantizeOutput { tensor, counts, loss } = value;
    write(0, tensor.codes())?;
    digest(0, tensor.codes());
    let (scales, zero_points) = tensor.into_scales();
    Ok(Computed { value: Streamed { scales, zero_points, counts, loss: loss.map(|loss| loss.sums) }, device })
}

#[cfg(feature = "gpu")]
fn dequantize_stream(
    gpu: &Gpu,
    q: &QuantizedParts<'_>,
    write: &(impl Fn(u64, &[f32]) -> Result<()> + Sync),
) -> Result<Computed<()>> {
    let spec = Spec::new(q.scheme).per(q.granularity);
    if 4 * crate::elems(q.shape)? < STREAM_BYTES {
        let Computed { value, device } = gpu.dequantize(&q.to_quantized()?)?;
        write(0, &value)?;
        return Ok(Computed { value: (), device });
    }
    let mut at = 0;
    gpu.stream(q.shape, &spec).dequantize(
        q.scales,
        q.zero_points,
        |offset, bytes| {
            bytes.copy_from_slice(&q.codes[offset as usize..][..bytes.len()]);
            Ok(())
        },
        |bytes| {
            let values = bytemuck::try_cast_slice(bytes)
                .map_or_else(|_| bytemuck::pod_collect_to_vec(bytes).into(), Cow::Borrowed);
            write(at, &values)?;
            at += values.len() as u64;
            Ok(())
        },
    )?;
    Ok(Computed { value: (), device: gpu.info().clone() })
}

/// Every adapter of this machine, as `wgpu-quant devices` lists them; none in a build without the GPU half.
pub fn devices() -> Vec<DeviceInfo> {
    #[cfg(feature = "gpu")]
    return Gpu::adapters().into_iter().map(|adapter| adapter.info).collect();
    #[cfg(not(feature = "gpu"))]
    Vec::new()
}
