//! What a [`Gpu`](super::Gpu) shares with all that it made: whether its device is lost, and what tests make fail.

use super::lock;
use crate::error::{Error, Result};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What tests can make fail.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The creation of a buffer, for want of memory.
    Buffer,
    /// The mapping of what is read back.
    Mapping,
    /// The compilation of a kernel.
    Kernel,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Why the device was lost, once that is known.
    lost: Mutex<Option<String>>,
    /// For each [`Fault`] how many more times it takes until there is one; 0 for never.
    faults: [AtomicU64; 3],
}

impl State {
    pub(super) fn lose(&self, message: String) {
        lock(&self.lost).get_or_insert(message);
    }

    /// [`Error::DeviceLost`] once it is known why.
    pub(super) fn check_alive(&self) -> Result<()> {
        match &*lock(&self.lost) {
            Some(message) => Err(Error::DeviceLost { message: message.clone() }),
            None => Ok(()),
        }
    }

    /// Makes the `nth` from now on fail, counted from 0; `None` none.
    pub(super) fn fail(&self, fault: Fault, nth: Option<u64>) {
        self.faults[fault as usize].store(nth.map_or(0, |nth| nth.saturating_add(1)), Relaxed);
    }

    /// Whether this one is to fail.
    pub(super) fn fails(&self, fault: Fault) -> bool {
        self.faults[fault as usize].fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)) == Ok(1)
    }
}
