//! Compares gradients through the adapter with libtorch's autodiff of the formulas. Needs libtorch.
#![cfg(not(feature = "doc-only"))]

mod towers;

use relata::{KdKl, Queue, Rkd, RkdAngle, RkdDistance, Rrd, Sp};
use relata_tch::{Error, loss, loss_and_terms, loss_and_terms_with_queue, loss_with_queue};
use tch::{Device, Kind, Tensor};

pub(crate) const F32: f64 = 1e-5;

pub(crate) fn numbers(shape: [i64; 2], seed: i64) -> Tensor {
    // libtorch has one generator for all tests, which run at the same time.
    static SEEDED: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _seeded = SEEDED.lock().expect("no test panics here");
    tch::manual_seed(seed);
    Tensor::randn(shape, (Kind::Double, Device::Cpu))
}

fn huber(u: &Tensor) -> Tensor {
    let size = u.abs();
    (u * u * 0.5)
        .where_self(&size.le(1.), &(size - 0.5))
        .mean(Kind::Double)
}

/// `[N, N, D]`, and lengths that are 1 on the diagonal.
fn edges(rows: &Tensor) -> (Tensor, Tensor) {
    let differences = rows.unsqueeze(0) - rows.unsqueeze(1);
    let squares = (&differences * &differences).sum_dim_intlist(2, false, Kind::Double);
    let lengths = (squares + eye(rows)).sqrt();
    (differences, lengths)
}

pub(crate) fn eye(rows: &Tensor) -> Tensor {
    Tensor::eye(rows.size()[0], (Kind::Double, Device::Cpu))
}

fn distance(x: &Tensor, y: &Tensor) -> Tensor {
    let scaled = |rows: &Tensor| {
        let n = rows.size()[0] as f64;
        let d = edges(rows).1 - eye(rows);
        &d / (d.sum(Kind::Double) / (n * (n - 1.)))
    };
    huber(&(scaled(x) - scaled(y)))
}

fn angle(x: &Tensor, y: &Tensor) -> Tensor {
    let cosines = |rows: &Tensor| {
        let (differences, lengths) = edges(rows);
        let unit = differences / lengths.unsqueeze(2);
        unit.matmul(&unit.transpose(1, 2))
    };
    huber(&(cosines(x) - cosines(y)))
}

fn sp(x: &Tensor, y: &Tensor) -> Tensor {
    let similarities = |rows: &Tensor| unit(&rows.matmul(&rows.tr()));
    let differences = similarities(x) - similarities(y);
    (&differences * &differences).mean(Kind::Double)
}

pub(crate) fn unit(x: &Tensor) -> Tensor {
    x / x.norm_scalaropt_dim(2, [1], true)
}

fn kd(x: &Tensor, y: &Tensor) -> Tensor {
    let log_softmax = |rows: &Tensor| (rows / 4.).log_softmax(1, Kind::Double);
    let (log_q, log_p) = (log_softmax(x), log_softmax(y));
    (log_p.exp() * (log_p - log_q)).sum(Kind::Double) * 16. / x.size()[0] as f64
}

pub(crate) fn relative(got: &Tensor, want: &Tensor) -> f64 {
    let off = (got.to_kind(Kind::Double) - want).norm() / want.norm();
    off.double_value(&[])
}

/// Checks the gradient of a leaf in f64 whose view is the student, in a graph around the loss.
fn check(
    label: &str,
    kind: Kind,
    tolerance: f64,
    view: impl Fn(&Tensor) -> Tensor,
    fused: impl Fn(&Tensor, &Tensor) -> Tensor,
    formula: impl Fn(&Tensor, &Tensor) -> Tensor,
) {
    let [x, y] = [numbers([9, 14], 1), numbers([9, 14], 2)].map(|x| x.to_kind(kind));
    let gradient = |kind: Kind, loss: &dyn Fn(&Tensor, &Tensor) -> Tensor| {
        let leaf = x.to_kind(kind).detach().set_requires_grad(true);
        let loss = loss(&view(&leaf), &view(&y.to_kind(kind)));
        // An upstream factor, and the loss twice.
        (&loss * -2.5 + &loss * &loss).backward();
        (loss.detach(), leaf.grad())
    };
    let (want, want_gradient) = gradient(Kind::Double, &formula);
    let (got, got_gradient) = gradient(kind, &fused);
    assert_eq!(got_gradient.kind(), kind);
    for off in [
        relative(&got, &want),
        relative(&got_gradient, &want_gradient),
    ] {
        assert!(off <= tolerance, "{label}: off by {off:.2e}");
    }
}

#[test]
fn losses_in_graphs() {
    type View = fn(&Tensor) -> Tensor;
    let views: [(&str, View); 3] = [
        ("as it is", |x| x.shallow_clone()),
        ("transposed", |x| x.tr()),
        ("columns", |x| x.narrow(1, 3, 7)),
    ];
    let kinds = [
        (Kind::Double, 1e-10),
        (Kind::Float, F32),
        (Kind::Half, 2e-3),
        (Kind::BFloat16, 1e-2),
    ];
    for (view_name, view) in views {
        for (kind, tolerance) in kinds {
            let label = |name: &str| format!("{name}, {view_name}, {kind:?}");
            let of = |name: &str, fused: relata::Loss, formula: fn(&Tensor, &Tensor) -> Tensor| {
                let fused = |x: &Tensor, y: &Tensor| loss(x, y, fused).expect("a loss");
                check(&label(name), kind, tolerance, view, fused, formula);
            };
            of("rkd-distance", RkdDistance::default().into(), distance);
            of("rkd-angle", RkdAngle::default().into(), angle);
            of("rkd", Rkd::default().into(), |x, y| {
                distance(x, y) + angle(x, y) * 2.
            });
            of("sp", Sp.into(), sp);
            of("kd-kl", KdKl::default().into(), kd);
        }
    }
}

#[test]
fn with_a_queue() {
    let rows = |seed| numbers([6, 5], seed).to_kind(Kind::Float);
    let mut queue = Queue::new(32, 5).expect("a queue");
    let student = rows(1).set_requires_grad(true);
    let (first, terms) =
        loss_and_terms_with_queue(&student, &rows(2), &mut queue, Rrd::default()).expect("a loss");
    assert_eq!(queue.len(), 6);

    let (z, y) = (
        student
            .to_kind(Kind::Double)
            .detach()
            .set_requires_grad(true),
        rows(2).to_kind(Kind::Double),
    );
    let keys = unit(&y);
    let log_softmax =
        |rows: &Tensor, t: f64| (unit(rows).matmul(&keys.tr()) / t).log_softmax(1, Kind::Double);
    let log_p = log_softmax(&y, 0.02);
    let want: Tensor = -(log_p.exp() * log_softmax(&z, 0.1)).sum(Kind::Double) / 6.;
    let entropy: Tensor = -(log_p.exp() * &log_p).sum(Kind::Double) / 6.;
    let kl = terms.get("kl").expect("a read").expect("a term");
    assert!((kl - (&want - entropy).double_value(&[])).abs() <= F32 * kl);
    want.backward();
    first.backward();
    assert!(relative(&first, &want) <= F32);
    assert!(relative(&student.grad(), &z.grad()) <= F32);
}

#[test]
fn terms_of_rkd() {
    let [x, y] = [numbers([9, 14], 1), numbers([9, 14], 2)];
    let (total, terms) = loss_and_terms(&x, &y, Rkd::default()).expect("a loss");
    let terms = terms.to_vec().expect("a read");
    let want = [("distance", distance(&x, &y)), ("angle", angle(&x, &y))];
    assert_eq!(terms.len(), want.len());
    for ((name, got), (expected, want)) in terms.iter().zip(&want) {
        assert_eq!(name, expected);
        assert!((got - want.double_value(&[])).abs() <= 1e-10, "{name}");
    }
    let weighted = terms[0].1 + 2. * terms[1].1;
    assert!((total.double_value(&[]) - weighted).abs() <= 1e-12);

    let (_, none) = loss_and_terms(&x, &y, RkdAngle::default()).expect("a loss");
    assert!(none.to_vec().expect("a read").is_empty());
}

/// `[B, N, D]` are groups, and `[B, T, V]` of logits are rows.
#[test]
fn three_dimensions_are_groups_or_rows() {
    let leaf = |seed| numbers([21, 5], seed).set_requires_grad(true);
    let y = numbers([21, 5], 2);
    let cube = |x: &Tensor| x.view([3, 7, 5]);
    let x = leaf(1);
    let got = loss(&cube(&x), &cube(&y), Rkd::default()).expect("a loss");
    got.backward();
    let other = leaf(1);
    let singles: Vec<Tensor> = (0..3)
        .map(|group| {
            let [x, y] = [&other, &y].map(|all| cube(all).select(0, group));
            loss(&x, &y, Rkd::default()).expect("a loss")
        })
        .collect();
    let want = Tensor::stack(&singles, 0).mean(Kind::Double);
    want.backward();
    assert!(relative(&got, &want) <= 1e-12);
    assert!(relative(&x.grad(), &other.grad()) <= 1e-12);

    let (x, other) = (leaf(3), leaf(3));
    let got = loss(&cube(&x), &cube(&y), KdKl::default()).expect("a loss");
    got.backward();
    let want = loss(&other, &y, KdKl::default()).expect("a loss");
    want.backward();
    assert!(got.equal(&want) && x.grad().equal(&other.grad()));

    for (student, teacher) in [
        (cube(&y), y.view([7, 3, 5])),
        (cube(&y), y.shallow_clone()),
        (y.view([3, 7, 5, 1]), y.view([3, 7, 5, 1])),
    ] {
        let refused = loss(&student, &teacher, Rkd::default());
        assert!(matches!(refused, Err(Error::Unsupported { .. })));
    }
    let keys = loss(&cube(&y), &cube(&y), relata::InfoNce::default());
    assert!(matches!(keys, Err(Error::Unsupported { .. })));
}

#[test]
fn what_does_not_fit_is_refused() {
    let [x, y] = [numbers([4, 3], 1), numbers([5, 3], 2)];
    assert!(matches!(
        loss(&x, &y, Rkd::default()),
        Err(Error::Relata(relata::Error::Dimension {
            argument: "teacher rows",
            expected: 4,
            got: 5
        }))
    ));
    for bad in [
        x.to_kind(Kind::Int64),
        x.unsqueeze(0),
        x.to_kind(Kind::Float).tr(),
    ] {
        assert!(loss(&bad, &x, Rkd::default()).is_err());
    }
    let int = x.to_kind(Kind::Int64);
    assert!(matches!(
        loss(&int, &int, Rkd::default()),
        Err(Error::Unsupported { .. })
    ));
    let empty = Tensor::zeros([0, 3], (Kind::Float, Device::Cpu));
    assert!(matches!(
        loss(&empty, &empty, Rkd::default()),
        Err(Error::Relata(relata::Error::Empty { .. }))
    ));
    let mut queue = Queue::new(8, 3).expect("a queue");
    let rows = x.to_kind(Kind::Float);
    assert!(matches!(
        loss_with_queue(&rows, &rows, &mut queue, Rkd::default()),
        Err(Error::Relata(relata::Error::Unexpected {
            argument: "queue",
            ..
        }))
    ));
}
