//! A bar on stderr, when somebody looks at it.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal};

#[derive(Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// A bar over this many bytes; none under `-q` or when stderr is no terminal.
    pub(crate) fn new(bytes: u64, quiet: bool) -> Self {
        if quiet || !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(bytes);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {eta} {wide_msg}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    pub(crate) fn start(&self, name: &str) {
        self.0.set_message(super::printable(name));
    }

    pub(crate) fn done(&self, bytes: usize) {
        self.0.inc(bytes as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
