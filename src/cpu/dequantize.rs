//! From codes back to values; twin of `shaders/dequantize.wgsl`.

use super::fold::map_runs;
use crate::error::Result;
use crate::exact;
use crate::quantized::Quantized;

/// De-quantizes a tensor.
///
/// ```text
/// x' = q * s
/// ```
///
/// one binary32 product, rounded to nearest, ties to even: one value per code, in the same order. A code at
/// the edge of an overflowing range gives an infinity, as IEEE says; code 0 gives +0; subnormal scales give
/// subnormal values.
///
/// # Errors
/// None at present; the signature leaves room for schemes that can fail.
///
/// ```
/// use wgpu_quant::{Granularity, Quantized, Scheme, cpu};
/// let q = Quantized::from_parts(Scheme::INT8_ABSMAX, Granularity::Tensor, vec![2], vec![3, 0xff], vec![0.5])?;
/// assert_eq!(cpu::dequantize(&q)?, [1.5, -0.5]);
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn dequantize(q: &Quantized) -> Result<Vec<f32>> {
    let mut out = vec![0f32; q.codes().len()];
    map_runs(q.units(), &mut out, |out, run| {
        values(&q.codes_i8()[run.elems], q.scales()[run.unit], run.ieee, out);
        0
    });
    Ok(out)
}

/// `x'` of codes that share a scale.
pub(super) fn values(codes: &[i8], s: f32, ieee: bool, out: &mut [f32]) {
    for (value, &code) in out.iter_mut().zip(codes) {
        *value = if ieee { f32::from(code) * s } else { f32::from_bits(exact::code::decode(code.into(), s.to_bits())) };
    }
}
