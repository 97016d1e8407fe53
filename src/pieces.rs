//! A tensor that does not fit, cut into pieces that are dense tensors of their own.

use crate::layout::{Granularity, RangeUnits};
use std::ops::Range;

/// The pieces of a tensor, in order: each a run of its elements, and a tensor of few shapes.
///
/// Elements of one piece belong to range units that follow each other, as a granularity of the piece's own says. Pieces
/// that end within a row begin and end with a byte of 4-bit codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pieces {
    shape: Vec<usize>,
    granularity: Granularity,
    units: RangeUnits,
    row_elems: usize,
    kind: Kind,
    /// No piece crosses the end of a block, nor the ends of the parts of a block, the last of which may be short.
    block_elems: usize,
    part_elems: usize,
    step_elems: usize,
}

/// What a piece holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing: the whole of an empty tensor.
    Empty,
    /// All units of a channel axis, once or more often.
    Periods,
    /// Some of them, whole.
    Channels,
    /// Whole groups.
    Groups,
    /// Elements of one unit.
    OneUnit,
}

/// One piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) elems: Range<usize>,
    pub(crate) first_unit: usize,
}

impl Pieces {
    /// Pieces of at most so many elements, 8 or more. Only groups of an odd number of 4-bit codes may need more: two of them
    /// end with a byte.
    ///
    /// `units` are those of the shape and granularity.
    pub(crate) fn new(
        shape: &[usize],
        granularity: Granularity,
        units: RangeUnits,
        code_bits: u32,
        most_elems: usize,
    ) -> Self {
        let all = units.elems();
        let row = shape.last().copied().unwrap_or(1);
        let inner = units.inner_elems;
        let period = units.units * inner;
        let whole = |of: usize| most_elems / of.max(1) * of;
        // Within a row: whole bytes of codes, and vectors that lie as they did.
        let within = most_elems & !7;
        let rows_or_less = |run: usize| if row <= most_elems { (run, run, whole(row)) } else { (row, row, within) };
        let (kind, (block_elems, part_elems, step_elems)) = match granularity {
            _ if all == 0 => (Kind::Empty, (1, 1, 1)),
            Granularity::Tensor => (Kind::OneUnit, rows_or_less(all)),
            Granularity::Channel(_) if units.outer > 1 && period <= most_elems => {
                (Kind::Periods, (all, all, whole(period)))
            }
            Granularity::Channel(_) if inner == 1 && row > most_elems => (Kind::Channels, (period, period, within)),
            Granularity::Channel(_) if inner <= most_elems => (Kind::Channels, (period, period, whole(inner))),
            Granularity::Channel(_) => (Kind::OneUnit, rows_or_less(inner)),
            Granularity::Group(_) if row <= most_elems => (Kind::Groups, (all, all, whole(row))),
            Granularity::Group(_) => {
                let is_odd = code_bits == 4 && inner < row && !inner.is_multiple_of(2);
                let together = if is_odd { 2 * inner } else { inner };
                if is_odd || inner <= most_elems {
                    (Kind::Groups, (row, row, whole(together).max(together)))
                } else {
                    (Kind::OneUnit, (row, inner, within))
                }
            }
        };
        let step_elems = step_elems.min(part_elems);
        Self { shape: shape.to_vec(), granularity, units, row_elems: row, kind, block_elems, part_elems, step_elems }
    }

    fn blocks(&self) -> usize {
        self.units.elems() / self.block_elems
    }

    fn pieces_per_part(&self) -> usize {
        self.part_elems.div_ceil(self.step_elems)
    }

    fn pieces_per_block(&self) -> usize {
        let short = self.block_elems % self.part_elems;
        self.block_elems / self.part_elems * self.pieces_per_part() + short.div_ceil(self.step_elems)
    }

    /// How many there are; of an empty tensor one.
    pub(crate) fn count(&self) -> usize {
        if self.kind == Kind::Empty { 1 } else { self.blocks() * self.pieces_per_block() }
    }

    /// Piece `i` of [`count`](Self::count).
    pub(crate) fn get(&self, i: usize) -> Piece {
        if self.kind == Kind::Empty {
            return Piece { elems: 0..0, first_unit: 0 };
        }
        let (block, i) = (i / self.pieces_per_block(), i % self.pieces_per_block());
        let (part, i) = (i / self.pieces_per_part(), i % self.pieces_per_part());
        let part_start = part * self.part_elems;
        let start = part_start + i * self.step_elems;
        let end = (start + self.step_elems).min(part_start + self.part_elems).min(self.block_elems);
        let at = block * self.block_elems;
        Piece { elems: at + start..at + end, first_unit: self.units.unit_of(at + start) }
    }

    #[cfg(any(feature = "gpu", test))]
    /// The lengths that pieces have: three at most.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        if self.kind == Kind::Empty {
            return vec![0];
        }
        let short = self.block_elems % self.part_elems;
        let mut lengths = vec![self.step_elems, self.part_elems % self.step_elems, short % self.step_elems];
        lengths.sort_unstable();
        lengths.dedup();
        lengths.retain(|&length| length > 0);
        lengths
    }

    /// The tensor that a piece of this length is.
    pub(crate) fn tensor(&self, elems: usize) -> (Vec<usize>, Granularity) {
        let inner = self.units.inner_elems;
        let row = self.row_elems.min(elems).max(1);
        // A channel axis that is the last has nothing behind it.
        let behind = |lead: &[usize]| match self.granularity {
            Granularity::Channel(axis) if axis == -1 || usize::try_from(axis) == Ok(self.shape.len() - 1) => {
                lead.to_vec()
            }
            _ => [lead, &[inner / self.row_elems, self.row_elems]].concat(),
        };
        match self.kind {
            Kind::Empty => (self.shape.clone(), self.granularity),
            Kind::Periods => {
                let units = self.units.units;
                (behind(&[elems / (units * inner), units]), Granularity::Channel(1))
            }
            Kind::Channels => (behind(&[elems / inner]), Granularity::Channel(0)),
            Kind::Groups => (vec![elems / row, row], self.granularity),
            Kind::OneUnit => (vec![elems / row, row], Granularity::Tensor),
        }
    }

    /// Whether elements of one range unit lie in several pieces.
    pub(crate) fn share_units(&self) -> bool {
        match self.kind {
            Kind::Empty | Kind::Groups => false,
            Kind::Channels => self.units.outer > 1,
            Kind::Periods | Kind::OneUnit => self.count() > 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantized::code_bytes;
    use crate::scheme::Scheme;
    use Granularity::{Channel, Group, Tensor};

    fn pieces(shape: &[usize], granularity: Granularity, code_bits: u32, most: usize) -> Pieces {
        Pieces::new(shape, granularity, RangeUnits::new(shape, granularity).unwrap(), code_bits, most)
    }

    /// Piece by piece, and each element's unit by the piece's own shape.
    fn check(shape: &[usize], granularity: Granularity, code_bits: u32, most: usize) {
        let case = format!("{shape:?} {granularity} {code_bits} bits, pieces of {most}");
        let whole = RangeUnits::new(shape, granularity).unwrap();
        let pieces = pieces(shape, granularity, code_bits, most);
        let scheme = if code_bits == 4 { Scheme::INT4_ABSMAX } else { Scheme::INT8_ABSMAX };
        let (mut next, mut bytes, mut lengths) = (0, 0, vec![]);
        let mut last_piece = vec![None; whole.units];
        let mut shares = false;
        for i in 0..pieces.count() {
            let piece = pieces.get(i);
            assert_eq!(piece.elems.start, next, "{case}");
            let length = piece.elems.len();
            let odd_groups = matches!(granularity, Group(n) if code_bits == 4 && n % 2 == 1);
            assert!(length <= most || (odd_groups && length <= 2 * whole.inner_elems), "{case}: {length}");
            let (own_shape, own_granularity) = pieces.tensor(length);
            let own = RangeUnits::new(&own_shape, own_granularity).unwrap();
            assert_eq!(own.elems(), length, "{case} {own_shape:?}");
            for elem in piece.elems.clone() {
                let unit = whole.unit_of(elem);
                assert_eq!(piece.first_unit + own.unit_of(elem - next), unit, "{case} {own_shape:?} {own_granularity}");
                shares |= last_piece[unit].is_some_and(|last| last != i);
                last_piece[unit] = Some(i);
            }
            lengths.push(length);
            bytes += code_bytes(&own_shape, scheme.code()).unwrap();
            next = piece.elems.end;
        }
        assert_eq!(next, whole.elems(), "{case}");
        assert_eq!(bytes, code_bytes(shape, scheme.code()).unwrap(), "{case}");
        assert_eq!(shares, pieces.share_units(), "{case}");
        lengths.sort_unstable();
        lengths.dedup();
        assert_eq!(lengths, pieces.lengths(), "{case}");
    }

    const SHAPES: [&[usize]; 18] = [
        &[],
        &[1],
        &[7],
        &[1000],
        &[10, 1],
        &[1, 10],
        &[10, 20],
        &[33, 31],
        &[3, 100],
        &[2, 3, 5],
        &[4, 3, 2, 7],
        &[5, 1, 9],
        &[3, 2, 40],
        &[2, 50, 3],
        &[0],
        &[3, 0],
        &[0, 3],
        &[2, 0, 5],
    ];

    #[test]
    fn pieces_follow_each_other_and_keep_every_elements_unit_and_codes() {
        for shape in SHAPES {
            let axes = i32::try_from(shape.len()).unwrap();
            let groups = [1, 2, 3, 4, 7, 8, 12, 32, 33, 1000].map(Group);
            let granularities = (-axes..axes).map(Channel).chain(groups.into_iter().filter(|_| axes > 0));
            for granularity in granularities.chain([Tensor]) {
                for code_bits in [4, 8] {
                    for most in (8..50).chain([64, 100, 333, 5000, usize::MAX / 2]) {
                        check(shape, granularity, code_bits, most);
                    }
                }
            }
        }
    }

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn a_tensor_of_2_to_the_40_elements_has_few_shapes_of_pieces() {
        let side = 1usize << 20;
        for (shape, granularity, count, lengths) in [
            (vec![side, side], Tensor, 1 << 17, vec![8 << 20]),
            (vec![side, side], Channel(0), 1 << 17, vec![8 << 20]),
            (vec![side, side], Channel(1), 1 << 17, vec![8 << 20]),
            (vec![side << 20], Group(32), 1 << 17, vec![8 << 20]),
            (vec![3, (side << 20) / 3], Tensor, 3 * 43_691, vec![5_592_405, 8 << 20]),
        ] {
            let pieces = pieces(&shape, granularity, 4, 8 << 20);
            assert_eq!((pieces.count(), pieces.lengths()), (count, lengths), "{shape:?} {granularity}");
            let last = pieces.get(count - 1);
            assert_eq!(last.elems.end, shape.iter().product::<usize>(), "{shape:?} {granularity}");
        }
    }
}
