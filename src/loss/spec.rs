//! What a loss is: all that other modules may ask about it.

use super::divergence::Divergence;

/// Everything there is to know about a loss with given parameters, in one place.
///
/// Devices, checks, queues, the command and the tests ask the spec. None of them asks which loss
/// it belongs to.
///
/// ```
/// use relata::{Family, Loss, QueueUse};
/// # fn main() -> relata::Result<()> {
/// let spec = "rrd".parse::<Loss>()?.spec();
/// assert_eq!(spec.queue, QueueUse::Required);
/// assert_eq!(spec.terms, ["kl"]);
/// assert!(matches!(spec.family, Family::Contrastive(_)) && spec.normalize);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Spec {
    /// The loss's name in the command, the benchmarks and the results, for example `"rkd-angle"`.
    pub name: &'static str,
    /// What a device computes.
    pub family: Family,
    /// Whether the rows of student and teacher must have the same width.
    pub same_dim: bool,
    /// Whether the loss is evaluated with a queue of past teacher keys.
    pub queue: QueueUse,
    /// Whether the loss is evaluated with a teacher's rows.
    pub teacher: TeacherUse,
    /// Whether rows have labels.
    pub labels: LabelUse,
    /// When the teacher's rows of the batch enter the queue; `Never` for a loss without one.
    pub enqueue: Enqueue,
    /// Whether the rows of student and teacher (and the keys of the queue) are L2-normalised
    /// first, with the gradient through it.
    pub normalize: bool,
    /// The names of the terms that an evaluation reports in addition to the loss: see
    /// [`Terms`](crate::Terms).
    pub terms: &'static [&'static str],
}

impl Spec {
    /// A loss of this family that has no queue, takes rows as they come, of any width, and reports
    /// nothing but its value. The registry sets the name and the use of the queue.
    pub(super) const fn new(family: Family) -> Self {
        Spec {
            name: "",
            family,
            same_dim: false,
            queue: QueueUse::Never,
            teacher: TeacherUse::Required,
            labels: LabelUse::Never,
            enqueue: Enqueue::Never,
            normalize: false,
            terms: &[],
        }
    }
}

impl Spec {
    /// The matrix `[rows, width]` that a tensor of this shape stands for, and the
    /// [groups](crate::Problem::with_groups) of its rows where it has some. Adapters to frameworks
    /// ask this.
    ///
    /// Every loss takes matrices. A third dimension makes groups `[B, N, D]` where rows are compared
    /// with one another. Logits may have any number of leading dimensions: their rows are not
    /// compared. No other shape has a meaning: `None`.
    ///
    /// ```
    /// use relata::{Gram, KdKl, Loss, Rrd};
    /// let rows_of = |loss: Loss, shape: &[usize]| loss.spec().rows_of(shape);
    /// assert_eq!(rows_of(Gram::default().into(), &[8, 196, 384]), Some(([1568, 384], Some(8))));
    /// assert_eq!(rows_of(KdKl::default().into(), &[8, 512, 32000]), Some(([4096, 32000], None)));
    /// assert_eq!(rows_of(Rrd::default().into(), &[64, 128]), Some(([64, 128], None)));
    /// assert_eq!(rows_of(Rrd::default().into(), &[2, 64, 128]), None);
    /// ```
    #[must_use]
    pub fn rows_of(&self, shape: &[usize]) -> Option<([usize; 2], Option<usize>)> {
        match (self.family, shape) {
            (_, &[rows, width]) => Some(([rows, width], None)),
            (Family::Pairwise(_) | Family::Triplet(_), &[groups, rows, width]) => {
                Some(([groups * rows, width], Some(groups)))
            }
            (Family::Logits(_), [leading @ .., width]) if !leading.is_empty() => {
                Some(([leading.iter().product(), *width], None))
            }
            _ => None,
        }
    }
}

/// Whether a loss is evaluated with a queue of past teacher keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueueUse {
    /// The loss has no use for a queue, and a queue is refused.
    Never,
    /// The loss is evaluated with a queue or within the batch.
    Optional,
    /// The loss is defined with a queue only.
    Required,
}

/// Whether a loss is evaluated with a teacher's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TeacherUse {
    /// The loss is one against a teacher.
    Required,
    /// The loss leaves out what a teacher would add.
    Optional,
    /// The loss has no use for a teacher, and one is refused.
    Never,
}

/// Whether rows have labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LabelUse {
    /// The loss is one of labels.
    Required,
    /// The loss leaves out what labels would mask.
    Optional,
    /// The loss has no use for labels, and they are refused.
    Never,
}

/// When a loss puts the teacher's rows of a batch into the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Enqueue {
    /// Before the loss is computed: the batch's own keys are among the keys that it sees.
    Before,
    /// After the loss is computed.
    After,
    /// Not at all: the caller calls [`Queue::enqueue`](crate::Queue::enqueue).
    Never,
}

/// The algorithm that computes a loss. A device matches on this, exhaustively, and never on the
/// loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Family {
    /// Relations of pairs of rows: RKD's distance, SP, Gram anchoring, PKT, their orders.
    Pairwise(Pairwise),
    /// Angles of triples of rows, and distances of pairs on request: RKD's angle, RKD.
    Triplet(Triplet),
    /// A softmax over keys for each row: RRD, InfoNCE.
    Contrastive(Contrastive),
    /// A softmax over classes for each row of logits: KD.
    Logits(Logits),
    /// Rows that are compared with one another and all trained: CLIP, SigLIP, SupCon.
    Towers(Towers),
    /// Each row with keys of its own, sampled from a bank: CRD, RRD with a bank.
    Sampled(Sampled),
}

/// The pairwise family: `L = 1/N² Σ_ij penalty( r_ij(X)/s(X), r_ij(Y)/s(Y) )`.
///
/// The sum runs over all i and j, the diagonal included. `r` is the relation and `s` its
/// normalizer. [`Penalty::Order`] and [`Penalty::Ranking`] take
/// other means of the same relations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pairwise {
    /// r: how two rows relate.
    pub relation: Relation,
    /// s: the unit that a relation is measured in.
    pub normalizer: Normalizer,
    /// What two scaled relations that differ cost.
    pub penalty: Penalty,
    /// ε: cosines are products of x/(‖x‖ + ε); 0 for most losses. Other relations have no use for
    /// it.
    pub norm_epsilon: f64,
}

/// How two rows relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Relation {
    /// ‖x_i − x_j‖, from differences.
    Distance,
    /// ‖x_i − x_j‖², from differences.
    SquaredDistance,
    /// ⟨x_i, x_j⟩
    Dot,
    /// c = ⟨x_i, x_j⟩/(‖x_i‖‖x_j‖); 0 where a row is zero.
    Cosine,
    /// max(0, c): a negative cosine counts as 0 and passes no gradient.
    PositiveCosine,
    /// ½(1 + c), from 0 to 1.
    ShiftedCosine,
}

impl Relation {
    /// Whether the relation is a function of the rows' directions: of the products of normalised
    /// rows.
    pub(crate) fn is_of_directions(self) -> bool {
        match self {
            Relation::Distance | Relation::SquaredDistance | Relation::Dot => false,
            Relation::Cosine | Relation::PositiveCosine | Relation::ShiftedCosine => true,
        }
    }
}

/// The unit that relations are measured in. Where it is 0, the scaled relation counts as 0 and
/// passes no gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Normalizer {
    /// 1: relations enter as they are.
    None,
    /// The mean of r_ij over i ≠ j.
    Mean,
    /// The L2 norm of the relation's row i: √Σ_j r_ij².
    RowL2,
    /// The sum of the relation's row i: Σ_j r_ij.
    RowSum,
    /// The Frobenius norm of the relation: √Σ_ij r_ij².
    Frobenius,
}

/// What relations that differ cost: u, the student's in its unit, and v, the teacher's.
///
/// Most penalties are sums over pairs of rows, and e = u − v. `Order` compares pairs with one
/// another, `Ranking` a row's. Devices have code of their own for them, between relation and contraction
/// (docs/decisions/0020).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Penalty {
    /// ½e² up to δ, δ(|e| − ½δ) beyond.
    Huber {
        /// δ: where the penalty turns from quadratic to linear.
        delta: f64,
    },
    /// e²
    Squared,
    /// v·log((v + ε)/(u + ε)): a term of the divergence of two distributions.
    Divergence {
        /// ε: what keeps the logarithm finite.
        epsilon: f64,
    },
    /// Of two pairs of rows, i < j in both, the one that the teacher relates less: the mean over
    /// all pairs of pairs of `max(0, u_less − u_more + margin)`. It takes no normalizer.
    Order {
        /// By how much the student is to relate the one less than the other.
        margin: f64,
    },
    /// Of each row, how unlikely the order of the teacher's nearest rows is under scores `−α u^β` of
    /// the student (Plackett and Luce); the mean over the rows. It takes distances, and no
    /// normalizer.
    Ranking {
        /// α: the scale of the scores.
        alpha: f64,
        /// β: the power of the distances.
        beta: f64,
        /// How many rows are ranked.
        length: usize,
    },
}

/// The triplet family: the Huber penalty of the angles of all triples, and that of all distances
/// in units of their mean, weighted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Triplet {
    /// δ of both penalties.
    pub delta: f64,
    /// Weight of the angles; 0 leaves them out.
    pub angle_weight: f64,
    /// Weight of the distances; 0 leaves them out.
    pub distance_weight: f64,
}

/// The contrastive family: `q_i = softmax(keys · x_i / τ)` against a target distribution.
///
/// The keys are those of the queue where there is one, and else the teacher's rows of the batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contrastive {
    /// τ of the student's softmax.
    pub temperature: f64,
    /// The distribution that q is compared with.
    pub target: Target,
}

/// The target of a contrastive loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// The teacher's softmax over the same keys: RRD.
    Teacher {
        /// τ of the teacher's softmax.
        temperature: f64,
    },
    /// All weight on the row's own key, which takes part in addition to the keys of a queue:
    /// InfoNCE.
    OwnKey,
}

/// The towers family: similarities ⟨x̂_i, x̂_j⟩ of the student's rows with one another. The gradient
/// reaches both rows of a pair.
///
/// All but `Labels` compare the first half of the rows with the second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Towers {
    /// Softmaxes over the rows of the other half, both ways: CLIP.
    Softmax {
        /// τ of the student's softmaxes.
        temperature: f64,
        /// τ_t of the teacher's softmaxes.
        teacher_temperature: f64,
        /// Weight of the term whose target is the partner.
        hard_weight: f64,
        /// Weight of the term whose target is the teacher's softmax.
        soft_weight: f64,
        /// Whether the rows of both halves have a softmax, and not those of the first alone.
        both_ways: bool,
        /// By how much the teacher's cosine of a pair may fall short of that of the row's own pair, if
        /// pairs beyond it are left out of all softmaxes.
        guide_margin: Option<f64>,
    },
    /// A sigmoid of each pair: SigLIP.
    Sigmoid {
        /// a
        scale: f64,
        /// b
        bias: f64,
    },
    /// A softmax over all other rows, whose targets are those of the same label: SupCon.
    Labels {
        /// τ
        temperature: f64,
    },
}

impl Towers {
    /// Whether the first half of the rows is compared with the second.
    pub(crate) fn has_halves(&self) -> bool {
        match self {
            Towers::Softmax { .. } | Towers::Sigmoid { .. } => true,
            Towers::Labels { .. } => false,
        }
    }

    /// Whether a teacher's rows are a target or a guide. Else they may hold anything.
    pub(crate) fn reads_teacher(&self) -> bool {
        match self {
            Towers::Softmax {
                soft_weight,
                guide_margin,
                ..
            } => *soft_weight > 0.0 || guide_margin.is_some(),
            Towers::Sigmoid { .. } | Towers::Labels { .. } => false,
        }
    }
}

/// The sampled family: ⟨x̂_i, key_ik⟩ of each row with keys of its own, which are rows of a
/// [`Bank`](crate::Bank).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampled {
    /// A sigmoid of each key, whether it is the row's own: CRD.
    Nce {
        /// τ
        temperature: f64,
    },
    /// A softmax over a row's keys against the teacher's softmax over its own: RRD.
    Teacher {
        /// τ_s of the student's softmax.
        student_temperature: f64,
        /// τ_t of the teacher's softmax.
        teacher_temperature: f64,
        /// T, where the softmaxes are those of exp(product/T)/Z, and not of the products.
        score_temperature: Option<f64>,
    },
}

impl Sampled {
    /// How many sides are compared with a bank's rows: the student, or also the teacher.
    pub(crate) fn banks(&self) -> usize {
        match self {
            Sampled::Nce { .. } => 1,
            Sampled::Teacher { .. } => 2,
        }
    }

    /// Of how many banks the normalizer is needed: none, the student's, or also the teacher's.
    pub(crate) fn normalizers(&self) -> usize {
        match self {
            Sampled::Nce { .. } => 1,
            Sampled::Teacher {
                score_temperature: Some(_),
                ..
            } => 2,
            Sampled::Teacher {
                score_temperature: None,
                ..
            } => 0,
        }
    }
}

/// The logits family: the divergence of two softmaxes over classes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logits {
    /// T_s of the student's softmax. The loss has the factor T_s².
    pub student_temperature: f64,
    /// T_t of the teacher's softmax.
    pub teacher_temperature: f64,
    /// What the two softmaxes are compared by. `Forward` and `Reverse` are never called by another
    /// name here: `Js` has 0 < β < 1, and the skews have α > 0.
    pub divergence: Divergence,
    /// C: the first so many classes of both are compared; 0 compares all.
    pub classes: usize,
    /// Of a teacher that is a list of classes ([`TopK`](crate::TopK)): whether all other classes
    /// together count as one more.
    pub tail: bool,
}

impl Family {
    /// Whether the rows of a batch can have weights.
    pub(crate) fn takes_row_weights(&self) -> bool {
        match self {
            Family::Contrastive(_) | Family::Logits(_) | Family::Sampled(_) => true,
            Family::Pairwise(_) | Family::Triplet(_) | Family::Towers(_) => false,
        }
    }

    /// Whether the loss is a mean of losses of rows, which an evaluation can give:
    /// [`Problem::evaluate_rows`](crate::Problem::evaluate_rows).
    #[must_use]
    pub fn has_row_losses(&self) -> bool {
        match self {
            Family::Contrastive(_) | Family::Logits(_) | Family::Sampled(_) => true,
            Family::Pairwise(_) | Family::Triplet(_) | Family::Towers(_) => false,
        }
    }
}

impl Pairwise {
    /// The loss of these parts, with cosines as they are defined.
    pub(crate) const fn new(relation: Relation, normalizer: Normalizer, penalty: Penalty) -> Self {
        Pairwise {
            relation,
            normalizer,
            penalty,
            norm_epsilon: 0.0,
        }
    }

    /// The same loss as the distance part of the triplet family, which devices have specialised
    /// code for: RKD's distance.
    pub(crate) fn as_triplet(self) -> Option<Triplet> {
        match self {
            Pairwise {
                relation: Relation::Distance,
                normalizer: Normalizer::Mean,
                penalty: Penalty::Huber { delta },
                norm_epsilon: _,
            } => Some(Triplet {
                delta,
                angle_weight: 0.0,
                distance_weight: 1.0,
            }),
            _ => None,
        }
    }
}
