//! Tensors piece by piece, read from and handed over to somewhere else, such as a file.

use super::{dequantize, min_max, observe, quantize, quantize_with_scales, scale, scales};
use crate::error::Result;
use crate::exact::loss::grid_exp;
use crate::layout::RangeUnits;
use crate::loss::Loss;
use crate::pieces::{Piece, Pieces};
use crate::quantized::{LossDetail, QuantizeOutput, QuantizedParts, Spec, Streamed, code_bytes};
use crate::range::ObservedRanges;
use crate::tensor::{ElemType, Tensor};
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// Elements per piece: values and codes together fit in a core's second cache.
const PIECE_ELEMS: usize = 1 << 17;
/// Pieces that are computed at once, while those before are handed over.
const BATCH_PIECES: usize = 8;

/// Quantizes what `read` gives and hands the codes to `write`, in bounded memory.
///
/// Codes, scales, zero points, counts and the loss are those of [`quantize`] of the whole tensor; the loss is without
/// its part of each range unit and element. Threads work on several pieces at once, and hand over what is done
/// meanwhile: some MiB beside what is returned.
///
/// `read(offset, bytes)` fills `bytes` with those of the source from byte `offset` on, on any thread, in any order and several
/// at a time; the source is the tensor dense and row-major, in this machine's byte order. Where range units reach over
/// several pieces, the source is read twice. `write(offset, bytes)` gets all codes, as [`code_bytes`] counts them, in
/// order, on any thread.
///
/// # Errors
/// Those of [`quantize`], and the first of `read` or `write`.
///
/// ```
/// use wgpu_quant::{ElemType, Scheme, Spec, cpu};
/// // A tensor that nobody holds: its values are 0, 1, 2, 3, 0, 1 ...
/// let read = |offset: u64, bytes: &mut [u8]| {
///     for (i, bytes) in (offset / 4..).zip(bytes.chunks_exact_mut(4)) {
///         bytes.copy_from_slice(&((i % 4) as f32).to_ne_bytes());
///     }
///     Ok(())
/// };
/// let mut codes = vec![];
/// let write = |offset, bytes: &[u8]| Ok(assert_eq!(offset, codes.len() as u64)).map(|()| codes.extend_from_slice(bytes));
/// let out = cpu::quantize_stream(ElemType::F32, &[1 << 20], &Spec::new(Scheme::INT8_ABSMAX), read, write)?;
/// assert_eq!((out.scales, codes), (vec![3.0 / 127.0], [0, 42, 85, 127].repeat(1 << 18)));
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn quantize_stream(
    elem_type: ElemType,
    shape: &[usize],
    spec: &Spec,
    read: impl Fn(u64, &mut [u8]) -> Result<()> + Sync,
    write: impl FnMut(u64, &[u8]) -> Result<()> + Send,
) -> Result<Streamed> {
    Source::new(elem_type, shape, spec, read, PIECE_ELEMS)?.quantize(write)
}

/// A tensor that is read in pieces.
struct Source<R> {
    elem_type: ElemType,
    spec: Spec,
    units: RangeUnits,
    pieces: Pieces,
    read: R,
}

impl<R: Fn(u64, &mut [u8]) -> Result<()> + Sync> Source<R> {
    fn new(elem_type: ElemType, shape: &[usize], spec: &Spec, read: R, piece_elems: usize) -> Result<Self> {
        let units = spec.units(shape)?;
        let loss = if spec.loss == LossDetail::None { LossDetail::None } else { LossDetail::Summary };
        let pieces = Pieces::new(shape, spec.granularity, units, spec.scheme.code().bits(), piece_elems);
        Ok(Self { elem_type, spec: spec.loss(loss), units, pieces, read })
    }

    /// Does something with a piece, of which it is told the first range unit.
    fn with<T>(&self, piece: &Piece, then: impl FnOnce(Tensor<'_>, &Spec, usize) -> Result<T>) -> Result<T> {
        let (shape, granularity) = self.pieces.tensor(piece.elems.len());
        self.with_elems(piece.elems.clone(), |bytes| {
            then(Tensor::from_bytes(self.elem_type, bytes, &shape)?, &self.spec.per(granularity), piece.first_unit)
        })
    }

    fn with_elems<T>(&self, elems: Range<usize>, then: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        thread_local! {
            /// Of words, so that values of every type are aligned.
            static ROOM: Cell<Vec<u64>> = const { Cell::new(vec![]) };
        }
        let width = self.elem_type.bytes();
        let bytes = elems.len() * width;
        // Taken, because a thread that waits in the midst of this may begin with another piece.
        let mut room = ROOM.take();
        room.resize(room.len().max(bytes.div_ceil(8)), 0);
        let source = &mut bytemuck::cast_slice_mut(&mut room)[..bytes];
        let done = (self.read)((elems.start * width) as u64, source).and_then(|()| then(source));
        ROOM.set(room);
        done
    }

    /// The ranges of all units.
    fn ranges(&self) -> Result<ObservedRanges> {
        let mut keys = vec![[0; 2]; self.units.units];
        for batch in batches(self.pieces.count()) {
            let observed = |i| {
                let piece = self.pieces.get(i);
                self.with(&piece, |x, spec, first_unit| Ok((first_unit, observe(x, spec.granularity)?)))
            };
            for (first_unit, seen) in batch.into_par_iter().map(observed).collect::<Result<Vec<_>>>()? {
                for ([hi, lo], &[seen_hi, seen_lo]) in keys[first_unit..].iter_mut().zip(seen.keys()) {
                    (*hi, *lo) = ((*hi).max(seen_hi), (*lo).max(seen_lo));
                }
            }
        }
        Ok(ObservedRanges::from_keys(keys, 1))
    }

    fn quantize(&self, mut write: impl FnMut(u64, &[u8]) -> Result<()> + Send) -> Result<Streamed> {
        let is_cast = self.spec.scheme.is_cast();
        let common = match self.pieces.share_units() && !is_cast {
            true => Some(scales(&self.ranges()?, self.spec.scheme)?),
            false => None,
        };
        let make = |i: usize| {
            self.with(&self.pieces.get(i), |x, spec, first_unit| {
                let out = match &common {
                    Some(common) => with_common(x, spec, first_unit, common)?,
                    None => quantize(x, spec)?,
                };
                // What the loss of a cast is counted in, which the others' scales tell.
                let nominal = (is_cast && out.loss.is_some()).then(|| min_max(x, spec.granularity)).transpose()?;
                Ok((first_unit, out, nominal.map(|ranges| scale(ranges.units[0], spec.scheme))))
            })
        };
        let mut all = Streamed::default();
        let (mut offset, mut grids) = (0, Grids::new(if common.is_some() || is_cast { self.units.units } else { 0 }));
        in_turn(
            batches(self.pieces.count()),
            make,
            |(first_unit, out, nominal): (usize, QuantizeOutput, Option<f32>)| {
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
            },
        )?;
        if !grids.are_alike && all.loss.is_some() {
            all.loss = self.whole_loss(common.as_ref())?.map(|loss| loss.sums);
        }
        if let Some(common) = common {
            (all.scales, all.zero_points) = common;
        }
        Ok(all)
    }

    fn whole_loss(&self, common: Option<&(Vec<f32>, Vec<i32>)>) -> Result<Option<Loss>> {
        self.with_elems(0..self.units.elems(), |bytes| {
            let shape = self.pieces.shape();
            let x = Tensor::from_bytes(self.elem_type, bytes, shape)?;
            let whole = match common {
                Some(common) => with_common(x, &self.spec, 0, common)?,
                None => quantize(x, &self.spec)?,
            };
            Ok(whole.loss)
        })
    }
}

/// Quantizes a piece whose first range unit is this one.
fn with_common(
    x: Tensor<'_>,
    spec: &Spec,
    first_unit: usize,
    (scales, zero_points): &(Vec<f32>, Vec<i32>),
) -> Result<QuantizeOutput> {
    let own = first_unit..first_unit + spec.units(x.shape())?.units;
    let zero_points = zero_points.get(own.clone()).unwrap_or_default();
    quantize_with_scales(x, spec, &scales[own], zero_points)
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
/// cpu::dequantize_stream(&q, |first, piece| {
///     assert_eq!(first, values.len() as u64);
///     Ok(values.extend_from_slice(piece))
/// })?;
/// assert_eq!(values, [0.5, 1.0, 6.0, -2.0]);
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn dequantize_stream(q: &QuantizedParts<'_>, write: impl FnMut(u64, &[f32]) -> Result<()> + Send) -> Result<()> {
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
    in_turn(batches(pieces.count()), make, |(first, values): (u64, Vec<f32>)| write(first, &values))
}

/// The numbers below `count`, some at a time.
fn batches(count: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(BATCH_PIECES).map(move |first| first..(first + BATCH_PIECES).min(count))
}

/// Makes things batch by batch, each while the one before is taken, which happens in order.
fn in_turn<T: Send>(
    batches: impl Iterator<Item = Range<usize>> + Send,
    make: impl Fn(usize) -> Result<T> + Sync,
    mut take: impl FnMut(T) -> Result<()> + Send,
) -> Result<()> {
    // Entered once: every `join` from outside of the pool would wait for one of its threads to wake up.
    rayon::scope(|_| {
        let mut made = vec![];
        for batch in batches {
            let before = std::mem::take(&mut made);
            let next = || batch.into_par_iter().map(&make).collect::<Result<Vec<_>>>();
            let (next, taken) = rayon::join(next, || before.into_iter().try_for_each(&mut take));
            taken?;
            made = next?;
        }
        made.into_iter().try_for_each(take)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::layout::Granularity::{self, Channel, Group};
    use crate::scheme::Scheme;
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

    fn quantize_pieces(
        x: Tensor<'_>,
        spec: &Spec,
        piece_elems: usize,
        write: impl FnMut(u64, &[u8]) -> Result<()> + Send,
    ) -> Result<Streamed> {
        let read = |offset, bytes: &mut [u8]| Ok(bytes.copy_from_slice(&x.bytes()[offset as usize..][..bytes.len()]));
        Source::new(x.elem_type(), x.shape(), spec, read, piece_elems)?.quantize(write)
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
    fn other_types_are_taken_too() {
        let halves: Vec<u16> = (0..3000).map(|i| 0x3c00 + i).collect();
        let spec = Spec::new(Scheme::UINT8_AFFINE).per(Channel(0));
        let doubles: Vec<f64> = (0..3000).map(|i| f64::from(i) / 7.0).collect();
        for x in [Tensor::f16(&halves, &[30, 100]).unwrap(), Tensor::f64(&doubles, &[30, 100]).unwrap()] {
            let mut codes = vec![];
            let out = quantize_pieces(x, &spec, 300, |_, bytes| Ok(codes.extend_from_slice(bytes))).unwrap();
            let whole = quantize(x, &spec).unwrap();
            assert_eq!((&*codes, &*out.scales), (whole.tensor.codes(), whole.tensor.scales()));
        }
    }

    #[test]
    fn the_first_error_ends_it() {
        let full = || Error::TooSmall { what: "the disk", found: 0, enough: 1 };
        let x = vec![1.0; 5000];
        let x = Tensor::new(&x, &[5000]).unwrap();
        let spec = Spec::new(Scheme::INT8_ABSMAX);
        let mut written = vec![];
        let write = |offset, _: &[u8]| {
            written.push(offset);
            if offset < 200 { Ok(()) } else { Err(full()) }
        };
        let error = quantize_pieces(x, &spec, 100, write).unwrap_err();
        assert!(error.to_string().contains("the disk"), "{error}");
        assert_eq!(written, [0, 96, 192, 288]);

        let read = |offset, _: &mut [u8]| if offset < 9600 { Ok(()) } else { Err(full()) };
        let written = std::sync::atomic::AtomicU64::new(0);
        let write = |offset, _: &[u8]| Ok(written.store(offset, std::sync::atomic::Ordering::Relaxed));
        let spec = Spec::new(Scheme::BF16);
        let error = Source::new(ElemType::F32, &[5000], &spec, read, 100).unwrap().quantize(write).unwrap_err();
        assert!(error.to_string().contains("the disk"), "{error}");
        assert!(written.into_inner() < 4800);
    }
}
