//! The hard cases: inputs at the borders of every rounding, shift, carry and tile.

use crate::layout::{Granularity, RangeUnits};
use crate::rng::Rng;
use crate::scheme::Scheme;

/// Every run makes the same cases.
const SEED: u64 = 0x5eed;
/// Scales per scheme.
const SCALES: usize = 2048;
/// Values per scale.
const VALUES: usize = 64;
const INF: u32 = 0x7f80_0000;
const SIGN: u32 = 0x8000_0000;

/// A tensor to quantize, and what goes with it.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) x: Vec<f32>,
    pub(super) shape: Vec<usize>,
    pub(super) granularity: Granularity,
    /// One scale per range unit, where the case brings its own, and zero points where the scheme has them.
    pub(super) scales: Option<Vec<f32>>,
    pub(super) zero_points: Vec<i32>,
}

impl Case {
    fn new(name: &'static str, bits: Vec<u32>, shape: &[usize], granularity: Granularity) -> Self {
        let x = bits.into_iter().map(f32::from_bits).collect();
        Self { name, x, shape: shape.to_vec(), granularity, scales: None, zero_points: vec![] }
    }

    /// The same for a scheme: a cast has neither scales nor channels, and an affine scheme zero points at the codes'
    /// ends, in their middle and anywhere.
    pub(super) fn of(self, scheme: Scheme) -> Self {
        if scheme.is_cast() {
            return Self { scales: None, granularity: Granularity::Tensor, ..self };
        }
        let units = self.scales.as_ref().map_or(0, Vec::len);
        let zero_points =
            if scheme.has_zero_point() { (0..units).map(|i| zero_point(scheme, i)).collect() } else { vec![] };
        Self { zero_points, ..self }
    }
}

/// The zero point of a unit.
pub(super) fn zero_point(scheme: Scheme, unit: usize) -> i32 {
    if !scheme.has_zero_point() {
        return 0;
    }
    let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
    match unit % 5 {
        0 => qmin,
        1 => qmax,
        2 => qmin + (qmax - qmin) / 2,
        3 => qmin + 1,
        _ => qmin + (unit.wrapping_mul(7919) % (qmax - qmin).unsigned_abs() as usize) as i32,
    }
}

/// Significands at the ends and in the middle, without the leading bit.
const FRACTIONS: [u32; 4] = [0, 1, 0x007f_ffff, 0x0040_0000];

/// Every exponent, every position of a subnormal's leading bit, with extreme significands; then any.
fn scale_bits(rng: &mut Rng) -> Vec<u32> {
    let mut bits = Vec::with_capacity(SCALES);
    for place in 0..23 {
        let below = (1u32 << place) - 1;
        bits.extend([1 << place, (1 << place) | below, (1 << place) | (rng.next_u32() & below)]);
    }
    for exponent in 1..=254 {
        let random = rng.next_u32() & 0x007f_ffff;
        bits.extend(FRACTIONS.into_iter().chain([random]).map(|fraction| (exponent << 23) | fraction));
    }
    while bits.len() < SCALES {
        bits.push((rng.next_u32() & 0x7fff_ffff).clamp(1, INF - 1));
    }
    bits
}

/// Patterns that the policies speak of, and a subnormal with each leading bit.
fn special(rng: &mut Rng, i: usize) -> u32 {
    const SPECIAL: [u32; 9] = [0, 1, 0x007f_ffff, 0x0080_0000, 0x3f80_0000, 0x7f7f_ffff, INF, 0x7fc0_0000, 0x7f80_0001];
    let magnitude = match SPECIAL.get(i % 16) {
        Some(&bits) => bits,
        None => {
            let place = rng.below(23);
            (1 << place) | (rng.next_u32() & ((1 << place) - 1))
        }
    };
    magnitude | (rng.next_u32() & SIGN)
}

/// A value within an ulp of a halfway point `(k + 1/2) s`.
fn near_halfway(rng: &mut Rng, scheme: Scheme, (s, z): (u32, i32), i: usize) -> u32 {
    let (qmin, qmax) = (scheme.qmin() - z, scheme.qmax() - z);
    // The innermost and outermost codes always, the others in turn.
    let k = match i % 8 {
        0 => 0,
        1 => -1,
        2 => qmax,
        3 => qmin - 1,
        _ => qmin - 2 + rng.below((qmax - qmin + 4).unsigned_abs()).cast_signed(),
    };
    let halfway = ((f64::from(k) + 0.5) * f64::from(f32::from_bits(s))) as f32;
    let magnitude = (halfway.to_bits() & !SIGN).saturating_add_signed((i / 8 % 3) as i32 - 1);
    magnitude.min(INF) | (halfway.to_bits() & SIGN)
}

/// A value 2^-26 to 2^12 times the scale: every distance of the exponents, hence every shift.
fn at_distance(rng: &mut Rng, s: u32, i: usize) -> u32 {
    let exponent = ((s >> 23).cast_signed() + (i % 39) as i32 - 26).clamp(0, 254);
    let fraction = match rng.below(4) {
        0 => s & 0x007f_ffff,
        1 => FRACTIONS[rng.below(4) as usize],
        _ => rng.next_u32() & 0x007f_ffff,
    };
    (exponent.unsigned_abs() << 23) | fraction | (rng.next_u32() & SIGN)
}

/// A row of values around each scale.
fn around(rng: &mut Rng, scheme: Scheme, scales: &[u32], values: usize) -> Vec<u32> {
    let mut bits = Vec::with_capacity(scales.len() * values);
    for (row, &s) in scales.iter().enumerate() {
        bits.extend((0..values).map(|i| match i % 4 {
            0 | 1 => near_halfway(rng, scheme, (s, zero_point(scheme, row)), row + i / 4 * 2 + i % 4),
            2 => at_distance(rng, s, row + i / 4),
            _ if i % 8 == 3 => special(rng, row + i / 8),
            _ => rng.float_bits(),
        }));
    }
    bits
}

fn floats(bits: Vec<u32>) -> Vec<f32> {
    bits.into_iter().map(f32::from_bits).collect()
}

/// Every scale with its own values: as long runs, and as runs of one element.
pub(super) fn given_scales(scheme: Scheme) -> [Case; 2] {
    let mut rng = Rng::new(SEED);
    let scales = scale_bits(&mut rng);
    let rows = around(&mut rng, scheme, &scales, VALUES);
    let few = VALUES / 8;
    let columns = around(&mut rng, scheme, &scales, few);
    // Its units are the columns, so that each scale has the same zero point.
    let transposed = (0..few * SCALES).map(|i| columns[i % SCALES * few + i / SCALES]).collect();
    let scales = Some(floats(scales));
    [
        Case {
            scales: scales.clone(),
            ..Case::new("values around each scale, long runs", rows, &[SCALES, VALUES], Granularity::Channel(0))
        },
        Case {
            scales,
            ..Case::new("values around each scale, short runs", transposed, &[few, SCALES], Granularity::Channel(1))
        },
    ]
}

/// Units whose own scales are, or nearly are, each of the scales, of one and of several pieces of 32, with values near the
/// halfway points of it; what is not finite is among some of them.
pub(super) fn own_scales(scheme: Scheme) -> [Case; 2] {
    let mut rng = Rng::new(SEED + 6);
    let scales = scale_bits(&mut rng);
    [32, 96].map(|run: usize| {
        let mut bits = Vec::with_capacity(scales.len() * run);
        for (row, &s) in scales.iter().enumerate() {
            // Where a scale has few digits, as here each eighth has, rounding it takes the ends of the range far beyond the codes.
            let s = if matches!(row % 16, 9 | 10) { 1 + row as u32 / 16 % 4 } else { s };
            let [value, next] = [s, s + 1].map(|bits| f64::from(f32::from_bits(bits)));
            let ulp = if next.is_finite() { next - value } else { 0.0 };
            let unrounded = value + [0.0, 0.45, -0.45][row % 3] * ulp;
            let amax = ((unrounded * f64::from(scheme.divisor())) as f32).min(f32::MAX);
            // Of every second unit one end of the range lies far from the other's negative.
            let others = if row % 2 == 0 { amax } else { amax / 2.0 }.to_bits();
            let amax = amax.to_bits();
            bits.extend((0..run).map(|i| match i {
                _ if i == row % run => amax | (rng.next_u32() & SIGN),
                _ if row % 16 == 5 && i % 8 == 3 => special(&mut rng, row + i),
                _ => {
                    let near = near_halfway(&mut rng, scheme, (s, 0), row + i);
                    (near & !SIGN).min(others) | (near & SIGN)
                }
            }));
        }
        Case::new("values around each unit's own scale", bits, &[scales.len(), run], Granularity::Channel(0))
    })
}

/// Codes and scales from elsewhere: every code, or any, with each scale, and values that have little to do with them.
pub(super) fn foreign_codes(scheme: Scheme) -> (Case, Vec<u8>) {
    let mut rng = Rng::new(SEED + 1);
    let scales = scale_bits(&mut rng);
    // An odd number of codes in all, so that the last word is not full.
    let (rows, columns) = (SCALES - 1, VALUES - 1);
    let row_bytes = (columns * scheme.code().bits() as usize).div_ceil(8);
    let codes =
        (1..=rows * row_bytes).map(|i| if row_bytes > columns { rng.next_u32() as u8 } else { i as u8 }).collect();
    let x = (0..rows * columns).map(|i| match i % 3 {
        0 => rng.float_bits(),
        1 => special(&mut rng, i / 3),
        _ => at_distance(&mut rng, scales[i / columns], i / 3),
    });
    let x = x.collect();
    let case = Case::new("any values, every code, each scale", x, &[rows, columns], Granularity::Channel(0));
    (Case { scales: Some(floats(scales[..rows].to_vec())), ..case }.of(scheme), codes)
}

/// Ranges: every pair of edges, every distance of the exponents with every sign, and random ones.
pub(super) fn ranges() -> Case {
    let mut rng = Rng::new(SEED + 2);
    let mut edges = vec![];
    for exponent in [0u32, 1, 2, 24, 126, 127, 128, 150, 253, 254] {
        edges.extend([0, 1, 0x0040_0000, 0x007f_ffff].map(|fraction| (exponent << 23) | fraction));
    }
    edges.extend(edges.clone().iter().map(|bits| bits | SIGN));
    let mut pairs: Vec<[u32; 2]> = edges.iter().flat_map(|&a| edges.iter().map(move |&b| [a, b])).collect();
    for distance in 0..=28 {
        for exponent in [29u32, 30, 127, 200, 254] {
            for signs in 0..4 {
                let fraction = |rng: &mut Rng| match rng.below(3) {
                    0 => FRACTIONS[rng.below(4) as usize],
                    _ => rng.next_u32() & 0x007f_ffff,
                };
                let a = (exponent << 23) | fraction(&mut rng) | (signs & 1) << 31;
                let b = ((exponent - distance) << 23) | fraction(&mut rng) | (signs >> 1) << 31;
                pairs.push([a, b]);
            }
        }
    }
    pairs.extend((0..2048).map(|_| [rng.float_bits(), rng.float_bits()]));
    // Beside the pair, what a range must pass over.
    let others = [0x7fc0_0000, INF, SIGN | INF, 0xffff_ffff];
    let units = pairs.len();
    let bits = pairs.into_iter().enumerate().flat_map(|(i, [a, b])| [a, others[i % 4], b, others[i / 4 % 4]]).collect();
    Case::new("pairs of range ends", bits, &[units, 4], Granularity::Channel(0))
}

/// Lengths around vectors, tiles and runs, with the extremes and the odd values at the borders.
pub(super) fn borders(workgroup: u32) -> Vec<Case> {
    let mut rng = Rng::new(SEED + 3);
    let (tile, range_tile) = (workgroup as usize * 32, workgroup as usize * 64);
    let mut cases = vec![];
    let mut push = |shape: &[usize], granularity| {
        let n: usize = shape.iter().product();
        let mut bits: Vec<u32> = (0..n).map(|_| (rng.next_u32() & 0x83ff_ffff) | 0x3c00_0000).collect();
        for at in [0, 1, tile - 1, tile, range_tile - 1, range_tile, n.wrapping_sub(1), n.wrapping_sub(2)] {
            if at < n {
                bits[at] = match rng.below(4) {
                    0 => special(&mut rng, at),
                    _ => (rng.next_u32() & 0x81ff_ffff) | 0x4000_0000,
                };
            }
        }
        cases.push(Case::new("lengths around vectors, tiles and runs", bits, shape, granularity));
    };
    for n in
        [0, 1, 2, 3, 4, 5, 63, 64, 65, tile - 1, tile, tile + 1, range_tile - 1, range_tile + 2, 2 * range_tile + 3]
    {
        push(&[n], Granularity::Tensor);
    }
    for run in [1, 2, 3, 4, 31, 32, 63, 64, 65, 127, 128, 1001, 1004] {
        push(&[3, 37, run], Granularity::Channel(1));
        push(&[4 * tile / run + 1, run], Granularity::Channel(0));
    }
    // So many fit in a tile, less one, and leave a part of it.
    for parts in [3, 5] {
        push(&[2 * parts + 1, (tile / parts).next_multiple_of(32)], Granularity::Channel(0));
    }
    cases
}

/// One range unit to which every workgroup adds: counters, maxima, and sums that carry from word to word.
pub(super) fn contention() -> [Case; 2] {
    const ELEMS: usize = (1 << 18) + 5;
    let mut rng = Rng::new(SEED + 4);
    let mixed = (0..ELEMS).map(|i| match rng.below(8) {
        0 => special(&mut rng, i) & 0xbfff_ffff | (rng.next_u32() & SIGN),
        1 => [0x7fc0_0000, INF, SIGN | INF][rng.below(3) as usize],
        _ => (rng.next_u32() & 0x83ff_ffff) | 0x3c00_0000,
    });
    let mixed = mixed.collect();
    // Halfway points of scale 1: every loss is the largest there is.
    let halves = (0..ELEMS).map(|i| ((i % 253) as f32 - 126.5).to_bits()).collect();
    let name = "one range unit for all workgroups";
    [
        Case::new(name, mixed, &[ELEMS], Granularity::Tensor),
        Case { scales: Some(vec![1.0]), ..Case::new(name, halves, &[ELEMS], Granularity::Tensor) },
    ]
}

/// Shapes whose chunks and slabs begin and end inside vectors, runs and repeats, with scales of their own and without.
pub(super) fn cut() -> Vec<Case> {
    let mut rng = Rng::new(SEED + 5);
    let shapes: [(&[usize], Granularity); 5] = [
        (&[5003], Granularity::Tensor),
        (&[20_011], Granularity::Tensor),
        (&[13, 331], Granularity::Channel(0)),
        (&[3, 17, 101], Granularity::Channel(1)),
        (&[40, 23], Granularity::Channel(1)),
    ];
    let mut cases = vec![];
    for (i, (shape, granularity)) in shapes.into_iter().enumerate() {
        let bits = (0..shape.iter().product()).map(|j| match j % 4 {
            // One range far from 0: what lies beyond a chunk is often read as zeros.
            _ if i == 1 => (rng.next_u32() & 0x007f_ffff) | 0x4400_0000,
            3 => special(&mut rng, j / 4),
            _ => (rng.next_u32() & 0x83ff_ffff) | 0x3c00_0000,
        });
        let bits: Vec<u32> = bits.collect();
        let name = "small chunks, slabs and dispatches";
        cases.push(Case::new(name, bits.clone(), shape, granularity));
        // Each shape has the axis that it is cut along.
        let units = RangeUnits::new(shape, granularity).map_or(0, |units| units.units);
        let scales = Some((0..units).map(|unit| 0.01 * (unit % 97 + 1) as f32).collect());
        cases.push(Case { scales, ..Case::new(name, bits, shape, granularity) });
    }
    cases
}
