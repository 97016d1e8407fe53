//! Which tensors are quantized, and why the others are not.

use globset::{Glob, GlobSet, GlobSetBuilder};
use std::fmt;
use wgpu_quant::file::{Dtype, FileKind, TensorView};
use wgpu_quant::{Granularity, RangeUnits};

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
    per: Option<Granularity>,
    whatever_rank: bool,
}

impl Choice {
    pub(crate) fn new(
        include: &[Glob],
        exclude: &[Glob],
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
        Ok(Self { include: set(include)?, exclude: set(exclude)?, per, whatever_rank: kind == FileKind::Npy })
    }

    pub(crate) fn decide(&self, tensor: &TensorView<'_>) -> Decision {
        let rank = tensor.shape.len();
        let per = self.per.unwrap_or(if rank >= 2 { Granularity::Channel(0) } else { Granularity::Tensor });
        let reason = match FloatKind::of(tensor.dtype) {
            FloatKind::None => CopyReason::NotFloat,
            _ if self.exclude.is_match(tensor.name) => CopyReason::Excluded,
            _ if rank < 2 && !self.whatever_rank && !self.include.is_match(tensor.name) => CopyReason::LowRank,
            FloatKind::Unread => CopyReason::UnreadFloat(tensor.dtype),
            FloatKind::Read if RangeUnits::new(tensor.shape, per).is_err() => CopyReason::NoSuchAxis(per),
            FloatKind::Read => return Decision::Quantize(per),
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
