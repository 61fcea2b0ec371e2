//! NumPy's `.npz`: a zip archive of `.npy` files, stored or deflated.

use std::fs::File;
use std::io::{BufReader, Read};

use zip::CompressionMethod;
use zip::read::{ZipArchive, ZipFile};
use zip::result::ZipError;

use super::{Parsed, SAVE_AGAIN, Wrong, cannot_read, names};

/// How many bytes one of DEFLATE's can stand for.
const MOST_INFLATED: u64 = 1032;

/// Reads the member `name`, or the only one there is: `read` gets its bytes and how many they are.
pub(super) fn read<T>(
    file: File,
    len: u64,
    name: Option<&str>,
    read: impl FnOnce(&mut ZipFile<'_, BufReader<File>>, u64) -> Parsed<T>,
) -> Parsed<T> {
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(no_archive)?;
    let keys: Vec<String> = archive
        .file_names()
        .filter_map(|member| Some(member.ok()?.strip_suffix(".npy")?.to_owned()))
        .collect();
    let key = names::find(&keys, name, "FILE.npz")?;
    let mut member = archive.by_name(&format!("{key}.npy")).map_err(no_archive)?;
    let (packed, size) = (member.compressed_size(), member.size());
    // A size that the bytes cannot have is no reason to ask for memory.
    let most = match member.compression() {
        CompressionMethod::Stored => packed,
        _ => packed.saturating_mul(MOST_INFLATED),
    };
    if packed > len || size > most {
        let why = format!(
            "expected {key:?} in the file's {len} bytes, got {packed} bytes that stand for {size}"
        );
        return Err(Wrong::new(why, SAVE_AGAIN));
    }
    let value = read(&mut member, size)?;
    // The checksum is compared where a member ends.
    match member.read(&mut [0]).map_err(cannot_read)? {
        0 => Ok(value),
        _ => {
            let why = format!("expected {size} bytes of {key:?}, got more");
            Err(Wrong::new(why, SAVE_AGAIN))
        }
    }
}

fn no_archive(error: ZipError) -> Wrong {
    let why = format!("expected a .npz file, got: {error}");
    Wrong::new(why, "numpy.savez and savez_compressed write one")
}
