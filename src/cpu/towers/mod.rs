//! Losses of rows that are compared with one another and all trained: CLIP, SigLIP, SupCon.
//!
//! ```text
//! for each two blocks of rows that meet, in parallel:     log_sums.rs
//!     largest product and Σ exp, of rows and of keys      of student and teacher
//! for each row: its own pair, its losses                  in f64
//! for each two blocks of rows that meet, in parallel:     gradient.rs
//!     products once more, coefficients C_ij = C_ji        by both rows' log-sums
//!     g_i += C_ij x_j        g_j += C_ij x_i
//! ```
//!
//! 1. A coefficient has what row i does to row j and what j does to i. Both need a log-sum of their
//!    row, so there are two sweeps, and no matrix of rows × rows.
//! 2. The own pair is kept apart: the partner in the other half, or the row itself, which is no key.
//!    Near convergence it has almost all of the softmax, and the small rest is the loss.
//! 3. Blocks meet in rounds in which no two meetings share a block (cpu/pairwise/pairs.rs). So each
//!    product serves both of its rows, a meeting owns what it adds to, and the order of all sums is
//!    fixed.

mod gradient;
mod log_sums;
mod masks;
mod ops;
mod strips;

use self::gradient::{Side, weighted_rows};
use self::log_sums::{LogSums, log_sums};
use self::masks::Masks;
use self::ops::{FIELDS, Labels, Masked, Sigmoid, Softmax};
use self::strips::{Compared, Strips};
use crate::batch::Batch;
use crate::cpu::embeddings::{Embeddings, RowScaling};
use crate::cpu::sums::dot;
use crate::element::{Element, Real};
use crate::error::Result;
use crate::loss::Towers;

/// The loss and its terms. `None` if an input is not finite.
pub(super) fn evaluate<T: Element>(
    loss: &Towers,
    batch: Batch<'_, T>,
    upstream: f64,
    gradient: &mut [T::Real],
) -> Result<Option<(f64, Vec<f64>)>> {
    let scaling = RowScaling::Normalized { epsilon: 0.0 };
    let x = Embeddings::<T::Real>::new(batch.student, scaling)?;
    let has_teacher = loss.reads_teacher() && batch.teacher.dim() > 0;
    let y = has_teacher.then(|| Embeddings::<T::Real>::new(batch.teacher, scaling));
    let y = y.transpose()?;
    if !(x.is_finite() && y.as_ref().is_none_or(Embeddings::is_finite)) {
        return Ok(None);
    }
    let compared = Compared {
        rows: x.rows,
        halves: loss.has_halves(),
    };
    let pass = Pass {
        x: &x,
        strips: Strips::new(&x, compared)?,
        compared,
        upstream,
    };
    let value = match *loss {
        Towers::Softmax {
            temperature,
            teacher_temperature,
            hard_weight,
            soft_weight,
            both_ways,
            guide_margin,
        } => {
            let loss = Softmaxes {
                temperatures: [temperature, teacher_temperature],
                weights: [hard_weight, soft_weight],
                both_ways,
                guide_margin,
            };
            pass.softmax(&loss, y.as_ref(), batch.labels, gradient)?
        }
        Towers::Sigmoid { scale, bias } => pass.sigmoid(scale, bias, gradient)?,
        Towers::Labels { temperature } => {
            pass.labels(temperature, batch.labels.unwrap_or_default(), gradient)?
        }
    };
    Ok(Some(value))
}

/// The rows of one batch, which are keys too.
struct Pass<'a, R: Real> {
    /// At length 1.
    x: &'a Embeddings<R>,
    strips: Strips<R>,
    compared: Compared,
    upstream: f64,
}

/// CLIP's parameters: see [`Towers::Softmax`].
struct Softmaxes {
    /// Of student and teacher.
    temperatures: [f64; 2],
    /// Of the hard and the soft term.
    weights: [f64; 2],
    both_ways: bool,
    guide_margin: Option<f64>,
}

impl<R: Real> Pass<'_, R> {
    /// `y`, the teacher's rows, are a target, a guide, or both.
    fn softmax<G: Real>(
        &self,
        loss: &Softmaxes,
        y: Option<&Embeddings<R>>,
        labels: Option<&[u32]>,
        gradient: &mut [G],
    ) -> Result<(f64, Vec<f64>)> {
        let rows = self.x.rows;
        let [temperature, teacher_temperature] = loss.temperatures;
        let [hard_weight, soft_weight] = loss.weights;
        let strips = y.map(|y| Strips::new(y, self.compared)).transpose()?;
        let side = y.zip(strips.as_ref());
        let side = side.map(|(rows, strips)| Side { rows, strips });
        let numbers = labels.map(|labels| numbered(labels).0);
        let masks = (numbers.is_some() || loss.guide_margin.is_some()).then(|| {
            Masks::new(
                self.compared,
                numbers.as_deref(),
                side.zip(loss.guide_margin),
            )
        });
        let with_partners = |of, temperature| -> Result<Vec<WithPartner>> {
            let mut all = self.with_partners(of, temperature, masks.as_ref())?;
            if !loss.both_ways {
                all[rows / 2..].fill(WithPartner::NONE);
            }
            Ok(all)
        };
        let student = with_partners(self.student(), temperature)?;
        let target = side.filter(|_| soft_weight > 0.0);
        let teacher = target.map(|side| with_partners(side, teacher_temperature));
        let teacher = teacher.transpose()?;
        let soft = if teacher.is_some() { soft_weight } else { 0.0 };
        let mut fields = vec![[R::ZERO; FIELDS]; rows];
        for (i, fields) in fields.iter_mut().enumerate() {
            fields[0] = R::from_f64(student[i].largest);
            fields[1] = R::from_f64(student[i].excess);
            if let Some(teacher) = &teacher {
                fields[2] = R::from_f64(teacher[i].largest);
                fields[3] = R::from_f64(teacher[i].excess);
            }
            if let Some(masks) = &masks {
                fields[4..].copy_from_slice(&masks.fields[i]);
            }
        }
        let op = Softmax {
            per_temperature: [1.0 / temperature, 1.0 / teacher_temperature].map(R::from_f64),
            of_student: R::from_f64(hard_weight + soft),
            of_teacher: R::from_f64(soft),
        };
        // What a row makes of its own pair, less than 0: nothing is subtracted where q is near 1.
        let own: Vec<f64> = (0..rows)
            .map(|i| {
                let others = teacher.as_ref().map_or(0.0, |teacher| teacher[i].others);
                soft * others - (hard_weight + soft) * student[i].others
            })
            .collect();
        let factor = if loss.both_ways { 1.0 } else { 2.0 } / rows as f64;
        let (sums, moments) = match &masks {
            None => weighted_rows(op, self.student(), side, self.compared, &fields),
            Some(_) => weighted_rows(Masked(op), self.student(), side, self.compared, &fields),
        }?;
        let along = self.write(&sums, factor / temperature, gradient, |i| {
            own[i] + own[self.compared.partner(i)]
        })?;
        let hard = factor * student.iter().map(|row| row.own_loss).sum::<f64>();
        let soft_term = match &teacher {
            None => 0.0,
            Some(teacher) => {
                let cross_entropy = |i: usize| {
                    let (s, p_own) = (&student[i], 1.0 - teacher[i].others);
                    s.excess + p_own * s.own_below
                };
                let counted = if loss.both_ways { rows } else { rows / 2 };
                let of_rows = (0..counted).map(cross_entropy).sum::<f64>();
                factor * (of_rows + moments.0[0] / temperature)
            }
        };
        let value = hard_weight * hard + soft * soft_term;
        // Each pair is in the sum of both of its rows.
        Ok((value, vec![hard, soft_term, 0.5 * factor * along]))
    }

    fn student(&self) -> Side<'_, R> {
        Side {
            rows: self.x,
            strips: &self.strips,
        }
    }

    /// The log-sums of all rows, and how their partner stands among them.
    fn with_partners(
        &self,
        of: Side<'_, R>,
        temperature: f64,
        masks: Option<&Masks<'_, R>>,
    ) -> Result<Vec<WithPartner>> {
        let all = log_sums(of.rows, of.strips, self.compared, temperature, masks)?;
        let with_partner = |(i, of_row)| {
            let [row, partner] = [i, self.compared.partner(i)].map(|i| of.rows.row(i));
            WithPartner::new(of_row, dot(row, partner) / temperature, temperature)
        };
        Ok(all.into_iter().enumerate().map(with_partner).collect())
    }

    fn sigmoid<G: Real>(
        &self,
        scale: f64,
        bias: f64,
        gradient: &mut [G],
    ) -> Result<(f64, Vec<f64>)> {
        let rows = self.x.rows;
        let op = Sigmoid {
            scale: R::from_f64(scale),
            bias: R::from_f64(bias),
        };
        let fields = vec![[R::ZERO; FIELDS]; rows];
        let (sums, moments) = weighted_rows(op, self.student(), None, self.compared, &fields)?;
        // The own pair: −log σ(l), and its slope −σ(−l).
        let own: Vec<(f64, f64)> = (0..rows)
            .map(|i| {
                let product = dot(self.x.row(i), self.x.row(self.compared.partner(i)));
                let logit = scale * product + bias;
                let decay = (-logit.abs()).exp();
                let sigma = if logit > 0.0 { decay } else { 1.0 } / (1.0 + decay);
                ((-logit).max(0.0) + decay.ln_1p(), -sigma)
            })
            .collect();
        let pairs = (rows / 2) as f64;
        let along = self.write(&sums, scale / pairs, gradient, |i| own[i].1)?;
        let [losses, slopes] = moments.0;
        // Each own pair is that of two rows, and so is each pair along them.
        let value = losses + 0.5 * own.iter().map(|own| own.0).sum::<f64>();
        let of_bias = slopes + 0.5 * own.iter().map(|own| own.1).sum::<f64>();
        Ok((value / pairs, vec![0.5 * along / pairs, of_bias / pairs]))
    }

    fn labels<G: Real>(
        &self,
        temperature: f64,
        labels: &[u32],
        gradient: &mut [G],
    ) -> Result<(f64, Vec<f64>)> {
        let rows = self.x.rows;
        let (numbers, sizes) = numbered(labels);
        let positives = |i: usize| sizes[numbers[i]] - 1;
        let counted = (0..rows).filter(|&i| positives(i) > 0).count();
        if counted == 0 {
            gradient.fill(G::ZERO);
            return Ok((0.0, vec![0.0]));
        }
        let of_rows = log_sums(self.x, &self.strips, self.compared, temperature, None)?;
        let excess: Vec<f64> = of_rows.iter().map(|row| row.sum.ln()).collect();
        let mut fields = vec![[R::ZERO; FIELDS]; rows];
        for (i, fields) in fields.iter_mut().enumerate() {
            fields[0] = R::from_f64(of_rows[i].largest);
            fields[1] = R::from_f64(excess[i]);
            // Exact: there are fewer labels than f32 can count.
            fields[2] = R::from_f64(numbers[i] as f64);
            if positives(i) > 0 {
                fields[3] = R::ONE;
                fields[4] = R::from_f64(1.0 / positives(i) as f64);
            }
        }
        let op = Labels {
            per_temperature: R::from_f64(1.0 / temperature),
        };
        let (sums, moments) = weighted_rows(op, self.student(), None, self.compared, &fields)?;
        let factor = 1.0 / counted as f64;
        let along = self.write(&sums, factor / temperature, gradient, |_| 0.0)?;
        let counts = |&i: &usize| positives(i) > 0;
        let log_sums: f64 = (0..rows).filter(counts).map(|i| excess[i]).sum();
        let value = log_sums + moments.0[0] / temperature;
        Ok((factor * value, vec![0.5 * factor * along]))
    }

    /// Writes the gradient, upstream · factor · (g_i + own_i x_partner) carried back to the rows as
    /// they came. Returns Σ_i ⟨x_i, g_i⟩ with the own pair.
    fn write<G: Real>(
        &self,
        sums: &[R],
        factor: f64,
        gradient: &mut [G],
        own: impl Fn(usize) -> f64 + Sync,
    ) -> Result<f64> {
        let dim = self.x.dim;
        let along: Vec<f64> =
            crate::cpu::parallel::try_map_blocks(gradient, dim, &|i, out: &mut [G]| {
                let partner = self.x.row(self.compared.partner(i));
                let coefficient = own(i);
                let mut g = crate::cpu::buffer::Buffer::<R>::any(dim)?;
                let of_row = &sums[i * self.x.stride..][..dim];
                for ((g, &sum), &other) in g.iter_mut().zip(of_row).zip(partner) {
                    *g = R::from_f64(sum.to_f64() + coefficient * other.to_f64());
                }
                self.x.write_gradient(i, self.upstream * factor, &g, out);
                Ok(dot(&g, &self.x.row(i)[..dim]))
            })?;
        Ok(along.iter().sum())
    }
}

/// A row's softmax over the other half, with its partner.
#[derive(Clone, Copy)]
struct WithPartner {
    /// The largest product with another key.
    largest: f64,
    /// The log-sum over all keys less largest/τ; at least 0.
    excess: f64,
    /// The weight of all keys but the partner.
    others: f64,
    /// −log of the partner's weight.
    own_loss: f64,
    /// largest/τ less the partner's logit.
    own_below: f64,
}

impl WithPartner {
    /// Of a row that has no softmax: no key weighs anything. The excess is far above the largest
    /// product/τ, 1e30, and far within f32.
    const NONE: Self = WithPartner {
        largest: 0.0,
        excess: 1e37,
        others: 0.0,
        own_loss: 0.0,
        own_below: 0.0,
    };

    fn new(row: LogSums, own: f64, temperature: f64) -> Self {
        if row.sum == 0.0 {
            // There is no other key.
            return WithPartner {
                largest: 0.0,
                excess: own.max(0.0),
                others: 0.0,
                own_loss: 0.0,
                own_below: -own.max(0.0),
            };
        }
        let below = row.largest / temperature - own;
        // The others' log-sum less the partner's logit.
        let a = below + row.sum.ln();
        let ratio = (-a.abs()).exp();
        let (own_loss, others) = if a > 0.0 {
            (a + ratio.ln_1p(), 1.0 / (1.0 + ratio))
        } else {
            (ratio.ln_1p(), ratio / (1.0 + ratio))
        };
        WithPartner {
            largest: row.largest,
            excess: (own_loss - below).max(0.0),
            others,
            own_loss,
            own_below: below,
        }
    }
}

/// A number from 0 on for each label, and how many rows have each.
fn numbered(labels: &[u32]) -> (Vec<usize>, Vec<usize>) {
    let mut known = std::collections::HashMap::new();
    let mut sizes = Vec::new();
    let mut number = |&label: &u32| {
        let next = known.len();
        let number = *known.entry(label).or_insert(next);
        if number == sizes.len() {
            sizes.push(0);
        }
        sizes[number] += 1;
        number
    };
    let numbers = labels.iter().map(&mut number).collect();
    (numbers, sizes)
}
