//! A file that is whole or absent: written beside its place under another name, then renamed.

use super::{at, invalid, io_error};
use crate::error::{Error, Result};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tempfile::NamedTempFile;

/// A new file; dropped without [`commit`](Self::commit) it leaves no trace.
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    // Before the file, so that nobody writes any more when it is removed.
    written: Mutex<Written>,
    temp: NamedTempFile,
    overwrite: bool,
}

/// What was written lately, and who sees to it that it gets to the disk.
#[derive(Debug, Default)]
struct Written {
    bytes: u64,
    sync: Option<Sync>,
}

/// After so many bytes the disk begins with them, while others are computed, so that little is left for the end.
const SYNC_BYTES: u64 = 8 << 20;

/// A thread that waits for the disk.
#[derive(Debug)]
struct Sync {
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Sync {
    fn start(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        let (wake, woken) = sync_channel(1);
        let sync = move || woken.into_iter().try_for_each(|()| file.sync_data());
        let thread = std::thread::Builder::new().name("wgpu-quant sync".to_owned()).spawn(sync)?;
        Ok(Self { wake: Some(wake), thread: Some(thread) })
    }

    /// Whether it will sync what was written until now.
    fn wake(&self) -> bool {
        self.wake.as_ref().is_some_and(|wake| wake.try_send(()).is_ok())
    }

    /// Waits for what it does. The system tells of data that it lost only once, and so to whoever asks first.
    fn finish(&mut self) -> io::Result<()> {
        self.wake = None;
        let ended = self.thread.take().map(JoinHandle::join);
        ended.map_or(Ok(()), |ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

impl Drop for Sync {
    fn drop(&mut self) {
        // Of a file that is thrown away.
        self.finish().ok();
    }
}

/// Refuses a path that a file must not be written to: one that exists (unless `overwrite`), and whatever is no
/// regular file (a rename would replace a device or fail on a folder).
///
/// # Errors
/// [`Error::File`] with the reason.
pub fn check_target(path: &Path, overwrite: bool) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => Err(invalid(path, "exists and is not a regular file")),
        Ok(_) if !overwrite => Err(exists(path)),
        // Also a link to nothing is something that exists.
        Err(_) if !overwrite && path.symlink_metadata().is_ok() => Err(exists(path)),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn exists(path: &Path) -> Error {
    invalid(path, "already exists; --force overwrites it")
}

/// Whether two paths mean the same file, there already or not.
pub fn same_file(a: &Path, b: &Path) -> bool {
    resolved(a) == resolved(b)
}

fn resolved(path: &Path) -> PathBuf {
    let there = || path.canonicalize().ok();
    let to_be = || Some(folder(path).canonicalize().ok()?.join(path.file_name()?));
    there().or_else(to_be).unwrap_or_else(|| path.to_owned())
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

impl NewFile {
    /// Starts a file that is to be at `path`.
    ///
    /// # Errors
    /// Those of [`check_target`], and [`Error::Io`] when the folder cannot be written to.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self> {
        check_target(path, overwrite)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".wgpu-quant-").suffix(".part");
        // Temporary files are private by default, but this one becomes an ordinary file.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut unfinished = unfinished();
        let temp = builder.tempfile_in(folder(path)).map_err(|e| io_error(path, without_temp_path(&e)))?;
        unfinished.push(temp.path().to_owned());
        Ok(Self { path: path.to_owned(), written: Mutex::default(), temp, overwrite })
    }

    /// Where the file is to be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets the size that the file will have.
    ///
    /// # Errors
    /// [`Error::Io`], when the system cannot.
    pub fn set_len(&self, bytes: u64) -> Result<()> {
        self.temp.as_file().set_len(bytes).map_err(|e| io_error(&self.path, e))
    }

    /// Writes bytes at an offset; from any thread.
    ///
    /// # Errors
    /// [`Error::Io`], when the system cannot.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let file = self.temp.as_file();
        at::write(file, offset, bytes).map_err(|e| io_error(&self.path, e))?;
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.bytes += bytes.len() as u64;
        if written.bytes >= SYNC_BYTES {
            if written.sync.is_none() {
                // Without it all is left for the end.
                written.sync = Sync::start(file).ok();
            }
            if written.sync.as_ref().is_some_and(Sync::wake) {
                written.bytes = 0;
            }
        }
        Ok(())
    }

    /// Puts the file in its place, whole.
    ///
    /// # Errors
    /// [`Error::Io`] when the system cannot, [`Error::File`] when something appeared there meanwhile.
    pub fn commit(self) -> Result<()> {
        let Self { path, written, temp, overwrite } = self;
        // On the disk before the name is: a crash must not leave a name without the data.
        let written = written.into_inner().unwrap_or_else(PoisonError::into_inner);
        let synced = written.sync.map_or(Ok(()), |mut sync| sync.finish());
        synced.and_then(|()| temp.as_file().sync_all()).map_err(|e| io_error(&path, e))?;
        let mut unfinished = unfinished();
        unfinished.retain(|unfinished| unfinished != temp.path());
        let renamed = if overwrite { temp.persist(&path) } else { temp.persist_noclobber(&path) };
        renamed.map_err(|e| match e.error.kind() {
            io::ErrorKind::AlreadyExists => exists(&path),
            _ => io_error(&path, e.error),
        })?;
        // The rename itself; not every system can, and the file is whole either way.
        if let Ok(folder) = File::open(folder(&path)) {
            folder.sync_all().ok();
        }
        Ok(())
    }
}

/// The reason alone: tempfile's own text names a file that the user never asked for.
fn without_temp_path(error: &io::Error) -> io::Error {
    let text = error.to_string();
    let reason = text.rsplit_once(" at path ").map_or(&*text, |(reason, _)| reason);
    io::Error::new(error.kind(), reason)
}

/// The temporary files of this process.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    // A list of paths is whole whatever its last user did.
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes every file that is not committed: for a process that is about to end by a signal, which runs no
/// destructors. No file can be committed after it.
pub fn remove_unfinished() {
    let paths = unfinished();
    for path in paths.iter() {
        std::fs::remove_file(path).ok();
    }
    // Held until the process ends, so that none is renamed or created meanwhile.
    std::mem::forget(paths);
}
