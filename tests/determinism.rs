//! The same input gives the same bits: run after run, on any number of threads, into any memory.

mod common;

use common::compare::assert_same_bits;
use common::losses::{losses, shapes_of};
use common::{Input, cast, for_every_dtype};
use rayon::ThreadPoolBuilder;
use relata::{
    Cpu, Device, Element, Evaluation, Family, Loss, Real, Reference, Relation, Rows, Shapes,
    relation_matrix, softmax,
};

/// Shapes that several threads share: more rows than a block of any kind, and no multiple of one.
/// The queue has several parts.
const LARGE: [usize; 4] = [150, 37, 70, 9001];

/// Every loss on inputs that exercise all of its paths.
fn cases() -> Vec<(Loss, Input)> {
    let mut cases = Vec::new();
    for loss in losses() {
        for (seed, sizes) in [LARGE, [5, 3, 2, 7]].into_iter().enumerate() {
            for mut shapes in shapes_of(&loss, sizes) {
                if matches!(loss.spec().family, Family::Logits(_)) && sizes == LARGE {
                    // More classes than are added up at a time.
                    shapes = Shapes::new(9, 2500, 2500);
                }
                let mut input = Input::normal(seed as u64, shapes);
                cases.push((loss, input.clone()));
                if matches!(loss.spec().family, Family::Triplet(_)) {
                    // Every other row is nearly the one before: too close for the law of cosines.
                    for pair in input.student.chunks_exact_mut(2 * shapes.student_dim) {
                        let (one, other) = pair.split_at_mut(shapes.student_dim);
                        other.copy_from_slice(one);
                        other[0] += 1e-9;
                    }
                    cases.push((loss, input));
                }
            }
        }
    }
    cases
}

#[track_caller]
fn assert_same<R: Real>(label: &str, got: &Evaluation<R>, want: &Evaluation<R>) {
    assert_same_bits(label, &got.gradient, &want.gradient);
    assert_same_bits(label, &[got.loss], &[want.loss]);
    assert_eq!(
        got.term("kl").map(f64::to_bits),
        want.term("kl").map(f64::to_bits),
        "{label}"
    );
}

fn label<T: Element>(loss: &Loss, input: &Input) -> String {
    format!("{loss:?} on {:?} in {}", input.shapes, T::DTYPE)
}

#[test]
fn cpu_gives_the_same_bits_on_any_number_of_threads() {
    fn assert_same_in<T: Element>(pools: &[rayon::ThreadPool], loss: Loss, input: &Input) {
        let problem = input.problem(loss);
        let label = label::<T>(&loss, input);
        let outside = input.run::<T, _>(&Cpu, &problem);
        assert!(outside.gradient_norm() > 0.0, "{label}: nothing to compare");
        assert_same(&label, &input.run::<T, _>(&Cpu, &problem), &outside);
        for pool in pools {
            let inside = pool.install(|| input.run::<T, _>(&Cpu, &problem));
            let label = format!("{label}, {} threads", pool.current_num_threads());
            assert_same(&label, &inside, &outside);
        }
    }
    let pools = [1, 2, 3, 7].map(|threads| {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("threads")
    });
    for (loss, input) in cases() {
        assert_same_in::<f32>(&pools, loss, &input);
        assert_same_in::<f64>(&pools, loss, &input);
    }
}

#[test]
fn reference_gives_the_same_bits_on_any_number_of_threads() {
    let pools = [1, 3].map(|threads| {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("threads")
    });
    for (loss, input) in cases() {
        if input.shapes.rows > 100 {
            continue; // O(N³D)
        }
        let problem = input.problem(loss);
        let [one, three] = pools
            .each_ref()
            .map(|pool| pool.install(|| input.run::<f32, _>(&Reference, &problem)));
        assert_same(&label::<f32>(&loss, &input), &three, &one);
    }
}

#[test]
fn cpu_gives_the_same_bits_whatever_it_computed_before() {
    // The workspace is kept and used again. The numbers of another loss in it must not show.
    let cases = cases();
    let alone: Vec<_> = cases
        .iter()
        .map(|(loss, input)| {
            let problem = input.problem(*loss);
            std::thread::scope(|scope| {
                // A new thread, and a new pool of one: no memory has been used before.
                let fresh = scope.spawn(|| {
                    let pool = ThreadPoolBuilder::new().num_threads(1).build();
                    let pool = pool.expect("a thread");
                    pool.install(|| input.run::<f32, _>(&Cpu, &problem))
                });
                fresh.join().expect("an evaluation")
            })
        })
        .collect();
    let pool = ThreadPoolBuilder::new().num_threads(1).build();
    let pool = pool.expect("a thread");
    pool.install(|| {
        for ((loss, input), alone) in cases.iter().zip(&alone).rev() {
            // NaN that stayed in the workspace would show.
            let mut spoilt = input.clone();
            spoilt.student.fill(f64::NAN);
            let problem = input.problem(*loss);
            assert!(spoilt.run::<f32, _>(&Cpu, &problem).loss.is_nan());
            let again = input.run::<f32, _>(&Cpu, &problem);
            assert_same(&label::<f32>(loss, input), &again, alone);
        }
    });
}

#[test]
fn evaluate_into_overwrites_all_of_it() {
    fn assert_overwrites<T: Element, D: Device<T>>(device: &D, loss: Loss, input: &Input) {
        let problem = input.problem(loss).with_upstream(1.5);
        let inputs = input.inputs::<T>(&problem);
        let want = inputs.evaluate(device);
        let label = format!("{} on {}", label::<T>(&loss, input), device.name());
        for garbage in [f64::NAN, 1e30] {
            let garbage = <D::Gradient as Element>::from_f64(garbage);
            let mut gradient = vec![garbage; want.gradient.len()];
            let value = problem
                .evaluate_into(device, inputs.batch(), &mut gradient)
                .expect("a valid batch");
            assert_same_bits(&label, &gradient, &want.gradient);
            assert_same_bits(&label, &[value.loss], &[want.loss]);
            assert_eq!(value.term("kl"), want.term("kl"), "{label}");
            assert!(gradient.iter().all(|g| g.to_f64().is_finite()), "{label}");
        }
    }
    fn on_both<T: Element>(loss: Loss, input: &Input) {
        assert_overwrites::<T, _>(&Cpu, loss, input);
        assert_overwrites::<T, _>(&Reference, loss, input);
    }
    for (loss, input) in cases() {
        if input.shapes.rows < 100 {
            for_every_dtype!(on_both(loss, &input));
        }
    }
    // The degenerate ones, which return early: one row, equal rows, zero rows.
    for loss in losses() {
        for shapes in shapes_of(&loss, [1, 3, 3, 2])
            .into_iter()
            .chain(shapes_of(&loss, [4, 3, 3, 2]))
        {
            let mut input = Input::normal(1, shapes);
            input.student.fill(0.0);
            on_both::<f32>(loss, &input);
            on_both::<f64>(loss, &input);
        }
    }
}

#[test]
fn building_blocks_give_the_same_bits_on_any_number_of_threads() {
    fn assert_same_in<T: Element>(pools: &[rayon::ThreadPool]) {
        let data = cast::<T>(&Input::normal(8, Shapes::new(150, 37, 1)).student);
        let rows = Rows::new(&data, [150, 37]).expect("whole rows");
        let relations = [
            Relation::Distance,
            Relation::SquaredDistance,
            Relation::Dot,
            Relation::Cosine,
            Relation::PositiveCosine,
            Relation::ShiftedCosine,
        ];
        let all = || {
            let mut all: Vec<_> = relations
                .map(|relation| relation_matrix(&Cpu, relation, rows).expect("a relation"))
                .concat();
            all.extend(softmax(&Cpu, rows, 0.3).expect("a softmax"));
            all
        };
        let outside = all();
        for pool in pools {
            assert_same_bits(T::DTYPE.name(), &pool.install(all), &outside);
        }
    }
    let pools = [1, 2, 3, 7].map(|threads| {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("threads")
    });
    for_every_dtype!(assert_same_in(&pools));
}
