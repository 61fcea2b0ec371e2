//! Inputs that are views.

use candle_core::{DType, Result, Tensor, Var};

use crate::cases::{self, Case, numbers};
use crate::{F32, assert_close, devices, gradients};

type View = fn(&Tensor) -> Result<Tensor>;

const EQUAL: &str = "one row for all";

/// The shape of the viewed tensor, and the view, which is `[9, 6]`.
const VIEWS: [(&str, (usize, usize), View); 6] = [
    ("as it is", (9, 6), |x| Ok(x.clone())),
    ("rows from the middle", (14, 6), |x| x.narrow(0, 3, 9)),
    ("columns from the middle", (9, 11), |x| x.narrow(1, 4, 6)),
    ("transposed", (6, 9), |x| x.t()),
    ("a part of it transposed", (8, 15), |x| {
        x.narrow(0, 1, 6)?.narrow(1, 5, 9)?.t()
    }),
    (EQUAL, (1, 6), |x| x.broadcast_as((9, 6))),
];

#[test]
fn views_of_both() -> Result<()> {
    for case in cases::all() {
        for student in VIEWS {
            for teacher in VIEWS {
                if defined(&case, student.0 == EQUAL, teacher.0 == EQUAL) {
                    check(&case, student, teacher)?;
                }
            }
        }
    }
    Ok(())
}

/// Whether the formula has a gradient other than 0 and NaN when all rows are equal.
fn defined(case: &Case, student: bool, teacher: bool) -> bool {
    let relational = case.name.starts_with("rkd") || case.name == "dark-rank";
    let in_batch = ["info-nce", "info-nce, as it comes"].contains(&case.name);
    // Equal rows stay similar when they change together: SP's gradient is 0, and so are Gram's and,
    // but for ε, PKT's.
    let similarities = ["sp", "gram", "gram, clamped", "pkt", "order"];
    let similar = similarities.contains(&case.name) && student;
    !(relational && (student || teacher) || in_batch && teacher || similar)
}

fn check(
    case: &Case,
    student: (&str, (usize, usize), View),
    teacher: (&str, (usize, usize), View),
) -> Result<()> {
    let label = format!(
        "{}, student {}, teacher {}",
        case.name, student.0, teacher.0
    );
    let (x, y) = (numbers(student.1, 1)?, numbers(teacher.1, 2)?);

    let wide = Var::from_tensor(&x)?;
    let want = (case.formula)(&(student.2)(&wide)?, &(teacher.2)(&y)?)?;
    let want_gradient = &gradients(&want, &[&wide])?[0];
    for device in devices::computing(DType::F32) {
        let narrow = |x: &Tensor| x.to_dtype(DType::F32)?.to_device(&device);
        let base = Var::from_tensor(&narrow(&x)?)?;
        let got = (case.fused)(&(student.2)(&base)?, &(teacher.2)(&narrow(&y)?)?)?;
        assert_close(&label, &got, &want, F32)?;
        assert_close(&label, &gradients(&got, &[&base])?[0], want_gradient, F32)?;
    }
    Ok(())
}
