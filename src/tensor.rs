//! A borrowed tensor of any float type, dense or with a row pitch.

use crate::error::{Error, Result};
use crate::layout::elems;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ElemType {
    /// IEEE binary32, taken as it is.
    #[default]
    F32,
    /// IEEE binary16, widened exactly.
    F16,
    /// bfloat16, widened exactly.
    Bf16,
    /// IEEE binary64, rounded once to binary32, to nearest, ties to even.
    F64,
}

impl ElemType {
    /// Every type.
    pub const ALL: &'static [Self] = &[Self::F32, Self::F16, Self::Bf16, Self::F64];

    /// Bytes per element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// The type's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F64 => "f64",
        }
    }
}

/// A borrowed row-major tensor of floats.
///
/// Every element is one binary32 value to all that follows: f32 as it is, f16 and bf16 widened exactly, f64
/// rounded once. Rows (the last axis) may lie further apart than they are long.
///
/// ```
/// use wgpu_quant::{ElemType, Tensor};
/// let x = Tensor::new(&[1.0, 2.0, 3.0, 4.0], &[2, 2])?;
/// assert_eq!(x.elem_type(), ElemType::F32);
/// let halves = Tensor::f16(&[0x3c00, 0xc000], &[2])?; // 1, -2
/// let mut values = [0.0; 2];
/// halves.read(0, &mut values);
/// assert_eq!(values, [1.0, -2.0]);
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Elements in this machine's byte order.
    bytes: &'a [u8],
    elem_type: ElemType,
    shape: &'a [usize],
    row_elems: usize,
    row_pitch_elems: usize,
    elems: usize,
}

impl<'a> Tensor<'a> {
    /// A tensor of these values, in row-major order.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] when the shape's product is not the number of values,
    /// [`Error::ShapeOverflow`] when it does not fit in a `usize`.
    pub fn new(data: &'a [f32], shape: &'a [usize]) -> Result<Self> {
        Self::from_bytes(ElemType::F32, bytemuck::cast_slice(data), shape)
    }

    /// A tensor of binary16 values, given as bit patterns.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn f16(data: &'a [u16], shape: &'a [usize]) -> Result<Self> {
        Self::from_bytes(ElemType::F16, bytemuck::cast_slice(data), shape)
    }

    /// A tensor of bfloat16 values, given as bit patterns.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn bf16(data: &'a [u16], shape: &'a [usize]) -> Result<Self> {
        Self::from_bytes(ElemType::Bf16, bytemuck::cast_slice(data), shape)
    }

    /// A tensor of binary64 values.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn f64(data: &'a [f64], shape: &'a [usize]) -> Result<Self> {
        Self::from_bytes(ElemType::F64, bytemuck::cast_slice(data), shape)
    }

    /// A tensor of the values that these bytes hold, at any address, in this machine's byte order.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn from_bytes(elem_type: ElemType, bytes: &'a [u8], shape: &'a [usize]) -> Result<Self> {
        let row_elems = shape.last().copied().unwrap_or(1);
        let expected_elems = elems(shape)?;
        let found_elems = bytes.len() / elem_type.bytes();
        if found_elems != expected_elems || !bytes.len().is_multiple_of(elem_type.bytes()) {
            return Err(Error::LengthMismatch { what: "tensor", found_elems, expected_elems });
        }
        Ok(Self { bytes, elem_type, shape, row_elems, row_pitch_elems: row_elems, elems: expected_elems })
    }

    /// A tensor whose elements lie these strides apart, counted in elements, one stride per axis.
    ///
    /// Allowed are row-major strides, and rows (the last axis, of stride 1) that lie further apart than they are
    /// long: then each axis before the last two steps over as many whole rows as its inner axes hold. What stands
    /// between rows is never read. An axis of length 1 may have any stride. The bytes may end with the last row.
    ///
    /// # Errors
    /// [`Error::Strides`] when they are others, [`Error::LengthMismatch`] when the bytes do not reach to the last
    /// element, and [`Error::ShapeOverflow`].
    pub fn strided(elem_type: ElemType, bytes: &'a [u8], shape: &'a [usize], strides_elems: &[usize]) -> Result<Self> {
        let refuse = || Error::Strides { shape: shape.to_vec(), strides_elems: strides_elems.to_vec() };
        let all = elems(shape)?;
        if strides_elems.len() != shape.len() {
            return Err(refuse());
        }
        let row_elems = shape.last().copied().unwrap_or(1);
        if all == 0 {
            return Ok(Self { bytes: &[], elem_type, shape, row_elems, row_pitch_elems: row_elems, elems: 0 });
        }
        // An axis of length 1 is never stepped over.
        let mut fits = row_elems == 1 || strides_elems.last().is_none_or(|&stride| stride == 1);
        let mut pitch = None;
        let mut inner_rows = 1usize;
        for (&n, &stride) in shape.iter().zip(strides_elems).rev().skip(1).filter(|(n, _)| **n > 1) {
            let pitch = *pitch.get_or_insert(stride);
            fits &= pitch >= row_elems && pitch.checked_mul(inner_rows) == Some(stride);
            inner_rows *= n;
        }
        if !fits {
            return Err(refuse());
        }
        let row_pitch_elems = pitch.unwrap_or(row_elems);
        let rows = all / row_elems;
        let expected_elems = (rows - 1)
            .checked_mul(row_pitch_elems)
            .and_then(|n| n.checked_add(row_elems))
            .ok_or_else(|| Error::ShapeOverflow { shape: shape.to_vec() })?;
        let found_elems = bytes.len() / elem_type.bytes();
        if found_elems < expected_elems {
            return Err(Error::LengthMismatch { what: "tensor", found_elems, expected_elems });
        }
        let bytes = &bytes[..expected_elems * elem_type.bytes()];
        Ok(Self { bytes, elem_type, shape, row_elems, row_pitch_elems, elems: all })
    }

    /// The values' bytes, from the first row to the last, with what stands between rows.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The elements' type.
    pub fn elem_type(&self) -> ElemType {
        self.elem_type
    }

    /// The dimensions.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The number of elements.
    pub fn elems(&self) -> usize {
        self.elems
    }

    /// The length of the last axis; 1 of a scalar.
    pub fn row_elems(&self) -> usize {
        self.row_elems
    }

    /// The distance of rows, counted in elements.
    pub fn row_pitch_elems(&self) -> usize {
        self.row_pitch_elems
    }

    /// Whether each row follows the one before.
    pub fn is_dense(&self) -> bool {
        self.row_pitch_elems == self.row_elems
    }

    /// The values themselves, where they are f32, dense, and aligned as a slice must be.
    pub fn as_f32(&self) -> Option<&'a [f32]> {
        match self.elem_type {
            ElemType::F32 if self.is_dense() => bytemuck::try_cast_slice(self.bytes).ok(),
            _ => None,
        }
    }

    /// The values of the elements from `start` on, in row-major order, as f32.
    ///
    /// # Panics
    /// When the tensor ends before `out` does.
    pub fn read(&self, start: usize, out: &mut [f32]) {
        self.read_with(start, out, |bytes, out| crate::exact::widen::read(self.elem_type, bytes, out));
    }

    /// [`read`](Self::read) with another way to turn bytes into values.
    pub(crate) fn read_with(&self, start: usize, out: &mut [f32], read: impl Fn(&[u8], &mut [f32])) {
        let mut i = start;
        let mut rest = out;
        while !rest.is_empty() {
            let (row, column) = if self.is_dense() { (0, i) } else { (i / self.row_elems, i % self.row_elems) };
            let run = if self.is_dense() { rest.len() } else { rest.len().min(self.row_elems - column) };
            let at = (row * self.row_pitch_elems + column) * self.elem_type.bytes();
            let (now, later) = rest.split_at_mut(run);
            read(&self.bytes[at..at + run * self.elem_type.bytes()], now);
            (i, rest) = (i + run, later);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(x: Tensor<'_>) -> Vec<f32> {
        let mut out = vec![0.0; x.elems()];
        x.read(0, &mut out);
        out
    }

    #[test]
    fn a_row_pitch_steps_over_what_lies_between_rows() {
        let data: Vec<f32> = (0..40).map(|i| i as f32).collect();
        let bytes = bytemuck::cast_slice(&data);
        let x = Tensor::strided(ElemType::F32, bytes, &[2, 2, 3], &[10, 5, 1]).unwrap();
        assert_eq!(values(x), [0., 1., 2., 5., 6., 7., 10., 11., 12., 15., 16., 17.]);
        assert_eq!((x.row_pitch_elems(), x.is_dense(), x.as_f32()), (5, false, None));
        let mut middle = [0.0; 4];
        x.read(2, &mut middle);
        assert_eq!(middle, [2., 5., 6., 7.]);
        // An axis of length 1 may have any stride, and dense strides are dense.
        for (shape, strides) in [(&[1, 2, 3][..], &[77, 3, 1][..]), (&[2, 1, 3], &[3, 9, 1]), (&[6], &[1]), (&[], &[])]
        {
            assert!(Tensor::strided(ElemType::F32, bytes, shape, strides).unwrap().is_dense(), "{shape:?} {strides:?}");
        }
        let x = Tensor::strided(ElemType::F32, bytes, &[2, 1, 3], &[8, 0, 1]).unwrap();
        assert_eq!(values(x), [0., 1., 2., 8., 9., 10.]);
    }

    #[test]
    fn other_strides_are_refused_with_what_to_do() {
        let bytes = [0u8; 400];
        for (shape, strides) in [
            (&[2, 3][..], &[1, 2][..]),
            (&[2, 3], &[2, 1]),
            (&[2, 2, 3], &[11, 5, 1]),
            (&[2, 2, 3], &[3, 6, 1]),
            (&[4], &[2]),
            (&[2, 3], &[3]),
            (&[2, 3], &[0, 1]),
        ] {
            let error = Tensor::strided(ElemType::F32, &bytes, shape, strides).unwrap_err();
            assert!(error.to_string().contains("row-major copy"), "{error}");
        }
        let short = Tensor::strided(ElemType::F32, &bytes[..28], &[2, 3], &[5, 1]).unwrap_err();
        assert!(short.to_string().contains("7 elements, expected 8"), "{short}");
        assert!(Tensor::strided(ElemType::F32, &[], &[0, 3], &[3, 1]).unwrap().elems() == 0);
    }

    #[test]
    fn every_type_is_read_at_any_address() {
        let mut bytes = [0u8; 33];
        bytes[1..9].copy_from_slice(&(-1.5f64).to_ne_bytes());
        bytes[9..17].copy_from_slice(&2.0f64.to_ne_bytes());
        assert_eq!(values(Tensor::from_bytes(ElemType::F64, &bytes[1..17], &[2]).unwrap()), [-1.5, 2.0]);
        bytes[1..5].copy_from_slice(&7.0f32.to_ne_bytes());
        assert_eq!(values(Tensor::from_bytes(ElemType::F32, &bytes[1..5], &[]).unwrap()), [7.0]);
        assert_eq!(values(Tensor::bf16(&[0xbfc0], &[1]).unwrap()), [-1.5]);
        assert_eq!(values(Tensor::f16(&[0xbe00, 1], &[2]).unwrap()), [-1.5, 2f32.powi(-24)]);
        assert!(Tensor::from_bytes(ElemType::F64, &bytes[..15], &[2]).is_err());
        assert!(Tensor::from_bytes(ElemType::F16, &bytes[..5], &[2]).is_err());
    }
}
