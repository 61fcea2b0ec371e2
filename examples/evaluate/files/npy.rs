//! NumPy's `.npy`: a magic string, a version, the length of a header, the header, the data.
//!
//! The header is a Python dictionary. It is read by a parser of just the dictionaries that NumPy
//! writes: a general one recurses as deep as a hostile header nests.

use std::io::Read;

use relata::DType;

use super::{Holds, Layout, Order, Parsed, SAVE_AGAIN, Stored, Wrong, cannot_read};

const MAGIC: [u8; 6] = *b"\x93NUMPY";
/// The longest header that version 1 can have; that of a matrix of numbers has about a hundred
/// bytes.
const LONGEST_HEADER: u32 = 65_535;
/// What helps where a file is none.
const SAVE: &str = "numpy.save writes one";

/// What is no file that NumPy writes.
fn no_npy(why: impl Into<String>) -> Wrong {
    Wrong::new(why, SAVE)
}

/// Reads up to the data.
pub(super) fn find_matrix(file: &mut impl Read, len: u64, holds: Holds) -> Parsed<Layout> {
    let truncated = || {
        let why = format!("expected a .npy file, got one cut off after {len} bytes");
        Wrong::new(why, SAVE_AGAIN)
    };
    if len < 10 {
        return Err(truncated());
    }
    let prefix: [u8; 8] = read_array(file)?;
    if prefix[..6] != MAGIC {
        return Err(no_npy(
            "expected a .npy file, got one that does not start with \\x93NUMPY",
        ));
    }
    let (header_len, start) = match (prefix[6], prefix[7]) {
        (1, 0) => (u32::from(u16::from_le_bytes(read_array(file)?)), 10),
        (2 | 3, 0) if len < 12 => return Err(truncated()),
        (2 | 3, 0) => (u32::from_le_bytes(read_array(file)?), 12),
        (major, minor) => {
            return Err(no_npy(format!(
                "expected .npy version 1.0, 2.0 or 3.0, got {major}.{minor}"
            )));
        }
    };
    let start = start + u64::from(header_len);
    if header_len > LONGEST_HEADER {
        return Err(no_npy(format!(
            "expected a header of at most {LONGEST_HEADER} bytes, got {header_len}"
        )));
    }
    if start > len {
        return Err(truncated());
    }
    let mut header = vec![0; header_len as usize];
    file.read_exact(&mut header).map_err(cannot_read)?;
    let header = std::str::from_utf8(&header)
        .map_err(|_| no_npy("expected a header in UTF-8, got other bytes"))?;
    let header = Header::parse(header, holds)?;
    let layout = Layout::new(&header.shape, header.stored, holds, len - start)?;
    Ok(Layout {
        order: match header.fortran_order {
            true => Order::Fortran,
            false => Order::C,
        },
        big_endian: header.big_endian,
        ..layout
    })
}

fn read_array<const B: usize>(file: &mut impl Read) -> Parsed<[u8; B]> {
    let mut bytes = [0; B];
    file.read_exact(&mut bytes).map_err(cannot_read)?;
    Ok(bytes)
}

#[derive(Debug)]
struct Header {
    stored: Stored,
    big_endian: bool,
    fortran_order: bool,
    shape: Vec<u64>,
}

impl Header {
    /// Parses `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`, its keys in any order.
    fn parse(text: &str, holds: Holds) -> Parsed<Self> {
        let mut cursor = Cursor { rest: text };
        let (mut stored, mut fortran_order, mut shape) = (None, None, None);
        cursor.expect('{')?;
        while !cursor.eat('}') {
            let key = cursor.string()?;
            cursor.expect(':')?;
            match key {
                // Of a key that comes twice the last counts, as in Python.
                "descr" => stored = Some(cursor.descr(holds)?),
                "fortran_order" => fortran_order = Some(cursor.boolean()?),
                "shape" => shape = Some(cursor.shape()?),
                key => {
                    return Err(no_npy(format!(
                        "expected the keys descr, fortran_order and shape in the header, got {key:?}"
                    )));
                }
            }
            if !cursor.eat(',') {
                cursor.expect('}')?;
                break;
            }
        }
        if !cursor.rest.trim().is_empty() {
            return Err(cursor.expected("the end of the header"));
        }
        let missing = |key| no_npy(format!("expected {key} in the header, got none"));
        let (stored, big_endian) = stored.ok_or_else(|| missing("descr"))?;
        Ok(Header {
            stored,
            big_endian,
            fortran_order: fortran_order.ok_or_else(|| missing("fortran_order"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
        })
    }
}

/// What is left of a header.
struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn expected(&self, what: &str) -> Wrong {
        let got: String = self.rest.chars().take(20).collect();
        no_npy(format!("expected {what} in the header, got {got:?}"))
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Steps over `token` if it comes next.
    fn eat(&mut self, token: char) -> bool {
        self.skip_space();
        let after = self.rest.strip_prefix(token);
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }

    fn expect(&mut self, token: char) -> Parsed<()> {
        if self.eat(token) {
            Ok(())
        } else {
            Err(self.expected(&format!("{token:?}")))
        }
    }

    /// A string in either quotes. NumPy needs no escapes here, so one is an unknown key or type.
    fn string(&mut self) -> Parsed<&'a str> {
        for quote in ['\'', '"'] {
            if self.eat(quote)
                && let Some((text, after)) = self.rest.split_once(quote)
            {
                self.rest = after;
                return Ok(text);
            }
        }
        Err(self.expected("a string"))
    }

    fn boolean(&mut self) -> Parsed<bool> {
        self.skip_space();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(after) = self.rest.strip_prefix(word) {
                self.rest = after;
                return Ok(value);
            }
        }
        Err(self.expected("True or False"))
    }

    /// How a number is stored, and whether its first byte is the highest.
    fn descr(&mut self, holds: Holds) -> Parsed<(Stored, bool)> {
        let (expected, cure) = match holds {
            Holds::Rows | Holds::Weights => (
                "expected dtype f16, f32 or f64 (<f2, <f4, <f8), got",
                "a.astype('float32') in NumPy converts it",
            ),
            Holds::Classes | Holds::Labels => (
                "expected dtype i8 to i64 or u8 to u64 (|i1, <i2, <i4, <i8, |u1, <u2, <u4, <u8), got",
                "a.astype('int64') in NumPy converts it",
            ),
        };
        self.skip_space();
        if self.rest.starts_with(['[', '(']) {
            let why = format!("{expected} a structured one");
            return Err(Wrong::new(why, "a['field'] in NumPy takes a field of it"));
        }
        let name = self.string()?;
        let stored = match name.strip_prefix(['<', '>', '|']) {
            Some("f2") => Some(Stored::Float(DType::F16)),
            Some("f4") => Some(Stored::Float(DType::F32)),
            Some("f8") => Some(Stored::Float(DType::F64)),
            Some("i1") => Some(Stored::Signed(1)),
            Some("i2") => Some(Stored::Signed(2)),
            Some("i4") => Some(Stored::Signed(4)),
            Some("i8") => Some(Stored::Signed(8)),
            Some("u1") => Some(Stored::Unsigned(1)),
            Some("u2") => Some(Stored::Unsigned(2)),
            Some("u4") => Some(Stored::Unsigned(4)),
            Some("u8") => Some(Stored::Unsigned(8)),
            _ => None,
        };
        // A number of one byte has no order of bytes, and others have one.
        let is_whole = |stored: &Stored| (stored.bytes() == 1) == name.starts_with('|');
        stored
            .filter(|stored| stored.is(holds) && is_whole(stored))
            .map(|stored| (stored, name.starts_with('>')))
            .ok_or_else(|| Wrong::new(format!("{expected} {name:?}"), cure))
    }

    /// A tuple (or list) of sizes.
    fn shape(&mut self) -> Parsed<Vec<u64>> {
        let close = if self.eat('[') {
            ']'
        } else {
            self.expect('(')?;
            ')'
        };
        let mut shape = Vec::new();
        while !self.eat(close) {
            shape.push(self.size()?);
            if !self.eat(',') {
                self.expect(close)?;
                break;
            }
        }
        Ok(shape)
    }

    fn size(&mut self) -> Parsed<u64> {
        self.skip_space();
        let digits = self.rest.len()
            - self
                .rest
                .trim_start_matches(|c: char| c.is_ascii_digit())
                .len();
        let (number, after) = self.rest.split_at(digits);
        let size = number
            .parse()
            .map_err(|_| self.expected("a size below 2^64"))?;
        // Python 2 wrote long integers as 3L.
        self.rest = after.strip_prefix('L').unwrap_or(after);
        Ok(size)
    }
}
