//! Files of embeddings: reading them without believing what they claim.
//!
//! The shape in a header is compared with the length of the file before any memory is asked for; in an
//! archive with what its bytes can stand for.

mod names;
mod npy;
mod npz;
mod numbers;
mod safetensors;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};
use numbers::{Decode, Stored, decode, decode_bits};

/// A matrix `[rows, dim]` with the values its file holds: f64 holds every type's exactly. A file of
/// shape `[groups, n, dim]` is a matrix of `groups · n` rows.
#[derive(Debug)]
pub(crate) struct Matrix {
    /// The argument and the file it came from, for messages.
    pub(crate) origin: String,
    pub(crate) values: Vec<f64>,
    pub(crate) rows: usize,
    pub(crate) dim: usize,
    /// Into how many groups of equal size the file's shape divides the rows.
    pub(crate) groups: Option<usize>,
    /// How many dimensions of 1 the file's shape has after these.
    pub(crate) ones: usize,
}

impl Matrix {
    /// Takes a last dimension of 1 for the elements of a row, where the rows of `other`, which belong
    /// to these, show that it is: `[groups, n, 1]` beside `[groups, n, dim]`.
    pub(crate) fn fit(&mut self, other: &Matrix) {
        let as_groups = (self.rows * self.dim, Some(self.rows));
        if self.groups.is_none() && self.ones > 0 && (other.rows, other.groups) == as_groups {
            (self.rows, self.groups) = as_groups;
            self.dim = 1;
            self.ones -= 1;
        }
    }
}

/// What a matrix is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    /// Floats: `[rows, dim]` or `[groups, n, dim]`.
    Rows,
    /// Integers of the same shapes.
    Classes,
    /// A float for each row, `[rows]` or `[groups, n]`: a matrix of one column.
    Weights,
    /// An integer for each row, `[rows]`.
    Labels,
}

/// What a reader of a format says is wrong with a file, and what helps.
#[derive(Debug)]
struct Wrong {
    why: String,
    cure: Cow<'static, str>,
}

impl Wrong {
    fn new(why: impl Into<String>, cure: impl Into<Cow<'static, str>>) -> Self {
        let (why, cure) = (why.into(), cure.into());
        Wrong { why, cure }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.why, self.cure)
    }
}

type Parsed<T> = std::result::Result<T, Wrong>;

/// What helps where a file is not whole.
const SAVE_AGAIN: &str = "save or copy it again";

/// A matrix that a file holds: where its bytes start is where the file is left.
struct Layout {
    shape: [usize; 2],
    groups: Option<usize>,
    ones: usize,
    stored: Stored,
    order: Order,
    /// Whether the first byte of a number is its highest.
    big_endian: bool,
}

/// In which order a file has the elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// The last index runs first.
    C,
    /// The first index runs first.
    Fortran,
}

/// Reads the matrix that `argument` names: `FILE.npy`, or `FILE.npz:NAME` and `FILE.safetensors:NAME`,
/// where a file that holds one may leave the name out, and a name may be a pattern.
pub(crate) fn read(argument: &str, path: &Path, holds: Holds) -> Result<Matrix> {
    let origin = format!("{argument} {}", path.display());
    match read_named(path, holds, decode) {
        Ok((
            Layout {
                shape: [rows, dim],
                groups,
                ones,
                ..
            },
            values,
        )) => Ok(Matrix {
            origin,
            values,
            rows,
            dim,
            groups,
            ones,
        }),
        Err(why) => Err(Failure::refused(origin, why)),
    }
}

/// The labels of rows.
#[derive(Debug)]
pub(crate) struct Labels {
    /// The argument and the file they came from, for messages.
    pub(crate) origin: String,
    /// In place of the file's integers, of any sign and size: equal where those are equal.
    pub(crate) ids: Vec<u32>,
}

/// Reads the labels that `argument` names, from a file as [`read`] takes it.
pub(crate) fn read_labels(argument: &str, path: &Path) -> Result<Labels> {
    let origin = format!("{argument} {}", path.display());
    let ids = read_named(path, Holds::Labels, decode_bits).and_then(|(_, labels)| ids(&labels));
    match ids {
        Ok(ids) => Ok(Labels { origin, ids }),
        Err(why) => Err(Failure::refused(origin, why)),
    }
}

/// For each label the number of others that came before it first did.
fn ids(labels: &[u64]) -> Parsed<Vec<u32>> {
    let mut known = HashMap::new();
    let mut ids = Vec::new();
    for &label in labels {
        let new = known.len();
        let id = u32::try_from(*known.entry(label).or_insert(new));
        ids.push(id.map_err(|_| {
            let why = format!("expected at most 2^32 different labels, got {}", new + 1);
            Wrong::new(why, "save the labels of fewer rows")
        })?);
    }
    Ok(ids)
}

fn read_named<V: Copy>(path: &Path, holds: Holds, decode: Decode<V>) -> Parsed<(Layout, Vec<V>)> {
    let (path, name) = split_name(path);
    let name = name.as_deref();
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    let format = match extension.to_str() {
        Some("npy") => Format::Npy,
        Some("npz") => Format::Npz,
        Some("safetensors") => Format::Safetensors,
        _ => {
            return Err(Wrong::new(
                "expected a .npy, .npz or .safetensors file",
                "numpy.save, numpy.savez and safetensors write them",
            ));
        }
    };
    let (mut file, len) = open(&path)?;
    match format {
        Format::Npy => read_npy(&mut file, len, holds, decode),
        Format::Npz => npz::read(file, len, name, |member, len| {
            read_npy(member, len, holds, decode)
        }),
        Format::Safetensors => {
            let layout = safetensors::find_matrix(&mut file, len, name, holds)?;
            let values = read_values(&mut file, &layout, decode)?;
            Ok((layout, values))
        }
    }
}

#[derive(Clone, Copy)]
enum Format {
    Npy,
    Npz,
    Safetensors,
}

/// Reads a `.npy` file of `len` bytes, or a member of a `.npz` file, which is one.
fn read_npy<V: Copy>(
    file: &mut impl Read,
    len: u64,
    holds: Holds,
    decode: Decode<V>,
) -> Parsed<(Layout, Vec<V>)> {
    let layout = npy::find_matrix(file, len, holds)?;
    let mut values = read_values(file, &layout, decode)?;
    if layout.order == Order::Fortran {
        values = layout.in_c_order(&values)?;
    }
    Ok((layout, values))
}

/// `FILE.safetensors:NAME` or `FILE.npz:NAME` in its two parts; any other path as it is.
pub(crate) fn split_name(path: &Path) -> (PathBuf, Option<String>) {
    // A path that is not UTF-8 can be opened, but what it holds not be named.
    if let Some(text) = path.to_str()
        && !path.is_file()
    {
        // The first of them: names may have any characters.
        let end = |extension: &str| Some(text.find(&format!("{extension}:"))? + extension.len());
        if let Some(end) = [".safetensors", ".npz"].into_iter().filter_map(end).min() {
            return (text[..end].into(), Some(text[end + 1..].to_owned()));
        }
    }
    (path.to_owned(), None)
}

/// Opens a regular file, and says how long it is. Anything else might have no end, or block.
fn open(path: &Path) -> Parsed<(File, u64)> {
    let cannot = |error| {
        let why = format!("expected a file that can be read, got: {error}");
        Wrong::new(why, "check its path and its permissions")
    };
    let metadata = fs::metadata(path).map_err(cannot)?;
    if metadata.is_dir() {
        let why = "expected a file, got a directory";
        return Err(Wrong::new(why, "name a file in it"));
    }
    if !metadata.is_file() {
        let why = "expected a regular file, got a device or a pipe";
        return Err(Wrong::new(why, "write what it holds to a file"));
    }
    let file = File::open(path).map_err(cannot)?;
    Ok((file, metadata.len()))
}

impl Layout {
    /// A matrix of `shape`, which the file has `available` bytes for.
    fn new(shape: &[u64], stored: Stored, holds: Holds, available: u64) -> Parsed<Self> {
        let (shape, ones) = without_ones(shape, holds);
        let (groups, rows, dim) = match (holds, shape) {
            (Holds::Rows | Holds::Classes, &[rows, dim]) => (None, rows, dim),
            (Holds::Rows | Holds::Classes, &[groups, rows, dim]) => (Some(groups), rows, dim),
            (Holds::Weights | Holds::Labels, &[rows]) => (None, rows, 1),
            (Holds::Weights, &[groups, rows]) => (Some(groups), rows, 1),
            _ => {
                let (expected, reshape) = match holds {
                    Holds::Rows => ("[rows, dim] or [groups, rows, dim]", "rows, dim"),
                    Holds::Classes => ("[rows, k] or [groups, rows, k]", "rows, k"),
                    Holds::Weights => ("[rows] or [groups, rows]", "rows"),
                    Holds::Labels => ("[rows]", "rows"),
                };
                let why = format!("expected dimensions {expected}, got shape {shape:?}");
                let cure =
                    format!("a.reshape({reshape}) in NumPy or PyTorch makes one of the other");
                return Err(Wrong::new(why, cure));
            }
        };
        for (size, of) in [
            (groups.unwrap_or(1), "group"),
            (rows, "row"),
            (dim, "column"),
        ] {
            if size == 0 {
                let why = format!("expected at least 1 {of}, got shape {shape:?}");
                return Err(Wrong::new(why, "save what is not empty"));
            }
        }
        let all_rows = rows.checked_mul(groups.unwrap_or(1));
        let claimed = all_rows
            .and_then(|rows| rows.checked_mul(dim))
            .and_then(|elements| elements.checked_mul(stored.bytes()));
        if claimed != Some(available) {
            let claimed = claimed.map_or("more".to_owned(), |bytes| bytes.to_string());
            let why = format!(
                "expected {claimed} bytes of data for shape {shape:?} of {stored}, got {available}"
            );
            return Err(Wrong::new(why, SAVE_AGAIN));
        }
        let size = |size: u64| usize::try_from(size).map_err(|_| too_large(available));
        Ok(Layout {
            shape: [size(all_rows.unwrap_or(u64::MAX))?, size(dim)?],
            groups: groups.map(size).transpose()?,
            ones,
            stored,
            order: Order::C,
            big_endian: false,
        })
    }

    /// The elements of a file in Fortran's order, `[dim, rows]` or `[dim, rows, groups]`, row by row.
    fn in_c_order<V: Copy>(&self, values: &[V]) -> Parsed<Vec<V>> {
        let [all_rows, dim] = self.shape;
        let groups = self.groups.unwrap_or(1);
        let rows = all_rows / groups;
        let mut ordered = Vec::new();
        let bytes = self.stored.bytes() * values.len() as u64;
        ordered
            .try_reserve_exact(values.len())
            .map_err(|_| too_large(bytes))?;
        for group in 0..groups {
            for row in 0..rows {
                ordered.extend((0..dim).map(|d| values[(d * rows + row) * groups + group]));
            }
        }
        Ok(ordered)
    }
}

/// A shape without its last dimensions of 1, and how many those are. They are what is left of
/// pooling, `[rows, dim, 1, 1]`, and of labels in a column, `[rows, 1]`; groups of rows of one element
/// are rarer than either. The last dimension of `[rows, 1]` are the elements of a row.
fn without_ones(shape: &[u64], holds: Holds) -> (&[u64], usize) {
    let least = match holds {
        Holds::Rows | Holds::Classes => 2,
        Holds::Weights | Holds::Labels => 1,
    };
    let mut kept = shape;
    while let [before @ .., 1] = kept
        && before.len() >= least
    {
        kept = before;
    }
    (kept, shape.len() - kept.len())
}

fn too_large(bytes: u64) -> Wrong {
    let why = format!("expected a matrix that fits in memory, got {bytes} bytes of data");
    Wrong::new(why, "save its first rows, a[:n], to a file of their own")
}

/// The elements of a matrix from where `file` stands, in the order of the file.
fn read_values<V>(file: &mut impl Read, layout: &Layout, decode: Decode<V>) -> Parsed<Vec<V>> {
    let [rows, dim] = layout.shape;
    // The product was compared with the length of the file.
    let count = rows * dim;
    let bytes = count as u64 * layout.stored.bytes();
    let mut values = Vec::new();
    values
        .try_reserve_exact(count)
        .map_err(|_| too_large(bytes))?;
    let mut left = bytes;
    let mut buffer = vec![0; 1 << 16];
    while left > 0 {
        let part = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let part = &mut buffer[..part];
        file.read_exact(part).map_err(cannot_read)?;
        if layout.big_endian {
            let numbers = part.chunks_exact_mut(layout.stored.bytes() as usize);
            numbers.for_each(<[u8]>::reverse);
        }
        decode(part, layout.stored, &mut values);
        left -= part.len() as u64;
    }
    Ok(values)
}

fn cannot_read(error: std::io::Error) -> Wrong {
    Wrong::new(format!("expected to read on, got: {error}"), SAVE_AGAIN)
}
