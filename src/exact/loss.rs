//! Distances on the loss grid, on bit patterns; twin of `shaders/exact/loss.wgsl`.

#[cfg(test)]
use super::code::{is_direct, significand};
use super::float::{MAGNITUDE, parts, shift_right_rne};

/// A cast's values are counted in steps of `2^(e + CAST_STEP_EXP)`, `m * 2^e` being its nominal scale.
pub(crate) const CAST_STEP_EXP: i32 = 12;
/// The most steps that are counted.
pub(crate) const CAST_STEPS: u32 = 1 << 26;

/// The grid's exponent `g` of a unit with this scale and this largest loss (infinity counts as 2^128).
pub(crate) fn grid_exp(scale_bits: u32, max_bits: u32) -> i32 {
    let fine = parts(scale_bits).e - 1;
    if max_bits <= scale_bits { fine } else { fine.max(parts(max_bits).e - 5) }
}

/// `rne(|x| / 2^g)` modulo 2^32.
pub(crate) fn to_grid(a: u32, g: i32) -> u32 {
    let x = parts(a);
    let up = x.e - g;
    if up >= 0 {
        return if up > 31 { 0 } else { x.m << up };
    }
    shift_right_rne(x.m, (-up).min(25).cast_unsigned())
}

/// A cast's value in steps of `2^(e + CAST_STEP_EXP)`.
pub(crate) fn cast_steps(out: u32, s: u32) -> i32 {
    let x = parts(out & MAGNITUDE);
    let up = x.e - (parts(s).e + CAST_STEP_EXP);
    let fine = shift_right_rne(x.m, (-up).clamp(1, 25).cast_unsigned());
    let coarse = if up > 2 { CAST_STEPS } else { x.m << (up & 31).cast_unsigned() };
    let k = if up >= 0 { coarse } else { fine };
    (if out >> 31 == 1 { 0u32.wrapping_sub(k) } else { k }).cast_signed()
}

/// `rne(x' / 2^g) - rne(x / 2^g)`, known to fit in an i32.
pub(crate) fn distance_on_grid(x: u32, out: u32, g: i32) -> i32 {
    let signed = |b: u32| {
        let n = to_grid(b & MAGNITUDE, g);
        if b >> 31 == 1 { 0u32.wrapping_sub(n) } else { n }
    };
    signed(out).wrapping_sub(signed(x)).cast_signed()
}

/// Whether losses are found by four on the grid of `s` itself.
#[cfg(test)]
pub(crate) fn is_fine(s: u32) -> bool {
    s >= 28 << 23 && is_direct(s)
}

/// `to_grid` of the magnitudes of `four_values`.
#[cfg(test)]
pub(crate) fn four_values_to_grid(k: [u32; 4], s: u32) -> [u32; 4] {
    k.map(|k| {
        let p = k * significand(s);
        let zeros = (p | 0x0080_0000).leading_zeros();
        let rest = 0xff >> zeros;
        let odd = (p >> (8 - zeros)) & rest & 1;
        ((p + (rest >> 1) + odd) & !rest) << 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exact::code::{decode, four_steps, quick, recipe};
    use crate::test_data::Rng;

    #[test]
    fn four_values_and_four_codes_are_on_the_grid_where_one_is() {
        let mut rng = Rng::new(9);
        for i in 0..100_000u32 {
            let s = match i % 4 {
                0 => (28 << 23) + rng.below(1 << 24),
                1 => (120 << 23) | 0x007f_ffff,
                2 => (246 << 23) - 1 - rng.below(1 << 24),
                _ => (28 << 23) + rng.below(218 << 23),
            };
            assert!(is_fine(s));
            let g = parts(s).e - 1;
            let k = i % 256;
            let value = decode(k.cast_signed(), s);
            assert_eq!(four_values_to_grid([k; 4], s), [to_grid(value, g); 4], "{k} * {s:#010x}");
            let near = s - (27 << 23) + rng.below(35 << 23);
            let half = ((f64::from(k) + 0.5) * f64::from(f32::from_bits(s))) as f32;
            let near_half = half.to_bits() - 1024 + rng.below(2048);
            let r = recipe(s, 0, 0, 255, false);
            let small = rng.below(28 << 23).min(s);
            for a in [0, 1, small, near, near_half, half.to_bits()] {
                let exact = to_grid(a, g);
                if let Some(([k, ..], z)) = four_steps([a; 4], &quick(&r), true) {
                    assert_eq!(z, [exact; 4], "{a:#010x} on the grid of {s:#010x}");
                    let [value, ..] = four_values_to_grid([k.unsigned_abs(); 4], s);
                    let size = value.wrapping_sub(exact).cast_signed().unsigned_abs();
                    assert!(size < 1 << 24, "{a:#010x} lies {size} from its code's value with {s:#010x}");
                }
            }
        }
    }
}
