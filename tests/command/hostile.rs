//! Files made to mislead: none of them gets more memory than it has bytes, none makes the command
//! panic.

use crate::support::*;

#[test]
fn hostile_npy_files_are_refused() {
    let files = Files::new();
    let data = f64_bytes(&student());
    let good = npy("<f8", &[ROWS, DIM], &data);
    let mut magic = good.clone();
    magic[1] = b'n';
    let mut version = good.clone();
    version[6] = 9;
    let c_order = |shape: &str| {
        npy_header(
            &format!("'descr': '<f8', 'fortran_order': False, 'shape': {shape}"),
            &data,
        )
    };
    let deep = format!("'descr': {}", "[".repeat(60_000));
    let of_4_gib = [b"\x93NUMPY\x02\x00", &u32::MAX.to_le_bytes()[..], &data].concat();
    for (bytes, expected) in [
        (Vec::new(), "cut off after 0 bytes"),
        (good[..9].to_vec(), "cut off after 9 bytes"),
        (good[..40].to_vec(), "cut off after 40 bytes"),
        (
            good[..good.len() - 1].to_vec(),
            "expected 120 bytes of data for shape [5, 3] of f64, got 119",
        ),
        ([&good[..], &[0]].concat(), "got 121"),
        (magic, "does not start with"),
        (version, "version 1.0, 2.0 or 3.0, got 9.0"),
        (
            of_4_gib.clone(),
            "expected a header of at most 65535 bytes, got 4294967295",
        ),
        (of_4_gib[..11].to_vec(), "cut off after 11 bytes"),
        (
            npy("<f8", &[1 << 30, 1 << 30], &data),
            "expected 9223372036854775808 bytes of data",
        ),
        (
            npy("<f8", &[1 << 31, 1 << 31], &data),
            "expected more bytes of data",
        ),
        (
            npy("<f8", &[usize::MAX, usize::MAX], &data),
            "expected more bytes of data",
        ),
        (
            c_order("(99999999999999999999, 1)"),
            "expected a size below 2^64",
        ),
        (c_order("(-5, -3)"), "expected a size below 2^64"),
        (c_order("15"), "expected '(' in the header"),
        (
            npy("<f8", &[15], &data),
            "expected dimensions [rows, dim] or [groups, rows, dim], got shape [15]",
        ),
        (
            npy("<f8", &[5, 1, 1, 3], &data),
            "expected dimensions [rows, dim] or [groups, rows, dim], got shape [5, 1, 1, 3]",
        ),
        (npy("<f8", &[], &data), "expected dimensions [rows, dim]"),
        (
            npy("<f8", &[2, 5, 3], &data),
            "expected 240 bytes of data for shape [2, 5, 3] of f64, got 120",
        ),
        (
            npy("<f8", &[0, 5, 3], &[]),
            "expected at least 1 group, got shape [0, 5, 3]",
        ),
        (
            npy("<f8", &[usize::MAX, usize::MAX, 3], &data),
            "expected more bytes of data",
        ),
        (
            npy("<f8", &[0, 3], &[]),
            "expected at least 1 row, got shape [0, 3]",
        ),
        (
            npy("<f8", &[5, 0], &[]),
            "expected at least 1 column, got shape [5, 0]",
        ),
        (
            npy("<f8", &[usize::MAX, 0], &[]),
            "expected at least 1 column",
        ),
        (
            npy("<i8", &[5, 3], &data),
            "expected dtype f16, f32 or f64 (<f2, <f4, <f8), got \"<i8\"; a.astype('float32') in NumPy converts it",
        ),
        (npy("=f8", &[5, 3], &data), "got \"=f8\""),
        (npy("|f8", &[5, 3], &data), "got \"|f8\""),
        (npy("f8", &[5, 3], &data), "got \"f8\""),
        (npy("|O", &[5, 3], &data), "got \"|O\""),
        (npy("|V2", &[5, 3], &data), "got \"|V2\""),
        (
            npy_header(
                "'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (5, 3)",
                &data,
            ),
            "got a structured one",
        ),
        (
            npy_header(
                "'descr': '<f8', 'fortran_order': True, 'shape': (3, 6)",
                &data,
            ),
            "expected 144 bytes of data",
        ),
        (
            npy_header("'descr': '<f8', 'shape': (5, 3)", &data),
            "expected fortran_order in the header, got none",
        ),
        (
            npy_header("'descr': '<f8', 'fortran_order': 0, 'shape': (5, 3)", &data),
            "expected True or False",
        ),
        (npy_header("'order': 'C'", &data), "got \"order\""),
        (npy_header("'descr': '<f8", &data), "in the header, got"),
        (npy_header(&deep, &data), "got a structured one"),
        (
            [&b"\x93NUMPY\x01\x00\x04\x00{\xff\xfe}"[..], &data].concat(),
            "expected a header in UTF-8",
        ),
    ] {
        files.refuses_file("bad.npy", &bytes, expected);
    }
}

#[test]
fn hostile_safetensors_files_are_refused() {
    let files = Files::new();
    let data = f64_bytes(&student());
    let tensor = |name: &str, dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{from},{to}]}}"#)
    };
    let file =
        |tensors: &[String]| safetensors_header(&format!("{{{}}}", tensors.join(",")), &data);
    let one = |dtype: &str, shape: &str| file(&[tensor("x", dtype, shape, 0, 120)]);
    let good = one("F64", "5,3");
    // Tensors of bytes that end where no more can be added to an offset.
    let edge = |i: u64| {
        if i == 9 {
            u64::MAX
        } else {
            i * ((1 << 61) - 1)
        }
    };
    let around: Vec<String> = (0..9)
        .map(|i| {
            tensor(
                &i.to_string(),
                "U8",
                &(edge(i + 1) - edge(i)).to_string(),
                edge(i),
                edge(i + 1),
            )
        })
        .collect();
    let header_of = |len: u64| [&len.to_le_bytes()[..], b"{}"].concat();
    for (bytes, expected) in [
        (Vec::new(), "got one of 0 bytes"),
        (good[..7].to_vec(), "got one of 7 bytes"),
        (good[..20].to_vec(), "in a file of 20"),
        (
            good[..good.len() - 1].to_vec(),
            "expected 120 bytes of data, got 119",
        ),
        (
            header_of(1 << 32),
            "got a header of 4294967296 bytes in a file of 10",
        ),
        (
            header_of(u64::MAX),
            "got a header of 18446744073709551615 bytes",
        ),
        (
            header_of(2),
            "expected a file that holds an array, got none",
        ),
        (
            safetensors_header("[]", &[]),
            "expected a .safetensors header",
        ),
        (
            safetensors_header(&"[".repeat(100_000), &[]),
            "expected a .safetensors header",
        ),
        (
            [&4u64.to_le_bytes()[..], b"{\xff\xfe}"].concat(),
            "expected a .safetensors header",
        ),
        (
            file(&around),
            "expected 18446744073709551615 bytes of data, got 120",
        ),
        (
            one("F64", "1152921504606846976,1"),
            "expected a .safetensors header",
        ),
        (
            one("F64", "4294967296,4294967296,4294967296"),
            "expected a .safetensors header",
        ),
        (one("F64", "5,4"), "expected a .safetensors header"),
        (one("F64", "-5,-3"), "expected a .safetensors header"),
        (one("F65", "5,3"), "expected a .safetensors header"),
        (
            one("F64", "15"),
            "expected dimensions [rows, dim] or [groups, rows, dim], got shape [15]",
        ),
        (one("F64", "5,1,1,3"), "expected dimensions [rows, dim]"),
        (one("I64", "5,3"), "expected F16, BF16, F32 or F64, got I64"),
        (
            file(&[tensor("x", "F64", "5,3", 120, 0)]),
            "expected a .safetensors header",
        ),
        (
            file(&[
                tensor("x", "F64", "5,3", 0, 120),
                tensor("y", "F64", "5,3", 0, 120),
            ]),
            "expected a .safetensors header",
        ),
        (
            file(&[
                tensor("x", "F64", "5,2", 0, 80),
                tensor("y", "F64", "5,2", 40, 120),
            ]),
            "expected a .safetensors header",
        ),
        (
            safetensors_header(&format!("{{{}}}", tensor("x", "F64", "0,3", 0, 0)), &[]),
            "expected at least 1 row, got shape [0, 3]",
        ),
    ] {
        files.refuses_file("bad.safetensors", &bytes, expected);
    }
}
