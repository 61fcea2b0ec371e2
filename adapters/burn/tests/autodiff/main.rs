//! Compares gradients through the adapter with burn's autodiff of the formulas, in f64 on burn's
//! CPU backend.

mod rows;
mod scale;
mod towers;

use burn_tensor::activation::{log_softmax, relu};
use burn_tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};
use relata::{
    DarkRank, Divergence, Enqueue, Gram, InfoNce, KdKl, Loss, Order, Pkt, Queue, Rkd, RkdAngle,
    RkdDistance, Rrd, Sp,
};
use relata_burn::{
    Error, Forward, loss, loss_and_terms, loss_and_terms_with_queue, loss_with_queue,
};

type Formula = fn(Tensor<2>, Tensor<2>) -> Tensor<1>;

pub(crate) fn device() -> Device {
    Device::flex().autodiff()
}

/// f64 numbers from −1 to 1, the same in every run.
pub(crate) fn numbers(shape: [usize; 2], seed: u32) -> Tensor<2> {
    let number =
        |i: usize| ((i as f64 + 1.) * 12.9898 + f64::from(seed) * 78.233).sin() * 43758.5453;
    let numbers: Vec<f64> = (0..shape[0] * shape[1])
        .map(|i| 2. * number(i).rem_euclid(1.) - 1.)
        .collect();
    Tensor::from_data(TensorData::new(numbers, shape), (&device(), DType::F64))
}

fn huber<const D: usize>(u: Tensor<D>) -> Tensor<1> {
    let size = u.clone().abs();
    let (near, far) = (u.clone() * u * 0.5, size.clone() - 0.5);
    far.mask_where(size.lower_equal_elem(1.), near).mean()
}

fn eye(rows: &Tensor<2>) -> Tensor<2> {
    Tensor::<2>::eye(rows.dims()[0], &device()).cast(FloatDType::F64)
}

/// `[N, N, D]`, and lengths that are 1 on the diagonal.
fn edges(rows: Tensor<2>) -> (Tensor<3>, Tensor<2>) {
    let differences = rows.clone().unsqueeze_dim::<3>(0) - rows.clone().unsqueeze_dim(1);
    let squares = (differences.clone() * differences.clone())
        .sum_dim(2)
        .squeeze_dim::<2>(2);
    (differences, (squares + eye(&rows)).sqrt())
}

fn distance(x: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
    let scaled = |rows: Tensor<2>| {
        let n = rows.dims()[0] as f64;
        let d = edges(rows.clone()).1 - eye(&rows);
        d.clone() / (d.sum() / (n * (n - 1.))).unsqueeze_dim(0)
    };
    huber(scaled(x) - scaled(y))
}

fn angle(x: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
    let cosines = |rows: Tensor<2>| {
        let (differences, lengths) = edges(rows);
        let unit = differences / lengths.unsqueeze_dim(2);
        unit.clone().matmul(unit.swap_dims(1, 2))
    };
    huber(cosines(x) - cosines(y))
}

fn rkd(x: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
    distance(x.clone(), y.clone()) + angle(x, y) * 2.
}

fn sp(x: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
    let similarities = |rows: Tensor<2>| unit(rows.clone().matmul(rows.transpose()));
    let differences = similarities(x) - similarities(y);
    (differences.clone() * differences).mean()
}

fn gram(x: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
    let differences = cosines(x) - cosines(y);
    (differences.clone() * differences).mean()
}

fn pkt(x: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
    let probabilities = |rows: Tensor<2>| {
        let shifted = cosines(rows) + 1.;
        shifted.clone() / shifted.sum_dim(1)
    };
    let (q, p) = (probabilities(x), probabilities(y));
    (p.clone() * ((p + 1e-7) / (q + 1e-7)).log()).mean()
}

fn order(x: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
    let (n, device) = (x.dims()[0], x.device());
    let pairs: Vec<i64> = (0..n)
        .flat_map(|i| (i + 1..n).map(move |j| (i * n + j) as i64))
        .collect();
    let count = pairs.len();
    let pairs = Tensor::<1, Int>::from_data(TensorData::from(&pairs[..]), &device);
    // s_b − s_a at [a, b]
    let differences = |rows: Tensor<2>| -> Tensor<2> {
        let of_pairs = cosines(rows).reshape([n * n]).select(0, pairs.clone());
        of_pairs.clone().unsqueeze_dim::<2>(0) - of_pairs.unsqueeze_dim::<2>(1)
    };
    let label = differences(y).lower_elem(0.).float() * 2. - 1.;
    let terms = relu(differences(x) * label.cast(FloatDType::F64) + 0.015);
    let upper = terms.triu(1);
    upper.sum() / (count * (count - 1) / 2) as f64
}

fn dark_rank(x: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
    let (n, length) = (x.dims()[0], 4);
    let d = wide((edges(y).1).into_data());
    let mut neighbors = Vec::new();
    for (i, row) in d.chunks(n).enumerate() {
        let mut others: Vec<usize> = (0..n).filter(|&j| j != i).collect();
        others.sort_by(|&j, &k| row[j].total_cmp(&row[k]));
        neighbors.extend(others[..length].iter().map(|&j| j as i64));
    }
    let neighbors = TensorData::new(neighbors, [n, length]);
    let neighbors = Tensor::<2, Int>::from_data(neighbors, &x.device());
    let lengths = edges(x).1;
    let scores = (lengths.clone() * lengths.clone() * lengths * -3.).gather(1, neighbors);
    let mut loss = -scores.clone().sum();
    for k in 0..length {
        let left = scores.clone().slice([0..n, k..length]);
        loss = loss + left.exp().sum_dim(1).log().sum();
    }
    loss / n as f64
}

fn cosines(x: Tensor<2>) -> Tensor<2> {
    let unit = unit(x);
    unit.clone().matmul(unit.transpose())
}

pub(crate) fn unit(x: Tensor<2>) -> Tensor<2> {
    x.clone() / (x.clone() * x).sum_dim(1).sqrt()
}

fn kd(x: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
    let rows = x.dims()[0] as f64;
    let (log_q, log_p) = (log_softmax(x / 4., 1), log_softmax(y / 4., 1));
    (log_p.clone().exp() * (log_p - log_q)).sum() * 16. / rows
}

/// KL(q‖p) at temperatures of 4 and 2.
fn kd_reverse(x: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
    let rows = x.dims()[0] as f64;
    let (log_q, log_p) = (log_softmax(x / 4., 1), log_softmax(y / 2., 1));
    (log_q.clone().exp() * (log_q - log_p)).sum() * 16. / rows
}

/// Jensen-Shannon.
fn kd_js(x: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
    let rows = x.dims()[0] as f64;
    let (log_q, log_p) = (log_softmax(x / 4., 1), log_softmax(y / 4., 1));
    let (q, p) = (log_q.clone().exp(), log_p.clone().exp());
    let log_m = ((p.clone() + q.clone()) / 2.).log();
    (p * (log_p - log_m.clone()) + q * (log_q - log_m)).sum() * 8. / rows
}

/// KL(p‖m), m = 0.1 p + 0.9 q.
fn kd_skew(x: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
    let rows = x.dims()[0] as f64;
    let (q, log_p) = (log_softmax(x / 4., 1).exp(), log_softmax(y / 4., 1));
    let p = log_p.clone().exp();
    let log_m = (p.clone() * 0.1 + q * 0.9).log();
    (p * (log_p - log_m)).sum() * 16. / rows
}

/// KL(q‖m), m = 0.1 q + 0.9 p.
fn kd_skew_reverse(x: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
    let rows = x.dims()[0] as f64;
    let (log_q, p) = (log_softmax(x / 4., 1), log_softmax(y / 4., 1).exp());
    let q = log_q.clone().exp();
    let log_m = (q.clone() * 0.1 + p * 0.9).log();
    (q * (log_q - log_m)).sum() * 16. / rows
}

/// KD by this divergence.
fn kd_of(divergence: Divergence) -> Loss {
    let loss = KdKl {
        divergence,
        ..KdKl::default()
    };
    loss.into()
}

pub(crate) fn wide(tensor: impl Into<TensorData>) -> Vec<f64> {
    tensor.into().iter::<f64>().collect()
}

#[track_caller]
pub(crate) fn assert_close(label: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{label}");
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut got.iter().zip(want).map(|(a, b)| a - b)) / norm(&mut want.iter().copied());
    assert!(
        off <= tolerance,
        "{label}: off by {off:.2e}, allowed {tolerance:.0e}"
    );
}

#[test]
fn losses_in_graphs() {
    type View = fn(Tensor<2>) -> Tensor<2>;
    let views: [(&str, View); 3] = [
        ("as it is", |x| x),
        ("transposed", |x| x.transpose()),
        ("columns", |x| x.slice([0..9, 3..10])),
    ];
    let reverse = KdKl {
        teacher_temperature: 2.,
        divergence: Divergence::Reverse,
        ..KdKl::default()
    };
    let losses: [(Loss, Formula); 13] = [
        (RkdDistance::default().into(), distance),
        (RkdAngle::default().into(), angle),
        (Rkd::default().into(), rkd),
        (Sp.into(), sp),
        (Gram::default().into(), gram),
        (Pkt.into(), pkt),
        (Order::default().into(), order),
        (DarkRank::default().into(), dark_rank),
        (KdKl::default().into(), kd),
        (reverse.into(), kd_reverse),
        (kd_of(Divergence::Js { beta: 0.5 }), kd_js),
        (kd_of(Divergence::Skew { alpha: 0.1 }), kd_skew),
        (
            kd_of(Divergence::SkewReverse { alpha: 0.1 }),
            kd_skew_reverse,
        ),
    ];
    let dtypes = [
        // burn's autodiff is accurate to about 1e-8 in f64. The adapter's own accuracy is tested
        // below.
        (FloatDType::F64, 1e-6),
        (FloatDType::F32, 1e-5),
        (FloatDType::F16, 2e-3),
        (FloatDType::BF16, 1e-2),
    ];
    for (dtype, tolerance) in dtypes {
        // Only values that the type can hold, so that the comparison is about arithmetic.
        let held = |seed| numbers([9, 14], seed).cast(dtype).cast(FloatDType::F64);
        for (view_name, view) in views {
            for (fused, formula) in losses {
                let label = format!("{fused}, {view_name}, {dtype:?}");
                let gradient =
                    |dtype: FloatDType, loss: &dyn Fn(Tensor<2>, Tensor<2>) -> Tensor<1>| {
                        let leaf = held(1).cast(dtype).detach().require_grad();
                        let value = loss(view(leaf.clone()), view(held(2).cast(dtype)));
                        // An upstream factor, and the loss twice.
                        let total = value.clone() * -2.5 + value.clone() * value.clone();
                        let gradients = total.backward();
                        let gradient = leaf.grad(&gradients).expect("a gradient");
                        assert_eq!(gradient.dtype(), DType::from(dtype), "{label}");
                        (wide(value.into_data()), wide(gradient.into_data()))
                    };
                let want = gradient(FloatDType::F64, &formula);
                let got = gradient(dtype, &|x, y| loss(&x, &y, fused).expect("a loss"));
                assert_close(&label, &got.0, &want.0, tolerance);
                assert_close(&label, &got.1, &want.1, tolerance);
            }
        }
    }
}

#[test]
fn with_a_queue() -> Result<(), Error> {
    let rows = |seed| numbers([6, 5], seed).cast(FloatDType::F32);
    let mut queue = Queue::new(32, 5)?;
    let student = rows(1).detach().require_grad();
    let (got, terms) = loss_and_terms_with_queue(&student, &rows(2), &mut queue, Rrd::default())?;
    assert_eq!(queue.len(), 6);

    let (z, y) = (
        student.clone().detach().cast(FloatDType::F64),
        rows(2).cast(FloatDType::F64),
    );
    let z = z.detach().require_grad();
    let keys = unit(y.clone());
    let logits =
        |rows: Tensor<2>, t: f64| log_softmax(unit(rows).matmul(keys.clone().transpose()) / t, 1);
    let log_p = logits(y, 0.02).detach();
    let want = (log_p.clone().exp() * logits(z.clone(), 0.1)).sum() / -6.;
    let entropy = (log_p.clone().exp() * log_p).sum() / -6.;
    let kl = terms.get("kl").expect("a term");
    assert_close(
        "kl",
        &[kl],
        &wide((want.clone() - entropy).into_data()),
        1e-5,
    );
    let [got_gradient, want_gradient] = [(&got, &student), (&want, &z)].map(|(loss, leaf)| {
        let gradient = leaf.grad(&loss.backward()).expect("a gradient");
        wide(gradient.into_data())
    });
    assert_close(
        "loss",
        &wide(got.into_data()),
        &wide(want.into_data()),
        1e-5,
    );
    assert_close("gradient", &got_gradient, &want_gradient, 1e-5);
    Ok(())
}

#[test]
fn the_teacher_is_a_constant() -> Result<(), Error> {
    let (student, teacher) = (
        numbers([7, 3], 1).require_grad(),
        numbers([7, 4], 2).require_grad(),
    );
    let gradients = loss(&student, &teacher, Rkd::default())?.backward();
    assert!(student.grad(&gradients).is_some());
    assert!(teacher.grad(&gradients).is_none());
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result<(), Error> {
    let rows = |n| numbers([n, 3], 1);
    let refused = loss(&rows(4), &rows(5), Rkd::default());
    assert!(matches!(
        refused,
        Err(Error::Relata(relata::Error::Dimension {
            argument: "teacher rows",
            expected: 4,
            got: 5
        }))
    ));
    let other = loss(&rows(4), &rows(4).cast(FloatDType::F32), Rkd::default());
    assert!(matches!(
        other,
        Err(Error::DType {
            argument: "teacher",
            ..
        })
    ));

    let mut queue = Queue::new(8, 3)?;
    let wide = loss_with_queue(&rows(4), &rows(4), &mut queue, Rrd::default());
    assert!(matches!(
        wide,
        Err(Error::DType {
            argument: "student",
            ..
        })
    ));
    let narrow = |n| rows(n).cast(FloatDType::F32);
    let unexpected = loss_with_queue(&narrow(4), &narrow(4), &mut queue, Rkd::default());
    assert!(matches!(
        unexpected,
        Err(Error::Relata(relata::Error::Unexpected { .. }))
    ));
    let after = Rrd {
        enqueue: Enqueue::After,
        ..Rrd::default()
    };
    let empty = loss_with_queue(&narrow(4), &narrow(4), &mut queue, after);
    assert!(matches!(
        empty,
        Err(Error::Relata(relata::Error::Empty {
            argument: "queue keys"
        }))
    ));
    assert!(queue.is_empty());
    Ok(())
}

/// `[B, N, D]` are groups: burn's own graph takes the mean of the losses of single groups.
#[test]
fn groups_give_the_mean_of_single_groups() -> Result<(), Error> {
    let of = |dim, seed| numbers([28, dim], seed).reshape([4, 7, dim]).detach();
    for loss_of in [
        Loss::from(Gram::default()),
        Rkd::default().into(),
        Order::default().into(),
    ] {
        let (x, y) = (of(5, 1).require_grad(), of(4, 2));
        let got = loss(&x, &y, loss_of)?;
        let mut want = numbers([1, 1], 1).detach().reshape([1]) * 0.;
        for group in 0..4 {
            let single = |all: &Tensor<3>| all.clone().narrow(0, group, 1).squeeze_dim::<2>(0);
            want = want + loss(&single(&x), &single(&y), loss_of)? / 4.; // exact: burn divides by an f32
        }
        let gradient = |value: &Tensor<1>| {
            let gradient = x.grad(&value.backward()).expect("a gradient");
            assert_eq!(gradient.dims(), [4, 7, 5]);
            wide(gradient.into_data())
        };
        assert_close("gradient", &gradient(&got), &gradient(&want), 1e-12);
        let [got, want] = [got, want].map(|value| wide(value.into_data()));
        assert_close("loss", &got, &want, 1e-12);
    }
    Ok(())
}

/// Rows of logits are not compared, so `[B, T, V]` is `[B · T, V]`, to the last bit.
#[test]
fn logits_of_sequences_are_rows() -> Result<(), Error> {
    let (x, y) = (numbers([24, 11], 1).detach(), numbers([24, 11], 2));
    let flat = x.clone().require_grad();
    let want = loss(&flat, &y, KdKl::default())?;
    let want_gradient = flat.grad(&want.backward()).expect("a gradient");
    let (want, want_gradient) = (wide(want.into_data()), wide(want_gradient.into_data()));

    let three = x.clone().reshape([4, 6, 11]).detach().require_grad();
    let got = KdKl::default().forward(three.clone(), y.clone().reshape([4, 6, 11]))?;
    let gradient = three.grad(&got.backward()).expect("a gradient");
    assert_eq!(gradient.dims(), [4, 6, 11]);
    assert_eq!(wide(got.into_data()), want);
    assert_eq!(wide(gradient.into_data()), want_gradient);

    let four = |of: &Tensor<2>| of.clone().reshape([2, 3, 4, 11]);
    let got = loss(&four(&x), &four(&y), KdKl::default())?;
    assert_eq!(wide(got.into_data()), want);
    Ok(())
}

#[test]
fn shapes_without_a_meaning_are_refused() {
    #[track_caller]
    fn assert_refused<const R: usize>(
        loss_of: impl Into<Loss>,
        argument: &str,
        shapes: [[usize; R]; 2],
    ) {
        let zeros = |shape| Tensor::<R>::zeros(shape, &device());
        let error = loss(&zeros(shapes[0]), &zeros(shapes[1]), loss_of).expect_err("refused");
        assert!(
            matches!(&error, Error::Shape { argument: at, .. } if *at == argument),
            "{error}"
        );
    }
    assert_refused(InfoNce::default(), "student", [[2, 3, 4]; 2]);
    assert_refused(Gram::default(), "student", [[1, 2, 3, 4]; 2]);
    assert_refused(Gram::default(), "student", [[3]; 2]);
    assert_refused(KdKl::default(), "student", [[3]; 2]);
    assert_refused(Gram::default(), "teacher", [[2, 3, 4], [3, 2, 4]]);
    assert_refused(KdKl::default(), "teacher", [[2, 3, 4], [1, 6, 4]]);
    let vectors = Tensor::<1>::zeros([3], &device());
    let error = loss(&vectors, &vectors, KdKl::default()).expect_err("refused");
    let text = "student: expected [N, C] or [B, T, V] for kd-kl, got the shape [3]";
    assert_eq!(error.to_string(), text);
}

/// The adapter's results are relata's, to the bit.
#[test]
fn results_are_relatas_own() -> Result<(), Error> {
    let (x, y) = (
        numbers([9, 14], 1).detach().require_grad(),
        numbers([9, 14], 2),
    );
    let (value, terms) = loss_and_terms(&x, &y, Rkd::default())?;
    let same = Rkd::default().forward(x.clone(), y.clone())?;
    assert_eq!(wide(same.into_data()), wide(value.clone().into_data()));
    let gradient = x.grad(&value.backward()).expect("a gradient");
    let [x, y] = [x, y].map(|x| wide(x.into_data()));
    let [x, y] = [
        relata::Rows::new(&x, [9, 14])?,
        relata::Rows::new(&y, [9, 14])?,
    ];
    let direct = Rkd::default().evaluate(&relata::Cpu, x, y)?;
    assert_eq!(wide(value.into_data()), [direct.loss]);
    assert_eq!(terms, direct.terms);
    let names: Vec<_> = terms.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["distance", "angle"]);
    assert_eq!(wide(gradient.into_data()), direct.gradient);
    Ok(())
}
