//! Is RKD right however close rows lie to one another? In f64 beside the definition: pairs, clusters within clusters, in student
//! and in teacher; the whole gradient, and each row's for itself, since a close pair's is larger by far than all others.

mod common;

use common::Input;
use common::compare::relative_error;
use relata::{Cpu, Loss, Reference, Rkd, RkdAngle, RkdDistance, Shapes};

/// The rows that lie close, by how much closer than the rest.
type Clusters = &'static [(std::ops::Range<usize>, f64)];

const CLUSTERS: [Clusters; 7] = [
    &[(0..2, 1e-7)],
    &[(0..2, 1e-10)],
    &[(3..6, 1e-12)],
    &[(0..2, 1e-60)],
    // One within the other, and one apart from them.
    &[(0..5, 1e-9), (1..4, 1e-9), (2..4, 1e-5), (7..9, 1e-14)],
    // All rows, as two clusters.
    &[(0..6, 1e-11), (6..13, 1e-8)],
    // Nothing is close beside the rest, since there is no rest.
    &[(0..13, 1e-30)],
];

/// Moves rows of a cluster towards the first of them. That lies at the origin, where there are numbers that are close.
fn draw_together(rows: &mut [f64], dim: usize, clusters: Clusters, closer: f64) {
    for (cluster, apart) in clusters {
        let (first, others) = rows[cluster.start * dim..cluster.end * dim].split_at_mut(dim);
        first.fill(0.0);
        for x in others {
            *x *= apart * closer;
        }
    }
}

fn check(loss: Loss, input: &Input, what: &str) {
    let got = input.evaluate::<f64, _>(&Cpu, loss);
    let want = input.evaluate::<f64, _>(&Reference, loss);
    let name = format!("{loss}, {:?}, {what}", input.shapes);
    let error = (got.loss - want.loss).abs() / want.loss;
    assert!(error < 1e-11, "{name}: {} for {}", got.loss, want.loss);
    let error = relative_error(&got.gradient, &want.gradient);
    assert!(error < 1e-9, "{name}: the gradient is off by {error:e}");
    let dim = input.shapes.student_dim;
    let rows = got.gradient.chunks(dim).zip(want.gradient.chunks(dim));
    for (i, (got, want)) in rows.enumerate() {
        let error = relative_error(got, want);
        assert!(error < 1e-6, "{name}: row {i} is off by {error:e}");
    }
}

#[test]
fn rkd_is_right_however_close_rows_lie() {
    let losses: [Loss; 3] = [
        RkdAngle::default().into(),
        RkdDistance::default().into(),
        Rkd {
            angle_weight: 0.5,
            delta: 0.3,
            ..Rkd::default()
        }
        .into(),
    ];
    // By how much closer still the student's and the teacher's are: not at all, as the clusters say, or duplicates.
    let both = [
        [None, Some(1.0)],
        [Some(1.0), None],
        [Some(1.0), Some(1.0)],
        [Some(0.0), Some(1.0)],
        [Some(1.0), Some(0.0)],
    ];
    for (seed, clusters) in CLUSTERS.into_iter().enumerate() {
        for dims in [[16, 16], [3, 40], [2, 3]] {
            for closer in both {
                let mut input = Input::normal(seed as u64, Shapes::new(13, dims[0], dims[1]));
                let rows = [&mut input.student, &mut input.teacher];
                for ((rows, dim), closer) in rows.into_iter().zip(dims).zip(closer) {
                    if let Some(closer) = closer {
                        draw_together(rows, dim, clusters, closer);
                    }
                }
                for loss in losses {
                    check(loss, &input, &format!("{clusters:?} {closer:?}"));
                }
            }
        }
    }
}
