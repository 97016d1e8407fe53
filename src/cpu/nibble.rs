//! 4-bit codes, two to a byte, each row beginning with a byte of its own.

use super::simd::{self, Map};
use crate::quantized::Quantized;
use std::ops::Range;

/// Stores codes that begin with element `first`, an even one of its row. A row of odd length ends with a half that no
/// element has; `pad` says what to store there, of the row's last element.
pub(super) fn pack(codes: &[u8], first: usize, row_elems: usize, pad: impl Fn(usize) -> i32, bytes: &mut [u8]) {
    if row_elems.is_multiple_of(2) {
        return pairs(codes, bytes);
    }
    let (mut at, mut codes, mut bytes) = (first, codes, bytes);
    while !codes.is_empty() {
        let (now, later) = codes.split_at(codes.len().min(row_elems - at % row_elems));
        let (to, rest) = bytes.split_at_mut(now.len().div_ceil(2));
        pairs(now, to);
        at += now.len();
        if let ([.., last], Some(byte)) = (now, to.last_mut())
            && !now.len().is_multiple_of(2)
        {
            *byte = last | (pad(at - 1) as u8) << 4;
        }
        (codes, bytes) = (later, rest);
    }
}

fn pairs(codes: &[u8], bytes: &mut [u8]) {
    let f = |pair| {
        let word = u16::from_le_bytes(pair);
        (word | word >> 4) as u8
    };
    simd::run(Map { from: codes.as_chunks().0, to: bytes, f });
}

/// The codes of these elements.
pub(super) fn unpack(q: &Quantized, elems: Range<usize>, codes: &mut [u8]) {
    let row_elems = q.shape().last().copied().unwrap_or(1);
    let row_bytes = row_elems.div_ceil(2);
    let (mut at, mut codes) = (elems.start, codes);
    while !codes.is_empty() {
        let (row, column) = (at / row_elems, at % row_elems);
        // Rows of even length follow each other without a gap.
        let left = if row_elems.is_multiple_of(2) { codes.len() } else { row_elems - column };
        let (now, later) = codes.split_at_mut(left.min(codes.len()));
        at += now.len();
        let mut bytes = &q.codes()[row * row_bytes + column / 2..];
        let odd = column % 2;
        if odd == 1 {
            now[0] = bytes[0] >> 4;
            bytes = &bytes[1..];
        }
        let (both, last) = now[odd..].as_chunks_mut::<2>();
        let f = |byte| {
            let word = u16::from(byte);
            ((word | word << 4) & 0x0f0f).to_le_bytes()
        };
        let n = both.len();
        simd::run(Map { from: bytes, to: both, f });
        if let [last] = last {
            *last = bytes[n] & 0xf;
        }
        codes = later;
    }
}
