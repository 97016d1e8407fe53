//! The plain values that both paths take and return.

use crate::error::{Error, Result};
use crate::layout::{Granularity, RangeUnits};
use crate::loss::Loss;
use crate::scheme::Scheme;

/// How much of the loss to compute along with the codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LossDetail {
    /// None: quantize alone does not pay for it.
    #[default]
    None,
    /// Per range unit and for the tensor.
    Summary,
    /// The same, and |x' - x| of every element.
    PerElement,
}

/// What to do with a tensor: scheme, granularity and how much of the loss to compute.
///
/// ```
/// use wgpu_quant::{Granularity, LossDetail, Scheme, Spec};
/// let spec = Spec::new(Scheme::INT8_ABSMAX).per(Granularity::Channel(0)).loss(LossDetail::Summary);
/// assert_eq!(spec.scheme, Scheme::INT8_ABSMAX);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Spec {
    /// The code type and arithmetic.
    pub scheme: Scheme,
    /// Which elements share a scale.
    pub granularity: Granularity,
    /// How much of the loss to compute.
    pub loss: LossDetail,
}

impl Spec {
    /// This scheme, one scale for the tensor, no loss.
    pub fn new(scheme: Scheme) -> Self {
        Self { scheme, granularity: Granularity::Tensor, loss: LossDetail::None }
    }

    /// The same with this granularity.
    #[must_use]
    pub fn per(self, granularity: Granularity) -> Self {
        Self { granularity, ..self }
    }

    /// The same with this much of the loss.
    #[must_use]
    pub fn loss(self, loss: LossDetail) -> Self {
        Self { loss, ..self }
    }
}

/// A quantized tensor: codes, scales and what they mean.
#[derive(Clone, Debug)]
pub struct Quantized {
    scheme: Scheme,
    granularity: Granularity,
    shape: Vec<usize>,
    codes: Vec<u8>,
    scales: Vec<f32>,
}

/// Equal when every bit is: scheme, granularity, shape, codes, and the scales' bit patterns.
impl PartialEq for Quantized {
    fn eq(&self, other: &Self) -> bool {
        self.scheme == other.scheme
            && self.granularity == other.granularity
            && self.shape == other.shape
            && self.codes == other.codes
            && self.scales.len() == other.scales.len()
            && self.scales.iter().zip(&other.scales).all(|(a, b)| a.to_bits() == b.to_bits())
    }
}

impl Eq for Quantized {}

impl Quantized {
    /// A quantized tensor from its parts, as read from a file.
    ///
    /// `codes` holds one byte per element in row-major order (two's complement for a signed scheme);
    /// `scales` one scale per range unit: one in all for `tensor`, `shape[K]` for `channel=K`.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] when the codes or the scales do not fit the shape,
    /// [`Error::InvalidScale`] when a scale is not positive and finite, and those of [`RangeUnits::new`].
    pub fn from_parts(
        scheme: Scheme,
        granularity: Granularity,
        shape: Vec<usize>,
        codes: Vec<u8>,
        scales: Vec<f32>,
    ) -> Result<Self> {
        let units = RangeUnits::new(&shape, granularity)?;
        let lengths = [("codes", codes.len(), units.elems()), ("scales", scales.len(), units.units)];
        for (what, found_elems, expected_elems) in lengths {
            if found_elems != expected_elems {
                return Err(Error::LengthMismatch { what, found_elems, expected_elems });
            }
        }
        check_scales(&scales)?;
        Ok(Self { scheme, granularity, shape, codes, scales })
    }

    /// The scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Which elements share a scale.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The codes' bytes, one per element in row-major order.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The codes as signed numbers.
    pub fn codes_i8(&self) -> &[i8] {
        bytemuck::cast_slice(&self.codes)
    }

    /// One scale per range unit.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The range units.
    pub fn units(&self) -> RangeUnits {
        RangeUnits::new(&self.shape, self.granularity).expect("checked when built")
    }
}

/// # Errors
/// [`Error::InvalidScale`] names the first scale that is not positive and finite.
pub(crate) fn check_scales(scales: &[f32]) -> Result<()> {
    // On bits: a host that treats subnormals as zero must not refuse a subnormal scale.
    match scales.iter().position(|s| !(1..0x7f80_0000).contains(&s.to_bits())) {
        Some(unit) => Err(Error::InvalidScale { unit, found: scales[unit] }),
        None => Ok(()),
    }
}

/// How many elements were out of the ordinary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Finite elements whose rounded quotient lies outside the codes' range.
    pub clipped_elems: u64,
    /// NaN elements.
    pub nan_elems: u64,
    /// Infinite elements.
    pub inf_elems: u64,
}

/// What quantizing a tensor gives.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuantizeOutput {
    /// Codes and scales.
    pub tensor: Quantized,
    /// Elements out of the ordinary.
    pub counts: Counts,
    /// The loss, when [`Spec::loss`] asked for it.
    pub loss: Option<Loss>,
}

impl QuantizeOutput {
    pub(crate) fn new(tensor: Quantized, counts: Counts, loss: Option<Loss>) -> Self {
        Self { tensor, counts, loss }
    }
}
