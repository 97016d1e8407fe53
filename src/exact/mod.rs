//! The shaders' integer arithmetic in Rust, function by function: each file is the twin of the WGSL file of
//! the same name under `shaders/exact/`.
//!
//! Floats are bit patterns in u32; no function computes with floats. Exhaustive tests run it against the
//! plain f32 path, and the CPU path takes it on hosts whose floating-point environment is not IEEE's default.

pub(crate) mod code;
pub(crate) mod float;
pub(crate) mod loss;
pub(crate) mod narrow;
pub(crate) mod observe;
pub(crate) mod scale;
pub(crate) mod widen;
