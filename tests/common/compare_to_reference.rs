//! A device against the reference: the one comparer for cases of the table and for any other batch.

use half::f16;
use relata::{DType, Device, Element, Evaluation, Family, Loss, Queue, Real, Reference, Rows};
#[cfg(any(feature = "cuda", feature = "emulator"))]
use relata::{GpuElement, WeightPrecision};

use super::cases::{Case, Data, Inputs};
use super::compare::{assert_gradient, assert_loss, norm, relative_error};
use super::losses;
use super::order;
use super::tolerances::{
    ROUNDING_OF_WEIGHTS, Tolerance, conditioning, conditioning_of_dim, kl_budget, parameter_budget,
    rounding_of_weights, tolerance,
};

/// A device and the reference on the same numbers.
///
/// ```ignore
/// Comparison::of_case(&Cpu, &case).assert();
/// Comparison::new(&emulator, "long rows", inputs).keys_as_stored().within(1e-6, 1e-5).assert();
/// ```
pub(crate) struct Comparison<'a, T: Element, D> {
    device: &'a D,
    /// The batch, its element type and the device, as failures name them.
    pub(crate) name: String,
    pub(crate) inputs: Inputs<T>,
    within: Tolerance,
}

impl<'a, T: Element, D: Device<T>> Comparison<'a, T, D> {
    /// Compares well conditioned inputs, to the tolerance of their loss and type.
    pub(crate) fn new(device: &'a D, name: &str, inputs: Inputs<T>) -> Self {
        Comparison::of_data(device, name, inputs, Data::Gaussian)
    }

    /// Compares a case of the table.
    pub(crate) fn of_case(device: &'a D, case: &Case) -> Self {
        Comparison::of_data(device, &case.name, case.inputs(), case.data)
    }

    /// Compares inputs that look like `data`.
    pub(crate) fn of_data(device: &'a D, name: &str, inputs: Inputs<T>, data: Data) -> Self {
        let problem = &inputs.problem;
        let mut within = tolerance(problem.loss(), T::DTYPE)
            .magnified(conditioning(data, T::DTYPE))
            .magnified(conditioning_of_dim(
                problem.loss(),
                problem.shapes().student_dim,
            ));
        // Not magnified: it is the difference of student and teacher that is rounded.
        within.gradient += rounding_of_weights(problem, T::DTYPE);
        Comparison {
            device,
            name: format!("{name} in {} on {}", T::DTYPE, device.name()),
            inputs,
            within,
        }
    }

    /// Compares to these tolerances.
    pub(crate) fn within(mut self, loss: f64, gradient: f64) -> Self {
        self.within = Tolerance { loss, gradient };
        self
    }

    /// Compares to the tolerances so far and these.
    pub(crate) fn and_within(mut self, more: Tolerance) -> Self {
        self.within = self.within.plus(more);
        self
    }

    /// The device's evaluation.
    pub(crate) fn evaluate(&self) -> Evaluation<D::Gradient> {
        self.inputs.evaluate(self.device)
    }

    /// Evaluates on the device and asserts that it is right; gives the reference's evaluation.
    pub(crate) fn assert(&self) -> Evaluation<f64> {
        self.assert_right(&self.evaluate())
    }

    /// What rounding to f32 may change of a loss that counts comparisons. The CPU computes that loss
    /// in f64.
    fn turned_over(&self, want: &Evaluation<f64>) -> Tolerance {
        let problem = &self.inputs.problem;
        let in_f64 = ["reference", "cpu"].contains(&self.device.name());
        let nothing = Tolerance {
            loss: 0.0,
            gradient: 0.0,
        };
        if in_f64 {
            return nothing;
        }
        let wide = |rows: &[T]| -> Vec<f64> { rows.iter().map(|x| x.to_f64()).collect() };
        let (x, y) = (wide(&self.inputs.student), wide(&self.inputs.teacher));
        if let Some(length) = order::length(problem.loss()) {
            // Another neighbour is another loss: a case is to have none that rounding may exchange.
            let dim = problem.shapes().teacher_dim;
            let clear = order::has_clear_neighbors(&y, dim, length, order::NEAR);
            assert!(clear, "{}: take other rows", self.name);
        }
        let Some(margin) = order::margin(problem.loss()) else {
            return nothing;
        };
        let reach = [order::COSINES; 2];
        let most = order::within_reach(margin, &x, &y, problem.shapes(), reach);
        let relative = |most: f64, of: f64| if most == 0.0 { 0.0 } else { most / of };
        Tolerance {
            loss: relative(most.loss, want.loss),
            gradient: relative(
                most.gradient * problem.upstream().abs(),
                want.gradient_norm(),
            ),
        }
    }

    /// Asserts that `got` is right: the loss, its terms and the gradient.
    pub(crate) fn assert_right<R: Real>(&self, got: &Evaluation<R>) -> Evaluation<f64> {
        let Comparison {
            name,
            inputs,
            within,
            ..
        } = self;
        let want = inputs.evaluate(&Reference);
        let loss = inputs.problem.loss();
        let within = within.plus(self.turned_over(&want));
        assert_loss(name, got.loss, want.loss, within.loss);
        assert_eq!(
            got.terms.iter().count(),
            want.terms.iter().count(),
            "{name}"
        );
        for ((term, got), (wanted, want_term)) in got.terms.iter().zip(want.terms.iter()) {
            assert_eq!(term, wanted, "{name}");
            if term == "kl" {
                // Written so that a NaN fails.
                let budget = kl_budget(loss, T::DTYPE, within.loss, want.loss);
                let right = (got - want_term).abs() <= budget;
                assert!(right, "{name}: KL {got:e}, want {want_term:e}");
            } else if term.ends_with("_gradient") {
                let budget = parameter_budget(within.gradient, want_term);
                let right = (got - want_term).abs() <= budget;
                assert!(right, "{name}, {term}: {got:e}, want {want_term:e}");
            } else {
                assert_loss(&format!("{name}, {term}"), got, want_term, within.loss);
            }
        }
        let dim = inputs.problem.shapes().student_dim;
        assert_gradient(name, &got.gradient, &want.gradient, dim, within.gradient);
        want
    }
}

#[cfg(any(feature = "cuda", feature = "emulator"))]
impl<T: GpuElement<Real = f32>, D: Device<T>> Comparison<'_, T, D> {
    /// Compares on keys as a GPU stores them: rounding them is no error then.
    pub(crate) fn keys_as_stored(mut self) -> Self {
        let queue = self.inputs.queue.take();
        self.inputs.queue = queue.map(|queue| as_stored::<T>(&queue, self.inputs.problem.loss()));
        self
    }
}

/// Asserts that `device` is right on `case`; says whether there was a gradient to get wrong.
pub(crate) fn assert_right<T: Element, D: Device<T>>(device: &D, case: &Case) -> bool {
    Comparison::of_case(device, case).assert().gradient_norm() > 0.0
}

/// The same of a device that runs the CUDA kernels, on keys as it stores them.
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub(crate) fn assert_kernels_right<T, D>(device: &D, case: &Case) -> bool
where
    T: GpuElement<Real = f32>,
    D: Device<T>,
{
    let comparison = Comparison::of_case(device, case).keys_as_stored();
    comparison.assert().gradient_norm() > 0.0
}

/// The same of more rows than the reference evaluates in a reasonable time: the CPU path takes its
/// place.
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub(crate) fn assert_many_rows_right<T, D>(device: &D, case: &Case)
where
    T: GpuElement,
    D: Device<T, Gradient = f32>,
{
    let inputs = case.inputs::<T>();
    let got = inputs.evaluate(device);
    let want = inputs.evaluate(&relata::Cpu);
    let name = format!("{} in {} on {}", case.name, T::DTYPE, device.name());
    assert_loss(&name, got.loss, want.loss, 2e-6);
    let want: Vec<f64> = want.gradient.iter().map(|g| g.to_f64()).collect();
    // As far off as the law of cosines is in f32. For a student that has nearly converged, farther.
    let tolerance = if matches!(case.data, Data::NearTeacher { .. }) {
        3e-5
    } else {
        3e-6
    };
    assert_gradient(&name, &got.gradient, &want, case.student_dim, tolerance);
}

/// Asserts that weights in one f16 change no loss, and a gradient no more than they may. Only
/// losses over keys have such weights.
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub(crate) fn assert_half_weights_right<T, D>(device: &D, case: &Case)
where
    T: GpuElement<Real = f32>,
    D: Device<T, Gradient = f32>,
{
    if !matches!(case.loss.spec().family, Family::Contrastive(_)) {
        return;
    }
    let mut inputs = case.inputs::<T>();
    let problem = inputs.problem;
    let [split, half] = [WeightPrecision::Split, WeightPrecision::Half].map(|weights| {
        inputs.problem = problem.with_weight_precision(weights);
        inputs.evaluate(device)
    });
    let name = format!("{} in {}, weights in one f16", case.name, T::DTYPE);
    assert_eq!(half.loss.to_bits(), split.loss.to_bits(), "{name}");
    let [half_kl, split_kl] = [half.term("kl"), split.term("kl")].map(|kl| kl.map(f64::to_bits));
    assert_eq!(half_kl, split_kl, "{name}");
    let want: Vec<f64> = split.gradient.iter().map(|&g| g.into()).collect();
    let off = relative_error(&half.gradient, &want);
    assert!(
        off <= ROUNDING_OF_WEIGHTS || norm(&want) < 1e-6,
        "{name}: {off:e}"
    );
}

/// The queue as a GPU holds it: unit keys of half-precision losses are rounded to f16.
pub(crate) fn as_stored<T: Element>(queue: &Queue<f32>, loss: &Loss) -> Queue<f32> {
    if T::DTYPE == DType::F32 || !losses::normalizes(loss) {
        return queue.clone();
    }
    let round = |&x: &f32| f16::from_f32(x).to_f32();
    let keys: Vec<f32> = queue.keys().iter().map(round).collect();
    let stored = Queue::new(queue.len(), queue.dim());
    let mut stored = stored.expect("keys").with_normalize(false);
    stored
        .enqueue(Rows::new(&keys, [queue.len(), queue.dim()]).expect("whole keys"))
        .expect("finite keys");
    // Rounding has left the keys unit keys, which need no second normalisation.
    stored.with_normalize(true)
}
