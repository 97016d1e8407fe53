//! From codes back to values; twin of `shaders/dequantize.wgsl`.

use super::code::{Coder, Field, decode_each};
use super::fold::{FEW_ELEMS, Spread, TASK_ELEMS, blocks_of, map_tasks, recycled, runs};
use super::simd::{Output, is_past_caches};
use crate::error::Result;
use crate::float_env;
use crate::quantized::Quantized;

/// De-quantizes a tensor.
///
/// ```text
/// x' = (q - z) * s           z = 0 of a scheme without zero points
/// x' = q widened to f32      of a cast
/// ```
///
/// The integer difference is exact, then one binary32 product, rounded to nearest, ties to even; widening is exact.
///
/// One value per code, in row-major order; `s` and `z` are those of the element's range unit. The spare halves of
/// 4-bit rows are not read.
///
/// A code at the edge of an overflowing range gives an infinity, as IEEE says; a code at its zero point gives +0;
/// subnormal scales give subnormal values. A cast keeps infinities, NaN and -0. An empty tensor has no values.
///
/// # Errors
/// None at present; the signature leaves room for schemes that can fail.
///
/// The arithmetic is that of ONNX's `DequantizeLinear`.
///
/// ```
/// use wgpu_quant::{Granularity, Quantized, Scheme, cpu};
/// let (shape, bytes) = (vec![2], vec![3, 0xff]);
/// let q = Quantized::from_parts(Scheme::INT8_ABSMAX, Granularity::Tensor, shape, bytes, vec![0.5], vec![])?;
/// assert_eq!(cpu::dequantize(&q)?, [1.5, -0.5]);
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn dequantize(q: &Quantized) -> Result<Vec<f32>> {
    let mut values = vec![];
    dequantize_into(q, &mut values)?;
    Ok(values)
}

/// [`dequantize`] into a vector that is there: where it is as large, no memory is allocated and cleared again.
///
/// The formula and all that is said there hold here.
///
/// What `values` held is gone; afterwards it is what [`dequantize`] returns.
///
/// # Errors
/// Those of [`dequantize`].
///
/// ```
/// use wgpu_quant::{Granularity, Quantized, Scheme, cpu};
/// let (shape, bytes) = (vec![2], vec![3, 0xff]);
/// let q = Quantized::from_parts(Scheme::INT8_ABSMAX, Granularity::Tensor, shape, bytes, vec![0.5], vec![])?;
/// let mut values = vec![7.0; 1000];
/// cpu::dequantize_into(&q, &mut values)?;
/// assert_eq!(values, [1.5, -0.5]);
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn dequantize_into(q: &Quantized, values: &mut Vec<f32>) -> Result<()> {
    *values = recycled(std::mem::take(values), q.elems());
    match q.scheme().code().bits() {
        16 => decode::<[u8; 2]>(q, values),
        _ => decode::<u8>(q, values),
    }
    Ok(())
}

fn decode<T: Field>(q: &Quantized, values: &mut [f32]) {
    let past_caches = is_past_caches(q.codes().len(), 4 * values.len());
    map_tasks(values, TASK_ELEMS, |first, out| {
        let len = out.len();
        let (mut buffer, mut out) = (vec![], Output::new(out, past_caches));
        let elems = first..first + len;
        if q.units().inner_elems < FEW_ELEMS && !q.scheme().is_cast() && float_env::is_ieee_default() {
            let mut spread = Spread::default();
            for block in blocks_of(out.block_elems(), elems) {
                let of_each = spread.of(q.units(), &block, q.scales(), q.zero_points());
                out.write(block.start - first..block.end - first, |out| {
                    decode_each(q.scheme(), T::read(q, block, &mut buffer), of_each, out);
                });
            }
            return;
        }
        for run in runs(q.units(), elems) {
            let coder = Coder::of(q, &run);
            for block in blocks_of(out.block_elems(), run.elems) {
                let place = block.start - first..block.end - first;
                out.write(place, |out| coder.decode(T::read(q, block, &mut buffer), out));
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Granularity;
    use crate::scheme::Scheme;
    use crate::test_data::Rng;

    #[test]
    fn each_width_is_read_as_it_is_stored() {
        let values = |scheme, shape: &[usize], bytes: &[u8], scales: &[f32], zero_points: &[i32]| {
            let granularity = if scales.len() > 1 { Granularity::Group(2) } else { Granularity::Tensor };
            let parts = (shape.to_vec(), bytes.to_vec(), scales.to_vec(), zero_points.to_vec());
            let q = Quantized::from_parts(scheme, granularity, parts.0, parts.1, parts.2, parts.3).unwrap();
            dequantize(&q).unwrap()
        };
        // Two odd rows, each of a group of two and a group of one.
        let bytes = [0x21, 0xf3, 0x84, 0xff];
        let found = values(Scheme::UINT4_AFFINE, &[2, 3], &bytes, &[1.0, 2.0, 4.0, 0.5], &[1, 0, 8, 15]);
        assert_eq!(found, [0.0, 1.0, 6.0, -16.0, 0.0, 0.0]);
        assert_eq!(values(Scheme::INT4_ABSMAX, &[3], &[0x8f, 0x07], &[0.5], &[]), [-0.5, -4.0, 3.5]);
        assert_eq!(values(Scheme::UINT8_AFFINE, &[3], &[0, 255, 7], &[0.5], &[7]), [-3.5, 124.0, 0.0]);
        assert_eq!(values(Scheme::INT16_MINMAX, &[2], &[0, 0x80, 1, 1], &[0.5], &[]), [-16384.0, 128.5]);
        assert_eq!(values(Scheme::UINT16_AFFINE, &[2], &[0, 0, 0xff, 0xff], &[1.0], &[65535]), [-65535.0, 0.0]);
        assert_eq!(values(Scheme::F16, &[2], &[0, 0x3c, 0xff, 0x7b], &[], &[]), [1.0, 65504.0]);
        assert_eq!(values(Scheme::BF16, &[1], &[0xc0, 0xbf], &[], &[]), [-1.5]);
        assert!(values(Scheme::INT4_ABSMAX, &[0, 3], &[], &[1.0], &[]).is_empty());
    }

    #[test]
    fn codes_are_read_alike_one_by_one_and_from_any_element_on() {
        let mut rng = Rng::new(22);
        for &scheme in Scheme::ALL {
            for shape in [vec![3, 7], vec![5, 8], vec![11, 1], vec![], vec![40]] {
                let bytes = crate::quantized::code_bytes(&shape, scheme.code()).unwrap();
                let codes = (0..bytes).map(|_| rng.next_u32() as u8).collect();
                let scales = if scheme.is_cast() { vec![] } else { vec![1.0] };
                let zero_points = if scheme.has_zero_point() { vec![3] } else { vec![] };
                let q = Quantized::from_parts(scheme, Granularity::Tensor, shape, codes, scales, zero_points).unwrap();
                for start in 0..q.elems() {
                    let coder = Coder { scheme, saturate: false, s: 1.0, z: 5, ieee: true };
                    let elems = start..q.elems();
                    let found: Vec<u32> = match scheme.code().bits() {
                        16 => <[u8; 2]>::read(&q, elems, &mut vec![]).iter().map(|code| code.bits()).collect(),
                        _ => u8::read(&q, elems, &mut vec![]).iter().map(|code| code.bits()).collect(),
                    };
                    let found: Vec<i32> = found.into_iter().map(coder.steps()).collect();
                    let steps: Vec<i32> = q.code_values()[start..].iter().map(|code| code - 5).collect();
                    assert_eq!(found, steps, "{scheme} {:?} {start}", q.shape());
                }
            }
        }
    }
}
