//! What goes over a communicator: the step, whether the rank can go on, what has to be the same on
//! all ranks, and the data.
//!
//! A rank that cannot go on says so in the message that the others wait for. So each rank takes part
//! in every exchange, and all of them stop at the same one with the same error.

use bytemuck::Pod;

use super::communicator::{Communicator, Gathered};
use crate::checks::zeroed;
use crate::error::{Error, Result};

/// The exchanges of an evaluation, in their order. The first byte of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Step {
    /// The shapes of the batches.
    Shapes = 1,
    /// The same, of an evaluation whose batch enters a queue.
    ShapesWithQueue,
    /// The keys that enter a queue by themselves.
    Keys,
    /// The problem, and what ranks need of one another's inputs.
    Inputs,
    /// What each rank's rows add.
    Results,
}

const STEPS: [(Step, &str); 5] = [
    (Step::Shapes, "an evaluation"),
    (Step::ShapesWithQueue, "an evaluation with a queue"),
    (Step::Keys, "keys for a queue"),
    (Step::Inputs, "the inputs of an evaluation"),
    (Step::Results, "the results of an evaluation"),
];

/// What a rank can say.
const GOES_ON: u8 = 0;
const FAILED: u8 = 1;

/// Step, whether the rank goes on, and the number of bytes of text.
const HEAD: usize = 6;

/// What has to be the same on all ranks: the name of each thing. Their values are texts.
pub(super) type Names = &'static [&'static str];

/// A rank's part of an exchange.
#[derive(Debug, Default)]
pub(super) struct Message {
    /// What has to be the same on all ranks, a line for each name.
    text: String,
    data: Vec<u8>,
}

impl Message {
    pub(super) fn new(values: &[String]) -> Self {
        Message {
            text: values.join("\n"),
            data: Vec::new(),
        }
    }

    /// Adds numbers to the data.
    pub(super) fn push<P: Pod>(&mut self, numbers: &[P]) {
        self.data.extend_from_slice(bytemuck::cast_slice(numbers));
    }

    /// Head, text, data.
    fn encode(step: Step, own: &Result<Message>) -> Result<Vec<u8>> {
        let (state, text, data) = match own {
            Ok(message) => (GOES_ON, message.text.clone(), &message.data[..]),
            Err(error) => (FAILED, error.to_string(), &[][..]),
        };
        let len = u32::try_from(text.len()).map_err(|_| broken("a text that is too long"))?;
        let mut bytes = vec![step as u8, state];
        bytes.extend(len.to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.extend(data);
        Ok(bytes)
    }
}

/// A message as it came.
struct Received<'a> {
    step: &'static str,
    failed: bool,
    text: &'a str,
}

impl<'a> Received<'a> {
    fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        let (step, head) = head.split_first()?;
        let (&state, len) = head.split_first()?;
        let len = u32::from_le_bytes(len.try_into().ok()?);
        let (text, _) = rest.split_at_checked(usize::try_from(len).ok()?)?;
        let (_, step) = STEPS.iter().find(|(known, _)| *known as u8 == *step)?;
        Some(Received {
            step,
            failed: match state {
                GOES_ON => false,
                FAILED => true,
                _ => return None,
            },
            text: std::str::from_utf8(text).ok()?,
        })
    }
}

/// The data of all ranks.
pub(super) struct Answers {
    gathered: Gathered,
    /// Where the data of each rank starts.
    starts: Vec<usize>,
}

impl Answers {
    /// The data of each rank, in the order of ranks.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = self.starts.iter();
        self.gathered
            .iter()
            .zip(starts)
            .map(|(bytes, &start)| &bytes[start..])
    }
}

/// Exchanges a message. All ranks have to come to the same step, none may have failed, and the values
/// of `names` have to be those of rank 0.
///
/// # Errors
/// The same on all ranks. Where every rank fails with the same message, each keeps its own error:
/// an argument that is wrong everywhere is reported as by one rank alone.
pub(super) fn exchange<C: Communicator + ?Sized>(
    communicator: &mut C,
    step: Step,
    names: Names,
    own: Result<Message>,
) -> Result<Answers> {
    let gathered = communicator.all_gather(&Message::encode(step, &own)?)?;
    let world = communicator.world();
    let received: Option<Vec<Received<'_>>> = gathered.iter().map(Received::decode).collect();
    let received = received
        .filter(|received| !received.is_empty() && received.len() == world)
        .ok_or_else(|| broken("messages that are not those of an evaluation on all ranks"))?;
    let first = &received[0];
    for (rank, other) in received.iter().enumerate() {
        differs("step", rank, first.step, other.step)?;
    }
    if let Some(rank) = received.iter().position(|received| received.failed) {
        let why = received[rank].text;
        let everywhere = |other: &Received<'_>| other.failed && other.text == why;
        return match own {
            Err(error) if received.iter().all(everywhere) => Err(error),
            _ => Err(Error::RankFailed {
                rank,
                why: why.to_owned(),
            }),
        };
    }
    for (rank, other) in received.iter().enumerate() {
        let values = first.text.split('\n').zip(other.text.split('\n'));
        for (name, (expected, got)) in names.iter().zip(values) {
            differs(name, rank, expected, got)?;
        }
    }
    let starts = received.iter().map(|received| HEAD + received.text.len());
    let starts = starts.collect();
    Ok(Answers { gathered, starts })
}

fn differs(argument: &'static str, rank: usize, expected: &str, got: &str) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::RankDiffers {
        rank,
        argument,
        expected: expected.to_owned(),
        got: got.to_owned(),
    })
}

pub(super) fn broken(got: &str) -> Error {
    Error::Exchange {
        why: format!("got {got}"),
    }
}

/// Takes `len` numbers from the front of a rank's data.
pub(super) fn take<P: Pod>(data: &mut &[u8], len: usize) -> Result<Vec<P>> {
    let split = data.split_at_checked(len.saturating_mul(size_of::<P>()));
    let (front, rest) = split.ok_or_else(|| broken("fewer bytes than a rank's shapes say"))?;
    *data = rest;
    let mut numbers = zeroed("rows of all ranks", len)?;
    // The bytes lie anywhere, so they are copied and not cast.
    bytemuck::cast_slice_mut(&mut numbers).copy_from_slice(front);
    Ok(numbers)
}
