//! `wgpu-quant inspect`

use super::args::InspectArgs;
use super::report::{self, count, ratio};
use super::table::{self, Align};
use super::{Outcome, printable};
use serde::Serialize;
use std::collections::BTreeMap;
use wgpu_quant::Result;
use wgpu_quant::file::{Digest, Dtype, Input, METADATA_KEY, Sources, TensorView};

#[derive(Debug, Serialize)]
struct Listing<'a> {
    version: u32,
    tensors: Vec<Row<'a>>,
    totals: Totals,
    metadata: BTreeMap<&'a str, &'a str>,
    /// Whether `quantize` wrote this file.
    #[serde(skip)]
    described: bool,
}

/// A tensor; of a quantized one, its codes, scales and zero points together.
#[derive(Debug, Serialize)]
struct Row<'a> {
    name: &'a str,
    /// Of the tensor before it was quantized, as `dtype` is.
    shape: &'a [usize],
    dtype: Dtype,
    /// The type in the file.
    stored: Dtype,
    scheme: Option<&'static str>,
    granularity: Option<String>,
    bytes: u64,
    bits_per_weight: Option<f64>,
    /// As the file says; `verify` finds out whether it is so.
    digest: Option<Digest>,
}

#[derive(Debug, Serialize)]
struct Totals {
    tensors: u64,
    quantized: u64,
    elems: u64,
    bytes: u64,
    bits_per_weight: Option<f64>,
    digest: Option<Digest>,
}

pub(crate) fn run(args: &InspectArgs) -> Result<Outcome> {
    let input = Input::open(&args.file)?;
    let sources = Sources::read(&input)?;
    let described = sources.is_some();
    let sources = sources.unwrap_or_default();
    let companions = sources.companions();
    let (mut tensors, mut elems) = (vec![], 0);
    for tensor in input.tensors().filter(|tensor| !companions.contains(tensor.name)) {
        let row = row(&input, &sources, &tensor)?;
        elems += wgpu_quant::elems(row.shape)? as u64;
        tensors.push(row);
    }
    let bytes = tensors.iter().map(|row| row.bytes).sum();
    let quantized = sources.tensors.len() as u64;
    let bits_per_weight = ratio(bytes * 8, elems);
    let totals =
        Totals { tensors: tensors.len() as u64, quantized, elems, bytes, bits_per_weight, digest: sources.digest };
    let metadata = input.metadata().iter().map(|(k, v)| (&**k, &**v)).filter(|(k, _)| *k != METADATA_KEY).collect();
    let listing = Listing { version: 1, tensors, totals, metadata, described };
    Ok(report::done(if args.json { report::json(&listing)? } else { listing.to_text() }))
}

fn row<'a>(input: &Input, sources: &'a Sources, tensor: &TensorView<'a>) -> Result<Row<'a>> {
    let TensorView { name, dtype, shape, bytes } = *tensor;
    let source = sources.tensors.get(name);
    let bytes = sources.stored(input, name).map_or(bytes.len() as u64, |stored| stored.count());
    // The codes' own shape counts bytes where two codes share one.
    let shape = source.map_or(shape, |source| &source.shape);
    Ok(Row {
        name,
        shape,
        dtype: source.map_or(dtype, |source| source.dtype),
        stored: dtype,
        scheme: source.map(|source| source.scheme.name()),
        granularity: source.map(|source| source.granularity.to_string()),
        bytes,
        bits_per_weight: ratio(bytes * 8, wgpu_quant::elems(shape)? as u64),
        digest: source.and_then(|source| source.digest),
    })
}

impl Listing<'_> {
    fn to_text(&self) -> String {
        let columns = [
            ("tensor", Align::Left),
            ("shape", Align::Left),
            ("dtype", Align::Left),
            ("scheme", Align::Left),
            ("per", Align::Left),
            ("bytes", Align::Right),
            ("bits per weight", Align::Right),
        ];
        let cells = |row: &Row<'_>| {
            let dtype =
                if row.scheme.is_some() { format!("{} as {}", row.dtype, row.stored) } else { row.dtype.to_string() };
            vec![
                printable(row.name),
                format!("{:?}", row.shape),
                dtype,
                row.scheme.unwrap_or_default().to_owned(),
                row.granularity.clone().unwrap_or_default(),
                table::bytes(row.bytes),
                table::fixed(row.bits_per_weight),
            ]
        };
        let rows: Vec<_> = self.tensors.iter().map(cells).collect();
        let mut text = if rows.is_empty() { String::new() } else { table::render(&columns, &rows) + "\n" };
        for (key, value) in &self.metadata {
            text += &format!("metadata: {}: {}\n", printable(key), printable(value));
        }
        let Totals { tensors, quantized, bytes, bits_per_weight, .. } = self.totals;
        text += &format!("total: {} ({quantized} quantized), {}", count(tensors, "tensor"), table::bytes(bytes));
        if let Some(bits) = bits_per_weight {
            text += &format!(", {bits:.2} bits per weight");
        }
        text.push('\n');
        if self.described {
            let digest = self.totals.digest.map_or_else(|| "absent".to_owned(), |digest| digest.to_string());
            text += &format!("digest: {digest}\n");
        }
        text
    }
}
