//! Compares the fields of a kernel's arguments in Rust with those in C++.

use std::ffi::{CStr, c_char};

use crate::gpu::arguments::Field;

/// Mirrors `emulator::Field` in emulator/emulator.h.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct CppField {
    name: *const c_char,
    kind: *const c_char,
    offset: u32,
    bytes: u32,
    fields: CppFields,
}

/// Mirrors `emulator::Fields` in emulator/emulator.h.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct CppFields {
    fields: *const CppField,
    count: u32,
}

// SAFETY: the pointers lead to constants of C++.
unsafe impl Sync for CppFields {}

impl CppFields {
    fn as_slice(&self) -> &'static [CppField] {
        if self.count == 0 {
            return &[];
        }
        // SAFETY: `emulator::Fields` holds the address and the length of a constant array.
        unsafe { std::slice::from_raw_parts(self.fields, self.count as usize) }
    }
}

fn text(text: *const c_char) -> String {
    // SAFETY: the macros in kernels/common/platform.cuh put string literals there.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().into_owned()
}

/// The first field that differs, in words, or None.
pub(crate) fn difference(rust: &[Field], cpp: CppFields) -> Option<String> {
    let cpp = cpp.as_slice();
    for (rust, cpp) in rust.iter().zip(cpp) {
        let (rust_field, cpp_field) = (
            (
                rust.name.to_owned(),
                rust.kind.to_owned(),
                rust.offset,
                rust.bytes,
            ),
            (
                text(cpp.name),
                text(cpp.kind),
                cpp.offset as usize,
                cpp.bytes as usize,
            ),
        );
        if rust_field != cpp_field {
            let words = |(name, kind, offset, bytes): (String, String, usize, usize)| {
                format!("'{name}' ({kind}, {bytes} bytes at {offset})")
            };
            let (rust, cpp) = (words(rust_field), words(cpp_field));
            return Some(format!("{rust} in Rust is {cpp} in C++"));
        }
        if let Some(inside) = difference(rust.fields, cpp.fields) {
            return Some(format!("in '{}': {inside}", rust.name));
        }
    }
    let (rust, cpp) = (rust.len(), cpp.len());
    (rust != cpp).then(|| format!("{rust} fields in Rust, {cpp} in C++"))
}
