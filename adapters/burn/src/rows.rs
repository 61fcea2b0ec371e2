//! Knowledge distillation with weights of rows, lists of the teacher's classes and losses of rows.

use burn_tensor::{DType, Int, Tensor, TensorData, bf16, f16};
use relata::{Batch, Cpu, Element, KdKl, Loss, Problem, Real, TopK};

use crate::{Error, Inputs, Result, matrix, no_such_dtype, same_device};

/// The teacher of [`kd_kl_weighted`] and [`kd_kl_rows`]. A tensor of logits turns into one.
#[derive(Clone, Copy, Debug)]
pub enum Teacher<'a, const R: usize> {
    /// Logits, of the student's leading dimensions and dtype.
    Logits(&'a Tensor<R>),
    /// The k most likely classes of each row: see [`relata::TopK`].
    TopK {
        /// `[N, k]` or `[B, T, k]`.
        classes: &'a Tensor<R, Int>,
        /// The logarithms of their probabilities, of the same shape and any float dtype. An entry of
        /// −∞ is left out, whatever its class.
        log_probabilities: &'a Tensor<R>,
    },
}

impl<'a, const R: usize> From<&'a Tensor<R>> for Teacher<'a, R> {
    fn from(logits: &'a Tensor<R>) -> Self {
        Teacher::Logits(logits)
    }
}

/// KD against logits or lists of classes, as the mean of the rows' losses weighted by `row_weights`,
/// `[N]`: see [`Batch::with_row_weights`]. N is the number of rows, B · T of logits `[B, T, V]`.
///
/// ```
/// # use burn_tensor::{Device, Distribution, Int, Tensor};
/// use relata_burn::{Teacher, kd_kl_weighted};
/// # fn main() -> Result<(), relata_burn::Error> {
/// # let device = Device::flex().autodiff();
/// let student = Tensor::<2>::random([3, 10], Distribution::Default, &device).require_grad();
/// let classes = Tensor::<2, Int>::from_data([[7, 1], [0, 9], [3, 4]], &device);
/// let log_probabilities = Tensor::<2>::full([3, 2], 0.4f32.ln(), &device);
/// let teacher = Teacher::TopK { classes: &classes, log_probabilities: &log_probabilities };
/// let mask = Tensor::<1>::from_data([1.0, 1.0, 0.0], &device); // the last row is padding
/// let loss = kd_kl_weighted(&student, teacher, Some(&mask), relata::KdKl::new(1.0))?;
/// assert!(student.grad(&loss.backward()).is_some());
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error`], naming what does not fit; weights that are negative or not finite; a list that names a
/// class twice, or one that the student does not have.
pub fn kd_kl_weighted<'a, const R: usize>(
    student_logits: &Tensor<R>,
    teacher: impl Into<Teacher<'a, R>>,
    row_weights: Option<&Tensor<1>>,
    loss: KdKl,
) -> Result<Tensor<1>> {
    fused(student_logits, teacher.into(), Of::Mean(row_weights), loss)
}

/// KD of each row, `[N]`, not reduced. The gradient goes through each of them.
///
/// # Errors
/// As [`kd_kl_weighted`].
pub fn kd_kl_rows<'a, const R: usize>(
    student_logits: &Tensor<R>,
    teacher: impl Into<Teacher<'a, R>>,
    loss: KdKl,
) -> Result<Tensor<1>> {
    fused(student_logits, teacher.into(), Of::Rows, loss)
}

/// What is wanted.
#[derive(Clone, Copy)]
enum Of<'a> {
    /// The mean of the rows' losses, weighted if there are weights.
    Mean(Option<&'a Tensor<1>>),
    /// The loss of each row.
    Rows,
}

fn fused<const R: usize>(
    student: &Tensor<R>,
    teacher: Teacher<'_, R>,
    of: Of<'_>,
    loss: KdKl,
) -> Result<Tensor<1>> {
    match student.dtype() {
        DType::F64 => fused_as::<f64, R>(student, teacher, of, loss),
        DType::F32 => fused_as::<f32, R>(student, teacher, of, loss),
        DType::F16 => fused_as::<f16, R>(student, teacher, of, loss),
        DType::BF16 => fused_as::<bf16, R>(student, teacher, of, loss),
        got => Err(no_such_dtype(got)),
    }
}

fn fused_as<T, const R: usize>(
    student: &Tensor<R>,
    teacher: Teacher<'_, R>,
    of: Of<'_>,
    loss: KdKl,
) -> Result<Tensor<1>>
where
    T: Element<Real: burn_tensor::Element> + burn_tensor::Element,
{
    let any = Loss::from(loss);
    let weights = match of {
        Of::Rows | Of::Mean(None) => None,
        Of::Mean(Some(weights)) => {
            same_device("row_weights", student, weights)?;
            Some(reals::<T::Real, 1>("row_weights", weights)?)
        }
    };
    let inputs = match teacher {
        Teacher::Logits(logits) => Inputs::read(student, Some(logits), &any),
        Teacher::TopK { .. } => Inputs::read(student, None, &any),
    }?;
    let lists = match teacher {
        Teacher::Logits(_) => None,
        Teacher::TopK {
            classes,
            log_probabilities,
        } => Some(lists::<T::Real, R>(
            student,
            classes,
            log_probabilities,
            &any,
        )?),
    };
    let batch = inputs.batch::<T>()?;
    let batch = match &lists {
        None => batch,
        Some((shape, classes, logarithms)) => {
            Batch::of_top_k(batch.student, TopK::new(classes, logarithms, *shape)?)
        }
    };
    let batch = Batch {
        row_weights: weights.as_deref(),
        ..batch
    };
    let problem = Problem::new(loss, batch.shapes())?;
    let rows = batch.student.len();
    if let Of::Mean(_) = of {
        let evaluated = inputs.evaluated(problem.evaluate(&Cpu, batch)?);
        return Ok(evaluated.in_graph_of(student).0);
    }
    // The gradient of the rows' sum: each row is that of its own loss.
    let evaluation = problem
        .with_upstream(rows as f64)
        .evaluate_rows(&Cpu, batch)?;
    let losses = evaluation.row_losses.iter();
    let losses: Vec<T::Real> = losses.map(|&loss| T::Real::from_f64(loss)).collect();
    let evaluated = inputs.evaluated(evaluation);
    Ok(evaluated.rows_in_graph_of(student, TensorData::new(losses, [rows])))
}

/// Lists of the student's rows: their shape, classes and logarithms.
type Lists<R> = ([usize; 2], Vec<u32>, Vec<R>);

fn lists<Number: Real + burn_tensor::Element, const R: usize>(
    student: &Tensor<R>,
    classes: &Tensor<R, Int>,
    log_probabilities: &Tensor<R>,
    loss: &Loss,
) -> Result<Lists<Number>> {
    let argument = "teacher classes";
    let wrong = |argument, expected: String, got: &[usize]| Error::Shape {
        argument,
        expected,
        got: got.to_vec(),
    };
    let (shape, _) = matrix(argument, &classes.dims(), loss)?;
    if student.dims()[..R - 1] != classes.dims()[..R - 1] {
        let expected = format!("the leading dimensions of {:?}", student.dims());
        return Err(wrong(argument, expected, &classes.dims()));
    }
    if classes.dims() != log_probabilities.dims() {
        let expected = format!("that of the classes, {:?}", classes.dims());
        let argument = "teacher log_probabilities";
        return Err(wrong(argument, expected, &log_probabilities.dims()));
    }
    same_device("teacher log_probabilities", student, log_probabilities)?;
    let logarithms = reals::<Number, R>("teacher log_probabilities", log_probabilities)?;
    let data = classes.try_to_data().map_err(|why| Error::Unreadable {
        argument,
        why: format!("{why:?}"),
    })?;
    let class = |(class, logarithm): (i64, &Number)| {
        // Where an entry has no probability, any number may stand for its class.
        if logarithm.to_f64() == f64::NEG_INFINITY {
            return Ok(0);
        }
        u32::try_from(class).map_err(|_| relata::Error::Parameter {
            argument,
            expected: "classes from 0 to 2^32 - 1",
            got: class as f64,
        })
    };
    let classes = data.iter::<i64>().zip(&logarithms).map(class);
    let classes: relata::Result<Vec<u32>> = classes.collect();
    Ok((shape, classes?, logarithms))
}

fn reals<Number: burn_tensor::Element, const R: usize>(
    argument: &'static str,
    tensor: &Tensor<R>,
) -> Result<Vec<Number>> {
    let data = tensor.try_to_data().map_err(|why| Error::Unreadable {
        argument,
        why: format!("{why:?}"),
    })?;
    Ok(data.iter::<Number>().collect())
}
