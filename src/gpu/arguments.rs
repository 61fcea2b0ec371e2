//! Structs that kernels take, and the tables of their fields.
//!
//! A kernel reads a struct that Rust wrote, so both languages declare it. `kernel_arguments!`
//! declares it here and lists its fields in a table. `ARGUMENTS` in kernels/common/platform.cuh
//! lists the fields of the C++ struct, for the emulator alone. The emulator refuses a launch whose
//! two tables differ in a name, a type, an offset or a size, and a test compares the tables of all
//! entry points.

use bytemuck::Pod;

/// A field of a struct that a kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "emulator"),
    allow(dead_code, reason = "for the emulator")
)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    /// The type of an element: `u32`, `u64` (also a pointer), `f32`, `f64` or `struct`.
    pub(crate) kind: &'static str,
    /// From the beginning of the struct, in bytes.
    pub(crate) offset: usize,
    /// The size of the field, with all its elements.
    pub(crate) bytes: usize,
    /// The fields of an element that is a struct, else empty.
    pub(crate) fields: &'static [Field],
}

/// A type that a field may have.
#[cfg_attr(
    not(feature = "emulator"),
    allow(dead_code, reason = "for the emulator")
)]
pub(crate) trait ArgumentType: Pod {
    /// [`Field::kind`] of such a field.
    const KIND: &'static str;
    /// [`Field::fields`] of such a field.
    const FIELDS: &'static [Field] = &[];
}

impl ArgumentType for u32 {
    const KIND: &'static str = "u32";
}
impl ArgumentType for u64 {
    const KIND: &'static str = "u64";
}
impl ArgumentType for f32 {
    const KIND: &'static str = "f32";
}
impl ArgumentType for f64 {
    const KIND: &'static str = "f64";
}
impl<T: ArgumentType, const N: usize> ArgumentType for [T; N]
where
    [T; N]: Pod,
{
    const KIND: &'static str = T::KIND;
    const FIELDS: &'static [Field] = T::FIELDS;
}

/// Declares a struct that a kernel takes, or a struct in such a struct, with the table of its
/// fields. `Pod` allows no gaps: fill them with fields named `padding`, in C++ too.
macro_rules! kernel_arguments {
    ($(
        $(#[$attribute:meta])*
        $struct_vis:vis struct $name:ident {
            $($(#[$field_attribute:meta])* $vis:vis $field:ident: $type:ty),+ $(,)?
        }
    )+) => {$(
        $(#[$attribute])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
        $struct_vis struct $name {
            $($(#[$field_attribute])* $vis $field: $type),+
        }

        impl $crate::gpu::arguments::ArgumentType for $name {
            const KIND: &'static str = "struct";
            const FIELDS: &'static [$crate::gpu::arguments::Field] = &[
                $($crate::gpu::arguments::Field {
                    name: stringify!($field),
                    kind: <$type as $crate::gpu::arguments::ArgumentType>::KIND,
                    offset: std::mem::offset_of!($name, $field),
                    bytes: size_of::<$type>(),
                    fields: <$type as $crate::gpu::arguments::ArgumentType>::FIELDS,
                }),+
            ];
        }
    )+};
}
pub(crate) use kernel_arguments;
