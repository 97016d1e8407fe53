//! Reading and writing at offsets, by many threads at a time.

use std::fs::File;
use std::io;

#[cfg(unix)]
mod system {
    use super::{File, io};
    use std::os::unix::fs::FileExt;

    pub(in super::super) fn read(file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        file.read_exact_at(bytes, offset)
    }

    pub(in super::super) fn write(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }
}

/// By the file's own position, which only one thread at a time can use.
#[cfg(not(unix))]
mod system {
    use super::{File, io};
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    static POSITION: Mutex<()> = Mutex::new(());

    fn go(mut file: &File, offset: u64) -> io::Result<MutexGuard<'static, ()>> {
        let position = POSITION.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset)).map(|_| position)
    }

    pub(in super::super) fn read(mut file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let _position = go(file, offset)?;
        file.read_exact(bytes)
    }

    pub(in super::super) fn write(mut file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let _position = go(file, offset)?;
        file.write_all(bytes)
    }
}

pub(super) use system::{read, write};
