//! The devices at hand. Adding one: a variant here, and the compiler asks for the rest.

use relata::DType;

/// A device by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    Reference,
    Cpu,
}

/// What a program built without them answers to.
const NOT_BUILT_IN: [&str; 2] = ["emulator", "cuda"];

impl DeviceKind {
    /// Every device of this build, in the order of the table.
    pub(crate) const AT_HAND: [DeviceKind; 2] = [DeviceKind::Reference, DeviceKind::Cpu];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            DeviceKind::Reference => "reference",
            DeviceKind::Cpu => "cpu",
        }
    }

    /// The type inputs are rounded to unless `--dtype` says otherwise.
    pub(crate) const fn default_dtype(self) -> DType {
        match self {
            DeviceKind::Reference => DType::F64,
            DeviceKind::Cpu => DType::F32,
        }
    }

    pub(crate) const fn is_reference(self) -> bool {
        matches!(self, DeviceKind::Reference)
    }

    pub(crate) fn parse(name: &str) -> Result<Self, String> {
        let at_hand = DeviceKind::AT_HAND;
        if let Some(device) = at_hand.into_iter().find(|device| device.name() == name) {
            return Ok(device);
        }
        let expected = at_hand.map(DeviceKind::name).join(", ");
        Err(if NOT_BUILT_IN.contains(&name) {
            format!("this program was built without it; expected one of {expected}")
        } else {
            format!("expected one of {expected}")
        })
    }
}
