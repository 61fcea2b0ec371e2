//! One rank that does something else than the others.

use std::process::Command;
use std::str::FromStr;

use relata::{DType, Gram, Loss, Sp};

/// `--odd`
#[derive(Clone, Copy, Debug)]
pub(crate) struct Odd {
    pub(crate) rank: usize,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Loss,
    Width,
    DType,
    Leave,
    Panic,
    Exit,
    Kill,
    Stop,
}

const NAMES: [(&str, What); 8] = [
    ("loss", What::Loss),
    ("width", What::Width),
    ("dtype", What::DType),
    ("leave", What::Leave),
    ("panic", What::Panic),
    ("exit", What::Exit),
    ("kill", What::Kill),
    ("stop", What::Stop),
];

impl FromStr for Odd {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('=').and_then(|(rank, name)| {
            let (_, what) = NAMES.into_iter().find(|(known, _)| *known == name)?;
            let rank = rank.parse().ok()?;
            Some(Odd { rank, what })
        });
        parsed.ok_or_else(|| {
            let names = NAMES.map(|(name, _)| name).join(", ");
            format!("expected a rank, = and one of {names}")
        })
    }
}

impl Odd {
    /// Whether the rank returns before the others evaluate. What ends it otherwise does so here.
    pub(crate) fn leaves(self) -> bool {
        match self.what {
            What::Leave => return true,
            What::Panic => panic!("--odd asks for a panic"),
            What::Exit => std::process::exit(3),
            What::Kill => signal("KILL"),
            What::Stop => signal("STOP"),
            What::Loss | What::Width | What::DType => {}
        }
        false
    }

    pub(crate) fn loss(self, loss: Loss) -> Loss {
        match self.what {
            What::Loss if loss.name() == "gram" => Sp.into(),
            What::Loss => Gram::default().into(),
            _ => loss,
        }
    }

    pub(crate) fn dtype(self) -> Option<DType> {
        (self.what == What::DType).then_some(DType::F64)
    }

    /// The width of its rows in place of this one.
    pub(crate) fn width(self, width: usize) -> usize {
        if self.what == What::Width {
            width - 1
        } else {
            width
        }
    }
}

/// Sends a signal to this process.
fn signal(name: &str) {
    let command = format!("kill -{name} {}", std::process::id());
    // It ends or stops this process. If it cannot be sent, the others see a rank like themselves.
    let _ = Command::new("sh").args(["-c", &command]).status();
}
