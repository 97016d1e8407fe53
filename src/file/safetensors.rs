//! The safetensors container: checked reading, and a layout that is known before the data.

use super::Dtype;
use super::input::Place;
use super::json;
use ::safetensors::SafeTensors;
use ::safetensors::tensor::TensorInfo;
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::collections::BTreeMap;
use std::ops::Range;

const LENGTH_BYTES: usize = 8;
/// What every safetensors reader allows.
const MAX_HEADER_BYTES: usize = 100_000_000;
/// The header's key that is no tensor.
const METADATA: &str = "__metadata__";

type Contents = (BTreeMap<String, Place>, BTreeMap<String, String>);

/// Reads and checks a file's header. The safetensors crate checks lengths, offsets and shapes; here is refused
/// what it lets pass.
pub(super) fn read(bytes: &[u8]) -> Result<Contents, String> {
    if let Some(text) = header_text(bytes) {
        // A format's rule: other first bytes make a file that is valid in two formats.
        if !text.starts_with('{') {
            return Err(format!("the header starts with {:?}, `{{` is allowed", text.chars().next().unwrap_or(' ')));
        }
        json::check(text).map_err(|e| format!("the header: {e}"))?;
    }
    let (header_bytes, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
    let start = LENGTH_BYTES + header_bytes;
    let mut tensors = BTreeMap::new();
    for (name, info) in header.tensors() {
        if name.contains('\0') {
            return Err(format!("the tensor name {name:?} holds a NUL"));
        }
        let bytes = start + info.data_offsets.0..start + info.data_offsets.1;
        tensors.insert(name, Place { dtype: info.dtype, shape: info.shape.clone(), bytes });
    }
    Ok((tensors, header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()))
}

/// `None` of a header that the crate refuses by its length or encoding.
fn header_text(bytes: &[u8]) -> Option<&str> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok().filter(|&n| n <= MAX_HEADER_BYTES)?;
    std::str::from_utf8(rest.get(..length)?).ok()
}

/// Where a new file's tensors go, and the header that says so.
///
/// Tensors lie by falling alignment, then by name, without gaps: everything is aligned to its element's size,
/// and the order depends on nothing but the names and types.
#[derive(Debug)]
pub struct Layout {
    header: Vec<u8>,
    offsets: BTreeMap<String, Range<u64>>,
    file_bytes: u64,
}

impl Layout {
    /// The layout of these tensors (name, type, shape).
    ///
    /// # Errors
    /// What is wrong, when a name occurs twice or is reserved, or the file would be too large.
    pub fn new(
        tensors: impl IntoIterator<Item = (String, Dtype, Vec<usize>)>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, String> {
        let mut tensors: Vec<_> = tensors.into_iter().collect();
        tensors.sort_by(|(a_name, a_dtype, _), (b_name, b_dtype, _)| b_dtype.cmp(a_dtype).then(a_name.cmp(b_name)));
        let mut entries = Vec::with_capacity(tensors.len());
        let mut offsets = BTreeMap::new();
        let mut end = 0usize;
        for (name, dtype, shape) in tensors {
            let start = end;
            end = crate::elems(&shape)
                .ok()
                .and_then(|n| n.checked_mul(dtype.bitsize()))
                .and_then(|bits| start.checked_add(bits / 8))
                .ok_or_else(|| format!("tensor {name:?}: shape {shape:?} is too large"))?;
            if name == METADATA {
                return Err(format!("a tensor is named {METADATA:?}, which safetensors reserves"));
            }
            if offsets.insert(name.clone(), start as u64..end as u64).is_some() {
                return Err(format!("two tensors are named {name:?}"));
            }
            entries.push((name, TensorInfo { dtype, shape, data_offsets: (start, end) }));
        }
        let mut json = serde_json::to_vec(&Header { metadata, entries: &entries }).map_err(|e| e.to_string())?;
        // Spaces up to a multiple of 8, so that the data starts at one.
        json.resize(json.len().next_multiple_of(LENGTH_BYTES), b' ');
        if json.len() > MAX_HEADER_BYTES {
            return Err(format!("the header takes {} bytes, {MAX_HEADER_BYTES} are allowed", json.len()));
        }
        let header = [&(json.len() as u64).to_le_bytes()[..], &json].concat();
        let data = header.len() as u64;
        for range in offsets.values_mut() {
            *range = range.start + data..range.end + data;
        }
        Ok(Self { file_bytes: data + end as u64, header, offsets })
    }

    /// The bytes before the data.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The file's size.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Where in the file a tensor's bytes lie.
    pub fn place(&self, name: &str) -> Option<Range<u64>> {
        self.offsets.get(name).cloned()
    }
}

struct Header<'a> {
    metadata: &'a BTreeMap<String, String>,
    entries: &'a [(String, TensorInfo)],
}

/// In the order given: a map type's own order could change with its crate.
impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA, self.metadata)?;
        }
        for (name, info) in self.entries {
            map.serialize_entry(name, info)?;
        }
        map.end()
    }
}
