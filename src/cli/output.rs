//! A safetensors file that is being written, by any number of threads.

use rayon::prelude::*;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use wgpu_quant::file::{self, Digest, Layout, NewFile, PartBytes};
use wgpu_quant::{Backend, Error, Result};

/// Refuses to write over a file that is being read or written already.
pub(crate) fn check(out: &Path, others: &[&Path], force: bool) -> Result<()> {
    match others.iter().find(|other| file::same_file(out, other)) {
        Some(other) => Err(file::invalid(out, format!("is the same file as {}", other.display()))),
        None => file::check_target(out, force),
    }
}

/// A new file with its header, or a dry run of one; tensors go to their places as they come.
#[derive(Debug)]
pub(crate) struct Writer {
    layout: Layout,
    file: Option<NewFile>,
}

impl Writer {
    pub(crate) fn create(path: &Path, force: bool, layout: Layout) -> Result<Self> {
        let file = NewFile::create(path, force)?;
        file.set_len(layout.file_bytes())?;
        file.write_at(0, layout.header())?;
        Ok(Self { layout, file: Some(file) })
    }

    /// Knows how large everything would be, and writes nothing.
    pub(crate) fn dry(layout: Layout) -> Self {
        Self { layout, file: None }
    }

    pub(crate) fn is_dry(&self) -> bool {
        self.file.is_none()
    }

    /// The bytes that a tensor takes.
    pub(crate) fn tensor_bytes(&self, name: &str) -> u64 {
        self.layout.place(name).map_or(0, |place| place.end - place.start)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        // Piece by piece, so that others come in between.
        let pieces =
            bytes.chunks(1 << 20).scan(0, |at, piece| Some((std::mem::replace(at, *at + piece.len() as u64), piece)));
        pieces.into_iter().try_for_each(|(at, piece)| self.write_at(name, at, piece))
    }

    /// Writes bytes of a tensor that begin with its byte `at`.
    pub(crate) fn write_at(&self, name: &str, at: u64, bytes: &[u8]) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        match self.layout.place(name) {
            Some(place) if at + bytes.len() as u64 <= place.end - place.start => file.write_at(place.start + at, bytes),
            _ => Err(file::invalid(file.path(), format!("tensor {name:?}: no place for {} bytes", bytes.len()))),
        }
    }

    /// Writes another header over the first: what is known only once the data is.
    pub(crate) fn replace_header(&self, layout: &Layout) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        match (layout.header(), self.layout.header().len()) {
            (header, kept) if header.len() == kept => file.write_at(0, header),
            (header, kept) => {
                Err(file::invalid(file.path(), format!("a header of {} bytes, {kept} were kept for it", header.len())))
            }
        }
    }

    pub(crate) fn commit(self) -> Result<()> {
        self.file.map_or(Ok(()), NewFile::commit)
    }
}

/// Does something with each of these, in parallel where the CPU path computes; gives what comes of it in order.
///
/// An adapter takes one tensor after the other. After a failure no more are begun, and the first in order is the error.
pub(crate) fn for_each<T: std::marker::Sync, R: Send>(
    backend: &Backend,
    items: &[T],
    each: impl Fn(&T) -> Result<R> + std::marker::Sync,
) -> Result<Vec<R>> {
    if !backend.info().is_cpu_path() {
        return items.iter().map(each).collect();
    }
    let failed = AtomicBool::new(false);
    let unless_failed = |item: &T| {
        if failed.load(Ordering::Relaxed) {
            return None;
        }
        let done = each(item);
        failed.fetch_or(done.is_err(), Ordering::Relaxed);
        Some(done)
    };
    let done: Vec<_> = items.par_iter().map(unless_failed).collect();
    done.into_iter().flatten().collect()
}

/// A tensor's digest, found by another thread while this one, which an adapter's calls stay on, does something else.
pub(crate) fn digest_beside<T>(stored: &PartBytes<'_>, meanwhile: impl FnOnce() -> T) -> (Digest, T) {
    let mut digest = Digest::PLACEHOLDER;
    let done = rayon::in_place_scope(|scope| {
        scope.spawn(|_| digest = stored.digest());
        meanwhile()
    });
    (digest, done)
}

/// An error that says at which tensor it happened.
pub(crate) fn at_tensor(input: &Path, name: &str, error: Error) -> Error {
    match error {
        Error::Io { .. } | Error::File { .. } => error,
        other => file::invalid(input, format!("tensor {name:?}: {other}")),
    }
}
