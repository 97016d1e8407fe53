//! NumPy's `.npy`: one array behind a header that is a Python literal.

use super::Dtype;
use super::input::Place;

const MAGIC: &[u8] = b"\x93NUMPY";
/// Far more than any real header needs; version 2 could announce 4 GiB.
const MAX_HEADER_BYTES: usize = 65_536;
/// NumPy's limit.
const MAX_RANK: usize = 64;
/// NumPy starts the data at a multiple of this.
const ALIGN: usize = 64;

/// Reads and checks a file: versions 1 to 3, little-endian floats in C order.
pub(super) fn read(bytes: &[u8]) -> Result<Place, String> {
    let body = bytes.strip_prefix(MAGIC).ok_or("not a .npy file: it does not start with \\x93NUMPY")?;
    let (length, fixed) = match body {
        [1, 0, a, b, ..] => (usize::from(u16::from_le_bytes([*a, *b])), 4),
        [2 | 3, 0, a, b, c, d, ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 6),
        [major, minor, ..] if !matches!((major, minor), (1..=3, 0)) => {
            return Err(format!("version {major}.{minor} of .npy; 1.0, 2.0 and 3.0 are read"));
        }
        _ => return Err("the file ends inside its header".to_owned()),
    };
    if length > MAX_HEADER_BYTES {
        return Err(format!("a header of {length} bytes; at most {MAX_HEADER_BYTES} are allowed"));
    }
    let header = body.get(fixed..fixed + length).ok_or("the file ends inside its header")?;
    let header = std::str::from_utf8(header).map_err(|_| "the header is not UTF-8")?;
    let (dtype, shape) = Literal { rest: header }.header()?;
    let start = MAGIC.len() + fixed + length;
    let (found, expected) = (bytes.len() - start, byte_len(dtype, &shape)?);
    if found != expected {
        return Err(format!("{found} bytes of data; shape {shape:?} of {dtype} takes {expected}"));
    }
    Ok(Place { dtype, shape, bytes: start..bytes.len() })
}

fn byte_len(dtype: Dtype, shape: &[usize]) -> Result<usize, String> {
    let elems = crate::elems(shape).map_err(|e| e.to_string())?;
    elems.checked_mul(dtype.bitsize() / 8).ok_or_else(|| format!("shape {shape:?} is too large"))
}

fn dtype(descr: &str) -> Result<Dtype, String> {
    match descr {
        "<f4" => Ok(Dtype::F32),
        "<f8" => Ok(Dtype::F64),
        "<f2" => Ok(Dtype::F16),
        ">f4" | ">f8" | ">f2" => {
            Err(format!("big-endian values ({descr:?}); save `x.astype('<{}')` instead", &descr[1..]))
        }
        _ => Err(format!("elements of type {descr:?}; '<f4', '<f8' and '<f2' are read")),
    }
}

/// What of Python's literals a header needs.
struct Literal<'a> {
    rest: &'a str,
}

impl<'a> Literal<'a> {
    /// `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`, each key once, in any order.
    fn header(mut self) -> Result<(Dtype, Vec<usize>), String> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.expect('{')?;
        while !self.take('}') {
            let key = self.string()?;
            self.expect(':')?;
            let twice = match key {
                "descr" if self.peek('[') => return Err("a structured array; plain floats are read".to_owned()),
                "descr" => descr.replace(self.string()?).is_some(),
                "fortran_order" => fortran.replace(self.boolean()?).is_some(),
                "shape" => shape.replace(self.tuple()?).is_some(),
                _ => return Err(format!("an unknown key {key:?} in the header")),
            };
            if twice {
                return Err(format!("the key {key:?} occurs twice in the header"));
            }
            if !self.take(',') {
                self.expect('}')?;
                break;
            }
        }
        if !self.rest.trim().is_empty() {
            return Err(self.unexpected("nothing"));
        }
        match (descr, fortran, shape) {
            (Some(_), Some(true), Some(_)) => {
                Err("values in Fortran order; save `numpy.ascontiguousarray(x)` instead".to_owned())
            }
            (Some(descr), Some(false), Some(shape)) => Ok((dtype(descr)?, shape)),
            _ => Err("the header lacks one of 'descr', 'fortran_order' and 'shape'".to_owned()),
        }
    }

    fn peek(&mut self, c: char) -> bool {
        self.rest = self.rest.trim_start();
        self.rest.starts_with(c)
    }

    fn take(&mut self, c: char) -> bool {
        let found = self.peek(c);
        if found {
            self.rest = &self.rest[c.len_utf8()..];
        }
        found
    }

    fn expect(&mut self, c: char) -> Result<(), String> {
        if self.take(c) { Ok(()) } else { Err(self.unexpected(&format!("`{c}`"))) }
    }

    fn unexpected(&self, wanted: &str) -> String {
        let found: String = self.rest.chars().take(16).collect();
        format!("{found:?} in the header where {wanted} is expected")
    }

    fn string(&mut self) -> Result<&'a str, String> {
        let quote = if self.take('\'') {
            '\''
        } else {
            self.expect('"')?;
            '"'
        };
        let (text, rest) = self.rest.split_once(quote).ok_or("a string without an end in the header")?;
        self.rest = rest;
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        self.peek(' ');
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(self.unexpected("True or False"))
    }

    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        let mut dims = vec![];
        self.expect('(')?;
        while !self.take(')') {
            self.peek(' ');
            let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
            let (digits, rest) = self.rest.split_at(end);
            dims.push(digits.parse().map_err(|_| self.unexpected("a dimension"))?);
            self.rest = rest;
            if !self.take(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(dims)
    }
}

/// The bytes before the data of a `.npy` file that holds f32 values of this shape: version 1.0, as NumPy
/// writes it.
///
/// # Errors
/// What is wrong, when NumPy has no array of this rank or type.
pub fn header(dtype: Dtype, shape: &[usize]) -> Result<Vec<u8>, String> {
    let descr = match dtype {
        Dtype::F32 => "<f4",
        Dtype::F16 => "<f2",
        _ => return Err(format!("to be {dtype}, which NumPy does not have; use a .safetensors")),
    };
    if shape.len() > MAX_RANK {
        return Err(format!("a tensor of rank {}; .npy holds at most {MAX_RANK}", shape.len()));
    }
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    // Python's tuple of one keeps its comma.
    let comma = if dims.len() == 1 { "," } else { "" };
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}", dims.join(", "));
    let fixed = MAGIC.len() + 4;
    let total = (fixed + dict.len() + 1).next_multiple_of(ALIGN);
    let length = u16::try_from(total - fixed).map_err(|_| "a shape too long for a .npy header")?;
    let mut bytes = [MAGIC, &[1, 0], &length.to_le_bytes(), dict.as_bytes()].concat();
    bytes.resize(total - 1, b' ');
    bytes.push(b'\n');
    Ok(bytes)
}
