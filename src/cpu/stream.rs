//! Tensors piece by piece, read from and handed over to somewhere else, such as a file.

use super::loss::loss_of_part;
use super::{dequantize_into, observe, quantize_into, quantize_with_scales_into, scale, scales};
use crate::error::Result;
use crate::exact::loss::grid_exp;
use crate::layout::RangeUnits;
use crate::loss::{Loss, LossSums};
use crate::pieces::{Piece, Pieces};
use crate::quantized::{LossDetail, QuantizeOutput, QuantizedParts, Spec, Streamed, code_bytes, code_offset};
use crate::range::ObservedRanges;
use crate::tensor::{ElemType, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::slice;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Elements per piece: values and codes about fit in a core's second cache.
const PIECE_ELEMS: usize = 1 << 18;
/// Pieces that are computed at once, while those before are handed over.
const BATCH_PIECES: usize = 4;

/// Quantizes what `read` gives and hands the codes to `write`, in bounded memory.
///
/// Codes, scales, zero points, counts and the loss are those of [`quantize`](super::quantize()) of the whole tensor; the loss is without
/// its part of each range unit and element. Threads work on several pieces at once, and hand over what is done
/// meanwhile: some MiB beside what is returned.
///
/// `read(offset, bytes)` fills `bytes` with those of the source from byte `offset` on, on any thread, in any order and several
/// at a time; the source is the tensor dense and row-major, in this machine's byte order. Where range units reach over
/// several pieces, the source is read twice. `write(offset, bytes)` gets all codes, as [`code_bytes`] counts them, in the same
/// way. `digest(offset, bytes)` gets them once more, in order and one after the other: what is computed over all of
/// them need not wait for what writes them, nor the other way round.
///
/// # Errors
/// Those of [`quantize`](super::quantize()), and the first of `read` or `write`, which are called for some more pieces then.
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
/// let spec = Spec::new(Scheme::INT8_ABSMAX);
/// let append = |_, bytes: &[u8]| codes.extend_from_slice(bytes);
/// let out = cpu::quantize_stream(ElemType::F32, &[1 << 20], &spec, read, |_, _| Ok(()), append)?;
/// assert_eq!((out.scales, codes), (vec![3.0 / 127.0], [0, 42, 85, 127].repeat(1 << 18)));
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn quantize_stream(
    elem_type: ElemType,
    shape: &[usize],
    spec: &Spec,
    read: impl Fn(u64, &mut [u8]) -> Result<()> + Sync,
    write: impl Fn(u64, &[u8]) -> Result<()> + Sync,
    digest: impl FnMut(u64, &[u8]) + Send,
) -> Result<Streamed> {
    Ring::default().quantize((elem_type, shape, spec), read, write, digest)
}

/// The memory of pieces, which one tensor after the other can use.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    /// Of words, so that values of every type are aligned.
    sources: Mutex<Vec<Vec<u64>>>,
    outputs: Mutex<Vec<QuantizeOutput>>,
}

impl Ring {
    /// [`quantize_stream`]
    pub(crate) fn quantize(
        &self,
        (elem_type, shape, spec): (ElemType, &[usize], &Spec),
        read: impl Fn(u64, &mut [u8]) -> Result<()> + Sync,
        write: impl Fn(u64, &[u8]) -> Result<()> + Sync,
        digest: impl FnMut(u64, &[u8]) + Send,
    ) -> Result<Streamed> {
        Source::new(self, (elem_type, shape, spec), read, PIECE_ELEMS)?.quantize(write, digest)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Vectors are whole whatever their last user did.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A tensor that is taken in pieces.
struct Source<'a, R> {
    ring: &'a Ring,
    elem_type: ElemType,
    shape: Vec<usize>,
    spec: Spec,
    units: RangeUnits,
    pieces: Pieces,
    read: R,
}

impl<'a, R: Fn(u64, &mut [u8]) -> Result<()> + Sync> Source<'a, R> {
    fn new(
        ring: &'a Ring,
        (elem_type, shape, spec): (ElemType, &[usize], &Spec),
        read: R,
        piece_elems: usize,
    ) -> Result<Self> {
        let units = spec.units(shape)?;
        let loss = if spec.loss == LossDetail::None { LossDetail::None } else { LossDetail::Summary };
        let pieces = Pieces::new(shape, spec.granularity, units, spec.scheme.code().bits(), piece_elems);
        Ok(Self { ring, elem_type, shape: shape.to_vec(), spec: spec.loss(loss), units, pieces, read })
    }

    /// Does something with a piece, of which it is told the first range unit.
    fn with<T>(&self, piece: &Piece, then: impl FnOnce(Tensor<'_>, &Spec, usize) -> Result<T>) -> Result<T> {
        let (shape, granularity) = self.pieces.tensor(piece.elems.len());
        let width = self.elem_type.bytes();
        let len = piece.elems.len() * width;
        let mut source = lock(&self.ring.sources).pop().unwrap_or_default();
        source.resize(source.len().max(len.div_ceil(8)), 0);
        let bytes = &mut bytemuck::cast_slice_mut(&mut source)[..len];
        (self.read)((piece.elems.start * width) as u64, bytes)?;
        let x = Tensor::from_bytes(self.elem_type, bytes, &shape)?;
        let done = then(x, &self.spec.per(granularity), piece.first_unit);
        lock(&self.ring.sources).push(source);
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

    fn quantize(
        &self,
        write: impl Fn(u64, &[u8]) -> Result<()> + Sync,
        mut digest: impl FnMut(u64, &[u8]) + Send,
    ) -> Result<Streamed> {
        let common = Common::find(self)?;
        let make = |i: usize| {
            let piece = self.pieces.get(i);
            self.with(&piece, |x, spec, first_unit| {
                let mut out = lock(&self.ring.outputs).pop().unwrap_or_else(QuantizeOutput::empty);
                common.quantize(x, spec, first_unit, &mut out)?;
                // Here, where the codes are still in this core's cache.
                write(code_offset(&self.shape, spec.scheme.code(), piece.elems.start) as u64, out.tensor.codes())?;
                Ok((first_unit, out))
            })
        };
        let mut all = Streamed::default();
        let mut offset = 0;
        let mut grids = Grids::new(if common.reach_over_pieces { self.units.units } else { 0 });
        in_turn(batches(self.pieces.count()), make, |(first_unit, out): (usize, QuantizeOutput)| {
            let QuantizeOutput { tensor, counts, loss } = &out;
            digest(offset, tensor.codes());
            offset += tensor.codes().len() as u64;
            all.counts.merge(*counts);
            if let Some(loss) = loss {
                grids.see(first_unit, loss, common.nominal.as_ref().map_or(tensor.scales(), slice::from_ref));
                all.loss.get_or_insert_default().merge(&loss.sums);
            }
            if common.scales.is_none() {
                all.scales.extend_from_slice(tensor.scales());
                all.zero_points.extend_from_slice(tensor.zero_points());
            }
            lock(&self.ring.outputs).push(out);
            Ok(())
        })?;
        if !grids.are_alike {
            all.loss = Some(self.loss_on(&common, &grids)?);
        }
        if let Some(common) = common.scales {
            (all.scales, all.zero_points) = common;
        }
        Ok(all)
    }

    /// The loss on the grids that the largest losses of all pieces ask for.
    fn loss_on(&self, common: &Common, grids: &Grids) -> Result<LossSums> {
        let make = |i: usize| {
            self.with(&self.pieces.get(i), |x, spec, first_unit| {
                let mut out = QuantizeOutput::empty();
                common.quantize(x, &spec.loss(LossDetail::None), first_unit, &mut out)?;
                let largest = &grids.largest[first_unit..];
                Ok(loss_of_part(x, &out.tensor, common.nominal, Some(largest)).sums)
            })
        };
        let mut all = LossSums::default();
        in_turn(batches(self.pieces.count()), make, |sums| {
            all.merge(&sums);
            Ok(())
        })?;
        Ok(all)
    }
}

/// What pieces have in common, found before the first code.
struct Common {
    /// Scales and zero points of all range units, where they reach over pieces.
    scales: Option<(Vec<f32>, Vec<i32>)>,
    /// What the loss of a cast is counted in.
    nominal: Option<f32>,
    reach_over_pieces: bool,
}

impl Common {
    fn find<R: Fn(u64, &mut [u8]) -> Result<()> + Sync>(source: &Source<'_, R>) -> Result<Self> {
        let Source { spec, pieces, .. } = source;
        let (mut found, reach_over_pieces) = (None, pieces.share_units());
        let mut nominal = None;
        if !spec.scheme.is_cast() && reach_over_pieces {
            found = Some(scales(&source.ranges()?, spec.scheme)?);
        } else if spec.scheme.is_cast() && spec.loss != LossDetail::None {
            let range = source.ranges()?.get(0).unwrap_or_default();
            nominal = Some(scale(range, spec.scheme));
        }
        Ok(Self { scales: found, nominal, reach_over_pieces })
    }

    /// Quantizes a piece whose first range unit is this one.
    fn quantize(&self, x: Tensor<'_>, spec: &Spec, first_unit: usize, out: &mut QuantizeOutput) -> Result<()> {
        if let Some((scales, zero_points)) = &self.scales {
            let own = first_unit..first_unit + spec.units(x.shape())?.units;
            let zero_points = zero_points.get(own.clone()).unwrap_or_default();
            return quantize_with_scales_into(x, spec, &scales[own], zero_points, out);
        }
        let is_cast = spec.scheme.is_cast();
        quantize_into(x, &if is_cast { spec.loss(LossDetail::None) } else { *spec }, out)?;
        if is_cast && spec.loss != LossDetail::None {
            out.loss = Some(loss_of_part(x, &out.tensor, self.nominal, None));
        }
        Ok(())
    }
}

/// The grids on which the losses of range units were counted that reach over pieces. Such a unit's sums add up where
/// each piece's are on one grid; the unit's largest loss, which decides on the grid, may lie in one of the pieces.
struct Grids {
    /// As bits.
    largest: Vec<u32>,
    of_units: Vec<Option<i32>>,
    are_alike: bool,
}

impl Grids {
    fn new(units: usize) -> Self {
        Self { largest: vec![0; units], of_units: vec![None; units], are_alike: true }
    }

    fn see(&mut self, first_unit: usize, loss: &Loss, scales: &[f32]) {
        let Self { largest, of_units, are_alike } = self;
        let units = largest.iter_mut().zip(of_units).skip(first_unit);
        for (((largest, before), scale), unit) in units.zip(scales).zip(&loss.units) {
            let max = unit.max_abs_error.to_bits();
            let grid = grid_exp(scale.to_bits(), max);
            *are_alike &= *before.get_or_insert(grid) == grid;
            *largest = max.max(*largest);
        }
    }
}

/// De-quantizes a tensor and hands its values over piece by piece, so that they are never in memory all at once.
///
/// The values are those of [`dequantize`](super::dequantize()). `write(first, values)` gets all of them, on any thread, in any order and
/// several pieces at a time.
///
/// # Errors
/// Those of [`Quantized::from_parts`](crate::Quantized::from_parts), and the first of `write`.
///
/// ```
/// use wgpu_quant::{Granularity, QuantizedParts, Scheme, cpu};
/// let (scheme, granularity) = (Scheme::INT8_ABSMAX, Granularity::Channel(0));
/// let (shape, codes, scales, zero_points) = (&[2, 2], &[1, 2, 3, 0xff], &[0.5, 2.0], &[]);
/// let q = QuantizedParts { scheme, granularity, shape, codes, scales, zero_points };
/// cpu::dequantize_stream(&q, |first, values| Ok(assert_eq!((first, values), (0, &[0.5, 1.0, 6.0, -2.0][..]))))?;
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn dequantize_stream(q: &QuantizedParts<'_>, write: impl Fn(u64, &[f32]) -> Result<()> + Sync) -> Result<()> {
    dequantize_pieces(q, PIECE_ELEMS, write)
}

fn dequantize_pieces(
    q: &QuantizedParts<'_>,
    piece_elems: usize,
    write: impl Fn(u64, &[f32]) -> Result<()> + Sync,
) -> Result<()> {
    let pieces = Pieces::new(q.shape, q.granularity, q.checked_units()?, q.scheme.code().bits(), piece_elems);
    let each = |values: &mut Vec<f32>, i: usize| {
        let Piece { elems, first_unit } = pieces.get(i);
        let (shape, granularity) = pieces.tensor(elems.len());
        let units = first_unit..first_unit + RangeUnits::new(&shape, granularity)?.units;
        let codes = code_offset(q.shape, q.scheme.code(), elems.start);
        let own = QuantizedParts {
            granularity,
            shape: &shape,
            codes: &q.codes[codes..codes + code_bytes(&shape, q.scheme.code())?],
            scales: q.scales.get(units.clone()).unwrap_or_default(),
            zero_points: q.zero_points.get(units).unwrap_or_default(),
            ..*q
        };
        dequantize_into(&own.to_quantized()?, values)?;
        write(elems.start as u64, values)
    };
    (0..pieces.count()).into_par_iter().try_for_each_init(Vec::new, each)
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
    use crate::cpu::{dequantize, quantize};
    use crate::error::Error;
    use crate::layout::Granularity::{self, Channel, Group};
    use crate::scheme::Scheme;
    use crate::test_data::data;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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
        write: impl Fn(u64, &[u8]) -> Result<()> + Sync,
        digest: impl FnMut(u64, &[u8]) + Send,
    ) -> Result<Streamed> {
        let read = |offset, bytes: &mut [u8]| {
            bytes.copy_from_slice(&x.bytes()[offset as usize..][..bytes.len()]);
            Ok(())
        };
        Source::new(&Ring::default(), (x.elem_type(), x.shape(), spec), read, piece_elems)?.quantize(write, digest)
    }

    /// Of a tensor of every kind, quantized in pieces of each of these lengths: all that is to be as of the whole.
    fn check(scheme: Scheme, shape: &[usize], values: &[f32]) {
        for granularity in granularities(scheme, shape) {
            let spec = Spec::new(scheme).per(granularity).loss(LossDetail::Summary);
            let x = Tensor::new(&values[..crate::elems(shape).unwrap()], shape).unwrap();
            let whole = quantize(x, &spec).unwrap();
            for piece_elems in [8, 24, 64, 1000, PIECE_ELEMS] {
                let case = format!("{scheme} {granularity} {shape:?} in pieces of {piece_elems}");
                let (mut codes, written) = (vec![], Mutex::new(vec![0; whole.tensor.codes().len()]));
                let append = |offset, bytes: &[u8]| {
                    assert_eq!(offset, codes.len() as u64, "{case}");
                    codes.extend_from_slice(bytes);
                };
                let write = |offset: u64, bytes: &[u8]| {
                    written.lock().unwrap()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
                    Ok(())
                };
                let out = quantize_pieces(x, &spec, piece_elems, write, append).unwrap();
                assert_eq!(codes, whole.tensor.codes(), "{case}");
                assert_eq!(codes, *written.lock().unwrap(), "{case}");
                let bits = |scales: &[f32]| scales.iter().map(|s| s.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&out.scales), bits(whole.tensor.scales()), "{case}");
                assert_eq!(out.zero_points, whole.tensor.zero_points(), "{case}");
                assert_eq!(out.counts, whole.counts, "{case}");
                assert_eq!(out.loss, whole.loss.as_ref().map(|loss| loss.sums), "{case}");

                let back = Mutex::new(vec![f32::NAN; x.elems()]);
                let write = |first: u64, values: &[f32]| {
                    back.lock().unwrap()[first as usize..][..values.len()].copy_from_slice(values);
                    Ok(())
                };
                let (scales, zero_points) = (&out.scales[..], &out.zero_points[..]);
                let q = QuantizedParts { scheme, granularity, shape, codes: &codes, scales, zero_points };
                dequantize_pieces(&q, piece_elems, write).unwrap();
                assert_eq!(bits(&back.lock().unwrap()), bits(&dequantize(&whole.tensor).unwrap()), "{case}");
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
            let out = quantize_pieces(x, &spec, 300, |_, _| Ok(()), |_, bytes| codes.extend_from_slice(bytes)).unwrap();
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
        let end = AtomicU64::new(0);
        let digest = |offset, bytes: &[u8]| end.store(offset + bytes.len() as u64, Relaxed);
        let write = |offset, _: &[u8]| if offset < 960 { Ok(()) } else { Err(full()) };
        let error = quantize_pieces(x, &spec, 100, write, digest).unwrap_err();
        assert!(error.to_string().contains("the disk"), "{error}");
        assert!(end.load(Relaxed) <= 960);

        let read = |offset, _: &mut [u8]| if offset < 9600 { Ok(()) } else { Err(full()) };
        let (ring, spec) = (Ring::default(), Spec::new(Scheme::BF16));
        let source = Source::new(&ring, (ElemType::F32, &[5000], &spec), read, 100).unwrap();
        let error = source.quantize(|_, _| Ok(()), digest).unwrap_err();
        assert!(error.to_string().contains("the disk"), "{error}");
        assert!(end.load(Relaxed) <= 4800);
    }
}
