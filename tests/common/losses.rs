//! All that tests and benchmarks ask about a loss, from its spec.

use relata::{
    Clip, Contrastive, DarkRank, Device, Divergence, Element, Enqueue, Evaluation, Family, InfoNce,
    KdKl, Logits, Loss, Order, ParameterValue, Queue, QueueUse, Result, Rkd, RkdAngle, RkdDistance,
    Rows, Rrd, Sampled, Shapes, SigLip, SupCon, Target, Towers,
};

/// Whether the loss L2-normalises its rows first, so that their lengths do not count. PKT's ε makes
/// them count a little.
pub(crate) fn normalizes(loss: &Loss) -> bool {
    let spec = loss.spec();
    let has_epsilon = matches!(spec.family, Family::Pairwise(loss) if loss.norm_epsilon > 0.0);
    spec.normalize && !has_epsilon
}

/// Whether an evaluation reports the divergence KL(p‖q) with the loss.
pub(crate) fn has_kl(loss: &Loss) -> bool {
    loss.spec().terms.contains(&"kl")
}

/// The least temperature that divides the products of normalised rows: the rounding of a logit is ε
/// over this. `None` for losses that take no such products.
pub(crate) fn least_temperature(loss: &Loss) -> Option<f64> {
    match loss.spec().family {
        Family::Pairwise(_) | Family::Triplet(_) | Family::Logits(_) => None,
        Family::Towers(Towers::Softmax {
            temperature,
            teacher_temperature,
            ..
        }) => Some(temperature.min(teacher_temperature)),
        Family::Towers(Towers::Sigmoid { scale, .. }) => Some(1.0 / scale),
        Family::Towers(Towers::Labels { temperature }) => Some(temperature),
        Family::Sampled(Sampled::Nce { temperature }) => Some(temperature),
        Family::Sampled(Sampled::Teacher {
            student_temperature,
            teacher_temperature,
            score_temperature,
        }) => {
            let least = student_temperature.min(teacher_temperature);
            Some(score_temperature.map_or(least, |t| t * least))
        }
        Family::Contrastive(Contrastive {
            temperature,
            target,
        }) => Some(match target {
            Target::Teacher { temperature: other } => temperature.min(other),
            Target::OwnKey => temperature,
        }),
    }
}

/// The same loss, but the keys of a batch never enter the queue: evaluations can be repeated.
pub(crate) fn without_enqueue(loss: Loss) -> Loss {
    let never = ParameterValue::Enqueue(Enqueue::Never);
    // A loss without this parameter has no queue.
    loss.with_parameter("enqueue", never).unwrap_or(loss)
}

/// The evaluation with a queue, if there is one.
pub(crate) fn evaluate<T: Element, D: Device<T>>(
    loss: &Loss,
    device: &D,
    student: Rows<'_, T>,
    teacher: Rows<'_, T>,
    queue: Option<&mut Queue<T::Real>>,
) -> Result<Evaluation<D::Gradient>> {
    match queue {
        Some(queue) => loss.evaluate_with_queue(device, student, teacher, queue),
        None => loss.evaluate(device, student, teacher),
    }
}

/// Flop of the angle loss for an unordered triple {i, k} at vertex j, with the cosines from the law
/// of cosines: 8 for both cosines, 1 for their difference, 2 to clamp it, 4 for the penalty and its
/// sum, 9 for the three coefficients.
const FLOP_PER_TRIPLET: u64 = 24;
/// Flop of KD for a class: scaling, shifting, exponential and sum of both rows, difference,
/// penalty, gradient. An exponential counts as one.
const FLOP_PER_CLASS: u64 = 14;

/// The ordered triples that the loss counts, N³; 0 for losses without angles.
pub(crate) fn triplets(loss: &Loss, rows: usize) -> u64 {
    match loss.spec().family {
        Family::Triplet(triplet) if triplet.angle_weight > 0.0 => (rows as u64).pow(3),
        Family::Triplet(_)
        | Family::Pairwise(_)
        | Family::Contrastive(_)
        | Family::Logits(_)
        | Family::Towers(_)
        | Family::Sampled(_) => 0,
    }
}

/// The arithmetic of the definition's cheapest known form, a multiply-add counting as two.
pub(crate) fn flops(loss: &Loss, shapes: Shapes) -> u64 {
    let [n, d, d_t] = [shapes.rows, shapes.student_dim, shapes.teacher_dim].map(|x| x as u64);
    let keys = shapes.queue.unwrap_or(shapes.rows) as u64;
    match loss.spec().family {
        // Relations of unordered pairs, by differences, and the contraction of ordered ones.
        Family::Pairwise(_) | Family::Triplet(_) => {
            let pairs = n * n.saturating_sub(1) / 2;
            let triplets = triplets(loss, shapes.rows) / 2;
            3 * pairs * (d + d_t) + 6 * pairs * d + FLOP_PER_TRIPLET * triplets
        }
        // Logits and mean key, of the student and, where there is a softmax, of the teacher.
        Family::Contrastive(contrastive) => match contrastive.target {
            Target::Teacher { .. } => 8 * n * keys * d,
            Target::OwnKey => 4 * n * keys * d,
        },
        Family::Logits(Logits { .. }) => FLOP_PER_CLASS * n * d,
        // As for a queue, with keys of each row's own.
        Family::Sampled(sampled) => {
            let [_, keys] = shapes.bank.unwrap_or_default().map(|x| x as u64);
            match sampled {
                Sampled::Nce { .. } => 4 * n * keys * d,
                Sampled::Teacher { .. } => 6 * n * keys * d,
            }
        }
        // Products of each pair twice, of student and teacher, and two weighted rows: of n² pairs of
        // two halves, or of all pairs.
        Family::Towers(towers) => match towers {
            Towers::Softmax { .. } => n * n / 4 * (8 * d + 4 * d_t),
            Towers::Sigmoid { .. } => n * n / 4 * 6 * d,
            Towers::Labels { .. } => n * n / 2 * 8 * d,
        },
    }
}

/// The shapes a loss accepts that come nearest to N, D, D_t, and K if it may have a queue: with and
/// without one, where both are possible.
pub(crate) fn shapes_of(loss: &Loss, [n, d, d_t, k]: [usize; 4]) -> Vec<Shapes> {
    let spec = loss.spec();
    let shapes = Shapes::new(n, d, if spec.same_dim { d } else { d_t });
    if let Family::Towers(towers) = spec.family {
        let alone = Shapes::new(n, d, 0);
        return match towers {
            Towers::Softmax {
                guide_margin: Some(_),
                ..
            } => vec![even(shapes)],
            Towers::Softmax { .. } => [shapes, alone].map(even).to_vec(),
            Towers::Sigmoid { .. } => vec![even(alone)],
            Towers::Labels { .. } => vec![alone.with_labels()],
        };
    }
    if let Family::Sampled(sampled) = spec.family {
        let teacher_dim = match sampled {
            Sampled::Nce { .. } => 0,
            Sampled::Teacher { .. } => d,
        };
        return vec![Shapes::new(n, d, teacher_dim).with_bank(k, k.clamp(2, 5))];
    }
    match spec.queue {
        QueueUse::Never => vec![shapes],
        QueueUse::Optional => vec![shapes, shapes.with_queue(k)],
        QueueUse::Required => vec![shapes.with_queue(k)],
    }
}

/// The same for two towers of as many rows each.
fn even(shapes: Shapes) -> Shapes {
    let rows = shapes.rows.next_multiple_of(2);
    Shapes { rows, ..shapes }
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

/// KD of every kind but KL(p‖q) with one temperature, with the temperature of `loss`: its label in
/// the case table, and the loss.
pub(crate) fn divergences(loss: KdKl) -> Vec<(&'static str, KdKl)> {
    let of = |divergence| KdKl { divergence, ..loss };
    let two_temperatures = |loss: KdKl| KdKl {
        teacher_temperature: 0.5 * loss.teacher_temperature,
        ..loss
    };
    vec![
        ("forward-two-t", two_temperatures(loss)),
        ("reverse", of(Divergence::Reverse)),
        ("js", of(Divergence::Js { beta: 0.5 })),
        ("js-0.1", of(Divergence::Js { beta: 0.1 })),
        (
            "js-0.9-two-t",
            two_temperatures(of(Divergence::Js { beta: 0.9 })),
        ),
        ("skew", of(Divergence::Skew { alpha: 0.1 })),
        ("skew-0.9", of(Divergence::Skew { alpha: 0.9 })),
        ("skew-reverse", of(Divergence::SkewReverse { alpha: 0.1 })),
        (
            "skew-reverse-0.9",
            of(Divergence::SkewReverse { alpha: 0.9 }),
        ),
    ]
}

/// Every loss of a student against a teacher, with its default parameters. tests/towers.rs has those
/// of rows that are all trained, and tests/bank those with a bank.
pub(crate) fn against_teachers() -> Vec<Loss> {
    let mut losses = without_banks();
    losses.retain(|loss| !matches!(loss.spec().family, Family::Towers(_)));
    losses
}

/// Every loss that needs no bank, with its default parameters.
pub(crate) fn without_banks() -> Vec<Loss> {
    let mut losses = Loss::all();
    losses.retain(|loss| !matches!(loss.spec().family, Family::Sampled(_)));
    losses
}

/// Every loss with every option off its default at least once.
pub(crate) fn losses() -> Vec<Loss> {
    let towers: [Loss; 7] = [
        Clip::default().into(),
        Clip {
            temperature: 0.2,
            teacher_temperature: 0.1,
            hard_weight: 0.25,
            soft_weight: 3.0,
            ..Clip::default()
        }
        .into(),
        Clip {
            both_ways: false,
            guided: true,
            guide_margin: -0.1,
            ..Clip::default()
        }
        .into(),
        SigLip::default().into(),
        SigLip {
            scale: 2.0,
            bias: 0.5,
        }
        .into(),
        SupCon::default().into(),
        SupCon { temperature: 0.5 }.into(),
    ];
    [losses_against_teachers(), towers.to_vec()].concat()
}

/// The same without those of rows that are all trained.
pub(crate) fn losses_against_teachers() -> Vec<Loss> {
    let mut losses = against_teachers();
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
    losses.push(Order { margin: 0.2 }.into());
    let dark_rank = DarkRank {
        alpha: 0.7,
        beta: 1.5,
        length: 2,
    };
    losses.push(dark_rank.into());
    for (temperature, normalize) in [(0.5, true), (1.0, false)] {
        let info_nce = InfoNce {
            temperature,
            normalize,
            ..InfoNce::default()
        };
        losses.push(info_nce.into());
        losses.push(KdKl::new(temperature).into());
    }
    losses.extend(
        divergences(KdKl::default())
            .into_iter()
            .map(|(_, loss)| Loss::from(loss)),
    );
    losses
}
