//! Runs ranks on threads, and deals rows to them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use relata::ranks::{Communicator, Gathered, InProcess};
use relata::{Batch, Element, Family, Result, Rows, TopK, Towers};

/// Nobody waits longer, so that a test that would hang fails.
const LIMIT: Duration = Duration::from_secs(60);

/// What each rank returns, in the order of ranks; `None` of one that panicked.
pub(crate) fn run_any<V: Send>(
    world: usize,
    body: impl Fn(InProcess) -> V + Sync,
) -> Vec<Option<V>> {
    let ranks = InProcess::ranks(world).expect("ranks");
    std::thread::scope(|scope| {
        let body = &body;
        let threads: Vec<_> = ranks
            .into_iter()
            .map(|rank| {
                let rank = rank.with_limit(LIMIT);
                scope.spawn(move || catch_unwind(AssertUnwindSafe(|| body(rank))).ok())
            })
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Option<V>>| {
            thread.join().expect("panics are caught")
        };
        threads.into_iter().map(join).collect()
    })
}

/// What each rank returns, in the order of ranks.
pub(crate) fn run<V: Send>(world: usize, body: impl Fn(InProcess) -> V + Sync) -> Vec<V> {
    let results = run_any(world, body).into_iter();
    results.map(|result| result.expect("no panic")).collect()
}

/// So many rows for each of `world` ranks: unevenly, with a rank that has none; and among 4 also as
/// evenly as they go, and all to the last. Rows of two towers go to ranks in pairs.
pub(crate) fn deals(rows: usize, world: usize, family: &Family) -> Vec<Vec<usize>> {
    let step = if has_halves(family) { 2 } else { 1 };
    let units = rows / step;
    // 5, 1, 0, 26 of 32.
    let mut uneven = vec![0; world];
    let mut left = units;
    for (slot, rows) in uneven.iter_mut().zip([5, 1, 0, usize::MAX]) {
        *slot = left.min(rows);
        left -= *slot;
    }
    uneven[world - 1] += left;
    let mut deals = vec![uneven];
    if world == 4 {
        let even = (0..world).map(|rank| units * (rank + 1) / world - units * rank / world);
        deals.extend([even.collect(), vec![0, 0, 0, units]]);
    }
    for rows in deals.iter_mut().flatten() {
        *rows *= step;
    }
    deals
}

fn has_halves(family: &Family) -> bool {
    matches!(
        family,
        Family::Towers(Towers::Softmax { .. } | Towers::Sigmoid { .. })
    )
}

/// The rows of one rank.
pub(crate) struct Dealt<T: Element> {
    pub(crate) rows: usize,
    student: Vec<T>,
    teacher: Vec<T>,
    labels: Vec<u32>,
    weights: Vec<T::Real>,
    classes: Vec<u32>,
    log_probabilities: Vec<T::Real>,
    /// Where the rows are in the batch of all.
    indices: Vec<usize>,
}

impl<T: Element> Dealt<T> {
    /// Those of `rank`.
    pub(crate) fn new(all: &Batch<'_, T>, deal: &[usize], rank: usize, family: &Family) -> Self {
        let (before, rows) = (deal[..rank].iter().sum::<usize>(), deal[rank]);
        let indices: Vec<usize> = if has_halves(family) {
            let half = all.student.len() / 2;
            let first = before / 2..(before + rows) / 2;
            first.clone().chain(first.map(|i| half + i)).collect()
        } else {
            (before..before + rows).collect()
        };
        let top_k = all.top_k;
        Dealt {
            rows,
            student: pick(all.student.as_slice(), &indices, all.student.dim()),
            teacher: pick(all.teacher.as_slice(), &indices, all.teacher.dim()),
            labels: pick(
                all.labels.unwrap_or_default(),
                &indices,
                all.labels.map_or(0, |_| 1),
            ),
            weights: pick(
                all.row_weights.unwrap_or_default(),
                &indices,
                all.row_weights.map_or(0, |_| 1),
            ),
            classes: top_k.map_or(Vec::new(), |of| pick(of.classes(), &indices, of.k())),
            log_probabilities: top_k.map_or(Vec::new(), |of| {
                pick(of.log_probabilities(), &indices, of.k())
            }),
            indices,
        }
    }

    /// The rank's batch, with what the batch of all has.
    pub(crate) fn batch<'a>(&'a self, all: &Batch<'a, T>) -> Batch<'a, T> {
        let rows_of = |data, dim| Rows::new(data, [self.rows, dim]).expect("whole rows");
        Batch {
            student: rows_of(&self.student, all.student.dim()),
            teacher: rows_of(&self.teacher, all.teacher.dim()),
            labels: all.labels.map(|_| &self.labels[..]),
            row_weights: all.row_weights.map(|_| &self.weights[..]),
            top_k: all.top_k.map(|of| {
                let shape = [self.rows, of.k()];
                TopK::new(&self.classes, &self.log_probabilities, shape).expect("whole lists")
            }),
            ..*all
        }
    }

    /// The own rows of what all rows have.
    pub(crate) fn own<P: Copy>(&self, all: &[P], width: usize) -> Vec<P> {
        pick(all, &self.indices, width)
    }
}

fn pick<P: Copy>(all: &[P], rows: &[usize], width: usize) -> Vec<P> {
    rows.iter()
        .flat_map(|row| &all[row * width..(row + 1) * width])
        .copied()
        .collect()
}

/// A communicator that counts the exchanges of a rank and the bytes that it sends.
pub(crate) struct Counted<C> {
    pub(crate) inner: C,
    pub(crate) exchanges: usize,
    pub(crate) bytes: usize,
}

impl<C> Counted<C> {
    pub(crate) fn new(inner: C) -> Self {
        Counted {
            inner,
            exchanges: 0,
            bytes: 0,
        }
    }
}

impl<C: Communicator> Communicator for Counted<C> {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn world(&self) -> usize {
        self.inner.world()
    }

    fn all_gather(&mut self, bytes: &[u8]) -> Result<Gathered> {
        self.exchanges += 1;
        self.bytes += bytes.len();
        self.inner.all_gather(bytes)
    }
}
