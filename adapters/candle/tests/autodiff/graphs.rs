//! A loss in a graph.

use candle_core::{DType, Result, Tensor, Var};
use relata_candle::{KdKl, Rkd};

use crate::cases::{self, numbers};
use crate::{F32, assert_close, check, devices, formulas, gradients};

const SHAPES: [[(usize, usize); 2]; 4] = [
    [(2, 3), (2, 3)],
    [(7, 5), (7, 5)],
    [(13, 33), (13, 33)],
    [(33, 17), (33, 17)],
];

#[test]
fn alone() -> Result<()> {
    for case in cases::all() {
        for shapes in SHAPES {
            // For two rows all angles are 0 and all scaled distances are 1, there are no two pairs
            // nor neighbours, and both cosines are negative here.
            let is_empty = case.name.starts_with("rkd")
                || ["gram, clamped", "order", "dark-rank"].contains(&case.name);
            if shapes[0].0 == 2 && is_empty {
                continue;
            }
            check("alone", &case, shapes, DType::F32, F32, |x, loss| loss(x))?;
            check("alone", &case, shapes, DType::F64, 1e-9, |x, loss| loss(x))?;
        }
    }
    Ok(())
}

#[test]
fn teachers_of_other_dimensions() -> Result<()> {
    for case in cases::all().iter().filter(|case| relates_pairs(case)) {
        for shapes in [[(9, 4), (9, 31)], [(21, 40), (21, 2)]] {
            check(
                "other dimensions",
                case,
                shapes,
                DType::F32,
                F32,
                |x, loss| loss(x),
            )?;
        }
    }
    Ok(())
}

/// Whether the loss relates rows of the batch, and so accepts any two widths.
fn relates_pairs(case: &cases::Case) -> bool {
    let similarities = ["sp", "gram", "gram, clamped", "pkt", "order", "dark-rank"];
    case.name.starts_with("rkd") || similarities.contains(&case.name)
}

#[test]
fn behind_a_factor_or_a_function() -> Result<()> {
    for case in cases::all() {
        let shapes = [(11, 6), (11, 6)];
        check("scaled", &case, shapes, DType::F32, F32, |x, loss| {
            loss(x)? * -2.5
        })?;
        // The upstream factor, 2 · loss, is known only on the device.
        check("squared", &case, shapes, DType::F32, 2. * F32, |x, loss| {
            loss(x)?.sqr()
        })?;
    }
    Ok(())
}

#[test]
fn twice_in_one_graph() -> Result<()> {
    for case in cases::all() {
        let shapes = [(11, 6), (11, 6)];
        check(
            "one node twice",
            &case,
            shapes,
            DType::F32,
            F32,
            |x, loss| {
                let loss = loss(x)?;
                &loss + (&loss * 3.)?
            },
        )?;
        check("two nodes", &case, shapes, DType::F32, F32, |x, loss| {
            (loss(x)? * 0.5)? + loss(&x.tanh()?)?
        })?;
    }
    Ok(())
}

/// A layer, two losses on its output and a task loss.
#[test]
fn together_with_a_task_loss() -> Result<()> {
    let weights = numbers((9, 6), 3)?;
    let (inputs, labels, y) = (
        numbers((12, 9), 4)?,
        numbers((12, 6), 5)?,
        numbers((12, 6), 6)?,
    );
    let step =
        |weights: &Tensor, dtype: DType, losses: &dyn Fn(&Tensor, &Tensor) -> Result<Tensor>| {
            let of = |x: &Tensor| x.to_dtype(dtype)?.to_device(weights.device());
            let student = of(&inputs)?.matmul(weights)?.tanh()?;
            let task = (&student - of(&labels)?)?.sqr()?.mean_all()?;
            (task * 0.7)? + losses(&student, &of(&y)?)?
        };
    let (rkd, kd) = (Rkd::CLASSIFICATION, KdKl::default());

    let wide = Var::from_tensor(&weights)?;
    let want = step(&wide, DType::F64, &|x, y| {
        formulas::rkd(x, y, rkd)? + formulas::kd_kl(x, y, kd)?
    })?;
    let want_gradient = &gradients(&want, &[&wide])?[0];

    for device in devices::computing(DType::F32) {
        let narrow = Var::from_tensor(&weights.to_dtype(DType::F32)?.to_device(&device)?)?;
        let got = step(&narrow, DType::F32, &|x, y| {
            relata_candle::rkd(x, y, rkd)? + relata_candle::kd_kl(x, y, kd)?
        })?;
        assert_close("loss", &got, &want, F32)?;
        assert_close(
            "gradient",
            &gradients(&got, &[&narrow])?[0],
            want_gradient,
            F32,
        )?;
    }
    Ok(())
}

#[test]
fn the_teacher_is_a_constant() -> Result<()> {
    for case in cases::all() {
        let shared = Var::from_tensor(&numbers((8, 5), 7)?.to_dtype(DType::F32)?)?;
        let teacher = (shared.as_tensor() * 0.5)?.sin()?;
        let student = (shared.as_tensor() * 2.)?;

        let got = &gradients(&(case.fused)(&student, &teacher)?, &[&shared])?[0];
        let detached = &gradients(&(case.fused)(&student, &teacher.detach())?, &[&shared])?[0];
        assert_close(case.name, got, detached, 0.)?;

        let loss = (case.fused)(&student.detach(), &teacher)?;
        assert!(loss.backward()?.get(&shared).is_none(), "{}", case.name);
    }
    Ok(())
}

#[test]
fn a_loss_is_a_scalar_of_what_it_was_summed_in() -> Result<()> {
    use DType::{BF16, F16, F32, F64};
    for case in cases::all() {
        for (dtype, of) in [(F64, F64), (F32, F32), (F16, F32), (BF16, F32)] {
            let student = numbers((6, 4), 1)?.to_dtype(dtype)?;
            let loss = (case.fused)(&student, &numbers((6, 4), 2)?.to_dtype(dtype)?)?;
            assert_eq!((loss.dtype(), loss.rank()), (of, 0), "{}", case.name);
        }
    }
    Ok(())
}

/// One row has no relations, and a copy of the teacher has nothing to learn.
#[test]
fn where_there_is_nothing_to_learn() -> Result<()> {
    for case in cases::all().iter().filter(|case| relates_pairs(case)) {
        let one = Var::from_tensor(&numbers((1, 5), 8)?)?;
        let copy = Var::from_tensor(&numbers((9, 5), 8)?)?;
        // Orders of pairs keep their margin at the teacher, and rankings are never certain.
        let is_of_order = matches!(case.name, "order" | "dark-rank");
        let students = if is_of_order {
            vec![one]
        } else {
            vec![one, copy]
        };
        for student in students {
            let loss = (case.fused)(&student, &student)?;
            let gradient = &gradients(&loss, &[&student])?[0];
            // PKT's ε has a slope at the teacher.
            let slope = if case.name == "pkt" { 1e-7 } else { 1e-14 };
            for (nothing, bar) in [(loss, 1e-14), (gradient.abs()?.max_all()?, slope)] {
                assert!(
                    nothing.to_scalar::<f64>()? < bar,
                    "{}: {nothing}",
                    case.name
                );
            }
        }
    }
    Ok(())
}
