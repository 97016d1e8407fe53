//! What is recorded, over which buffers of which layout.

use super::stages::{Source, Space, Work};
use crate::error::Error;
use crate::tensor::ElemType;
use std::fmt;

/// What a [`Plan`](super::Plan) does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// [`cpu::quantize`](crate::cpu::quantize): codes, and the scales and zero points that they need; the loss, if the
    /// specification asks for it.
    Quantize,
    /// [`cpu::quantize_with_scales`](crate::cpu::quantize_with_scales): scales and zero points are read.
    QuantizeWithScales,
    /// [`cpu::fake_quantize`](crate::cpu::fake_quantize): f32 values out.
    FakeQuantize,
    /// [`cpu::fake_quantize_with_scales`](crate::cpu::fake_quantize_with_scales).
    FakeQuantizeWithScales,
    /// [`cpu::dequantize`](crate::cpu::dequantize): codes in, f32 values out.
    Dequantize,
    /// Ranges of the elements, added to those that are there: parts of a tensor, or batches, one after the other.
    Ranges,
    /// Scales and zero points of ranges; no elements are read.
    Scales,
}

impl Operation {
    pub(super) fn work(self) -> (Work, Source) {
        match self {
            Self::Quantize => (Work::Quantize, Source::Tensor),
            Self::QuantizeWithScales => (Work::Quantize, Source::Given),
            Self::FakeQuantize => (Work::FakeQuantize, Source::Tensor),
            Self::FakeQuantizeWithScales => (Work::FakeQuantize, Source::Given),
            Self::Dequantize => (Work::Dequantize, Source::Given),
            Self::Ranges => (Work::Ranges, Source::Tensor),
            Self::Scales => (Work::Scales, Source::Tensor),
        }
    }

    /// Which of the caller's buffers a space lies in.
    pub(super) fn role(self, space: Space) -> Role {
        match space {
            Space::Elems => Role::Input,
            Space::Codes if self == Self::Dequantize => Role::Input,
            Space::Codes | Space::Values => Role::Output,
            Space::Scales => Role::Scales,
            Space::ZeroPoints => Role::ZeroPoints,
            Space::Counts => Role::Counts,
            Space::Ranges if matches!(self, Self::Ranges | Self::Scales) => Role::Ranges,
            Space::LossSums => Role::LossSums,
            Space::AbsErrors => Role::AbsErrors,
            Space::Ranges | Space::Observed | Space::Recipes | Space::Unused => Role::Scratch,
        }
    }
}

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// The elements; of [`Operation::Dequantize`] the codes.
    Input,
    /// The codes, or the f32 values. Bits of the last word beyond the last code are written, as zeros.
    Output,
    /// f32, one per range unit; of casts only with the loss, which needs nominal ones.
    Scales,
    /// i32, one per range unit; of schemes that have them.
    ZeroPoints,
    /// What [`Plan::counts`](super::Plan::counts) takes apart, where elements are quantized.
    Counts,
    /// Two words per range unit, of [`Operation::Ranges`] and [`Operation::Scales`]. All zeros stand for nothing seen; a
    /// recording adds to them and does not clear them.
    Ranges,
    /// What [`Plan::loss`](super::Plan::loss) takes apart, where the specification asks for the loss.
    LossSums,
    /// f32 |x' - x| of each element, with [`LossDetail::PerElement`](crate::LossDetail::PerElement); where rows of 4-bit codes are filled up, one more.
    AbsErrors,
    /// Room between the kernels. It needs no clearing and holds nothing afterwards.
    Scratch,
}

impl Role {
    pub(super) const ALL: [Self; 9] = [
        Self::Input,
        Self::Output,
        Self::Scales,
        Self::ZeroPoints,
        Self::Counts,
        Self::Ranges,
        Self::LossSums,
        Self::AbsErrors,
        Self::Scratch,
    ];

    /// Whether a batch has one for all of its tensors.
    pub(super) fn is_shared(self) -> bool {
        matches!(self, Self::Counts | Self::Scratch)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Input => "input",
            Self::Output => "output",
            Self::Scales => "scales",
            Self::ZeroPoints => "zero points",
            Self::Counts => "counts",
            Self::Ranges => "ranges",
            Self::LossSums => "loss sums",
            Self::AbsErrors => "absolute errors",
            Self::Scratch => "scratch",
        })
    }
}

/// What a plan needs of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Need {
    /// Bytes from the offset on; those of the input are whole vectors of four elements, others whole words.
    pub bytes: u64,
    /// What offsets are a multiple of.
    pub offset_alignment_bytes: u64,
    /// Whether it is written, or bound as if.
    pub is_written: bool,
}

/// How a tensor lies in its buffers.
///
/// ```
/// use wgpu_quant::{ElemType, gpu::Layout};
/// let dense = Layout::new(&[64, 1000], ElemType::F32);
/// let in_two_buffers = dense.clone().slices_elems(&[24_000, 40_000]);
/// let rows_apart = dense.row_pitch_elems(1024);
/// # let _ = (in_two_buffers, rows_apart);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub(super) shape: Vec<usize>,
    pub(super) elem_type: ElemType,
    pub(super) row_pitch_elems: usize,
    pub(super) slices_elems: Vec<usize>,
}

impl Layout {
    /// Row-major and dense, in one buffer.
    pub fn new(shape: &[usize], elem_type: ElemType) -> Self {
        let row_pitch_elems = shape.last().copied().unwrap_or(1);
        Self { shape: shape.to_vec(), elem_type, row_pitch_elems, slices_elems: vec![] }
    }

    /// The same with rows of the last axis of the elements that begin so many elements apart.
    #[must_use]
    pub fn row_pitch_elems(self, row_pitch_elems: usize) -> Self {
        Self { row_pitch_elems, ..self }
    }

    /// The same as a list of slices of so many elements, each in a buffer of its own: the input in as many buffers as there
    /// are slices, the output in as many or in one. Range units may go on from one slice to the next. All slices but the
    /// last begin where a word of codes does.
    #[must_use]
    pub fn slices_elems(self, slices_elems: &[usize]) -> Self {
        Self { slices_elems: slices_elems.to_vec(), ..self }
    }
}

pub(super) fn refused(role: Role, message: impl Into<String>) -> Error {
    Error::Binding { buffer: role.to_string(), message: message.into() }
}
