//! What is known of a scalar: an interval of whole numbers that holds its value. Each operation gives the least
//! interval that is easily found, never one that misses a value.

use naga::{BinaryOperator, Scalar};
use std::fmt;

/// The whole numbers from `lo` to `hi`, at least one; `bool` is 0 and 1. Wide enough for a product of any two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interval {
    pub(crate) lo: i128,
    pub(crate) hi: i128,
}

/// A comparison as what must hold of its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}..={}", self.lo, self.hi)
    }
}

impl Interval {
    pub(crate) const BOOL: Self = Self::new(0, 1);
    pub(crate) const U32: Self = Self::new(0, u32::MAX as i128);
    pub(crate) const I32: Self = Self::new(i32::MIN as i128, i32::MAX as i128);
    pub(crate) const SHIFTS: Self = Self::new(0, 31);

    pub(crate) const fn new(lo: i128, hi: i128) -> Self {
        Self { lo, hi }
    }

    pub(crate) const fn point(value: i128) -> Self {
        Self::new(value, value)
    }

    /// All values of a type, if it is one that shaders may use.
    pub(crate) fn all_of(scalar: Scalar) -> Option<Self> {
        match scalar {
            Scalar::BOOL => Some(Self::BOOL),
            Scalar::U32 => Some(Self::U32),
            Scalar::I32 => Some(Self::I32),
            _ => None,
        }
    }

    pub(crate) fn is_point(self) -> bool {
        self.lo == self.hi
    }

    pub(crate) fn holds(self, value: i128) -> bool {
        (self.lo..=self.hi).contains(&value)
    }

    pub(crate) fn lies_in(self, outer: Self) -> bool {
        outer.lo <= self.lo && self.hi <= outer.hi
    }

    pub(crate) fn join(self, other: Self) -> Self {
        Self::new(self.lo.min(other.lo), self.hi.max(other.hi))
    }

    fn meet(self, other: Self) -> Option<Self> {
        let (lo, hi) = (self.lo.max(other.lo), self.hi.min(other.hi));
        (lo <= hi).then_some(Self::new(lo, hi))
    }

    /// The same modulo 2^32 in the range of a type, as wrapping arithmetic and bitcasts leave it.
    pub(crate) fn wrapped(self, all: Self) -> Self {
        let size = all.hi - all.lo + 1;
        let turns = (self.lo - all.lo).div_euclid(size);
        if turns == (self.hi - all.lo).div_euclid(size) {
            Self::new(self.lo - turns * size, self.hi - turns * size)
        } else {
            all
        }
    }

    /// Of an operation that is monotone in each operand: its extremes are at the corners.
    fn corners(self, other: Self, f: impl Fn(i128, i128) -> i128) -> Self {
        let corners = [(self.lo, other.lo), (self.lo, other.hi), (self.hi, other.lo), (self.hi, other.hi)];
        let mut points = corners.map(|(a, b)| Self::point(f(a, b))).into_iter();
        let first = points.next().expect("there are four");
        points.fold(first, Self::join)
    }

    pub(crate) fn add(self, other: Self) -> Self {
        self.corners(other, |a, b| a + b)
    }

    pub(crate) fn subtract(self, other: Self) -> Self {
        self.corners(other, |a, b| a - b)
    }

    pub(crate) fn multiply(self, other: Self) -> Self {
        self.corners(other, |a, b| a * b)
    }

    pub(crate) fn min(self, other: Self) -> Self {
        self.corners(other, i128::min)
    }

    pub(crate) fn max(self, other: Self) -> Self {
        self.corners(other, i128::max)
    }

    /// By 0 to 31 places, exactly: not yet wrapped.
    pub(crate) fn shift_left(self, places: Self) -> Self {
        self.corners(places, |a, n| a << n)
    }

    pub(crate) fn shift_right(self, places: Self) -> Self {
        self.corners(places, |a, n| a >> n)
    }

    /// Of u32 by u32, not 0.
    pub(crate) fn divide(self, divisor: Self) -> Self {
        self.corners(divisor, |a, b| a / b)
    }

    /// Of u32 by u32, not 0.
    pub(crate) fn modulo(self, divisor: Self) -> Self {
        if self.hi < divisor.lo { self } else { Self::new(0, self.hi.min(divisor.hi - 1)) }
    }

    /// Of u32, as the other operations on bits.
    pub(crate) fn and(self, mask: Self) -> Self {
        let keeps_all = mask.is_point() && mask.hi == ones(mask.hi) && self.hi <= mask.hi;
        if keeps_all { self } else { Self::new(0, self.hi.min(mask.hi)) }
    }

    pub(crate) fn or(self, other: Self) -> Self {
        Self::new(self.lo.max(other.lo), ones(self.hi | other.hi))
    }

    pub(crate) fn xor(self, other: Self) -> Self {
        Self::new(0, ones(self.hi | other.hi))
    }

    /// `~x` of u32 and `!x` of bool.
    pub(crate) fn complement(self, all: Self) -> Self {
        Self::new(all.hi - self.hi, all.hi - self.lo)
    }

    /// Of u32; 32 of 0.
    pub(crate) fn count_leading_zeros(self) -> Self {
        Self::new(32 - bits(self.hi), 32 - bits(self.lo))
    }

    /// Whether the relation holds, as a bool.
    pub(crate) fn compare(self, relation: Relation, other: Self) -> Self {
        let can_hold = relation.refine(self, other).is_some();
        let can_fail = relation.negated().refine(self, other).is_some();
        Self::new(i128::from(!can_fail), i128::from(can_hold))
    }
}

fn bits(x: i128) -> i128 {
    i128::from(i128::BITS - x.leading_zeros())
}

/// The least 2^n - 1 that is x or more.
fn ones(x: i128) -> i128 {
    (1 << bits(x)) - 1
}

impl Relation {
    pub(crate) fn of(op: BinaryOperator) -> Option<Self> {
        match op {
            BinaryOperator::Equal => Some(Self::Equal),
            BinaryOperator::NotEqual => Some(Self::NotEqual),
            BinaryOperator::Less => Some(Self::Less),
            BinaryOperator::LessEqual => Some(Self::LessEqual),
            BinaryOperator::Greater => Some(Self::Greater),
            BinaryOperator::GreaterEqual => Some(Self::GreaterEqual),
            _ => None,
        }
    }

    pub(crate) fn negated(self) -> Self {
        match self {
            Self::Equal => Self::NotEqual,
            Self::NotEqual => Self::Equal,
            Self::Less => Self::GreaterEqual,
            Self::LessEqual => Self::Greater,
            Self::Greater => Self::LessEqual,
            Self::GreaterEqual => Self::Less,
        }
    }

    /// What is left of the operands where the relation holds; `None` if it cannot.
    pub(crate) fn refine(self, a: Interval, b: Interval) -> Option<(Interval, Interval)> {
        match self {
            Self::Equal => a.meet(b).map(|both| (both, both)),
            Self::NotEqual => Some((without(a, b)?, without(b, a)?)),
            Self::Less => {
                let less = a.meet(Interval::new(a.lo, b.hi - 1))?;
                Some((less, b.meet(Interval::new(a.lo + 1, b.hi))?))
            }
            Self::LessEqual => {
                let less = a.meet(Interval::new(a.lo, b.hi))?;
                Some((less, b.meet(Interval::new(a.lo, b.hi))?))
            }
            Self::Greater => Self::Less.refine(b, a).map(|(b, a)| (a, b)),
            Self::GreaterEqual => Self::LessEqual.refine(b, a).map(|(b, a)| (a, b)),
        }
    }
}

/// `a` without `b`, where that is an interval.
fn without(a: Interval, b: Interval) -> Option<Interval> {
    match b.is_point() {
        true if a == b => None,
        true if a.lo == b.lo => Some(Interval::new(a.lo + 1, a.hi)),
        true if a.hi == b.lo => Some(Interval::new(a.lo, a.hi - 1)),
        _ => Some(a),
    }
}

#[test]
fn every_operation_on_values_lies_in_the_operation_on_their_intervals() {
    type Whole = fn(Interval, Interval) -> Interval;
    type Single = fn(u32, u32) -> u32;
    let small = |b: u32| b % 32;
    let operations: [(&str, Whole, Single); 14] = [
        ("+", |a, b| a.add(b).wrapped(Interval::U32), u32::wrapping_add),
        ("-", |a, b| a.subtract(b).wrapped(Interval::U32), u32::wrapping_sub),
        ("*", |a, b| a.multiply(b).wrapped(Interval::U32), u32::wrapping_mul),
        ("/", |a, b| a.divide(b.max(Interval::point(1))), |a, b| a / b.max(1)),
        ("%", |a, b| a.modulo(b.max(Interval::point(1))), |a, b| a % b.max(1)),
        ("&", Interval::and, |a, b| a & b),
        ("|", Interval::or, |a, b| a | b),
        ("^", Interval::xor, |a, b| a ^ b),
        ("~", |a, _| a.complement(Interval::U32), |a, _| !a),
        ("min", Interval::min, u32::min),
        ("max", Interval::max, u32::max),
        ("<<", |a, b| a.shift_left(b.min(Interval::point(31))).wrapped(Interval::U32), |a, b| a << b.min(31)),
        (">>", |a, b| a.shift_right(b.min(Interval::point(31))), |a, b| a >> b.min(31)),
        ("countLeadingZeros", |a, _| a.count_leading_zeros(), |a, _| a.leading_zeros()),
    ];
    let edges = [0, 1, 2, 3, 7, 8, 30, 31, 32, 33, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, u32::MAX];
    let intervals = || edges.iter().flat_map(|&lo| edges.iter().filter(move |&&hi| hi >= lo).map(move |&hi| (lo, hi)));
    let inside = |(lo, hi): (u32, u32)| [lo, lo + (hi - lo) / 2, lo + small(hi - lo), hi];
    let of = |(lo, hi): (u32, u32)| Interval::new(i128::from(lo), i128::from(hi));
    for (name, whole, single) in operations {
        for a in intervals() {
            for b in intervals() {
                let found = whole(of(a), of(b));
                for x in inside(a) {
                    for y in inside(b) {
                        let value = single(x, y);
                        assert!(found.holds(i128::from(value)), "{x} {name} {y} = {value}, not in {found}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_refinement_keeps_every_pair_of_which_the_relation_holds() {
    type Holds = fn(i128, i128) -> bool;
    let relations: [(Relation, Holds); 6] = [
        (Relation::Equal, |a, b| a == b),
        (Relation::NotEqual, |a, b| a != b),
        (Relation::Less, |a, b| a < b),
        (Relation::LessEqual, |a, b| a <= b),
        (Relation::Greater, |a, b| a > b),
        (Relation::GreaterEqual, |a, b| a >= b),
    ];
    let intervals = || (-3..=3).flat_map(|lo| (lo..=3).map(move |hi| Interval::new(lo, hi)));
    for (relation, holds) in relations {
        for a in intervals() {
            for b in intervals() {
                let refined = relation.refine(a, b);
                let mut seen = [false; 2];
                for x in a.lo..=a.hi {
                    for y in b.lo..=b.hi {
                        seen[usize::from(holds(x, y))] = true;
                        let kept = refined.is_some_and(|(a, b)| a.holds(x) && b.holds(y));
                        assert!(kept || !holds(x, y), "{x} {relation:?} {y} was lost from {a} and {b}");
                    }
                }
                let known = Interval::new(i128::from(!seen[0]), i128::from(seen[1]));
                assert_eq!(a.compare(relation, b), known, "{a} {relation:?} {b}");
            }
        }
    }
}

#[test]
fn wrapping_keeps_what_fits_and_gives_up_what_straddles() {
    let wrapped = |lo, hi| Interval::new(lo, hi).wrapped(Interval::U32);
    assert_eq!(wrapped(-2, -1), Interval::new(0xffff_fffe, 0xffff_ffff));
    assert_eq!(wrapped(1 << 32, (1 << 32) + 5), Interval::new(0, 5));
    assert_eq!(wrapped(-1, 0), Interval::U32);
    assert_eq!(Interval::new(0xffff_fffe, 0xffff_ffff).wrapped(Interval::I32), Interval::new(-2, -1));
}
