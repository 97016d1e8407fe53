//! Tensors piece by piece: the codes of one are handed over while those of the next are computed.

use super::quantize::Scaling;
use super::{dequantize, min_max, quantize, quantize_with_scales, scale};
use crate::error::Result;
use crate::exact::loss::grid_exp;
use crate::layout::RangeUnits;
use crate::loss::Loss;
use crate::pieces::{Piece, Pieces};
use crate::quantized::{LossDetail, QuantizeOutput, QuantizedParts, Spec, Streamed, code_bytes};
use crate::tensor::Tensor;

/// Elements per piece: tasks enough for many cores, and few enough that its codes are still in a cache when they are
/// handed over.
const PIECE_ELEMS: usize = 1 << 20;

/// Quantizes a tensor and hands its codes over piece by piece, so that they are never in memory all at once.
///
/// Codes, scales, zero points, counts and the loss are those of [`quantize`] of the whole tensor. `write(offset, bytes)`
/// gets all codes, as [`code_bytes`] counts them, in order, one piece after the other, on any thread, while the next
/// piece is computed. The loss is the tensor's alone, whatever [`Spec::loss`] asks for beyond it.
///
/// The tensor is read twice where range units reach over pieces.
///
/// # Errors
/// Those of [`quantize`], and the first of `write`.
///
/// ```
/// use wgpu_quant::{Scheme, Spec, Tensor, cpu};
/// let (x, mut codes) = (vec![1.0; 3 << 20], vec![]);
/// let x = Tensor::new(&x, &[3 << 20])?;
/// let out = cpu::quantize_to(x, &Spec::new(Scheme::INT8_ABSMAX), |offset, bytes| {
///     assert_eq!(offset, codes.len() as u64);
///     Ok(codes.extend_from_slice(bytes))
/// })?;
/// assert_eq!((out.scales.len(), codes), (1, vec![127; 3 << 20]));
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn quantize_to(x: Tensor<'_>, spec: &Spec, write: impl FnMut(u64, &[u8]) -> Result<()> + Send) -> Result<Streamed> {
    quantize_pieces(x, spec, PIECE_ELEMS, write)
}

fn quantize_pieces(
    x: Tensor<'_>,
    spec: &Spec,
    piece_elems: usize,
    mut write: impl FnMut(u64, &[u8]) -> Result<()> + Send,
) -> Result<Streamed> {
    let units = spec.units(x.shape())?;
    let spec = match spec.loss {
        LossDetail::PerElement => &spec.loss(LossDetail::Summary),
        _ => spec,
    };
    // Rows that lie apart are one piece: pieces are tensors whose elements follow each other.
    let most_elems = if x.is_dense() { piece_elems } else { usize::MAX / 2 };
    let pieces = Pieces::new(x.shape(), spec.granularity, units, spec.scheme.code().bits(), most_elems);
    if pieces.count() == 1 {
        let QuantizeOutput { tensor, counts, loss } = quantize(x, spec)?;
        write(0, tensor.codes())?;
        let (scales, zero_points) = tensor.into_scales();
        return Ok(Streamed { scales, zero_points, counts, loss: loss.map(|loss| loss.sums) });
    }
    let is_cast = spec.scheme.is_cast();
    let common = (pieces.share_units() && !is_cast).then(|| Common::new(x, spec)).transpose()?;
    let make = |i: usize| {
        let Piece { elems, first_unit } = pieces.get(i);
        let (shape, granularity) = pieces.tensor(elems.len());
        let width = x.elem_type().bytes();
        let bytes = &x.bytes()[elems.start * width..elems.end * width];
        let (x, spec) = (Tensor::from_bytes(x.elem_type(), bytes, &shape)?, spec.per(granularity));
        let out = match &common {
            Some(common) => common.quantize(x, &spec, first_unit)?,
            None => quantize(x, &spec)?,
        };
        // What the loss of a cast is counted in, which the others' scales tell.
        let nominal = (is_cast && out.loss.is_some()).then(|| min_max(x, granularity)).transpose()?;
        Ok((first_unit, out, nominal.map(|ranges| scale(ranges.units[0], spec.scheme))))
    };
    let mut all = Streamed::default();
    let (mut offset, mut grids) = (0, Grids::new(if common.is_some() || is_cast { units.units } else { 0 }));
    in_turn(pieces.count(), make, |(first_unit, out, nominal): (usize, QuantizeOutput, Option<f32>)| {
        let QuantizeOutput { tensor, counts, loss } = out;
        write(offset, tensor.codes())?;
        offset += tensor.codes().len() as u64;
        all.counts.merge(counts);
        if let Some(loss) = loss {
            grids.see(first_unit, &loss, nominal.as_slice(), tensor.scales());
            all.loss.get_or_insert_default().merge(&loss.sums);
        }
        if common.is_none() {
            all.scales.extend_from_slice(tensor.scales());
            all.zero_points.extend_from_slice(tensor.zero_points());
        }
        Ok(())
    })?;
    if !grids.are_alike && all.loss.is_some() {
        let whole = match &common {
            Some(common) => common.quantize(x, spec, 0)?,
            None => quantize(x, spec)?,
        };
        all.loss = whole.loss.map(|loss| loss.sums);
    }
    if let Some(Common { scales, zero_points }) = common {
        (all.scales, all.zero_points) = (scales, zero_points);
    }
    Ok(all)
}

/// The scales and zero points of all range units, of which pieces have some in common.
struct Common {
    scales: Vec<f32>,
    zero_points: Vec<i32>,
}

impl Common {
    fn new(x: Tensor<'_>, spec: &Spec) -> Result<Self> {
        let Scaling { scales, zero_points, .. } = Scaling::found(x, spec)?;
        Ok(Self { scales, zero_points })
    }

    /// Of a piece whose first range unit is this one.
    fn quantize(&self, x: Tensor<'_>, spec: &Spec, first_unit: usize) -> Result<QuantizeOutput> {
        let own = first_unit..first_unit + spec.units(x.shape())?.units;
        let zero_points = self.zero_points.get(own.clone()).unwrap_or_default();
        quantize_with_scales(x, spec, &self.scales[own], zero_points)
    }
}

/// The grids on which the losses of range units were counted, so far as pieces share units. A unit's sums add up
/// where each piece's are on one grid; its largest loss, which decides on the grid, may lie in one of them.
struct Grids {
    /// The bits of the scale, and the exponent.
    of_units: Vec<Option<(u32, i32)>>,
    are_alike: bool,
}

impl Grids {
    fn new(units: usize) -> Self {
        Self { of_units: vec![None; units], are_alike: true }
    }

    fn see(&mut self, first_unit: usize, loss: &Loss, nominal: &[f32], scales: &[f32]) {
        let scales = nominal.iter().chain(scales).map(|scale| scale.to_bits());
        let shared = self.of_units.iter_mut().skip(first_unit);
        for ((before, scale), unit) in shared.zip(scales).zip(&loss.units) {
            let grid = (scale, grid_exp(scale, unit.max_abs_error.to_bits()));
            self.are_alike &= *before.get_or_insert(grid) == grid;
        }
    }
}

/// De-quantizes a tensor and hands its values over piece by piece, so that they are never in memory all at once.
///
/// The values are those of [`dequantize`]. `write(first, values)` gets all of them in order, one piece after the other,
/// on any thread, while the next piece is computed.
///
/// # Errors
/// Those of [`Quantized::from_parts`](crate::Quantized::from_parts), and the first of `write`.
///
/// ```
/// use wgpu_quant::{Granularity, QuantizedParts, Scheme, cpu};
/// let (scheme, granularity) = (Scheme::INT8_ABSMAX, Granularity::Channel(0));
/// let (shape, codes, scales, zero_points) = (&[2, 2], &[1, 2, 3, 0xff], &[0.5, 2.0], &[]);
/// let q = QuantizedParts { scheme, granularity, shape, codes, scales, zero_points };
/// let mut values = vec![];
/// cpu::dequantize_to(&q, |first, piece| {
///     assert_eq!(first, values.len() as u64);
///     Ok(values.extend_from_slice(piece))
/// })?;
/// assert_eq!(values, [0.5, 1.0, 6.0, -2.0]);
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn dequantize_to(q: &QuantizedParts<'_>, write: impl FnMut(u64, &[f32]) -> Result<()> + Send) -> Result<()> {
    dequantize_pieces(q, PIECE_ELEMS, write)
}

fn dequantize_pieces(
    q: &QuantizedParts<'_>,
    piece_elems: usize,
    mut write: impl FnMut(u64, &[f32]) -> Result<()> + Send,
) -> Result<()> {
    let pieces = Pieces::new(q.shape, q.granularity, q.checked_units()?, q.scheme.code().bits(), piece_elems);
    let make = |i: usize| {
        let Piece { elems, first_unit } = pieces.get(i);
        let (shape, granularity) = pieces.tensor(elems.len());
        let units = first_unit..first_unit + RangeUnits::new(&shape, granularity)?.units;
        let codes = q.code_offset(elems.start);
        let own = QuantizedParts {
            granularity,
            shape: &shape,
            codes: &q.codes[codes..codes + code_bytes(&shape, q.scheme.code())?],
            scales: q.scales.get(units.clone()).unwrap_or_default(),
            zero_points: q.zero_points.get(units).unwrap_or_default(),
            ..*q
        };
        Ok((elems.start as u64, dequantize(&own.to_quantized()?)?))
    };
    in_turn(pieces.count(), make, |(first, values): (u64, Vec<f32>)| write(first, &values))
}

/// Makes things one after the other, each while the one before is taken, which happens in order.
fn in_turn<T: Send>(
    count: usize,
    make: impl Fn(usize) -> Result<T> + Sync,
    mut take: impl FnMut(T) -> Result<()> + Send,
) -> Result<()> {
    // Entered once: every `join` from outside of the pool would wait for one of its threads to wake up.
    rayon::scope(|_| {
        let mut made = None;
        for i in 0..=count {
            let before = made.take();
            let next = || (i < count).then(|| make(i)).transpose();
            let (next, taken) = rayon::join(next, || before.map_or(Ok(()), &mut take));
            taken?;
            made = next?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::layout::Granularity::{self, Channel, Group};
    use crate::scheme::Scheme;
    use crate::tensor::ElemType;
    use crate::test_data::data;

    const SHAPES: [&[usize]; 8] =
        [&[], &[0, 3], &[5000], &[33, 31], &[3, 700], &[2, 50, 9], &[4, 3, 2, 7], &[2, 3, 333]];

    fn granularities(scheme: Scheme, shape: &[usize]) -> Vec<Granularity> {
        let mut all = vec![Granularity::Tensor];
        if !scheme.is_cast() && !shape.is_empty() {
            all.extend((0..shape.len()).map(|axis| Channel(i32::try_from(axis).unwrap())));
            all.extend([1, 7, 32].map(Group));
        }
        all
    }

    /// Of a tensor of every kind, quantized in pieces of each of these lengths: all that is to be as of the whole.
    fn check(scheme: Scheme, shape: &[usize], values: &[f32]) {
        for granularity in granularities(scheme, shape) {
            let spec = Spec::new(scheme).per(granularity).loss(LossDetail::Summary);
            let x = Tensor::new(&values[..crate::elems(shape).unwrap()], shape).unwrap();
            let whole = quantize(x, &spec).unwrap();
            for piece_elems in [8, 24, 64, 1000, PIECE_ELEMS] {
                let case = format!("{scheme} {granularity} {shape:?} in pieces of {piece_elems}");
                let mut codes = vec![];
                let append = |offset, bytes: &[u8]| {
                    assert_eq!(offset, codes.len() as u64, "{case}");
                    codes.extend_from_slice(bytes);
                    Ok(())
                };
                let out = quantize_pieces(x, &spec, piece_elems, append).unwrap();
                assert_eq!(codes, whole.tensor.codes(), "{case}");
                let bits = |scales: &[f32]| scales.iter().map(|s| s.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&out.scales), bits(whole.tensor.scales()), "{case}");
                assert_eq!(out.zero_points, whole.tensor.zero_points(), "{case}");
                assert_eq!(out.counts, whole.counts, "{case}");
                assert_eq!(out.loss, whole.loss.as_ref().map(|loss| loss.sums), "{case}");

                let mut back = vec![];
                let append = |first, values: &[f32]| {
                    assert_eq!(first, back.len() as u64, "{case}");
                    back.extend_from_slice(values);
                    Ok(())
                };
                let (scales, zero_points) = (&out.scales[..], &out.zero_points[..]);
                let q = QuantizedParts { scheme, granularity, shape, codes: &codes, scales, zero_points };
                dequantize_pieces(&q, piece_elems, append).unwrap();
                assert_eq!(bits(&back), bits(&dequantize(&whole.tensor).unwrap()), "{case}");
            }
        }
    }

    #[test]
    fn a_tensor_in_pieces_gives_the_bits_of_the_whole() {
        for &scheme in Scheme::ALL {
            for shape in SHAPES {
                check(scheme, shape, &data("mixed", 6000, 9));
                check(scheme, shape, &data("one-sided", 6000, 10));
            }
        }
    }

    #[test]
    fn a_loss_that_only_one_piece_needs_a_coarser_grid_for_is_that_of_the_whole() {
        // Clipped far beyond the codes, and the others not at all.
        let mut x: Vec<f32> = (0..4000).map(|i| 1000.0 + (i % 7) as f32 * 0.1).collect();
        x[3500] = 1010.0;
        for scheme in [Scheme::INT8_MINMAX, Scheme::INT4_MINMAX, Scheme::F16, Scheme::BF16] {
            check(scheme, &[4000], &x);
            check(scheme, &[2, 2000], &x);
        }
        // Pieces of other magnitudes: the step in which a cast's loss is counted is that of the largest.
        let x: Vec<f32> = (0..4000).map(|i| 1.5f32.powi(i / 100)).collect();
        check(Scheme::F16, &[4000], &x);
        check(Scheme::BF16, &[4000], &x);
    }

    #[test]
    fn other_types_and_rows_that_lie_apart_are_taken_too() {
        let halves: Vec<u16> = (0..3000).map(|i| 0x3c00 + i).collect();
        let spec = Spec::new(Scheme::UINT8_AFFINE).per(Channel(0));
        let x = Tensor::f16(&halves, &[30, 100]).unwrap();
        let apart = Tensor::strided(ElemType::F16, x.bytes(), &[20, 50], &[100, 1]).unwrap();
        for x in [x, apart] {
            let mut codes = vec![];
            let out = quantize_pieces(x, &spec, 300, |_, bytes| Ok(codes.extend_from_slice(bytes))).unwrap();
            let whole = quantize(x, &spec).unwrap();
            assert_eq!((&*codes, &*out.scales), (whole.tensor.codes(), whole.tensor.scales()));
        }
    }

    #[test]
    fn the_first_error_ends_it() {
        let x = vec![1.0; 1000];
        let x = Tensor::new(&x, &[1000]).unwrap();
        let mut written = vec![];
        let full = |offset, _: &[u8]| {
            written.push(offset);
            if offset < 200 { Ok(()) } else { Err(Error::TooSmall { what: "the disk", found: 0, enough: 1 }) }
        };
        let error = quantize_pieces(x, &Spec::new(Scheme::INT8_ABSMAX), 100, full).unwrap_err();
        assert!(error.to_string().contains("the disk"), "{error}");
        assert_eq!(written, [0, 96, 192, 288]);
    }
}
