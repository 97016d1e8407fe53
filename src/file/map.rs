//! Memory-mapping an input; the crate's only `unsafe`.

use super::{invalid, io_error};
use crate::error::Result;
use memmap2::Mmap;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A file's bytes, to be looked at in place or read.
#[derive(Debug)]
pub(super) struct Mapped {
    #[cfg(unix)]
    file: File,
    map: Mmap,
}

impl Mapped {
    /// Reads the bytes from an offset on, from any thread. What is looked at once is had for less time by reading into
    /// memory that is used again, where its pages need no place, and none of it counts as this process's.
    pub(super) fn read_at(&self, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        #[cfg(unix)]
        std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, offset as u64)?;
        #[cfg(not(unix))]
        bytes.copy_from_slice(&self.map[offset..offset + bytes.len()]);
        Ok(())
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// Maps a regular file for reading, so that memory is bounded by what is looked at, not by the file.
pub(super) fn map(path: &Path) -> Result<Mapped> {
    // Asked before opening: to open a pipe blocks until somebody writes to it.
    let metadata = std::fs::metadata(path).map_err(|e| io_error(path, e))?;
    if metadata.is_dir() {
        return Err(invalid(path, "is a folder; name a .safetensors or .npy file"));
    }
    if !metadata.is_file() {
        return Err(invalid(path, "is not a regular file"));
    }
    let file = File::open(path).map_err(|e| io_error(path, e))?;
    // SAFETY: the map is private and read-only, and only plain bytes are read from it, every pattern of which
    // is valid. What no process can rule out is that another one changes the file meanwhile: changed bytes
    // would be read as changed values; after a truncation the system ends this process (SIGBUS) when it
    // touches a page that is gone, and the output, which is renamed into place last, does not appear.
    #[allow(unsafe_code, reason = "mapping a file is unsafe in every API; the comment above says what is relied on")]
    let map = unsafe { Mmap::map(&file) };
    let map = map.map_err(|e| io_error(path, e))?;
    Ok(Mapped {
        #[cfg(unix)]
        file,
        map,
    })
}
