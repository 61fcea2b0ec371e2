//! All that tests and benchmarks ask about a loss. Each question has one answer here, with one arm
//! for each loss. [`Loss`] can grow, so the last arm is a panic that asks for a new arm.

use relata::{
    Device, Element, Enqueue, Evaluation, InfoNce, KdKl, Loss, Queue, Result, Rkd, RkdAngle,
    RkdDistance, Rows, Rrd, Shapes,
};

/// What a device computes for a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Relations of pairs of rows.
    Pairwise,
    /// Angles of triples of rows, with or without distances.
    Triplet,
    /// Softmaxes of queries over keys.
    Contrastive,
    /// Softmaxes of logits.
    Logits,
}

/// Whether a loss takes a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueUse {
    Never,
    Optional,
    Required,
}

#[cold]
fn unknown(loss: &Loss, question: &str) -> ! {
    panic!("{loss}: {question} Add an arm")
}

pub(crate) fn family(loss: &Loss) -> Family {
    match loss {
        Loss::RkdDistance(_) => Family::Pairwise,
        Loss::RkdAngle(_) | Loss::Rkd(_) => Family::Triplet,
        Loss::Rrd(_) | Loss::InfoNce(_) => Family::Contrastive,
        Loss::KdKl(_) => Family::Logits,
        loss => unknown(loss, "of which family is it?"),
    }
}

pub(crate) fn queue_use(loss: &Loss) -> QueueUse {
    match loss {
        Loss::RkdDistance(_) | Loss::RkdAngle(_) | Loss::Rkd(_) => QueueUse::Never,
        Loss::Rrd(_) => QueueUse::Required,
        Loss::InfoNce(_) => QueueUse::Optional,
        Loss::KdKl(_) => QueueUse::Never,
        loss => unknown(loss, "does it take a queue?"),
    }
}

/// Whether the rows of student and teacher must have one width.
pub(crate) fn same_dim(loss: &Loss) -> bool {
    match loss {
        Loss::RkdDistance(_) | Loss::RkdAngle(_) | Loss::Rkd(_) => false,
        Loss::Rrd(_) | Loss::InfoNce(_) | Loss::KdKl(_) => true,
        loss => unknown(loss, "must both widths be the same?"),
    }
}

/// Whether the loss L2-normalises its rows first.
pub(crate) fn normalizes(loss: &Loss) -> bool {
    match loss {
        Loss::RkdDistance(loss) => loss.normalize,
        Loss::RkdAngle(loss) => loss.normalize,
        Loss::Rkd(loss) => loss.normalize,
        Loss::Rrd(loss) => loss.normalize,
        Loss::InfoNce(loss) => loss.normalize,
        Loss::KdKl(_) => false,
        loss => unknown(loss, "does it normalise its rows?"),
    }
}

/// Whether an evaluation reports the divergence KL(p‖q) with the loss.
pub(crate) fn has_kl(loss: &Loss) -> bool {
    match loss {
        Loss::RkdDistance(_) | Loss::RkdAngle(_) | Loss::Rkd(_) => false,
        Loss::Rrd(_) => true,
        Loss::InfoNce(_) | Loss::KdKl(_) => false,
        loss => unknown(loss, "does it report a KL?"),
    }
}

/// The least temperature that divides the products of normalised rows: the rounding of a logit is ε
/// over this. `None` for losses that take no such products.
pub(crate) fn least_temperature(loss: &Loss) -> Option<f64> {
    match loss {
        Loss::RkdDistance(_) | Loss::RkdAngle(_) | Loss::Rkd(_) | Loss::KdKl(_) => None,
        Loss::Rrd(loss) => Some(loss.student_temperature.min(loss.teacher_temperature)),
        Loss::InfoNce(loss) => Some(loss.temperature),
        loss => unknown(loss, "what is its temperature?"),
    }
}

/// The same loss, but the keys of a batch never enter the queue: evaluations can be repeated.
pub(crate) fn without_enqueue(loss: Loss) -> Loss {
    let enqueue = Enqueue::Never;
    match loss {
        Loss::Rrd(loss) => Rrd { enqueue, ..loss }.into(),
        Loss::InfoNce(loss) => InfoNce { enqueue, ..loss }.into(),
        Loss::RkdDistance(_) | Loss::RkdAngle(_) | Loss::Rkd(_) | Loss::KdKl(_) => loss,
        loss => unknown(&loss, "when do its keys enter the queue?"),
    }
}

/// The evaluation by the loss's own method, without [`Loss`]. `None` if the loss has no method for
/// this combination of loss and queue.
pub(crate) fn evaluate_by_own_method<T: Element, D: Device<T>>(
    loss: &Loss,
    device: &D,
    student: Rows<'_, T>,
    teacher: Rows<'_, T>,
    queue: Option<&mut Queue<T::Real>>,
) -> Option<Result<Evaluation<D::Gradient>>> {
    match (loss, queue) {
        (Loss::RkdDistance(loss), None) => Some(loss.evaluate(device, student, teacher)),
        (Loss::RkdAngle(loss), None) => Some(loss.evaluate(device, student, teacher)),
        (Loss::Rkd(loss), None) => Some(loss.evaluate(device, student, teacher)),
        (Loss::Rrd(loss), Some(queue)) => Some(loss.evaluate(device, student, teacher, queue)),
        (Loss::InfoNce(loss), None) => Some(loss.evaluate(device, student, teacher)),
        (Loss::InfoNce(loss), Some(queue)) => {
            Some(loss.evaluate_with_queue(device, student, teacher, queue))
        }
        (Loss::KdKl(loss), None) => Some(loss.evaluate(device, student, teacher)),
        (Loss::RkdDistance(_) | Loss::RkdAngle(_) | Loss::Rkd(_) | Loss::KdKl(_), Some(_))
        | (Loss::Rrd(_), None) => None,
        (loss, _) => unknown(loss, "how is it evaluated?"),
    }
}

/// Flop of the angle loss for an unordered triple {i, k} at vertex j, with the cosines from the law
/// of cosines: 8 for both cosines, 1 for their difference, 2 to clamp it, 4 for the penalty and its
/// sum, 9 for the three coefficients.
const FLOP_PER_TRIPLET: u64 = 24;
/// Flop of KD for a class: scaling, shifting, exponential and sum of both rows, difference,
/// penalty, gradient. An exponential counts as one.
const FLOP_PER_CLASS: u64 = 14;

/// The ordered triples the angle loss counts, N³; 0 for losses without angles.
pub(crate) fn triplets(loss: &Loss, rows: usize) -> u64 {
    let cubed = (rows as u64).pow(3);
    match loss {
        Loss::RkdAngle(_) => cubed,
        Loss::Rkd(loss) => {
            if loss.angle_weight > 0.0 {
                cubed
            } else {
                0
            }
        }
        Loss::RkdDistance(_) | Loss::Rrd(_) | Loss::InfoNce(_) | Loss::KdKl(_) => 0,
        loss => unknown(loss, "how many triples does it count?"),
    }
}

/// The arithmetic of the definition's cheapest known form, a multiply-add counting as two.
pub(crate) fn flops(loss: &Loss, shapes: Shapes) -> u64 {
    let [n, d, d_t] = [shapes.rows, shapes.student_dim, shapes.teacher_dim].map(|x| x as u64);
    match loss {
        // Distances of unordered pairs by differences, and the contraction of ordered ones.
        Loss::RkdDistance(_) | Loss::RkdAngle(_) | Loss::Rkd(_) => {
            let pairs = n * n.saturating_sub(1) / 2;
            let triplets = triplets(loss, shapes.rows) / 2;
            3 * pairs * (d + d_t) + 6 * pairs * d + FLOP_PER_TRIPLET * triplets
        }
        // Logits and mean key, of the student and of the teacher.
        Loss::Rrd(_) => 8 * n * shapes.queue.unwrap_or(0) as u64 * d,
        Loss::InfoNce(_) => 4 * n * shapes.queue.unwrap_or(shapes.rows) as u64 * d,
        Loss::KdKl(_) => FLOP_PER_CLASS * n * d,
        loss => unknown(loss, "how many flop does it take?"),
    }
}

/// The shapes a loss accepts that come nearest to N, D, D_t, and K if it may have a queue: with and
/// without one, where both are possible.
pub(crate) fn shapes_of(loss: &Loss, [n, d, d_t, k]: [usize; 4]) -> Vec<Shapes> {
    let shapes = Shapes::new(n, d, if same_dim(loss) { d } else { d_t });
    match queue_use(loss) {
        QueueUse::Never => vec![shapes],
        QueueUse::Optional => vec![shapes, shapes.with_queue(k)],
        QueueUse::Required => vec![shapes.with_queue(k)],
    }
}

/// The three RKD losses with the parameters of `rkd`: distance, angle, and both.
pub(crate) fn rkd_losses(rkd: Rkd) -> [Loss; 3] {
    let Rkd {
        delta, normalize, ..
    } = rkd;
    [
        RkdDistance { delta, normalize }.into(),
        RkdAngle { delta, normalize }.into(),
        rkd.into(),
    ]
}

/// Every loss with every option off its default at least once.
pub(crate) fn losses() -> Vec<Loss> {
    let mut losses = Loss::all();
    for (delta, normalize) in [(1.0, true), (0.2, false), (0.2, true)] {
        losses.extend(rkd_losses(Rkd {
            delta,
            normalize,
            ..Rkd::CLASSIFICATION
        }));
    }
    for (student_temperature, teacher_temperature, normalize) in
        [(0.04, 0.1, true), (0.5, 0.5, true), (1.0, 2.0, false)]
    {
        let rrd = Rrd {
            student_temperature,
            teacher_temperature,
            normalize,
            ..Rrd::default()
        };
        losses.push(rrd.into());
    }
    for (temperature, normalize) in [(0.5, true), (1.0, false)] {
        let info_nce = InfoNce {
            temperature,
            normalize,
            ..InfoNce::default()
        };
        losses.push(info_nce.into());
        losses.push(KdKl { temperature }.into());
    }
    losses
}
