#![doc = include_str!("../README.md")]

mod backend;
pub mod cpu;
mod device;
mod error;
mod exact;
#[cfg(feature = "cli")]
pub mod file;
mod float_env;
#[cfg(feature = "gpu")]
pub mod gpu;
mod layout;
pub mod loss;
mod pieces;
mod quantized;
mod range;
#[cfg(any(test, feature = "gpu"))]
mod rng;
mod scheme;
#[cfg(feature = "gpu")]
pub mod selftest;
mod tensor;
#[cfg(test)]
#[path = "../tests/common/corpus.rs"]
mod test_data;
mod threads;

pub use backend::{Backend, devices};
pub use device::{Computed, DeviceInfo, DeviceLimits};
pub use error::{Error, Result};
#[cfg(feature = "gpu")]
pub use gpu::Gpu;
pub use layout::{Granularity, RangeUnits, elems};
pub use loss::{Loss, LossSummary, LossSums, UnitLoss};
pub use quantized::{
    Counts, FakeQuantizeOutput, LossDetail, QuantizeOutput, Quantized, QuantizedParts, Spec, Streamed, code_bytes,
};
pub use range::{ObservedRanges, Observer};
pub use scheme::{CodeType, Mapping, Scheme};
pub use tensor::{ElemType, Tensor};
#[cfg(feature = "gpu")]
pub use wgpu;
