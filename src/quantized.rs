//! The plain values that both paths take and return.

use crate::error::{Error, Result};
use crate::layout::{Granularity, RangeUnits, elems};
use crate::loss::{Loss, LossSums};
use crate::scheme::{CodeType, Scheme};

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
    /// Whether the `f16` cast takes the largest finite value where infinity would stand.
    pub saturate: bool,
}

impl Spec {
    /// This scheme, one scale for the tensor, no loss, no saturation.
    pub fn new(scheme: Scheme) -> Self {
        Self { scheme, granularity: Granularity::Tensor, loss: LossDetail::None, saturate: false }
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

    /// The same, saturating or not; for the `f16` cast only.
    #[must_use]
    pub fn saturate(self, saturate: bool) -> Self {
        Self { saturate, ..self }
    }

    /// The range units of a tensor of this shape; of a cast one, which has no scale.
    ///
    /// # Errors
    /// [`Error::CastHasNoScale`] of a cast with another granularity than `tensor`, [`Error::CannotSaturate`] of a
    /// scheme that is not `f16`, and those of [`RangeUnits::new`].
    pub fn units(&self, shape: &[usize]) -> Result<RangeUnits> {
        let Self { scheme, granularity, saturate, .. } = *self;
        if saturate && scheme.code() != CodeType::F16 {
            return Err(Error::CannotSaturate { scheme });
        }
        units_of(shape, scheme, granularity)
    }
}

fn units_of(shape: &[usize], scheme: Scheme, granularity: Granularity) -> Result<RangeUnits> {
    if scheme.is_cast() && granularity != Granularity::Tensor {
        return Err(Error::CastHasNoScale { scheme, found: granularity.to_string() });
    }
    RangeUnits::new(shape, granularity)
}

/// The codes of a row of the last axis, in stored bytes.
fn row_bytes(row_elems: usize, code: CodeType) -> usize {
    match code.bits() {
        4 => row_elems.div_ceil(2),
        bits => row_elems * (bits as usize / 8),
    }
}

/// The bytes that a tensor of this shape takes in codes.
///
/// 8- and 16-bit codes stand side by side, little-endian; of 4-bit codes two make a byte, the even element in the
/// low half, and each row of the last axis begins with a byte of its own.
///
/// # Errors
/// [`Error::ShapeOverflow`]
pub fn code_bytes(shape: &[usize], code: CodeType) -> Result<usize> {
    let (&row, outer) = shape.split_last().unwrap_or((&1, &[]));
    let all = elems(shape)?;
    if all == 0 {
        return Ok(0);
    }
    // Not more than 2 bytes an element; a tensor that is addressed in f32 elements has them.
    elems(outer)?.checked_mul(row_bytes(row, code)).ok_or_else(|| Error::ShapeOverflow { shape: shape.to_vec() })
}

/// Where the codes of this element begin, which begins a byte.
pub(crate) fn code_offset(shape: &[usize], code: CodeType, elem: usize) -> usize {
    let row = shape.last().copied().unwrap_or(1).max(1);
    elem / row * row_bytes(row, code) + row_bytes(elem % row, code)
}

/// A quantized tensor: codes, scales, zero points and what they mean.
#[derive(Clone, Debug)]
pub struct Quantized {
    scheme: Scheme,
    granularity: Granularity,
    shape: Vec<usize>,
    codes: Vec<u8>,
    scales: Vec<f32>,
    zero_points: Vec<i32>,
}

/// Equal when every bit is: scheme, granularity, shape, codes, zero points, and the scales' bit patterns.
impl PartialEq for Quantized {
    fn eq(&self, other: &Self) -> bool {
        self.scheme == other.scheme
            && self.granularity == other.granularity
            && self.shape == other.shape
            && self.codes == other.codes
            && self.zero_points == other.zero_points
            && self.scales.len() == other.scales.len()
            && self.scales.iter().zip(&other.scales).all(|(a, b)| a.to_bits() == b.to_bits())
    }
}

impl Eq for Quantized {}

impl Quantized {
    /// A quantized tensor from its parts, as read from a file.
    ///
    /// `codes` holds the stored bytes, as [`code_bytes`] counts them (two's complement for a signed scheme);
    /// `scales` one scale per range unit, `zero_points` one zero point per range unit of a scheme that has them,
    /// none of another. A cast has neither.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] when codes, scales or zero points do not fit the shape,
    /// [`Error::InvalidScale`] when a scale is not positive and finite, [`Error::InvalidZeroPoint`] when a zero
    /// point is no code, [`Error::CastHasNoScale`], and those of [`RangeUnits::new`].
    pub fn from_parts(
        scheme: Scheme,
        granularity: Granularity,
        shape: Vec<usize>,
        codes: Vec<u8>,
        scales: Vec<f32>,
        zero_points: Vec<i32>,
    ) -> Result<Self> {
        let (all_codes, all_scales, all_points) = (&codes, &scales, &zero_points);
        QuantizedParts {
            scheme,
            granularity,
            shape: &shape,
            codes: all_codes,
            scales: all_scales,
            zero_points: all_points,
        }
        .checked_units()?;
        Ok(Self { scheme, granularity, shape, codes, scales, zero_points })
    }

    /// The same of parts that are known to fit.
    pub(crate) fn computed(
        scheme: Scheme,
        granularity: Granularity,
        shape: Vec<usize>,
        codes: Vec<u8>,
        scales: Vec<f32>,
        zero_points: Vec<i32>,
    ) -> Self {
        Self { scheme, granularity, shape, codes, scales, zero_points }
    }

    /// Codes, scales and zero points.
    pub(crate) fn into_parts(self) -> (Vec<u8>, Vec<f32>, Vec<i32>) {
        (self.codes, self.scales, self.zero_points)
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

    /// The number of elements.
    pub fn elems(&self) -> usize {
        elems(&self.shape).expect("checked when built")
    }

    /// The codes' stored bytes.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The code of element `i` in row-major order, as a number; of a cast the bit pattern.
    ///
    /// # Panics
    /// When there is no such element.
    pub fn code(&self, i: usize) -> i32 {
        let code = self.scheme.code();
        let field = match code.bits() {
            4 => {
                let row = self.shape.last().copied().unwrap_or(1);
                let byte = self.codes[i / row * row_bytes(row, code) + i % row / 2];
                u32::from(byte) >> (4 * (i % row % 2)) & 0xf
            }
            8 => u32::from(self.codes[i]),
            _ => u32::from(u16::from_le_bytes([self.codes[2 * i], self.codes[2 * i + 1]])),
        };
        field_value(field, self.scheme)
    }

    /// Every code as a number, in row-major order; of a cast the bit patterns.
    ///
    /// ```
    /// use wgpu_quant::{Granularity, Quantized, Scheme};
    /// let (shape, bytes) = (vec![3], vec![0xf1, 0x08]);
    /// let q = Quantized::from_parts(Scheme::INT4_ABSMAX, Granularity::Tensor, shape, bytes, vec![1.0], vec![])?;
    /// assert_eq!(q.code_values(), [1, -1, -8]);
    /// # Ok::<(), wgpu_quant::Error>(())
    /// ```
    pub fn code_values(&self) -> Vec<i32> {
        (0..self.elems()).map(|i| self.code(i)).collect()
    }

    /// One scale per range unit; none of a cast.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// One zero point per range unit, where the scheme has them.
    pub fn zero_points(&self) -> &[i32] {
        &self.zero_points
    }

    /// The zero point of a range unit; 0 where the scheme has none.
    pub fn zero_point(&self, unit: usize) -> i32 {
        self.zero_points.get(unit).copied().unwrap_or(0)
    }

    #[cfg(feature = "gpu")]
    /// The scales and the zero points.
    pub(crate) fn into_scales(self) -> (Vec<f32>, Vec<i32>) {
        (self.scales, self.zero_points)
    }

    /// The range units; of a cast one.
    pub fn units(&self) -> RangeUnits {
        RangeUnits::new(&self.shape, self.granularity).expect("checked when built")
    }
}

/// A quantized tensor whose codes, scales and zero points lie somewhere else, as in a file.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedParts<'a> {
    /// The scheme.
    pub scheme: Scheme,
    /// Which elements share a scale.
    pub granularity: Granularity,
    /// The dimensions.
    pub shape: &'a [usize],
    /// The codes' stored bytes, as [`code_bytes`] counts them.
    pub codes: &'a [u8],
    /// One scale per range unit; none of a cast.
    pub scales: &'a [f32],
    /// One zero point per range unit of a scheme that has them.
    pub zero_points: &'a [i32],
}

impl QuantizedParts<'_> {
    /// A tensor of its own.
    ///
    /// # Errors
    /// Those of [`Quantized::from_parts`].
    pub fn to_quantized(&self) -> Result<Quantized> {
        let Self { scheme, granularity, shape, codes, scales, zero_points } = *self;
        let (codes, scales) = (codes.to_vec(), scales.to_vec());
        Quantized::from_parts(scheme, granularity, shape.to_vec(), codes, scales, zero_points.to_vec())
    }

    /// The range units, once all has been found to fit them.
    ///
    /// # Errors
    /// Those of [`Quantized::from_parts`].
    pub(crate) fn checked_units(&self) -> Result<RangeUnits> {
        let units = units_of(self.shape, self.scheme, self.granularity)?;
        let (found_elems, expected_elems) = (self.codes.len(), code_bytes(self.shape, self.scheme.code())?);
        if found_elems != expected_elems {
            return Err(Error::LengthMismatch { what: "codes in bytes", found_elems, expected_elems });
        }
        check_given(self.scheme, units, self.scales, self.zero_points)?;
        Ok(units)
    }
}

/// The number that a code's stored bits stand for.
pub(crate) fn field_value(field: u32, scheme: Scheme) -> i32 {
    let sign = if scheme.code().is_signed() { 1 << (scheme.code().bits() - 1) } else { 0 };
    (field ^ sign).wrapping_sub(sign).cast_signed()
}

/// Checks scales and zero points against the range units that they are for.
///
/// # Errors
/// Those of [`Quantized::from_parts`] about them.
pub(crate) fn check_given(scheme: Scheme, units: RangeUnits, scales: &[f32], zero_points: &[i32]) -> Result<()> {
    if scheme.is_cast() && !(scales.is_empty() && zero_points.is_empty()) {
        return Err(Error::CastHasNoScale { scheme, found: "a given scale".to_owned() });
    }
    let (found_elems, expected_elems) = (scales.len(), if scheme.is_cast() { 0 } else { units.units });
    if found_elems != expected_elems {
        return Err(Error::LengthMismatch { what: "scales", found_elems, expected_elems });
    }
    check_zero_points_elems(scheme, units, zero_points.len())?;
    // On bits: a host that treats subnormals as zero must not refuse a subnormal scale.
    if let Some(unit) = scales.iter().position(|s| !(1..0x7f80_0000).contains(&s.to_bits())) {
        return Err(Error::InvalidScale { unit, found: scales[unit] });
    }
    let codes = scheme.qmin()..=scheme.qmax();
    match zero_points.iter().position(|z| !codes.contains(z)) {
        Some(unit) => Err(Error::InvalidZeroPoint { unit, found: zero_points[unit], scheme }),
        None => Ok(()),
    }
}

/// # Errors
/// [`Error::LengthMismatch`] when a scheme has zero points and there is not one per range unit, or it has none.
pub(crate) fn check_zero_points_elems(scheme: Scheme, units: RangeUnits, found_elems: usize) -> Result<()> {
    let expected_elems = if scheme.has_zero_point() { units.units } else { 0 };
    if found_elems == expected_elems {
        return Ok(());
    }
    Err(Error::LengthMismatch { what: "zero points", found_elems, expected_elems })
}

/// How many elements were out of the ordinary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Finite elements whose rounded quotient, with the zero point, lies outside the codes' range; of a cast those
    /// that round to infinity, or would without saturation.
    pub clipped_elems: u64,
    /// NaN elements.
    pub nan_elems: u64,
    /// Infinite elements.
    pub inf_elems: u64,
}

impl Counts {
    pub(crate) fn new(clipped_elems: u32, nan_elems: u32, inf_elems: u32) -> Self {
        Self { clipped_elems: clipped_elems.into(), nan_elems: nan_elems.into(), inf_elems: inf_elems.into() }
    }

    /// Adds those of other elements.
    pub(crate) fn merge(&mut self, other: Self) {
        self.clipped_elems += other.clipped_elems;
        self.nan_elems += other.nan_elems;
        self.inf_elems += other.inf_elems;
    }
}

/// What quantizing a tensor gives.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuantizeOutput {
    /// Codes, scales and zero points.
    pub tensor: Quantized,
    /// Elements out of the ordinary.
    pub counts: Counts,
    /// The loss, when [`Spec::loss`] asked for it.
    pub loss: Option<Loss>,
}

impl QuantizeOutput {
    /// Of an empty tensor.
    pub(crate) fn empty() -> Self {
        let (scheme, granularity) = (Scheme::BF16, Granularity::Tensor);
        let tensor = Quantized::computed(scheme, granularity, vec![0], vec![], vec![], vec![]);
        Self { tensor, counts: Counts::default(), loss: None }
    }

    pub(crate) fn new(tensor: Quantized, counts: Counts, loss: Option<Loss>) -> Self {
        Self { tensor, counts, loss }
    }
}

/// What quantizing a tensor piece by piece gives beside its codes, which were handed over.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Streamed {
    /// One scale per range unit; none of a cast.
    pub scales: Vec<f32>,
    /// One zero point per range unit, where the scheme has them.
    pub zero_points: Vec<i32>,
    /// Elements out of the ordinary.
    pub counts: Counts,
    /// The loss of the tensor, where it was asked for; a device streams without.
    pub loss: Option<LossSums>,
}

/// What quantizing and de-quantizing in one pass gives.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FakeQuantizeOutput {
    /// `x'` of every element, in row-major order.
    pub values: Vec<f32>,
    /// One scale per range unit; none of a cast.
    pub scales: Vec<f32>,
    /// One zero point per range unit, where the scheme has them.
    pub zero_points: Vec<i32>,
    /// Elements out of the ordinary.
    pub counts: Counts,
}

impl FakeQuantizeOutput {
    /// Of an empty tensor.
    pub(crate) fn empty() -> Self {
        Self::new(vec![], vec![], vec![], Counts::default())
    }

    pub(crate) fn new(values: Vec<f32>, scales: Vec<f32>, zero_points: Vec<i32>, counts: Counts) -> Self {
        Self { values, scales, zero_points, counts }
    }
}

/// Equal when every bit is.
impl PartialEq for FakeQuantizeOutput {
    fn eq(&self, other: &Self) -> bool {
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        bits(&self.values) == bits(&other.values)
            && bits(&self.scales) == bits(&other.scales)
            && (&self.zero_points, self.counts) == (&other.zero_points, other.counts)
    }
}

impl Eq for FakeQuantizeOutput {}
