//! The command line: one file per command, which returns its text for stdout and its exit code.

mod args;
mod bench;
mod choice;
mod compare;
mod dequantize;
mod devices;
mod inspect;
mod output;
mod pairs;
mod progress;
mod quantize;
mod report;
#[cfg(feature = "gpu")]
mod selftest;
mod table;
mod verify;

use args::{Cli, Command};
use clap::Parser;
use std::io::{self, Write};
use std::process::ExitCode;

/// What a command gives back when it did not fail.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// For stdout.
    text: String,
    code: Code,
}

/// How a command ended, as its exit code; clap itself ends with 2 on wrong usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Done = 0,
    Failed = 1,
    /// `--strict`, and a tensor was not quantized as asked.
    NotAsAsked = 3,
    /// A check found a difference, or a bound was not met.
    Difference = 4,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

pub(crate) fn main() -> ExitCode {
    // Ctrl-C and a polite kill end the process at once, but leave no half-written file behind. Without the
    // handler everything else still works.
    ctrlc::set_handler(|| {
        wgpu_quant::file::remove_unfinished();
        std::process::exit(130);
    })
    .ok();
    let cli = Cli::parse();
    if let Err(usage) = cli.check() {
        usage.exit();
    }
    let outcome = match cli.command {
        Command::Quantize(args) => quantize::run(&args),
        Command::Dequantize(args) => dequantize::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Devices(args) => devices::run(&args),
        #[cfg(feature = "gpu")]
        Command::Selftest(args) => selftest::run(&args),
        Command::Bench(args) => bench::run(&args),
    };
    match outcome.and_then(|Outcome { text, code }| print(&text).map(|()| code)) {
        Ok(code) => code.into(),
        Err(error) => {
            say("error", &error.to_string());
            Code::Failed.into()
        }
    }
}

/// Writes to stdout. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> wgpu_quant::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(wgpu_quant::file::io_error("stdout".as_ref(), e)),
        _ => Ok(()),
    }
}

/// One line on stderr, of bearable length: names out of files can have megabytes.
fn say(kind: &str, message: &str) {
    let mut line: String = printable(message).chars().take(1001).collect();
    if line.chars().count() > 1000 {
        line.push_str(" ...");
    }
    // Nobody is left to be told when stderr is gone.
    writeln!(io::stderr(), "{kind}: {line}").ok();
}

pub(crate) fn warn(message: &str) {
    say("warning", message);
}

/// A text on one line, as it can be shown: a name out of a file must not steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().collect() } else { vec![c] };
    text.chars().flat_map(shown).collect()
}
