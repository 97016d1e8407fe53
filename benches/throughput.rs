//! `cargo bench`: the tool's own `bench` command, which is `wgpu-quant bench` to those who have no toolchain.
//!
//!     cargo bench -- --sizes 1,16 --device llvmpipe      as `wgpu-quant bench --help` says

use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    // Cargo adds a flag of its own; `cargo test --benches` asks for a mere run.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if arguments.iter().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    let status = Command::new(env!("CARGO_BIN_EXE_wgpu-quant")).arg("bench").args(arguments).status();
    let code = status.ok().and_then(|status| u8::try_from(status.code()?).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}
