//! `.safetensors`: the length of a header, the header in JSON, the tensors end to end.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use relata::DType;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::{Holds, Layout, Parsed, SAVE_AGAIN, Stored, Wrong, cannot_read, names};

/// The format's own limit.
const LONGEST_HEADER: u64 = 100_000_000;
/// What helps where a file is none.
const SAVE_FILE: &str = "save_file of the package safetensors writes one";

/// Reads up to the data of `tensor`, or of the only one there is.
pub(super) fn find_matrix(
    file: &mut File,
    len: u64,
    tensor: Option<&str>,
    holds: Holds,
) -> Parsed<Layout> {
    let (metadata, start) = read_metadata(file, len)?;
    let names = metadata.offset_keys();
    let name = names::find(&names, tensor, "FILE.safetensors")?;
    let info = metadata.info(name).ok_or_else(|| {
        let why = format!("expected {name:?} in the header, got none");
        Wrong::new(why, SAVE_AGAIN)
    })?;
    let stored = match info.dtype {
        Dtype::F64 => Some(Stored::Float(DType::F64)),
        Dtype::F32 => Some(Stored::Float(DType::F32)),
        Dtype::F16 => Some(Stored::Float(DType::F16)),
        Dtype::BF16 => Some(Stored::Float(DType::BF16)),
        Dtype::I8 => Some(Stored::Signed(1)),
        Dtype::I16 => Some(Stored::Signed(2)),
        Dtype::I32 => Some(Stored::Signed(4)),
        Dtype::I64 => Some(Stored::Signed(8)),
        Dtype::U8 => Some(Stored::Unsigned(1)),
        Dtype::U16 => Some(Stored::Unsigned(2)),
        Dtype::U32 => Some(Stored::Unsigned(4)),
        Dtype::U64 => Some(Stored::Unsigned(8)),
        _ => None,
    };
    let Some(stored) = stored.filter(|stored| stored.is(holds)) else {
        let (expected, cure) = match holds {
            Holds::Rows | Holds::Weights => ("F16, BF16, F32 or F64", "tensor.float()"),
            Holds::Classes | Holds::Labels => ("I8 to I64 or U8 to U64", "tensor.long()"),
        };
        let why = format!("expected {expected}, got {} in {name:?}", info.dtype);
        return Err(Wrong::new(why, format!("{cure} in PyTorch converts it")));
    };
    let (from, to) = info.data_offsets;
    let shape: Vec<u64> = info.shape.iter().map(|&size| size as u64).collect();
    // `Metadata` has checked that `from` is not past `to`, and `to` not past the end.
    let layout = Layout::new(&shape, stored, holds, (to - from) as u64)?;
    file.seek(SeekFrom::Start(start + from as u64))
        .map_err(cannot_read)?;
    Ok(layout)
}

/// The header, checked against itself and the length of the file, and where the data starts.
fn read_metadata(file: &mut File, len: u64) -> Parsed<(Metadata, u64)> {
    let mut length = [0; 8];
    if len < 8 {
        let why = format!("expected a .safetensors file, got one of {len} bytes");
        return Err(Wrong::new(why, SAVE_FILE));
    }
    file.read_exact(&mut length).map_err(cannot_read)?;
    let header_len = u64::from_le_bytes(length);
    if header_len > LONGEST_HEADER.min(len - 8) {
        let why = format!(
            "expected a .safetensors file, got a header of {header_len} bytes in a file of {len}"
        );
        return Err(Wrong::new(why, SAVE_FILE));
    }
    let mut header = Vec::new();
    file.take(header_len)
        .read_to_end(&mut header)
        .map_err(cannot_read)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| {
        let why = format!("expected a .safetensors header, got: {error}");
        Wrong::new(why, SAVE_FILE)
    })?;
    let start = 8 + header_len;
    let (claimed, data) = (metadata.data_len() as u64, len - start);
    if claimed != data {
        let why = format!("expected {claimed} bytes of data, got {data}");
        return Err(Wrong::new(why, SAVE_AGAIN));
    }
    Ok((metadata, start))
}
