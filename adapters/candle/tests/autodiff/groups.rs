//! Tensors of three dimensions: groups of rows, where rows are compared with one another, and more
//! rows of logits. candle's own graph takes the mean of the groups, or flattens the logits.

use candle_core::{DType, Error, Result, Tensor, Var};
use relata::{Family, QueueUse};
use relata_candle::{
    Divergence, Gram, KdKl, Loss, Queue, Rkd, cause, gram, kd_kl, loss, loss_and_terms,
    loss_with_prefixes, loss_with_queue,
};

use crate::cases::numbers;
use crate::{F32, assert_close, devices, gradients};

fn relational() -> impl Iterator<Item = Loss> {
    let is_relational =
        |loss: &Loss| matches!(loss.spec().family, Family::Pairwise(_) | Family::Triplet(_));
    Loss::all().into_iter().filter(is_relational)
}

/// The mean of `single` over the first dimension.
fn mean_of_groups(
    [x, y]: [&Tensor; 2],
    single: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let groups = x.dims()[0];
    let losses: Result<Vec<_>> = (0..groups)
        .map(|group| single(&x.get(group)?, &y.get(group)?))
        .collect();
    Tensor::stack(&losses?, 0)?.mean(0)
}

#[test]
fn groups_give_the_mean_of_single_groups() -> Result<()> {
    for of in relational() {
        for dtype in [DType::F64, DType::F32] {
            for device in devices::computing(dtype) {
                let on = |shape: [usize; 3], seed| {
                    let [groups, rows, dim] = shape;
                    let numbers = numbers((groups * rows, dim), seed)?.reshape(&shape)?;
                    numbers.to_dtype(dtype)?.to_device(&device)
                };
                let x = Var::from_tensor(&on([3, 7, 5], 1)?)?;
                let y = on([3, 7, 4], 2)?;
                let got = (loss(&x, &y, of)? * 3.)?;
                let want = mean_of_groups([&x, &y], |x, y| loss(x, y, of))?;
                let want = (want * 3.)?;
                let (got_g, want_g) = (gradients(&got, &[&x])?, gradients(&want, &[&x])?);
                let label = format!("{of} in {dtype:?}");
                assert_close(&label, &got_g[0], &want_g[0], F32)?;
                assert_close(&label, &got, &want.to_dtype(DType::F64)?, F32)?;
            }
        }
    }
    Ok(())
}

/// Halves too, views that are not contiguous, and the terms.
#[test]
fn groups_may_be_views_of_halves_with_terms() -> Result<()> {
    for dtype in [DType::F16, DType::BF16] {
        let of = |seed| numbers((8, 15), seed)?.reshape((8, 5, 3))?.to_dtype(dtype);
        let (wide, y) = (Var::from_tensor(&of(3)?)?, of(4)?.transpose(0, 1)?);
        let x = wide.transpose(0, 1)?; // [5, 8, 3]
        let (got, terms) = loss_and_terms(&x, &y, Rkd::default())?;
        let want = mean_of_groups([&x, &y], |x, y| loss(x, y, Rkd::default()))?;
        let label = format!("{dtype:?}");
        assert_close(&label, &got, &want.to_dtype(DType::F64)?, F32)?;
        let (got_g, want_g) = (gradients(&got, &[&wide])?, gradients(&want, &[&wide])?);
        // Each group is rounded once there, and so is the whole here.
        assert_close(&label, &got_g[0], &want_g[0], 1e-2)?;
        let terms = terms.to_vec()?;
        let sum = terms[0].1 + 2. * terms[1].1;
        assert!(
            (sum - f64::from(got.to_scalar::<f32>()?)).abs() < 1e-5,
            "{terms:?}"
        );
    }
    Ok(())
}

#[test]
fn one_group_is_no_group_and_prefixes_apply_to_each() -> Result<()> {
    let (x, y) = (numbers((6, 8), 1)?, numbers((6, 5), 2)?);
    let loss_of = |x: &Tensor, y: &Tensor| gram(x, y, Gram::default())?.to_scalar::<f64>();
    let [one, other] = [&x, &y].map(|rows| rows.unsqueeze(0));
    assert_eq!(loss_of(&one?, &other?)?, loss_of(&x, &y)?);

    let (x, y) = (x.reshape((2, 3, 8))?, y.reshape((2, 3, 5))?);
    let of = |x: &Tensor, y: &Tensor| loss_with_prefixes(x, y, &[3, 8], Gram::default());
    let got = of(&x, &y)?;
    assert_close("prefixes", &got, &mean_of_groups([&x, &y], of)?, 1e-12)
}

/// Rows of logits are not compared, so `[B, T, V]` is `[B · T, V]`, to the last bit.
#[test]
fn logits_of_sequences_are_rows() -> Result<()> {
    let reverse = KdKl {
        divergence: Divergence::Reverse,
        ..KdKl::default()
    };
    for of in [KdKl::default(), reverse] {
        for dtype in [DType::F64, DType::F32, DType::BF16] {
            for device in devices::computing(dtype) {
                let on = |seed| {
                    let numbers = numbers((24, 11), seed)?;
                    numbers.to_dtype(dtype)?.to_device(&device)
                };
                let (flat, y) = (Var::from_tensor(&on(1)?)?, on(2)?);
                let want = kd_kl(&flat, &y, of)?;
                let want_g = &gradients(&want, &[&flat])?[0];
                for shape in [&[4usize, 6, 11][..], &[2, 3, 4, 11], &[24, 1, 11]] {
                    let x = Var::from_tensor(&flat.reshape(shape)?)?;
                    let got = kd_kl(&x, &y.reshape(shape)?, of)?;
                    let got_g = gradients(&got, &[&x])?[0].reshape((24, 11))?;
                    let bits = |x: &Tensor| x.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
                    assert_eq!(bits(&got)?, bits(&want)?, "{dtype:?}, {shape:?}");
                    assert_eq!(bits(&got_g)?, bits(want_g)?, "{dtype:?}, {shape:?}");
                }
            }
        }
    }
    Ok(())
}

/// The error without its context, and without the backtrace that `RUST_BACKTRACE` adds.
fn bare(error: &Error) -> &Error {
    match error {
        Error::WithBacktrace { inner, .. } | Error::Context { inner, .. } => bare(inner),
        error => error,
    }
}

#[test]
fn shapes_without_a_meaning_are_refused() -> Result<()> {
    let of = |shape: &[usize]| numbers((shape.iter().product(), 1), 1)?.reshape(shape);
    // More dimensions than a loss has a meaning for; none has one for a vector.
    for of_loss in Loss::all() {
        let most = match of_loss.spec().family {
            Family::Contrastive(_) | Family::Towers(_) | Family::Sampled(_) => 2,
            Family::Pairwise(_) | Family::Triplet(_) => 3,
            Family::Logits(_) => 9,
        };
        for shape in [&[12][..], &[2, 3, 2], &[2, 3, 2, 1]] {
            if (2..=most).contains(&shape.len()) {
                continue;
            }
            let (x, y) = (of(shape)?, of(shape)?);
            let result = match of_loss.spec().queue {
                QueueUse::Required => {
                    let mut queue = Queue::new(8, 2, DType::F64, x.device())?;
                    loss_with_queue(&x, &y, &mut queue, of_loss)
                }
                QueueUse::Optional | QueueUse::Never => loss(&x, &y, of_loss),
            };
            let error = result.expect_err("refused");
            let Error::UnexpectedNumberOfDims { got, .. } = bare(&error) else {
                panic!("{of_loss}: {error}");
            };
            assert_eq!(*got, shape.len());
            let says = format!("{of_loss}: student");
            assert!(error.to_string().contains(&says), "{error}");
        }
    }
    // Leading dimensions that differ, though the numbers of rows may not.
    for (student, teacher) in [
        (&[2, 3, 4][..], &[3, 2, 4][..]),
        (&[2, 3, 4], &[2, 4, 4]),
        (&[2, 3, 4], &[6, 4]),
        (&[6, 4], &[2, 3, 4]),
    ] {
        let (x, y) = (of(student)?, of(teacher)?);
        for of_loss in [Loss::from(Gram::default()), KdKl::default().into()] {
            let error = loss(&x, &y, of_loss).expect_err("refused");
            let Error::ShapeMismatchBinaryOp { lhs, rhs, op } = bare(&error) else {
                panic!("{of_loss}: {error}");
            };
            assert_eq!((lhs.dims(), rhs.dims()), (student, teacher));
            assert_eq!(*op, of_loss.name());
        }
    }
    // No rows at all, in either of the dimensions.
    for shape in [[0, 3, 2], [2, 0, 2]] {
        let zeros = Tensor::zeros(&shape, DType::F64, &candle_core::Device::Cpu)?;
        for of_loss in relational().chain([KdKl::default().into()]) {
            let error = loss(&zeros, &zeros, of_loss).expect_err("refused");
            let want = relata::Error::Empty { argument: "rows" };
            assert_eq!(cause(&error), Some(&want), "{of_loss}");
        }
    }
    Ok(())
}
