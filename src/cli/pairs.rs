//! The tensors of an original and of what `quantize` made of it, brought together.

use std::collections::HashSet;
use wgpu_quant::Error;
use wgpu_quant::file::{self, FileKind, Input, Sources, TensorView};

pub(crate) struct Pairs<'a> {
    /// The original's tensor, and the quantized file's of that name.
    pub(crate) both: Vec<(TensorView<'a>, TensorView<'a>)>,
    /// The first name that is in one file alone, if there is one.
    pub(crate) missing: Option<Error>,
}

impl<'a> Pairs<'a> {
    pub(crate) fn new(original: &'a Input, quantized: &'a Input, sources: &Sources) -> Self {
        let companions = sources.companions();
        let after: Vec<_> = quantized.tensors().filter(|tensor| !companions.contains(tensor.name)).collect();
        // A .npy tensor has no name but the file's, which may have been renamed.
        if let (FileKind::Npy, [only]) = (original.kind(), &after[..]) {
            let both = original.tensors().map(|before| (TensorView { name: only.name, ..before }, *only)).collect();
            return Self { both, missing: None };
        }
        let lacks = |file: &Input, name: &str, other: &Input| {
            file::invalid(file.path(), format!("holds no tensor {name:?}, which {} holds", other.path().display()))
        };
        let names: HashSet<&str> = after.iter().map(|tensor| tensor.name).collect();
        let lost = original.tensors().find(|tensor| !names.contains(tensor.name));
        let added = after.iter().find(|tensor| original.tensor(tensor.name).is_none());
        let missing = match (lost, added) {
            (Some(tensor), _) => Some(lacks(quantized, tensor.name, original)),
            (None, Some(tensor)) => Some(lacks(original, tensor.name, quantized)),
            (None, None) => None,
        };
        let both = after.into_iter().filter_map(|after| Some((original.tensor(after.name)?, after))).collect();
        Self { both, missing }
    }
}
