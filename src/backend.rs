//! The choice between the GPU and the CPU path; the only file that sees both halves.

use crate::cpu;
use crate::device::{Computed, DeviceInfo};
use crate::error::{Error, Result};
#[cfg(feature = "gpu")]
use crate::gpu::{Gpu, Scales, Select};
use crate::loss::Loss;
use crate::quantized::{FakeQuantizeOutput, QuantizeOutput, Quantized, Spec};
use crate::tensor::Tensor;

/// What runs the stages: the CPU path or an adapter. The bits are the same.
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
    #[cfg(feature = "gpu")]
    gpu: Option<Box<Gpu>>,
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
            #[cfg(feature = "gpu")]
            gpu: None,
        }
    }

    #[cfg(feature = "gpu")]
    fn auto() -> Result<Self> {
        Ok(match Gpu::open(&Select::Hardware) {
            Ok(gpu) => Self::gpu(gpu, "it is a hardware adapter"),
            Err(Error::NoAdapter { .. }) => Self::cpu("there is no hardware adapter"),
            Err(error) => Self::cpu(format!("the hardware adapter failed ({error})")),
        })
    }

    #[cfg(feature = "gpu")]
    fn adapter(wanted: &str) -> Result<Self> {
        Ok(Self::gpu(Gpu::open(&Select::parse(wanted))?, "it was asked for"))
    }

    #[cfg(feature = "gpu")]
    fn gpu(gpu: Gpu, reason: &str) -> Self {
        Self { info: gpu.info().clone(), reason: reason.to_owned(), gpu: Some(Box::new(gpu)) }
    }

    #[cfg(feature = "gpu")]
    fn adapters() -> Vec<(DeviceInfo, Result<Self>)> {
        let chosen = |gpu| Self::gpu(gpu, "all were asked for");
        Gpu::open_all().into_iter().map(|(info, gpu)| (info, gpu.map(chosen))).collect()
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

    /// What was chosen.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Why it was chosen, for people.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// [`cpu::quantize`] or its equal on the adapter.
    ///
    /// # Errors
    /// Those of what was chosen.
    pub fn quantize(&self, x: Tensor<'_>, spec: &Spec) -> Result<Computed<QuantizeOutput>> {
        #[cfg(feature = "gpu")]
        if let Some(gpu) = &self.gpu {
            return gpu.quantize(x, spec);
        }
        self.computed(cpu::quantize(x, spec)?)
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
        if let Some(gpu) = &self.gpu {
            return gpu.quantize_with_scales(x, spec, Scales::Host(scales, zero_points));
        }
        self.computed(cpu::quantize_with_scales(x, spec, scales, zero_points)?)
    }

    /// [`cpu::fake_quantize`] or its equal on the adapter.
    ///
    /// # Errors
    /// Those of what was chosen.
    pub fn fake_quantize(&self, x: Tensor<'_>, spec: &Spec) -> Result<Computed<FakeQuantizeOutput>> {
        #[cfg(feature = "gpu")]
        if let Some(gpu) = &self.gpu {
            return gpu.fake_quantize(x, spec);
        }
        self.computed(cpu::fake_quantize(x, spec)?)
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
        if let Some(gpu) = &self.gpu {
            return gpu.fake_quantize_with_scales(x, spec, Scales::Host(scales, zero_points));
        }
        self.computed(cpu::fake_quantize_with_scales(x, spec, scales, zero_points)?)
    }

    /// [`cpu::dequantize`] or its equal on the adapter.
    ///
    /// # Errors
    /// Those of what was chosen.
    pub fn dequantize(&self, q: &Quantized) -> Result<Computed<Vec<f32>>> {
        #[cfg(feature = "gpu")]
        if let Some(gpu) = &self.gpu {
            return gpu.dequantize(q);
        }
        self.computed(cpu::dequantize(q)?)
    }

    /// [`cpu::loss`] or its equal on the adapter.
    ///
    /// # Errors
    /// Those of what was chosen.
    pub fn loss(&self, x: Tensor<'_>, q: &Quantized, per_element: bool) -> Result<Computed<Loss>> {
        #[cfg(feature = "gpu")]
        if let Some(gpu) = &self.gpu {
            return gpu.loss(x, q, per_element);
        }
        self.computed(cpu::loss(x, q, per_element)?)
    }

    fn computed<T>(&self, value: T) -> Result<Computed<T>> {
        Ok(Computed { value, device: self.info.clone() })
    }
}

/// Every adapter of this machine, as `wgpu-quant devices` lists them; none in a build without the GPU half.
pub fn devices() -> Vec<DeviceInfo> {
    #[cfg(feature = "gpu")]
    return Gpu::adapters().into_iter().map(|adapter| adapter.info).collect();
    #[cfg(not(feature = "gpu"))]
    Vec::new()
}
