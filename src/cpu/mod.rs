//! The CPU path: the specification of every stage, and what a machine without a GPU uses.
//!
//! Plain IEEE binary32 Rust (`x / s`, round to nearest even), parallel over the machine's cores: the calling thread works,
//! and so many of rayon's pool (the current or the global one) that they are as many as that has. It is not a
//! translation of the shaders' integer algorithms: two independent derivations that agree on every bit are
//! the evidence that both are right. On a thread whose float environment is not IEEE's default
//! (flush-to-zero, another rounding mode) a task takes the integer twin instead; the bits are the same, and a caller
//! like that leaves the work to the pool.
//!
//! The stages have the kernels' names: [`min_max`], [`scale`](scale()) and [`zero_point`], [`quantize`](quantize()),
//! [`dequantize`](dequantize()), [`fake_quantize`](fake_quantize()) (both in one go), [`loss`](loss()), and over many
//! batches [`observe`](observe()). [`quantize_stream`] and [`dequantize_stream`] work on files.

mod code;
mod dequantize;
mod fake_quantize;
mod fold;
mod loss;
mod min_max;
mod nibble;
mod observe;
mod own_grid;
mod quantize;
mod scale;
mod simd;
mod stream;
mod units;

pub use dequantize::{dequantize, dequantize_into};
pub use fake_quantize::{fake_quantize, fake_quantize_into, fake_quantize_with_scales};
pub use loss::loss;
pub use min_max::{Range, Ranges, min_max};
pub use observe::{merge_ranges, observe, scales};
pub use quantize::{quantize, quantize_into, quantize_with_scales, quantize_with_scales_into};
pub use scale::{scale, zero_point};
#[doc(hidden)]
pub use simd::limit_simd_level;
pub use simd::{SimdLevel, simd_level};
pub(crate) use stream::Ring;
pub use stream::{dequantize_stream, quantize_stream};
