//! `wgpu-quant dequantize`

use super::Outcome;
use super::args::DequantizeArgs;
use super::output::{self, Writer};
use super::progress::Progress;
use super::report::{self, Figures, Report, Row, Status};
use std::collections::HashSet;
use wgpu_quant::file::{
    self, Dtype, FileKind, Input, Layout, METADATA_KEY, NewFile, PartBytes, Source, Sources, TensorView, zero_points,
};
use wgpu_quant::{Backend, QuantizedParts, Result};

pub(crate) fn run(args: &DequantizeArgs) -> Result<Outcome> {
    let input = Input::open(&args.input)?;
    output::check(&args.out, &[&args.input], args.force)?;
    let sources = Sources::expect(&input)?;
    let companions = sources.companions();
    let tensors: Vec<_> = input
        .tensors()
        .filter(|tensor| !companions.contains(tensor.name))
        .map(|tensor| own_shape(tensor, &sources))
        .collect();
    let out = Out::create(args, &input, &sources, &tensors)?;
    let backend = Backend::open(&args.device.name)?;

    let mut report = Report::new(&backend);
    let progress = Progress::new(tensors.iter().map(|t| t.bytes.len() as u64).sum(), args.quiet);
    let rows = output::for_each(&backend, &tensors, |tensor| {
        progress.start(tensor.name);
        let row = match sources.tensors.get(tensor.name).zip(sources.stored(&input, tensor.name)) {
            Some((source, stored)) => dequantize(&backend, tensor, (source, &stored), args.dtype, &out)
                .map_err(|e| output::at_tensor(&args.input, tensor.name, e))?,
            None => {
                out.copy(tensor.name, tensor.bytes)?;
                Row::copied(tensor, "not quantized")
            }
        };
        progress.done(tensor.bytes.len());
        Ok(row)
    })?;
    rows.into_iter().for_each(|row| report.push(row));
    drop(progress);
    out.commit()?;
    report.finish(&backend);
    Ok(report::done(if args.quiet { String::new() } else { report.to_text() }))
}

fn dequantize(
    backend: &Backend,
    tensor: &TensorView<'_>,
    (source, stored): (&Source, &PartBytes<'_>),
    dtype: Dtype,
    out: &Out,
) -> Result<Row> {
    let Source { scheme, granularity, shape, .. } = source;
    let (scales, zero_points) = (stored.scale_values(), zero_points(scheme.code(), &stored.zero_points));
    let q = QuantizedParts {
        scheme: *scheme,
        granularity: *granularity,
        shape,
        codes: &stored.codes,
        scales: &scales,
        zero_points: &zero_points,
    };
    let width = dtype.bitsize() as u64 / 8;
    backend.dequantize_stream(&q, |first, values| {
        out.write_at(tensor.name, first * width, &file::narrowed(values, dtype))
    })?;
    let bytes_out = tensor.elems() as u64 * width;
    let row = Row::coded(tensor, Status::Dequantized, (*scheme, *granularity), bytes_out, Figures::default());
    Ok(row.reading(stored.count()))
}

/// A tensor in the shape that it has again: packed codes have another.
fn own_shape<'a>(tensor: TensorView<'a>, sources: &'a Sources) -> TensorView<'a> {
    match sources.tensors.get(tensor.name) {
        Some(source) => TensorView { shape: &source.shape, ..tensor },
        None => tensor,
    }
}

/// Where the values go.
enum Out {
    Safetensors(Writer),
    Npy { file: NewFile, header_bytes: u64 },
}

impl Out {
    fn create(args: &DequantizeArgs, input: &Input, sources: &Sources, tensors: &[TensorView<'_>]) -> Result<Self> {
        let refuse = |message: String| file::invalid(input.path(), message);
        if FileKind::of(&args.out) == Some(FileKind::Npy) {
            let [tensor] = tensors else {
                let names = tensors.len();
                return Err(refuse(format!("holds {names} tensors; a .npy holds one, a .safetensors any number")));
            };
            // `expect` found a quantized tensor, and there is no other.
            let header = file::npy_header(args.dtype, tensor.shape).map_err(refuse)?;
            let file = NewFile::create(&args.out, args.force)?;
            file.write_at(0, &header)?;
            return Ok(Self::Npy { file, header_bytes: header.len() as u64 });
        }
        let quantized: HashSet<&str> = sources.tensors.keys().map(String::as_str).collect();
        let dtype = |tensor: &TensorView<'_>| if quantized.contains(tensor.name) { args.dtype } else { tensor.dtype };
        let stored = tensors.iter().map(|t| (t.name.to_owned(), dtype(t), t.shape.to_vec()));
        let mut metadata = input.metadata().clone();
        metadata.remove(METADATA_KEY);
        let layout = Layout::new(stored, &metadata).map_err(refuse)?;
        Writer::create(&args.out, args.force, layout).map(Self::Safetensors)
    }

    /// Writes bytes of a tensor that begin with its byte `at`.
    fn write_at(&self, name: &str, at: u64, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Safetensors(writer) => writer.write_at(name, at, bytes),
            Self::Npy { file, header_bytes } => file.write_at(*header_bytes + at, bytes),
        }
    }

    /// Writes a tensor that is not quantized; a .npy holds none.
    fn copy(&self, name: &str, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Safetensors(writer) => writer.write(name, bytes),
            Self::Npy { .. } => self.write_at(name, 0, bytes),
        }
    }

    fn commit(self) -> Result<()> {
        match self {
            Self::Safetensors(writer) => writer.commit(),
            Self::Npy { file, .. } => file.commit(),
        }
    }
}
