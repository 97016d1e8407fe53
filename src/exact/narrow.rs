//! binary32 to the narrower float types, on bit patterns: IEEE conversions, to nearest, ties to even. Twin of
//! `shaders/exact/narrow.wgsl`, which explains it.

use super::float::{INF, MAGNITUDE, shift_right_rne};

pub(crate) fn to_bf16(b: u32) -> u32 {
    if (b & MAGNITUDE) > INF {
        return (b >> 16) | 0x40;
    }
    (b.wrapping_add(0x7fff + ((b >> 16) & 1))) >> 16
}

/// `to_bf16` of four finite values.
#[cfg(test)]
pub(crate) fn four_bf16(b: [u32; 4]) -> [u32; 4] {
    b.map(|b| (b + 0x7fff + ((b >> 16) & 1)) >> 16)
}

/// `to_f16` of four values of less than 65520.
#[cfg(test)]
pub(crate) fn four_f16(b: [u32; 4]) -> [u32; 4] {
    b.map(|b| {
        let a = b & 0x7fff_ffff;
        let exponent = a >> 23;
        let (m, shift) = if exponent < 113 {
            ((a & 0x007f_ffff) | 0x0080_0000, (126 - exponent.min(112)).min(26))
        } else {
            (a - (112 << 23), 13)
        };
        ((b >> 16) & 0x8000) | ((m + ((1 << (shift - 1)) - 1) + ((m >> shift) & 1)) >> shift)
    })
}

pub(crate) fn to_f16(b: u32, saturate: bool) -> u32 {
    let sign = (b >> 16) & 0x8000;
    let magnitude = b & MAGNITUDE;
    if magnitude > INF {
        return sign | 0x7e00 | ((magnitude >> 13) & 0x3ff);
    }
    // The biased exponent that an f16 would have; 0 and less is a subnormal, of quantum 2^-24.
    let exponent = (magnitude >> 23).cast_signed() - 112;
    let mut h = 0x7c00;
    if exponent <= 0 {
        let significand = (magnitude & 0x007f_ffff) | 0x0080_0000;
        h = shift_right_rne(significand, (14 - exponent).clamp(14, 26).cast_unsigned());
    } else if exponent < 31 {
        h = shift_right_rne(magnitude - (112 << 23), 13);
    }
    if saturate {
        h = h.min(0x7bff);
    }
    sign | h
}

#[cfg(test)]
mod tests {
    use super::super::widen::{from_bf16, from_f16};
    use super::*;
    use crate::test_data::{Rng, edge_bits};

    type Narrow = fn(u32) -> u32;
    /// A type's name, the way there and the way back, the largest finite pattern and the bit that makes a NaN quiet.
    const TYPES: [(&str, Narrow, Narrow, u32, u32); 2] =
        [("f16", |b| to_f16(b, false), from_f16, 0x7bff, 0x200), ("bf16", to_bf16, from_bf16, 0x7f7f, 0x40)];

    #[test]
    fn every_narrow_value_survives_the_way_there_and_back() {
        for (name, narrow, widen, _, quiet) in TYPES {
            for half in 0..=0xffffu32 {
                let b = widen(half);
                let expected = if f32::from_bits(b).is_nan() { half | quiet } else { half };
                assert_eq!(narrow(b), expected, "{name} {half:#06x}");
            }
        }
    }

    #[test]
    fn no_narrow_value_is_nearer_and_ties_go_to_the_even_one() {
        let mut rng = Rng::new(9);
        let mut patterns = edge_bits();
        // The span of f16 and its surroundings, and everything.
        patterns.extend(
            (0..300_000).map(|_| (0x3200_0000 + rng.next_u32() % 0x1600_0000) | (rng.next_u32() & 0x8000_0000)),
        );
        patterns.extend((0..100_000).map(|_| rng.float_bits()));
        for (name, narrow, widen, max, _) in TYPES {
            let widened = |half: u32| f64::from(f32::from_bits(widen(half)));
            // One step beyond the largest value, where infinity stands, as a number.
            let value = |half: u32| {
                let step = widened(max) - widened(max - 1);
                if half > max { widened(max) + step } else { widened(half) }
            };
            for &b in &patterns {
                let v = f64::from(f32::from_bits(b)).abs();
                if !v.is_finite() {
                    continue;
                }
                let half = narrow(b);
                let magnitude = half & 0x7fff;
                if magnitude <= max {
                    let four = if name == "f16" { four_f16 } else { four_bf16 };
                    assert_eq!(four([b; 4]), [half; 4], "{name} {b:#010x}");
                }
                assert_eq!(half >> 15, b >> 31, "{b:#010x}");
                let distance = |magnitude: u32| (v - value(magnitude)).abs();
                for other in [magnitude.saturating_sub(1), (magnitude + 1).min(max + 1)] {
                    let beyond = magnitude > max && v > value(max + 1);
                    let (ours, theirs) = (distance(magnitude), distance(other));
                    let good = other == magnitude
                        || ours < theirs
                        || (ours == theirs && magnitude.is_multiple_of(2))
                        || beyond;
                    assert!(good, "{name} {b:#010x}: {magnitude:#06x} and not {other:#06x}");
                }
            }
        }
    }

    #[test]
    fn saturating_replaces_infinity_by_the_largest_finite_value_and_nothing_else() {
        let mut rng = Rng::new(12);
        for b in edge_bits().into_iter().chain((0..100_000).map(|_| rng.float_bits())).chain([0x477f_efff, 0x477f_f000])
        {
            let (plain, saturated) = (to_f16(b, false), to_f16(b, true));
            assert_eq!(saturated, if plain & 0x7fff == 0x7c00 { plain & 0x8000 | 0x7bff } else { plain }, "{b:#010x}");
        }
    }

    /// The nearest narrow value by plain binary64 arithmetic, in which all of it is exact but the rounding:
    /// `digits` of significand, multiples of `2^least`, infinity from `2^emax` on.
    fn rounded(b: u32, digits: i32, least: i32, emax: i32) -> f64 {
        let v = f64::from(f32::from_bits(b));
        // The exponent of a normal binary64, which every f32 is.
        let exponent = (v.to_bits() >> 52 & 0x7ff) as i32 - 1023;
        let power = |e: i32| f64::from_bits((i64::from(e + 1023) << 52).cast_unsigned());
        let quantum = power((exponent - digits + 1).max(least));
        let near = (v / quantum).round_ties_even() * quantum;
        if near.abs() >= power(emax) { f64::INFINITY.copysign(v) } else { near }
    }

    #[test]
    #[ignore = "2^32 values for each of 2 types: cargo test --release --lib -- --ignored (a minute)"]
    fn narrowing_is_that_of_binary64_arithmetic_on_all_values() {
        use rayon::prelude::*;
        for (name, narrow, widen, max, quiet) in TYPES {
            let (digits, least, emax) = if max == 0x7bff { (11, -24, 16) } else { (8, -133, 128) };
            (0..=u32::MAX >> 16).into_par_iter().for_each(|high| {
                for low in 0..=0xffff {
                    let b = high << 16 | low;
                    let half = narrow(b);
                    if b & MAGNITUDE > INF {
                        // Sign and highest payload bits, made quiet.
                        assert_ne!(half & quiet, 0, "{name} {b:#010x}");
                        let top = if max == 0x7bff { 0xffff_e000 } else { 0xffff_0000 };
                        assert_eq!(widen(half), (b | 0x0040_0000) & top, "{name} {b:#010x}");
                        continue;
                    }
                    let expected = if b & MAGNITUDE == 0 || b & MAGNITUDE == INF {
                        f64::from(f32::from_bits(b))
                    } else {
                        rounded(b, digits, least, emax)
                    };
                    assert_eq!(
                        f64::from(f32::from_bits(widen(half))).to_bits(),
                        expected.to_bits(),
                        "{name} {b:#010x}"
                    );
                }
            });
        }
    }
}
