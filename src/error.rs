//! The one error type of the crate.

use crate::layout::Granularity;
use crate::scheme::{CodeType, Mapping, Scheme};
use std::fmt;
use std::path::PathBuf;

/// What went wrong: what was found, and what was allowed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A scheme's name is not one of [`Scheme::ALL`](crate::Scheme::ALL).
    UnknownScheme {
        /// The name that was given.
        found: String,
    },
    /// No scheme has this code type and mapping.
    NoScheme {
        /// The code type that was asked for.
        code: CodeType,
        /// The mapping that was asked for.
        mapping: Mapping,
    },
    /// A granularity is not `tensor`, `channel=K` or `group=N`.
    UnknownGranularity {
        /// The text that was given.
        found: String,
    },
    /// A text is not the digest of anything.
    InvalidDigest {
        /// The text that was given.
        found: String,
    },
    /// A channel axis lies outside the tensor's rank.
    AxisOutOfRange {
        /// The axis that was asked for; negative counts from the end.
        axis: i32,
        /// The tensor's number of dimensions.
        rank: usize,
    },
    /// Groups need an axis that they divide, and a scalar has none.
    ScalarHasNoGroups {
        /// The granularity that was asked for.
        granularity: Granularity,
    },
    /// A cast has no scale, so that no elements can share one.
    CastHasNoScale {
        /// The scheme.
        scheme: Scheme,
        /// What was asked for: a granularity, scales.
        found: String,
    },
    /// Only the `f16` cast saturates.
    CannotSaturate {
        /// The scheme.
        scheme: Scheme,
    },
    /// Elements lie in memory as the kernels cannot read them.
    Strides {
        /// The shape.
        shape: Vec<usize>,
        /// The strides that were found.
        strides_elems: Vec<usize>,
    },
    /// A shape's element count does not fit in a `usize`.
    ShapeOverflow {
        /// The shape.
        shape: Vec<usize>,
    },
    /// Two lengths that must agree do not.
    LengthMismatch {
        /// What the length belongs to.
        what: &'static str,
        /// The length that was found.
        found_elems: usize,
        /// The length that was expected.
        expected_elems: usize,
    },
    /// Two tensors that must have the same shape do not.
    ShapeMismatch {
        /// The shape that was found.
        found: Vec<usize>,
        /// The shape that was expected.
        expected: Vec<usize>,
    },
    /// A given scale is not a positive, finite number.
    InvalidScale {
        /// The range unit that the scale belongs to.
        unit: usize,
        /// The scale that was given.
        found: f32,
    },
    /// A given zero point is no code.
    InvalidZeroPoint {
        /// The range unit that the zero point belongs to.
        unit: usize,
        /// The zero point that was given.
        found: i32,
        /// The scheme whose code it should be.
        scheme: Scheme,
    },
    /// A moving average's constant is not above 0 and at most 1.
    AveragingConstant {
        /// The constant that was given.
        found: f32,
    },
    /// Bytes are not saved ranges.
    SavedRanges {
        /// What was found, and what was allowed.
        message: String,
    },
    /// What one `Gpu` made was given to another.
    OtherDevice {
        /// What it is.
        what: &'static str,
    },
    /// A buffer cannot be bound to a plan, or read by a call.
    Binding {
        /// What the buffer is for.
        buffer: String,
        /// What was found, and what is allowed.
        message: String,
    },
    /// No adapter fits what was asked for.
    NoAdapter {
        /// What was asked for.
        wanted: String,
        /// The adapters that were seen, or why there are none.
        tried: String,
    },
    /// An adapter cannot run the kernels.
    UnfitAdapter {
        /// The adapter's name.
        adapter: String,
        /// What it lacks.
        reason: String,
    },
    /// An adapter was found but gave no device.
    RequestDevice {
        /// The adapter's name.
        adapter: String,
        /// What it answered.
        message: String,
    },
    /// A buffer or a dispatch is larger than the device allows.
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        found: u64,
        /// The largest size that the device allows.
        allowed: u64,
    },
    /// A number that the caller chose is too small for what is asked for.
    TooSmall {
        /// What it is, with its unit.
        what: &'static str,
        /// The number that was given.
        found: u64,
        /// A number that will do.
        enough: u64,
    },
    /// The device has not enough memory.
    OutOfMemory {
        /// What the device reported.
        message: String,
    },
    /// The device was lost, before or during the call.
    DeviceLost {
        /// What the device reported.
        message: String,
    },
    /// The device did not finish in time.
    Timeout {
        /// How long the call waited.
        seconds: u64,
    },
    /// wgpu refused a call or failed inside; this is a defect of this crate or of the driver.
    Gpu {
        /// What wgpu reported.
        message: String,
    },
    /// A file could not be read or written.
    Io {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        source: std::io::Error,
    },
    /// A file's content is not what its format promises, or not what can be processed.
    File {
        /// The file.
        path: PathBuf,
        /// What was found, and what was allowed.
        message: String,
    },
}

/// The crate's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownScheme { found } => {
                write!(f, "unknown scheme {found:?}; the schemes are ")?;
                for (i, scheme) in Scheme::ALL.iter().enumerate() {
                    write!(f, "{}{scheme}", if i == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            Self::NoScheme { code, mapping } => {
                write!(f, "no scheme has code type {code:?} and mapping {mapping:?}; with {code:?} there are ")?;
                let fit = Scheme::ALL.iter().filter(|scheme| scheme.code() == *code);
                for (i, scheme) in fit.enumerate() {
                    write!(f, "{}{scheme}", if i == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            Self::UnknownGranularity { found } => {
                write!(f, "unknown granularity {found:?}; use `tensor`, `channel=K` or `group=N` with N of 1 and more")
            }
            Self::InvalidDigest { found } => {
                write!(f, "digest {found:?}; 64 hex digits in lower case are allowed")
            }
            Self::AxisOutOfRange { axis, rank } if *rank == 0 => {
                write!(f, "axis {axis} does not exist: a scalar has no axis; use `tensor`")
            }
            Self::AxisOutOfRange { axis, rank } => {
                write!(f, "axis {axis} does not exist in a tensor of rank {rank}; axes are -{rank} to {}", rank - 1)
            }
            Self::ScalarHasNoGroups { granularity } => {
                write!(f, "{granularity} needs a last axis, and a scalar has none; use `tensor`")
            }
            Self::CastHasNoScale { scheme, found } => {
                write!(
                    f,
                    "{scheme} is a cast and has no scale: {found} has no meaning; use `tensor` and give no scales"
                )
            }
            Self::CannotSaturate { scheme } => {
                write!(f, "{scheme} cannot saturate on request; only `f16` can")
            }
            Self::Strides { shape, strides_elems } => {
                write!(f, "shape {shape:?} with strides of {strides_elems:?} elements cannot be read in place: ")?;
                write!(f, "rows may lie apart, all else must be row-major; make a row-major copy")
            }
            Self::ShapeOverflow { shape } => {
                write!(f, "shape {shape:?} holds more elements or range units than this machine can address")
            }
            Self::LengthMismatch { what, found_elems, expected_elems } => {
                write!(f, "{what} holds {found_elems} elements, expected {expected_elems}")
            }
            Self::ShapeMismatch { found, expected } => {
                write!(f, "the quantized tensor has shape {found:?}, the original {expected:?}")
            }
            Self::InvalidScale { unit, found } => {
                write!(f, "scale {found} of range unit {unit} is not a positive finite number")
            }
            Self::InvalidZeroPoint { unit, found, scheme } => {
                write!(f, "zero point {found} of range unit {unit} is not a code of {scheme}; ")?;
                write!(f, "{} to {} are", scheme.qmin(), scheme.qmax())
            }
            Self::AveragingConstant { found } => {
                write!(f, "averaging constant {found}; above 0 and up to 1 are allowed")
            }
            Self::SavedRanges { message } => write!(f, "saved ranges: {message}"),
            Self::OtherDevice { what } => {
                write!(f, "{what} belongs to another Gpu; read it back there and restore it here")
            }
            Self::Binding { buffer, message } => write!(f, "the {buffer} buffer: {message}"),
            Self::NoAdapter { wanted, tried } => write!(f, "no adapter is {wanted}; {tried}"),
            Self::UnfitAdapter { adapter, reason } => write!(f, "adapter {adapter:?} cannot run the kernels: {reason}"),
            Self::RequestDevice { adapter, message } => {
                write!(f, "adapter {adapter:?} gave no device: {message}")
            }
            Self::TooLarge { what, found, allowed } => {
                write!(f, "{what} is {found}, the device allows at most {allowed}")
            }
            Self::TooSmall { what, found, enough } => write!(f, "{what} is {found}, {enough} will do"),
            Self::OutOfMemory { message } => write!(f, "out of device memory: {message}"),
            Self::DeviceLost { message } => write!(f, "the device was lost: {message}"),
            Self::Timeout { seconds } => {
                write!(f, "the device did not finish within {seconds} s")
            }
            Self::Gpu { message } => write!(f, "wgpu: {message}"),
            Self::Io { path, source } => write!(f, "{}: {source}", path.display()),
            Self::File { path, message } => write!(f, "{}: {message}", path.display()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
