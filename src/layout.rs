//! Shapes and lengths, in whole numbers: which element belongs to which range unit.

use crate::error::{Error, Result};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Which elements share a scale: the tensor, or each index of one axis.
///
/// Written `tensor` and `channel=K`; a negative `K` counts from the last axis.
///
/// ```
/// use wgpu_quant::Granularity;
/// assert_eq!("channel=-1".parse::<Granularity>()?, Granularity::Channel(-1));
/// assert_eq!(Granularity::Tensor.to_string(), "tensor");
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Granularity {
    /// One scale for the whole tensor.
    #[default]
    Tensor,
    /// One scale per index of this axis; negative counts from the end.
    Channel(i32),
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor => f.pad("tensor"),
            Self::Channel(axis) => f.pad(&format!("channel={axis}")),
        }
    }
}

impl FromStr for Granularity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix("channel=").map(str::parse) {
            Some(Ok(axis)) => Ok(Self::Channel(axis)),
            None if text == "tensor" => Ok(Self::Tensor),
            _ => Err(Error::UnknownGranularity { found: text.to_owned() }),
        }
    }
}

/// The number of elements of a shape; the empty shape is a scalar and holds one.
///
/// # Errors
/// [`Error::ShapeOverflow`] when the product does not fit in a `usize`.
pub fn elems(shape: &[usize]) -> Result<usize> {
    // A zero dimension makes the tensor empty, however large the others are.
    if shape.contains(&0) {
        return Ok(0);
    }
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .ok_or_else(|| Error::ShapeOverflow { shape: shape.to_vec() })
}

/// How a tensor falls into range units, seen as `[outer, units, inner]` in row-major order.
///
/// Element `i` belongs to unit `(i / inner) % units`. `channel=K` of shape `[d0 .. dn]` has
/// `outer = d0 * .. * d(K-1)`, `units = dK`, `inner = d(K+1) * .. * dn`; `tensor` has one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeUnits {
    /// How often the sequence of units repeats.
    pub outer: usize,
    /// The number of range units, and so of scales.
    pub units: usize,
    /// Consecutive elements of one unit.
    pub inner_elems: usize,
}

impl RangeUnits {
    /// The range units of a shape.
    ///
    /// # Errors
    /// [`Error::AxisOutOfRange`] when the axis does not exist, [`Error::ShapeOverflow`] when the shape is
    /// too large to address.
    pub fn new(shape: &[usize], granularity: Granularity) -> Result<Self> {
        let all = elems(shape)?;
        match granularity {
            Granularity::Tensor => Ok(Self { outer: 1, units: 1, inner_elems: all }),
            Granularity::Channel(axis) => {
                let rank = shape.len();
                let from_start = if axis < 0 { axis + i32::try_from(rank).unwrap_or(i32::MAX) } else { axis };
                let k = usize::try_from(from_start)
                    .ok()
                    .filter(|&k| k < rank)
                    .ok_or(Error::AxisOutOfRange { axis, rank })?;
                if all == 0 {
                    return Ok(Self { outer: 0, units: shape[k], inner_elems: 0 });
                }
                Ok(Self {
                    outer: shape[..k].iter().product(),
                    units: shape[k],
                    inner_elems: shape[k + 1..].iter().product(),
                })
            }
        }
    }

    /// The number of elements.
    pub fn elems(self) -> usize {
        self.outer * self.units * self.inner_elems
    }

    /// The unit of element `i`.
    pub fn unit_of(self, i: usize) -> usize {
        (i / self.inner_elems) % self.units
    }
}

/// A borrowed row-major f32 tensor.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    data: &'a [f32],
    shape: &'a [usize],
}

impl<'a> Tensor<'a> {
    /// A tensor of these values, in row-major order.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] when the shape's product is not the number of values,
    /// [`Error::ShapeOverflow`] when it does not fit in a `usize`.
    pub fn new(data: &'a [f32], shape: &'a [usize]) -> Result<Self> {
        let expected_elems = elems(shape)?;
        if data.len() != expected_elems {
            return Err(Error::LengthMismatch { what: "tensor", found_elems: data.len(), expected_elems });
        }
        Ok(Self { data, shape })
    }

    /// The values.
    pub fn data(&self) -> &'a [f32] {
        self.data
    }

    /// The dimensions.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }
}

/// Consecutive range units whose scales fit one buffer, and consecutive elements that do.
#[cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "only the device cuts tensors into chunks"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) start: usize,
    pub(crate) elems: u32,
    /// The slab that its units belong to: units `slab * slab_units` and on.
    pub(crate) slab: usize,
    /// The unit of its first element, counted within the slab.
    pub(crate) first_unit: u32,
    /// What is left of the first element's run, as far as a u32 can say.
    pub(crate) first_left: u32,
}

#[cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "only the device cuts tensors into chunks"))]
impl RangeUnits {
    /// The number of slabs of this many units; one at least.
    pub(crate) fn slabs(self, slab_units: usize) -> usize {
        self.units.div_ceil(slab_units).max(1)
    }

    /// The units of a slab.
    pub(crate) fn slab(self, slab: usize, slab_units: usize) -> Range<usize> {
        slab * slab_units..((slab + 1) * slab_units).min(self.units)
    }

    /// Cuts the tensor into chunks of at most this many elements, in order. A chunk sees units of one slab.
    pub(crate) fn chunks(self, chunk_elems: u32, slab_units: usize) -> Vec<Chunk> {
        let slabs = self.slabs(slab_units);
        // Where there is one slab, runs of units follow each other through the whole tensor.
        let repeats = if slabs == 1 { 1 } else { self.outer };
        let mut chunks = Vec::new();
        for repeat in 0..repeats {
            for slab in 0..slabs {
                let units = self.slab(slab, slab_units);
                let first = (repeat * self.units + units.start) * self.inner_elems;
                let end = if slabs == 1 { self.elems() } else { first + units.len() * self.inner_elems };
                for start in (first..end).step_by(chunk_elems as usize) {
                    chunks.push(Chunk {
                        start,
                        // Not more than chunk_elems, which is a u32.
                        elems: saturate(end - start).min(chunk_elems),
                        slab,
                        first_unit: saturate(self.unit_of(start) - units.start),
                        first_left: saturate(self.inner_elems - start % self.inner_elems),
                    });
                }
            }
        }
        chunks
    }
}

/// A count as a shader sees it: all that lies beyond a chunk's end is as good as the largest u32.
pub(crate) fn saturate(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_axis_counts_from_either_end() {
        let units = |axis| RangeUnits::new(&[2, 3, 5], Granularity::Channel(axis)).unwrap();
        assert_eq!(units(1), RangeUnits { outer: 2, units: 3, inner_elems: 5 });
        assert_eq!(units(-3), RangeUnits { outer: 1, units: 2, inner_elems: 15 });
        assert_eq!(units(2), units(-1));
        assert_eq!(units(1).unit_of(14), 2);
        assert_eq!(units(1).unit_of(15), 0);
        for axis in [3, -4, i32::MIN, i32::MAX] {
            let error = RangeUnits::new(&[2, 3, 5], Granularity::Channel(axis)).unwrap_err();
            assert!(matches!(error, Error::AxisOutOfRange { rank: 3, .. }), "{error}");
        }
    }

    #[test]
    fn an_empty_axis_and_an_empty_rest_are_told_apart() {
        let units = |shape: &[usize]| RangeUnits::new(shape, Granularity::Channel(0)).unwrap();
        assert_eq!((units(&[3, 0]).units, units(&[3, 0]).elems()), (3, 0));
        assert_eq!((units(&[0, 3]).units, units(&[0, 3]).elems()), (0, 0));
        assert_eq!(RangeUnits::new(&[0], Granularity::Tensor).unwrap().units, 1);
        assert_eq!(elems(&[]).unwrap(), 1);
    }

    #[test]
    fn chunks_cover_the_tensor_and_know_where_they_stand() {
        for (outer, units, inner_elems) in [(1, 1, 1000), (2, 3, 7), (1, 50, 20), (1000, 1, 1), (3, 20, 1)] {
            let units = RangeUnits { outer, units, inner_elems };
            for (chunk_elems, slab_units) in [(4, 8), (64, 1), (100, 7), (100_000, 100)] {
                let mut next = 0;
                for chunk in units.chunks(chunk_elems, slab_units) {
                    let slab = units.slab(chunk.slab, slab_units);
                    assert_eq!(chunk.start, next);
                    assert_eq!(slab.start + chunk.first_unit as usize, units.unit_of(chunk.start));
                    let run_end = chunk.start + chunk.first_left as usize;
                    assert!(run_end.is_multiple_of(inner_elems) && chunk.first_left as usize <= inner_elems);
                    next += chunk.elems as usize;
                    assert!(slab.contains(&units.unit_of(next - 1)));
                }
                assert_eq!(next, units.elems());
            }
        }
        let huge = RangeUnits { outer: 1, units: 2, inner_elems: 1 << 39 };
        let chunks = huge.chunks(1 << 28, 1 << 20);
        let last = chunks.last().unwrap();
        assert_eq!((last.first_unit, last.first_left, last.elems), (1, 1 << 28, 1 << 28));
        assert_eq!(chunks[0].first_left, u32::MAX);
    }

    #[test]
    fn a_shape_that_overflows_is_refused_unless_it_is_empty() {
        assert!(matches!(elems(&[usize::MAX, 2]), Err(Error::ShapeOverflow { .. })));
        assert_eq!(elems(&[usize::MAX, 2, 0]).unwrap(), 0);
    }

    #[test]
    fn granularities_print_as_they_parse() {
        for text in ["tensor", "channel=0", "channel=-1"] {
            assert_eq!(text.parse::<Granularity>().unwrap().to_string(), text);
        }
        for text in ["", "channel", "channel=", "channel=x", "group=32", "Tensor"] {
            assert!(text.parse::<Granularity>().is_err(), "{text:?} parsed");
        }
    }
}
