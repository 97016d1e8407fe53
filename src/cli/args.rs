//! The arguments; their doc comments are `--help`.

use clap::builder::{PathBufValueParser, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use globset::{Glob, GlobBuilder};
use serde::Serialize;
use std::path::PathBuf;
use wgpu_quant::file::{Dtype, FileKind};
use wgpu_quant::{Granularity, Scheme};

/// Quantizes model files on the GPU or the CPU, with the same bits on every device.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, \
    3 --strict and a tensor was not quantized as asked, 4 a check found a difference, or --min-sqnr was not met."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// What clap's rules do not see, as its errors: a flag that has no meaning for the scheme.
    pub(crate) fn check(&self) -> Result<(), clap::Error> {
        let Command::Quantize(QuantizeArgs { scheme, per, saturate, .. }) = &self.command else { return Ok(()) };
        let message = match per {
            Some(per) if scheme.is_cast() => {
                format!("--per {per} has no meaning for {scheme}: a cast rounds each value by itself and has no scale")
            }
            _ if *saturate && *scheme != Scheme::F16 => format!(
                "--saturate has no meaning for {scheme}: it belongs to {}, whose overflow is infinity otherwise",
                Scheme::F16
            ),
            _ => return Ok(()),
        };
        let mut command = Self::command();
        command.build();
        let quantize = command.find_subcommand_mut("quantize").map(|command| command.clone());
        Err(quantize.unwrap_or(command).error(ErrorKind::ArgumentConflict, message))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Quantize(QuantizeArgs),
    Dequantize(DequantizeArgs),
    Inspect(InspectArgs),
    Compare(CompareArgs),
    Verify(VerifyArgs),
    Devices(DevicesArgs),
    #[cfg(feature = "gpu")]
    Selftest(SelftestArgs),
    Bench(BenchArgs),
}

/// Quantize the float tensors of a file, and copy the others.
///
/// Of a .safetensors file, float tensors of rank 2 and more are quantized; of a .npy file, its tensor. Floats are F64
/// (rounded once to F32), F32, F16 and BF16.
#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// A .safetensors or .npy file.
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,
    /// The file to write, a .safetensors.
    #[arg(short, long = "output", value_name = "OUT", value_parser = PathBufValueParser::new().try_map(safetensors_path),
          required_unless_present = "dry_run")]
    pub(crate) out: Option<PathBuf>,
    /// Code type and arithmetic; f16 and bf16 are casts, without a scale.
    #[arg(long, value_name = "S", default_value_t = Scheme::INT8_ABSMAX, value_parser = scheme_parser())]
    pub(crate) scheme: Scheme,
    /// Which elements share a scale: tensor, channel=K for one scale per index of axis K (negative K counts
    /// from the last axis), or group=N for one per N neighbours in the last axis, the last of which may be fewer;
    /// not for casts [default: channel=0 for rank 2 and more, tensor below].
    #[arg(long, value_name = "tensor|channel=K|group=N")]
    pub(crate) per: Option<Granularity>,
    /// Of the f16 cast: the largest finite value, signed, where infinity would stand.
    #[arg(long)]
    pub(crate) saturate: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
    /// Quantize tensors whose name matches too, whatever their rank; can be repeated.
    #[arg(long, value_name = "GLOB", value_parser = glob)]
    pub(crate) include: Vec<Glob>,
    /// Copy tensors whose name matches, whatever else is asked; can be repeated.
    #[arg(long, value_name = "GLOB", value_parser = glob)]
    pub(crate) exclude: Vec<Glob>,
    /// End with exit code 3 when a float tensor could not be quantized as asked.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Show what would be done and how large the result would be; write no OUT.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Overwrite OUT and REPORT.
    #[arg(long)]
    pub(crate) force: bool,
    /// Write a report as JSON; `-` writes it to stdout in place of the table.
    #[arg(long, value_name = "REPORT")]
    pub(crate) json: Option<PathBuf>,
    /// Print no table and no progress.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Turn a quantized file back into float tensors.
#[derive(Debug, Args)]
pub(crate) struct DequantizeArgs {
    /// A .safetensors file that `quantize` wrote.
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,
    /// The file to write: a .safetensors, or a .npy for a single tensor.
    #[arg(short, long = "output", value_name = "OUT", value_parser = PathBufValueParser::new().try_map(tensor_path))]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
    /// The type of the values: f32, or narrowed from it as IEEE says, to nearest, ties to even.
    #[arg(long, value_name = "f32|f16|bf16", default_value = "f32", value_parser = float_dtype())]
    pub(crate) dtype: Dtype,
    /// Overwrite OUT.
    #[arg(long)]
    pub(crate) force: bool,
    /// Print no table and no progress.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// List a file's tensors: shapes, types, schemes, bytes, bits per weight.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A .safetensors or .npy file.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Measure what quantization lost, per tensor and in total.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// The file that was quantized.
    #[arg(value_name = "ORIGINAL")]
    pub(crate) original: PathBuf,
    /// What `quantize` made of it.
    #[arg(value_name = "QUANTIZED")]
    pub(crate) quantized: PathBuf,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
    /// Print the report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// End with exit code 4 when the total signal-to-noise ratio is below this many dB.
    #[arg(long, value_name = "DB", allow_negative_numbers = true, value_parser = decibels)]
    pub(crate) min_sqnr: Option<f64>,
    /// Print no table and no progress.
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
}

/// Quantize the original again on every device, and compare with the file bit for bit.
///
/// Every code, scale and zero point and every copied byte is compared, and the digests with what the file holds.
/// Prints the first difference of each device, or `bit-identical on N devices`; the CPU path counts as one.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The file that was quantized.
    #[arg(value_name = "ORIGINAL")]
    pub(crate) original: PathBuf,
    /// What `quantize` made of it.
    #[arg(value_name = "QUANTIZED")]
    pub(crate) quantized: PathBuf,
    /// One device in place of all: cpu, gpu (the best adapter), an adapter's index, or a part of its name [default:
    /// the CPU path and every adapter].
    #[arg(long, value_name = "cpu|gpu|INDEX|NAME")]
    pub(crate) device: Option<String>,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Print no table and no progress.
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
}

/// List the adapters of this machine.
#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Check that an adapter is exact: thousands of hard cases per kernel and scheme, against the CPU path.
#[cfg(feature = "gpu")]
#[derive(Debug, Args)]
pub(crate) struct SelftestArgs {
    /// Which adapter: auto and gpu are the best there is, all is every one; or an adapter's index, or a part of its
    /// name.
    #[arg(long = "device", value_name = "auto|all|gpu|INDEX|NAME", default_value = "auto")]
    pub(crate) device: String,
    /// Only this scheme; can be repeated [default: every scheme].
    #[arg(long, value_name = "S", value_parser = scheme_parser())]
    pub(crate) scheme: Vec<Scheme>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Measure this machine against copies of the same bytes.
///
/// Kernels on data that stays on the adapter, host memory to host memory, and file to file, each beside a copy of its own
/// kind. Every result is compared with the CPU path's before it is timed. A quiet machine measures best.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) device: DeviceArg,
    /// How large: millions (2^20) of f32 elements, in rows of 4096 [default: 1,16,64,256; without a hardware adapter 1,16,64,
    /// and on a software adapter 1,16].
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) sizes: Vec<u16>,
    /// How often each is measured; fewer where the time is up, but 3.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u16).range(3..))]
    pub(crate) rounds: u16,
    /// About how long all may take.
    #[arg(long, value_name = "S", default_value_t = 60)]
    pub(crate) seconds: u16,
    /// Only this; can be repeated [default: all].
    #[arg(long, value_name = "REGION", value_enum)]
    pub(crate) only: Vec<Region>,
    /// Only operations whose name holds this text, and the copies; can be repeated [default: all].
    #[arg(long, value_name = "TEXT")]
    pub(crate) case: Vec<String>,
    /// Write the figures as JSON; `-` writes them to stdout in place of the tables.
    #[arg(long, value_name = "REPORT")]
    pub(crate) json: Option<PathBuf>,
    /// Overwrite REPORT.
    #[arg(long)]
    pub(crate) force: bool,
}

/// What is inside the timed region; figures of different regions are never compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Region {
    /// Kernels on data that is on the adapter and stays there.
    #[value(alias = "gpu")]
    Kernels,
    /// From host memory to host memory, on the CPU and on the adapter.
    Host,
    /// From a file to a file.
    File,
}

#[derive(Debug, Args)]
pub(crate) struct DeviceArg {
    /// Where to compute: auto, cpu, gpu (the best adapter), an adapter's index, or a part of its name. The bits
    /// are the same everywhere.
    #[arg(long = "device", value_name = "auto|cpu|gpu|INDEX|NAME", default_value = "auto")]
    pub(crate) name: String,
}

fn float_dtype() -> impl TypedValueParser<Value = Dtype> {
    PossibleValuesParser::new(["f32", "f16", "bf16"]).map(|name| match name.as_str() {
        "f16" => Dtype::F16,
        "bf16" => Dtype::BF16,
        _ => Dtype::F32,
    })
}

fn scheme_parser() -> impl TypedValueParser<Value = Scheme> {
    PossibleValuesParser::new(Scheme::ALL.iter().map(|scheme| scheme.name())).try_map(|name| name.parse::<Scheme>())
}

fn safetensors_path(path: PathBuf) -> Result<PathBuf, String> {
    match FileKind::of(&path) {
        Some(FileKind::Safetensors) => Ok(path),
        _ => Err("the extension must be .safetensors".to_owned()),
    }
}

fn tensor_path(path: PathBuf) -> Result<PathBuf, String> {
    match FileKind::of(&path) {
        Some(_) => Ok(path),
        None => Err("the extension must be .safetensors or .npy".to_owned()),
    }
}

fn glob(text: &str) -> Result<Glob, String> {
    // Set, because the default is another one on Windows.
    GlobBuilder::new(text).backslash_escape(true).build().map_err(|e| e.to_string())
}

fn decibels(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(db) if !db.is_nan() => Ok(db),
        _ => Err("not a number".to_owned()),
    }
}
