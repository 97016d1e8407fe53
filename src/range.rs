//! Ranges: of a range unit, and as observed over many batches.

use crate::error::{Error, Result};
use crate::exact::float::{from_hi_key, from_lo_key, hi_key, is_finite, lo_key};

/// The smallest and the largest finite value of a range unit; both +0 where there is none.
///
/// -0 counts as +0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Range {
    /// The smallest finite value.
    pub lo: f32,
    /// The largest finite value.
    pub hi: f32,
}

impl Range {
    /// The largest magnitude of a finite value.
    pub fn amax(self) -> f32 {
        // On bits, so that no float environment can flush it.
        f32::from_bits((self.lo.to_bits() & 0x7fff_ffff).max(self.hi.to_bits() & 0x7fff_ffff))
    }
}

/// How the ranges of batches become one.
///
/// [`MIN_MAX`](Self::MIN_MAX) is torch's `MinMaxObserver`, [`moving_average`](Self::moving_average) its
/// `MovingAverageMinMaxObserver`, each per tensor, channel or group.
///
/// ```
/// use wgpu_quant::Observer;
/// assert_eq!(Observer::moving_average(0.01)?.averaging_constant(), Some(0.01));
/// assert!(Observer::moving_average(1.5).is_err());
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Observer {
    /// The averaging constant's bits, or 0.
    averaging: u32,
}

impl Observer {
    /// The least and the largest value of all batches.
    pub const MIN_MAX: Self = Self { averaging: 0 };

    /// Each batch moves what was observed by this part of the distance.
    ///
    /// # Errors
    /// [`Error::AveragingConstant`] unless it is above 0 and at most 1.
    pub fn moving_average(averaging_constant: f32) -> Result<Self> {
        // On bits: a host that treats subnormals as zero must not refuse one.
        let averaging = averaging_constant.to_bits();
        if (1..=1f32.to_bits()).contains(&averaging) {
            Ok(Self { averaging })
        } else {
            Err(Error::AveragingConstant { found: averaging_constant })
        }
    }

    /// The averaging constant of a moving average.
    pub fn averaging_constant(self) -> Option<f32> {
        (self.averaging != 0).then(|| f32::from_bits(self.averaging))
    }

    /// The same as bits, or 0.
    pub(crate) fn averaging_bits(self) -> u32 {
        self.averaging
    }
}

/// The ranges that were observed over many batches, one per range unit.
///
/// [`cpu::observe`](crate::cpu::observe) makes it of one batch, [`cpu::merge_ranges`](crate::cpu::merge_ranges) of two,
/// and an adapter's `RangeAccumulator` holds it on the device until it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedRanges {
    /// Keys that grow with the value (hi) and fall with it (lo), of values that are not -0; 0 before there was one.
    keys: Vec<[u32; 2]>,
    batches: u64,
}

/// How saved ranges begin.
const MAGIC: &[u8; 8] = b"wqrange1";
const HEADER_BYTES: usize = MAGIC.len() + 16;
const UNIT_BYTES: usize = 8;

impl ObservedRanges {
    /// Nothing yet, of so many range units.
    pub fn new(units: usize) -> Self {
        Self { keys: vec![[0; 2]; units], batches: 0 }
    }

    pub(crate) fn from_keys(keys: Vec<[u32; 2]>, batches: u64) -> Self {
        Self { keys, batches }
    }

    pub(crate) fn keys(&self) -> &[[u32; 2]] {
        &self.keys
    }

    /// The number of range units.
    pub fn units(&self) -> usize {
        self.keys.len()
    }

    /// How many batches were observed.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// What was observed of a range unit; `None` without a finite value, or where there is no such unit.
    pub fn get(&self, unit: usize) -> Option<Range> {
        self.keys.get(unit).filter(|keys| keys[0] != 0).map(|&keys| range_of(keys))
    }

    /// The range of each range unit, both ends +0 where no finite value was observed.
    pub fn ranges(&self) -> Vec<Range> {
        self.keys.iter().map(|&keys| range_of(keys)).collect()
    }

    /// Saves it: `wqrange1`, the number of batches and of range units as u64, and of each range unit `lo` and `hi` as f32,
    /// +Inf and -Inf where no finite value was observed. All little-endian.
    ///
    /// ```
    /// use wgpu_quant::{Granularity, ObservedRanges, Tensor, cpu};
    /// let seen = cpu::observe(Tensor::new(&[1.0, -2.0], &[2])?, Granularity::Tensor)?;
    /// assert_eq!(ObservedRanges::from_bytes(&seen.to_bytes())?, seen);
    /// # Ok::<(), wgpu_quant::Error>(())
    /// ```
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + UNIT_BYTES * self.units());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.batches.to_le_bytes());
        bytes.extend_from_slice(&(self.units() as u64).to_le_bytes());
        for unit in 0..self.units() {
            let Range { lo, hi } = self.get(unit).unwrap_or(Range { lo: f32::INFINITY, hi: f32::NEG_INFINITY });
            bytes.extend_from_slice(&lo.to_le_bytes());
            bytes.extend_from_slice(&hi.to_le_bytes());
        }
        bytes
    }

    /// Restores what [`to_bytes`](Self::to_bytes) saved.
    ///
    /// # Errors
    /// [`Error::SavedRanges`] of anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let refused = |message: String| Error::SavedRanges { message };
        let Some((header, units)) = bytes.split_at_checked(HEADER_BYTES).filter(|(h, _)| h.starts_with(MAGIC)) else {
            let found = String::from_utf8_lossy(&bytes[..bytes.len().min(MAGIC.len())]).into_owned();
            return Err(refused(format!("{} bytes that begin with {found:?}, not with a header", bytes.len())));
        };
        let number = |at: usize| header[at..at + 8].iter().rev().fold(0u64, |n, &byte| n << 8 | u64::from(byte));
        let (batches, count) = (number(8), number(16));
        let expected = usize::try_from(count).ok().and_then(|count| count.checked_mul(UNIT_BYTES));
        if expected != Some(units.len()) {
            let found = units.len();
            return Err(refused(format!("{found} bytes follow the header, {count} range units take 8 each")));
        }
        let word = |at: &[u8]| u32::from_le_bytes([at[0], at[1], at[2], at[3]]);
        let key = |(unit, bytes): (usize, &[u8])| {
            let (lo, hi) = (word(&bytes[..4]), word(&bytes[4..]));
            if (lo, hi) == (f32::INFINITY.to_bits(), f32::NEG_INFINITY.to_bits()) {
                return Ok([0; 2]);
            }
            let keys = [hi_key(hi), lo_key(lo)];
            let Range { lo: first, hi: last } = range_of(keys);
            // The keys' order, which no float environment can change.
            let ordered = hi_key(first.to_bits()) <= hi_key(last.to_bits());
            if is_finite(lo) && is_finite(hi) && ordered && (first.to_bits(), last.to_bits()) == (lo, hi) {
                return Ok(keys);
            }
            let (lo, hi) = (f32::from_bits(lo), f32::from_bits(hi));
            Err(refused(format!(
                "range unit {unit} goes from {lo} to {hi}; finite ends in order are allowed, +0 for -0"
            )))
        };
        let keys = units.chunks_exact(UNIT_BYTES).enumerate().map(key).collect::<Result<_>>()?;
        Ok(Self { keys, batches })
    }
}

fn range_of([hi, lo]: [u32; 2]) -> Range {
    Range { lo: f32::from_bits(from_lo_key(lo)), hi: f32::from_bits(from_hi_key(hi)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(units: &[(f32, f32)]) -> Vec<u8> {
        let mut bytes = [MAGIC.as_slice(), &7u64.to_le_bytes(), &(units.len() as u64).to_le_bytes()].concat();
        for (lo, hi) in units {
            bytes.extend([lo.to_le_bytes(), hi.to_le_bytes()].concat());
        }
        bytes
    }

    #[test]
    fn saved_ranges_come_back_bit_for_bit() {
        let least = f32::from_bits(1);
        let none = (f32::INFINITY, f32::NEG_INFINITY);
        let bytes = saved(&[(-1.5, 2.0), none, (-least, least), (0.0, 0.0), (f32::MIN, f32::MAX)]);
        let ranges = ObservedRanges::from_bytes(&bytes).unwrap();
        assert_eq!((ranges.to_bytes(), ranges.units(), ranges.batches()), (bytes, 5, 7));
        assert_eq!((ranges.get(0), ranges.get(1)), (Some(Range { lo: -1.5, hi: 2.0 }), None));
        assert_eq!((ranges.get(2), ranges.get(3)), (Some(Range { lo: -least, hi: least }), Some(Range::default())));
        assert_eq!((ranges.get(5), ranges.ranges()[1]), (None, Range::default()));
    }

    #[test]
    fn what_is_not_saved_ranges_is_refused_with_what_was_found() {
        let refused = |bytes: &[u8], says: &str| {
            let error = ObservedRanges::from_bytes(bytes).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        refused(b"", "0 bytes");
        refused(b"npy", "\"npy\"");
        refused(b"wqrange2 and some more bytes, enough of them", "\"wqrange2\"");
        let good = saved(&[(0.0, 1.0), (-1.0, 0.0)]);
        refused(&good[..HEADER_BYTES - 1], "23 bytes");
        refused(&good[..good.len() - 1], "15 bytes follow the header, 2 range units");
        refused(&[&good[..], &[0]].concat(), "17 bytes follow");
        let mut many = good.clone();
        many[16..24].fill(0xff);
        refused(&many, "18446744073709551615 range units");
        for (lo, hi) in
            [(1.0, 0.0), (-0.0, 1.0), (-1.0, -0.0), (f32::NAN, 1.0), (0.0, f32::INFINITY), (f32::MIN, f32::NAN)]
        {
            refused(&saved(&[(0.0, 0.0), (lo, hi)]), "range unit 1 goes from");
        }
    }
}
