//! What a user calls: losses, problems and building blocks evaluated on a device.

use crate::batch::Batch;
use crate::checks::{not_empty, same, zeroed};
use crate::device::Device;
use crate::element::{Element, Real};
use crate::error::{Error, Result};
use crate::loss::{
    Clip, Crd, DarkRank, Enqueue, Gram, InfoNce, KdKl, Loss, Order, Pkt, Range, Relation, Rkd,
    RkdAngle, RkdDistance, Rrd, RrdBank, SigLip, Sp, SupCon, for_each_loss,
};
use crate::problem::{Evaluation, Problem, Value};
use crate::queue::Queue;
use crate::rows::Rows;
use crate::shapes::Shapes;

impl Problem {
    /// The loss and its gradient, in newly allocated memory.
    ///
    /// # Errors
    /// If the batch's shapes are not the problem's; [`Error::QueueNormalization`]; in the checked
    /// mode, [`Error::NotFinite`]; and what the device may run into, such as
    /// [`Error::OutOfMemory`].
    pub fn evaluate<T: Element, D: Device<T>>(
        &self,
        device: &D,
        batch: Batch<'_, T>,
    ) -> Result<Evaluation<D::Gradient>> {
        self.check(&batch)?;
        let mut gradient = zeroed("gradient", self.gradient_len())?;
        let value = device.evaluate(self, batch, &mut gradient, None)?;
        Ok(Evaluation::new(value, gradient, Vec::new()))
    }

    /// The same, with the loss of each row in [`Evaluation::row_losses`]: what other libraries
    /// call a reduction of `none`. The loss is their mean, weighted where rows have weights. The
    /// gradient is that of the loss. A row of weight 0 has a loss of 0.
    ///
    /// ```
    /// use relata::{Batch, Cpu, KdKl, Rows};
    /// # fn main() -> relata::Result<()> {
    /// let (student, teacher) = ([0.0f64, 0.0, 1.0, 0.0], [0.0f64, 0.0, 0.0, 1.0]);
    /// let batch = Batch::new(Rows::new(&student, [2, 2])?, Rows::new(&teacher, [2, 2])?);
    /// let batch = batch.with_row_weights(&[1.0, 3.0]);
    /// let evaluation = KdKl::new(1.0).problem(batch.shapes())?.evaluate_rows(&Cpu, batch)?;
    /// let [first, second] = evaluation.row_losses[..] else { panic!("two rows") };
    /// assert_eq!(first, 0.0);
    /// assert_eq!(evaluation.loss, 0.75 * second);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate), and [`Error::Unexpected`] for a loss that is no mean of
    /// losses of rows.
    pub fn evaluate_rows<T: Element, D: Device<T>>(
        &self,
        device: &D,
        batch: Batch<'_, T>,
    ) -> Result<Evaluation<D::Gradient>> {
        self.check(&batch)?;
        let mut row_losses = zeroed("row_losses", self.shapes().rows)?;
        self.check_row_losses(row_losses.len())?;
        let mut gradient = zeroed("gradient", self.gradient_len())?;
        let value = device.evaluate(self, batch, &mut gradient, Some(&mut row_losses))?;
        Ok(Evaluation::new(value, gradient, row_losses))
    }

    /// The same with the gradient in the caller's memory, `[N, D]`, which is overwritten. This
    /// saves a trainer the allocation.
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate), and [`Error::Length`] if `gradient` does not hold N · D
    /// elements. After an error `gradient` is as it was.
    pub fn evaluate_into<T: Element, D: Device<T>>(
        &self,
        device: &D,
        batch: Batch<'_, T>,
        gradient: &mut [D::Gradient],
    ) -> Result<Value> {
        self.check(&batch)?;
        self.check_gradient(gradient)?;
        device.evaluate(self, batch, gradient, None)
    }

    /// [`evaluate_rows`](Self::evaluate_rows) with the results in the caller's memory, which is
    /// overwritten: the gradient, `[N, D]`, and the loss of each row, `[N]`.
    ///
    /// # Errors
    /// As [`evaluate_rows`](Self::evaluate_rows), and [`Error::Length`] if one of them does not
    /// have as many elements. After an error they are as they were.
    pub fn evaluate_rows_into<T: Element, D: Device<T>>(
        &self,
        device: &D,
        batch: Batch<'_, T>,
        gradient: &mut [D::Gradient],
        row_losses: &mut [f64],
    ) -> Result<Value> {
        self.check(&batch)?;
        self.check_gradient(gradient)?;
        self.check_row_losses(row_losses.len())?;
        device.evaluate(self, batch, gradient, Some(row_losses))
    }

    fn check_gradient<R>(&self, gradient: &[R]) -> Result<()> {
        if gradient.len() == self.gradient_len() {
            return Ok(());
        }
        Err(Error::Length {
            argument: "gradient",
            expected: self.gradient_len(),
            got: gradient.len(),
        })
    }
}

impl Loss {
    /// The loss of `student` against `teacher` and its gradient with respect to `student`. InfoNCE
    /// compares within the batch.
    ///
    /// # Errors
    /// A parameter or a shape that does not fit, by name; [`Error::Missing`] for a loss that
    /// requires a queue. See [`Problem::evaluate`].
    pub fn evaluate<T: Element, D: Device<T>>(
        &self,
        device: &D,
        student: Rows<'_, T>,
        teacher: Rows<'_, T>,
    ) -> Result<Evaluation<D::Gradient>> {
        let batch = Batch::new(student, teacher);
        Problem::new(*self, batch.shapes())?.evaluate(device, batch)
    }

    /// The loss of `student` against `teacher` and the keys in `queue`, and its gradient with
    /// respect to `student`. The teacher's rows enter the queue when the loss's `enqueue` says.
    ///
    /// A teacher with NaN or infinities makes the loss and the gradient NaN and does *not* enter
    /// the queue: it would spoil every loss until it leaves the queue again.
    ///
    /// ```
    /// use relata::{Cpu, Family, Loss, Queue, QueueUse, Rows, TeacherUse};
    /// # fn main() -> relata::Result<()> {
    /// let (student, teacher) = ([0.0f32, 1.0, 1.0, 1.0], [0.0f32, 2.0, 3.0, 0.0]);
    /// let [student, teacher] = [Rows::new(&student, [2, 2])?, Rows::new(&teacher, [2, 2])?];
    /// let mut queue = Queue::new(100, 2)?;
    /// let has_bank = |loss: &Loss| matches!(loss.spec().family, Family::Sampled(_));
    /// let against_teacher = |loss: &Loss| loss.spec().teacher == TeacherUse::Required;
    /// let losses = Loss::all().into_iter().filter(against_teacher);
    /// for loss in losses.filter(|loss| !has_bank(loss)) {
    ///     let evaluation = match loss.spec().queue {
    ///         QueueUse::Required => loss.evaluate_with_queue(&Cpu, student, teacher, &mut queue)?,
    ///         QueueUse::Optional | QueueUse::Never => loss.evaluate(&Cpu, student, teacher)?,
    ///     };
    ///     assert_eq!(evaluation.gradient.len(), 4);
    /// }
    /// assert_eq!(queue.len(), 2);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A parameter or a shape that does not fit, by name; [`Error::Unexpected`] for a loss that
    /// takes no queue; an empty queue unless the batch enters before. After an error the queue is
    /// as it was.
    pub fn evaluate_with_queue<T: Element, D: Device<T>>(
        &self,
        device: &D,
        student: Rows<'_, T>,
        teacher: Rows<'_, T>,
        queue: &mut Queue<T::Real>,
    ) -> Result<Evaluation<D::Gradient>> {
        let batch = Batch::new(student, teacher);
        evaluate_with_queue(device, batch, queue, |shapes| Problem::new(*self, shapes))
    }
}

/// [`Loss::evaluate_with_queue`] of a problem that has more to it than its loss, such as an upstream
/// factor, weights of rows or a learned temperature. The queue of `batch` is `queue`, whatever it was.
///
/// `problem` is called with the shapes of the batch and the number of keys that it will meet. It may
/// be called twice: that number depends on what the problem's loss says of `enqueue`.
///
/// ```
/// use relata::{Batch, Cpu, Queue, Rows, Rrd, evaluate_with_queue};
/// # fn main() -> relata::Result<()> {
/// let (student, teacher) = ([0.0f32, 1.0, 1.0, 1.0], [0.0f32, 2.0, 3.0, 0.0]);
/// let batch = Batch::new(Rows::new(&student, [2, 2])?, Rows::new(&teacher, [2, 2])?);
/// let mut queue = Queue::new(100, 2)?;
/// let evaluation = evaluate_with_queue(&Cpu, batch, &mut queue, |shapes| {
///     Rrd::default().problem(shapes)?.with_upstream(0.5).with_scale_gradient()
/// })?;
/// assert!(evaluation.term("scale_gradient").is_some());
/// assert_eq!(queue.len(), 2);
/// # Ok(()) }
/// ```
///
/// # Errors
/// As [`Loss::evaluate_with_queue`] and [`Problem::evaluate`]. After an error the queue is as it was.
pub fn evaluate_with_queue<T: Element, D: Device<T>>(
    device: &D,
    batch: Batch<'_, T>,
    queue: &mut Queue<T::Real>,
    problem: impl Fn(Shapes) -> Result<Problem>,
) -> Result<Evaluation<D::Gradient>> {
    // Everything that can be refused is refused before the queue changes.
    let problem = problem_with_queue(batch.shapes(), queue, problem)?;
    let (student, teacher) = (batch.student, batch.teacher);
    same("queue_dim", student.dim(), queue.dim())?;
    same("teacher rows", student.len(), teacher.len())?;
    if teacher.check_finite("teacher").is_err() {
        return not_a_number(&problem);
    }
    let enqueue = problem.spec().enqueue;
    if enqueue != Enqueue::Before {
        let evaluation = problem.evaluate(device, batch.with_queue(queue))?;
        if enqueue == Enqueue::After {
            queue.enqueue(teacher)?;
        }
        return Ok(evaluation);
    }
    // A device can refuse only when the batch is in the queue already.
    let saved = queue.save(teacher.len())?;
    queue.enqueue(teacher)?;
    let evaluation = problem.evaluate(device, batch.with_queue(queue));
    if evaluation.is_err() {
        queue.restore(&saved);
    }
    evaluation
}

/// The problem of a batch of these shapes that meets `queue`, with the batch's own keys in it if they
/// enter before.
pub(crate) fn problem_with_queue<R: Real>(
    shapes: Shapes,
    queue: &Queue<R>,
    problem: impl Fn(Shapes) -> Result<Problem>,
) -> Result<Problem> {
    let entered = queue.len().saturating_add(shapes.rows);
    let with_batch = problem(shapes.with_queue(queue.capacity().min(entered)))?;
    match with_batch.spec().enqueue {
        Enqueue::Before => Ok(with_batch),
        Enqueue::After | Enqueue::Never => problem(shapes.with_queue(queue.len())),
    }
}

/// The evaluation of a batch that holds a NaN or an infinity.
fn not_a_number<R: Real>(problem: &Problem) -> Result<Evaluation<R>> {
    let mut gradient = zeroed("gradient", problem.gradient_len())?;
    gradient.fill(R::from_f64(f64::NAN));
    Ok(Evaluation::new(
        problem.not_a_number(),
        gradient,
        Vec::new(),
    ))
}

/// Gives each loss its methods: `problem` for all, `evaluate` and `evaluate_with_queue` by its use
/// of a queue.
macro_rules! methods {
    ($($module:ident $loss:ident $name:literal $doc:literal $queue:ident;)+) => {
        $(
            impl $loss {
                /// This loss on batches of these shapes: all checks, once.
                ///
                /// # Errors
                /// A parameter or a shape that does not fit, by name.
                pub fn problem(self, shapes: Shapes) -> Result<Problem> {
                    Problem::new(self, shapes)
                }
            }
            methods!(@ $queue $loss);
        )+
    };
    (@ Never $loss:ident) => {
        impl $loss {
            /// The loss of `student` against `teacher` and its gradient with respect to `student`.
            ///
            /// # Errors
            /// A parameter or a shape that does not fit, by name. See [`Problem::evaluate`].
            pub fn evaluate<T: Element, D: Device<T>>(
                &self,
                device: &D,
                student: Rows<'_, T>,
                teacher: Rows<'_, T>,
            ) -> Result<Evaluation<D::Gradient>> {
                Loss::from(*self).evaluate(device, student, teacher)
            }
        }
    };
    (@ Required $loss:ident) => {
        impl $loss {
            /// The loss of `student` against `teacher` and the keys in `queue`, and its gradient
            /// with respect to `student`: see [`Loss::evaluate_with_queue`].
            ///
            /// # Errors
            /// A parameter or a shape that does not fit, by name, and an empty queue unless the
            /// batch enters before. After an error the queue is as it was.
            pub fn evaluate_with_queue<T: Element, D: Device<T>>(
                &self,
                device: &D,
                student: Rows<'_, T>,
                teacher: Rows<'_, T>,
                queue: &mut Queue<T::Real>,
            ) -> Result<Evaluation<D::Gradient>> {
                Loss::from(*self).evaluate_with_queue(device, student, teacher, queue)
            }
        }
    };
    (@ Optional $loss:ident) => {
        methods!(@ Never $loss);
        methods!(@ Required $loss);
    };
}
for_each_loss!(methods);

/// The relation of every two rows, `[N, N]`, symmetric. Distances are right however close rows lie
/// compared to their lengths, which those from a Gram matrix are not.
///
/// ```
/// # fn main() -> relata::Result<()> {
/// use relata::{Cpu, Relation, Rows, relation_matrix};
/// let points = [0.0f32, 0.0, 3.0, 4.0];
/// let distances = relation_matrix(&Cpu, Relation::Distance, Rows::new(&points, [2, 2])?)?;
/// assert_eq!(distances, [0.0, 5.0, 5.0, 0.0]);
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::Empty`] without rows or columns, and [`Error::OutOfMemory`].
pub fn relation_matrix<T: Element, D: Device<T>>(
    device: &D,
    relation: Relation,
    rows: Rows<'_, T>,
) -> Result<Vec<D::Gradient>> {
    not_empty("rows", rows.len())?;
    not_empty("dim", rows.dim())?;
    let mut matrix = zeroed("matrix", rows.len().saturating_mul(rows.len()))?;
    device.relation_matrix(relation, rows, &mut matrix)?;
    Ok(matrix)
}

/// softmax(x_i/τ) of every row, `[N, D]`.
///
/// ```
/// # fn main() -> relata::Result<()> {
/// let p = relata::softmax(&relata::Cpu, relata::Rows::new(&[1.0f64, 1.0], [1, 2])?, 0.1)?;
/// assert_eq!(p, [0.5, 0.5]);
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::Empty`] without rows or columns, [`Error::Parameter`] for a temperature out of range,
/// and [`Error::OutOfMemory`].
pub fn softmax<T: Element, D: Device<T>>(
    device: &D,
    rows: Rows<'_, T>,
    temperature: f64,
) -> Result<Vec<D::Gradient>> {
    not_empty("rows", rows.len())?;
    not_empty("dim", rows.dim())?;
    Range::Temperature.check("temperature", temperature)?;
    let mut probabilities = zeroed("probabilities", rows.as_slice().len())?;
    device.softmax(rows, temperature, &mut probabilities)?;
    Ok(probabilities)
}
