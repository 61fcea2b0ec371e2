//! The devices at hand. Adding one: a variant here, and the compiler asks for the rest.

use relata::DType;

#[cfg(feature = "cuda")]
use crate::failure::say;
use crate::failure::{Failure, Result};

/// A device by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    Reference,
    Cpu,
    #[cfg(feature = "emulator")]
    Emulator,
    #[cfg(feature = "cuda")]
    Cuda,
}

/// What is built in on request: the features' names.
const FEATURES: [&str; 2] = ["emulator", "cuda"];

impl DeviceKind {
    /// Every device of this build, in the order of the table.
    const BUILT_IN: &[DeviceKind] = &[
        DeviceKind::Reference,
        DeviceKind::Cpu,
        #[cfg(feature = "emulator")]
        DeviceKind::Emulator,
        #[cfg(feature = "cuda")]
        DeviceKind::Cuda,
    ];

    /// Those that run where none is asked for and can compute in `dtype`: the emulator, which is
    /// slow by design, has to be asked for, and cuda is there if a GPU is.
    pub(crate) fn at_hand(dtype: Option<DType>) -> Vec<DeviceKind> {
        let mut at_hand = DeviceKind::BUILT_IN.to_vec();
        at_hand.retain(|device| device.takes(dtype) && device.is_at_hand());
        at_hand
    }

    fn is_at_hand(self) -> bool {
        match self {
            DeviceKind::Reference | DeviceKind::Cpu => true,
            #[cfg(feature = "emulator")]
            DeviceKind::Emulator => false,
            #[cfg(feature = "cuda")]
            DeviceKind::Cuda => has_gpu(),
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            DeviceKind::Reference => "reference",
            DeviceKind::Cpu => "cpu",
            #[cfg(feature = "emulator")]
            DeviceKind::Emulator => "emulator",
            #[cfg(feature = "cuda")]
            DeviceKind::Cuda => "cuda",
        }
    }

    /// The type inputs are rounded to unless `--dtype` says otherwise.
    pub(crate) const fn default_dtype(self) -> DType {
        match self {
            DeviceKind::Reference => DType::F64,
            _ => DType::F32,
        }
    }

    pub(crate) const fn is_reference(self) -> bool {
        matches!(self, DeviceKind::Reference)
    }

    /// Refuses a device that was asked for and cannot compute in `dtype`, or is not there.
    pub(crate) fn check(self, dtype: Option<DType>) -> Result<()> {
        if !self.takes(dtype) {
            let device = format!("--device {}", self.name());
            let why = "expected --dtype f32, f16 or bf16 with it, got f64";
            return Err(Failure::refused(device, why));
        }
        #[cfg(feature = "cuda")]
        if let (DeviceKind::Cuda, Err(why)) = (self, cuda()) {
            // Which begins with "cuda".
            return Err(Failure::Refused(format!("--device {why}")));
        }
        Ok(())
    }

    fn takes(self, dtype: Option<DType>) -> bool {
        matches!(self, DeviceKind::Reference | DeviceKind::Cpu) || dtype != Some(DType::F64)
    }

    pub(crate) fn parse(name: &str) -> std::result::Result<Self, String> {
        let mut built_in = DeviceKind::BUILT_IN.iter();
        if let Some(device) = built_in.find(|device| device.name() == name) {
            return Ok(*device);
        }
        let names: Vec<_> = DeviceKind::BUILT_IN.iter().map(|d| d.name()).collect();
        let expected = format!("expected one of {}", names.join(", "));
        Err(if FEATURES.contains(&name) {
            format!("this program was built without it: build with --features {name}; {expected}")
        } else {
            expected
        })
    }
}

/// The first GPU, opened once.
#[cfg(feature = "cuda")]
pub(crate) fn cuda() -> &'static relata::Result<relata::Cuda> {
    static CUDA: std::sync::OnceLock<relata::Result<relata::Cuda>> = std::sync::OnceLock::new();
    CUDA.get_or_init(|| relata::Cuda::new(0))
}

/// One that is there and cannot be used is worth a line.
#[cfg(feature = "cuda")]
fn has_gpu() -> bool {
    use relata::Error::{NoDriver, NoSuchGpu};
    if let Err(why) = cuda()
        && !matches!(why, NoDriver { .. } | NoSuchGpu { .. })
    {
        say("note", &format!("cuda is left out: {why}"));
    }
    cuda().is_ok()
}
