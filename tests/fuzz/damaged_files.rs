//! Files with random damage. A reader returns a matrix or an error, and never panics, hangs or asks
//! for more memory than the file has.
//! Runs with the same number of files see the same files.

use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;
use std::time::Instant;

use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

use crate::common::Random;
use crate::failure::Failure;
use crate::files::{Holds, read, read_labels};
use crate::long_enough;

/// What a byte of a compressed file can stand for.
const MOST_INFLATED: usize = 1032;

fn below(random: &mut Random, count: usize) -> usize {
    (random.next() % count.max(1) as u64) as usize
}

fn one_of<'a, T: ?Sized>(random: &mut Random, choices: &[&'a T]) -> &'a T {
    choices[below(random, choices.len())]
}

/// A valid file, by hand: what is damaged should not depend on a writer. Archives do.
fn npy(descr: &str, shape: &str, data: usize) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend((0..data).map(|byte| (byte % 50) as u8));
    file
}

fn safetensors(entries: &str, data: usize) -> Vec<u8> {
    let mut file = (entries.len() as u64).to_le_bytes().to_vec();
    file.extend(entries.as_bytes());
    file.extend((0..data).map(|byte| (byte % 50) as u8));
    file
}

/// An archive of one file, and of two.
fn npz(method: CompressionMethod, names: &[&str]) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for name in names {
        let options = SimpleFileOptions::default().compression_method(method);
        archive.start_file(*name, options).expect("a member starts");
        let member = npy("<f4", "(3, 2)", 24);
        archive.write_all(&member).expect("a member is written");
    }
    archive.finish().expect("an archive").into_inner()
}

/// The files that are damaged, with the endings of their names.
fn corpus() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("npy", npy("<f4", "(3, 2)", 24)),
        ("npy", npy("<f8", "(2, 2)", 32)),
        ("npy", npy("<f2", "(4, 1)", 8)),
        ("npy", npy("|V2", "(4, 1)", 8)),
        ("npy", npy("<f4", "(2, 3, 1)", 24)),
        ("npy", npy("<i8", "(3,)", 24)),
        ("npz", npz(CompressionMethod::Stored, &["a.npy"])),
        ("npz", npz(CompressionMethod::Deflated, &["b.npy", "a.npy"])),
        (
            "safetensors",
            safetensors(
                r#"{"a":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]}}"#,
                24,
            ),
        ),
        (
            "safetensors",
            safetensors(
                r#"{"__metadata__":{"x":"y"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"F64","shape":[1,1],"data_offsets":[12,20]}}"#,
                20,
            ),
        ),
    ]
}

/// What hostile headers are made of.
const PIECES: [&[u8]; 16] = [
    b"18446744073709551615",
    b"9223372036854775808",
    b"4294967296",
    b"-1",
    b"0",
    b"(((((((((((((((((((((((((((((((((",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b"{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":",
    b"'shape': (",
    b"\"data_offsets\":[0,18446744073709551615]",
    b"\"dtype\":\"F8_E4M3\"",
    b"True",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x00",
    b"\xf0\x9f\x92\xa5",
    b"<c16",
];

fn damage(file: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=below(random, 4) {
        let at = below(random, file.len() + 1);
        match below(random, 6) {
            0 if at < file.len() => file[at] ^= 1 << below(random, 8),
            1 if at < file.len() => file[at] = random.next() as u8,
            2 => file.truncate(at),
            3 => {
                let piece = one_of(random, &PIECES);
                file.splice(at..at, piece.iter().copied());
            }
            4 => {
                let end = at + below(random, file.len() - at + 1);
                file.drain(at..end);
            }
            _ => {
                let end = (at + below(random, 9)).min(file.len());
                let piece = one_of(random, &PIECES);
                file.splice(at..end, piece.iter().copied());
            }
        }
    }
}

#[test]
fn damaged_files_are_read_or_refused() {
    let folder = tempfile::tempdir().expect("a folder for files");
    let (mut read_whole, mut labels_read, mut refused) = (0u64, 0u64, 0u64);
    let begin = Instant::now();
    let corpus = corpus();
    for (ending, file) in &corpus {
        let path = folder.path().join(format!("valid.{ending}"));
        fs::write(&path, file).expect("a file");
        let whole = read("--student", &named(&path, ending, "a"), Holds::Rows);
        let labels = read_labels("--labels", &named(&path, ending, "a"));
        // `|V2` is no type of number.
        let has = |descr: &[u8]| file.windows(3).any(|part| part == descr);
        let is_of_floats = !has(b"|V2") && !has(b"<i8");
        assert_eq!(whole.is_ok(), is_of_floats, "{ending}: {whole:?}");
        assert_eq!(labels.is_ok(), has(b"<i8"), "{ending}: {labels:?}");
    }
    // A disk may be slow: fewer files are of one kind.
    for seed in (0..).take_while(|&seed| seed < 1000 || !long_enough(begin)) {
        let mut random = Random::new(seed);
        let (ending, mut file) = corpus[below(&mut random, corpus.len())].clone();
        damage(&mut file, &mut random);
        let path = folder.path().join(format!("damaged.{ending}"));
        fs::write(&path, &file).expect("a file");
        let bytes = match ending {
            "npz" => file.len() * MOST_INFLATED,
            _ => file.len(),
        };
        let tensor = one_of(&mut random, &["a", "b", "", "\u{1f4a5}"]);
        let holds = [Holds::Rows, Holds::Classes, Holds::Weights][below(&mut random, 3)];
        match read_labels("--labels", &named(&path, ending, tensor)) {
            Ok(labels) => {
                assert!(labels.origin.starts_with("--labels"), "seed {seed}");
                assert!(
                    labels.ids.len() <= bytes,
                    "seed {seed}: more labels than bytes"
                );
                labels_read += 1;
            }
            Err(Failure::Refused(why)) => {
                assert!(why.starts_with("--labels"), "seed {seed}: {why}");
            }
            Err(Failure::Quiet) => panic!("seed {seed}: no reason"),
        }
        match read("--student", &named(&path, ending, tensor), holds) {
            Ok(matrix) => {
                assert!(matrix.origin.starts_with("--student"), "seed {seed}");
                assert_eq!(
                    matrix.values.len(),
                    matrix.rows * matrix.dim,
                    "seed {seed}: a matrix that is not whole"
                );
                assert!(
                    matrix.groups.is_none_or(|groups| matrix.rows % groups == 0),
                    "seed {seed}: groups that are not whole"
                );
                assert!(
                    matrix.values.len() <= bytes,
                    "seed {seed}: more numbers than bytes"
                );
                read_whole += 1;
            }
            Err(Failure::Refused(why)) => {
                assert!(why.starts_with("--student"), "seed {seed}: {why}");
                refused += 1;
            }
            Err(Failure::Quiet) => panic!("seed {seed}: no reason"),
        }
    }
    println!("{read_whole} damaged files read, {labels_read} as labels, {refused} refused");
    assert!(read_whole > 0 && refused > 0, "the damage is of one kind");
}

/// The path as the command takes it, with a tensor's name now and then.
fn named(path: &Path, ending: &str, tensor: &str) -> std::path::PathBuf {
    if ending == "npy" || tensor.is_empty() {
        path.to_owned()
    } else {
        format!("{}:{tensor}", path.display()).into()
    }
}
