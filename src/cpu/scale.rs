//! From a range to a scale; twin of `shaders/scale.wgsl`.

use super::float_env;
use super::min_max::Range;
use crate::exact;
use crate::scheme::{Mapping, Scheme};

/// The scale of a range unit with this range.
///
/// ```text
/// absmax: s = amax / qmax
/// minmax: s = (hi - lo) / (qmax - qmin)
/// ```
///
/// Each operation is one binary32 operation, rounded to nearest, ties to even. A constant unit other than 0
/// takes the absmax rule under minmax too; when `hi - lo` overflows, `s = hi / (qmax - qmin) + -lo /
/// (qmax - qmin)`; a scale that comes out 0 (a range of zeros, or one of a few subnormals) is 1.
///
/// ```
/// use wgpu_quant::{Scheme, cpu};
/// let range = cpu::Range { lo: -10.0, hi: 10.0 };
/// assert_eq!(cpu::scale(range, Scheme::INT8_MINMAX).to_bits(), 0x3da0a0a1);
/// assert_eq!(cpu::scale(range, Scheme::INT8_ABSMAX), 10.0 / 127.0);
/// ```
pub fn scale(range: Range, scheme: Scheme) -> f32 {
    if float_env::is_ieee_default() { plain(range, scheme) } else { exact(range, scheme) }
}

fn plain(range: Range, scheme: Scheme) -> f32 {
    // Both are exact: a scheme's numbers have at most 16 bits.
    let (qmax, divisor) = (scheme.qmax() as f32, scheme.divisor() as f32);
    let Range { lo, hi } = range;
    let s = match scheme.mapping() {
        Mapping::MinMax if lo != hi => {
            let width = hi - lo;
            if width.is_finite() { width / divisor } else { hi / divisor + -lo / divisor }
        }
        Mapping::MinMax | Mapping::AbsMax => range.amax() / qmax,
    };
    if s == 0.0 { 1.0 } else { s }
}

fn exact(range: Range, scheme: Scheme) -> f32 {
    f32::from_bits(exact::code::scale_of(
        range.lo.to_bits(),
        range.hi.to_bits(),
        scheme.mapping() == Mapping::MinMax,
        scheme.qmax().cast_unsigned(),
        scheme.divisor().cast_unsigned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{Rng, edge_bits};

    #[test]
    fn plain_and_exact_scales_agree_on_every_kind_of_range() {
        let mut rng = Rng::new(5);
        let edges = edge_bits();
        for i in 0..1_000_000 {
            let n = edges.len();
            let pair = if i < n * n { [edges[i / n], edges[i % n]] } else { [rng.float_bits(), rng.float_bits()] };
            let mut pair = pair.map(f32::from_bits);
            if !pair.iter().all(|v| v.is_finite()) {
                continue;
            }
            pair.sort_by(f32::total_cmp);
            let range = Range { lo: pair[0] + 0.0, hi: pair[1] + 0.0 };
            for &scheme in Scheme::ALL {
                let (a, b) = (plain(range, scheme), exact(range, scheme));
                assert_eq!(a.to_bits(), b.to_bits(), "{scheme} {range:?}: {a:e} {b:e}");
                assert!(a > 0.0 && a.is_finite(), "{scheme} {range:?}: {a:e}");
            }
        }
    }
}
