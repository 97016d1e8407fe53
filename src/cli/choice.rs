//! Which tensors are quantized, and why the others are not.

use globset::{Glob, GlobSet, GlobSetBuilder};
use std::fmt;
use wgpu_quant::file::{Dtype, FileKind, TensorView};
use wgpu_quant::{Error, Granularity, RangeUnits, Scheme};

/// What happens to a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Quantize(Granularity),
    Copy(CopyReason),
}

/// Why a tensor is copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CopyReason {
    NotFloat,
    Excluded,
    LowRank,
    UnreadFloat(Dtype),
    NoSuchAxis(Granularity),
}

impl CopyReason {
    /// Whether this is not what was asked for.
    pub(crate) fn trips_strict(&self) -> bool {
        matches!(self, Self::UnreadFloat(_) | Self::NoSuchAxis(_))
    }
}

impl fmt::Display for CopyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFloat => f.write_str("not a float tensor"),
            Self::Excluded => f.write_str("--exclude names it"),
            Self::LowRank => f.write_str("rank below 2, left alone by default (--include adds it)"),
            Self::UnreadFloat(dtype) => write!(f, "{dtype} is not read (F64, F32, F16 and BF16 are)"),
            Self::NoSuchAxis(granularity) => write!(f, "its rank does not allow {granularity}"),
        }
    }
}

/// The rules of a command line.
#[derive(Debug)]
pub(crate) struct Choice {
    include: GlobSet,
    exclude: GlobSet,
    scheme: Scheme,
    per: Option<Granularity>,
    whatever_rank: bool,
}

impl Choice {
    pub(crate) fn new(
        include: &[Glob],
        exclude: &[Glob],
        scheme: Scheme,
        per: Option<Granularity>,
        kind: FileKind,
    ) -> Result<Self, globset::Error> {
        let set = |globs: &[Glob]| {
            let mut builder = GlobSetBuilder::new();
            for glob in globs {
                builder.add(glob.clone());
            }
            builder.build()
        };
        // Who names a .npy file means its tensor.
        let (include, exclude, whatever_rank) = (set(include)?, set(exclude)?, kind == FileKind::Npy);
        Ok(Self { include, exclude, scheme, per, whatever_rank })
    }

    pub(crate) fn decide(&self, tensor: &TensorView<'_>) -> Decision {
        let rank = tensor.shape.len();
        let by_rank = if rank >= 2 && !self.scheme.is_cast() { Granularity::Channel(0) } else { Granularity::Tensor };
        let per = self.per.unwrap_or(by_rank);
        let reason = match FloatKind::of(tensor.dtype) {
            FloatKind::None => CopyReason::NotFloat,
            _ if self.exclude.is_match(tensor.name) => CopyReason::Excluded,
            _ if rank < 2 && !self.whatever_rank && !self.include.is_match(tensor.name) => CopyReason::LowRank,
            FloatKind::Unread => CopyReason::UnreadFloat(tensor.dtype),
            FloatKind::Read => match RangeUnits::new(tensor.shape, per) {
                Err(Error::AxisOutOfRange { .. } | Error::ScalarHasNoGroups { .. }) => CopyReason::NoSuchAxis(per),
                // Another error is no reason to copy, and is met again.
                _ => return Decision::Quantize(per),
            },
        };
        Decision::Copy(reason)
    }
}

enum FloatKind {
    Read,
    Unread,
    None,
}

impl FloatKind {
    fn of(dtype: Dtype) -> Self {
        use Dtype::{BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
        match dtype {
            F64 | F32 | F16 | BF16 => Self::Read,
            BOOL | U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64 => Self::None,
            // The small floats, complex numbers, and what a later safetensors may bring.
            _ => Self::Unread,
        }
    }
}
