//! Launches that begin before the launch before them ends.

use relata::cuda::cudarc::driver::CudaSlice;
use relata::cuda::{Evaluator, Queue, VALUE_LEN};
use relata::{Error, Problem, Rkd, Rrd, Shapes};

use crate::fake_driver::{actions, calls, with_fake_driver};
use crate::stream;

const ROWS: usize = 40;
const DIM: usize = 6;
/// The attribute CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION and its value.
const EARLY: &str = " attribute 6 1";

fn rkd() -> Problem {
    let shapes = Shapes::new(ROWS, DIM, DIM);
    Rkd::default().problem(shapes).expect("shapes that fit")
}

/// An evaluator with its inputs and outputs.
struct Evaluations {
    evaluator: Evaluator<f32>,
    rows: CudaSlice<f32>,
    gradient: CudaSlice<f32>,
    value: CudaSlice<f32>,
}

impl Evaluations {
    fn new(problem: &Problem) -> Self {
        let stream = stream();
        Evaluations {
            evaluator: Evaluator::new(&stream, problem).expect("an evaluator"),
            rows: stream.alloc_zeros(ROWS * DIM).expect("memory"),
            gradient: stream.alloc_zeros(ROWS * DIM).expect("memory"),
            value: stream.alloc_zeros(VALUE_LEN).expect("memory"),
        }
    }

    /// The launches of one more evaluation.
    fn launches(&mut self) -> Vec<String> {
        calls();
        let (gradient, value) = (&mut self.gradient, &mut self.value);
        let launched = self
            .evaluator
            .launch(&self.rows, &self.rows, gradient, value);
        launched.expect("launches");
        actions(calls())
    }

    fn launches_with_queue(&mut self, queue: &mut Queue<f32>) -> Vec<String> {
        calls();
        let (gradient, value) = (&mut self.gradient, &mut self.value);
        let launched = self
            .evaluator
            .launch_with_queue(&self.rows, &self.rows, queue, gradient, value);
        launched.expect("launches");
        actions(calls())
    }
}

/// The launches without the call and the attribute that launched them.
fn without_attributes(launches: &[String]) -> Vec<String> {
    let plain = launches.iter().map(|call| {
        let call = call.replacen("cuLaunchKernelEx ", "cuLaunchKernel ", 1);
        call.strip_suffix(EARLY).unwrap_or(&call).to_owned()
    });
    plain.collect()
}

fn all(launches: &[String], are: fn(&str) -> bool) -> bool {
    launches.iter().all(|call| are(call))
}

fn is_plain(call: &str) -> bool {
    call.starts_with("cuLaunchKernel ")
}

fn is_early(call: &str) -> bool {
    call.starts_with("cuLaunchKernelEx relata_") && call.ends_with(EARLY)
}

with_fake_driver!(all_launches_but_the_first_overlap, [], {
    let mut evaluations = Evaluations::new(&rkd());
    let plain = evaluations.launches();
    assert!(
        plain.len() > 2 && all(&plain, is_plain),
        "off at first: {plain:#?}"
    );
    assert_eq!(evaluations.evaluator.set_overlap(true), Ok(true));
    for _ in 0..2 {
        let launches = evaluations.launches();
        assert!(is_plain(&launches[0]), "{launches:#?}");
        assert!(all(&launches[1..], is_early), "{launches:#?}");
        assert_eq!(without_attributes(&launches), plain);
    }
    evaluations.evaluator.set_upstream(2.0).expect("a factor");
    assert!(is_early(&evaluations.launches()[1]), "it stays set");
    evaluations.evaluator.set_upstream(1.0).expect("a factor");
    assert_eq!(evaluations.evaluator.set_overlap(false), Ok(false));
    assert_eq!(evaluations.launches(), plain);
});

// The launches that fill the queue do not overlap: callers may also fill it between evaluations.
with_fake_driver!(launches_that_fill_a_queue_do_not_overlap, [], {
    let shapes = Shapes::new(ROWS, DIM, DIM).with_queue(100);
    let problem = Rrd::default().problem(shapes).expect("shapes that fit");
    let mut evaluations = Evaluations::new(&problem);
    let mut queue = Queue::new(&stream(), &problem).expect("a queue");
    let plain = evaluations.launches_with_queue(&mut queue);
    assert_eq!(evaluations.evaluator.set_overlap(true), Ok(true));
    let launches = evaluations.launches_with_queue(&mut queue);
    assert_eq!(without_attributes(&launches), plain);
    let (keys, evaluation) = launches.split_at(2);
    assert!(
        keys.iter().all(|call| call.contains("_keys_")),
        "{launches:#?}"
    );
    assert!(all(keys, is_plain), "{launches:#?}");
    assert!(is_plain(&evaluation[0]), "{launches:#?}");
    assert!(
        evaluation.len() > 1 && all(&evaluation[1..], is_early),
        "{launches:#?}"
    );
});

/// Overlap is asked for, and this GPU or driver does not have it.
fn stays_plain() {
    let mut evaluations = Evaluations::new(&rkd());
    let plain = evaluations.launches();
    assert_eq!(evaluations.evaluator.set_overlap(true), Ok(false));
    assert_eq!(evaluations.launches(), plain);
    assert!(all(&plain, is_plain), "{plain:#?}");
}

with_fake_driver!(
    no_overlap_on_older_gpus,
    [("FAKE_DRIVER_CAPABILITY", "80")],
    {
        stays_plain();
    }
);

// A driver that is told to compile the kernels itself takes the PTX. That PTX is for older GPUs, so
// its kernels do not wait.
with_fake_driver!(
    no_overlap_where_kernels_do_not_wait,
    [("FAKE_DRIVER_PTX", "80")],
    {
        stays_plain();
    }
);

with_fake_driver!(no_overlap_with_older_drivers, [], {
    let mut evaluations = Evaluations::new(&rkd());
    for (driver, can) in [("12020", false), ("12030", true), ("13000", true)] {
        // The kernels are newer than these drivers, so they are loaded with a newer one.
        // SAFETY: no other thread of this process reads or writes the environment meanwhile.
        unsafe { std::env::set_var("FAKE_DRIVER_VERSION", driver) };
        assert_eq!(evaluations.evaluator.set_overlap(true), Ok(can), "{driver}");
        assert_eq!(is_early(&evaluations.launches()[1]), can, "{driver}");
    }
});

with_fake_driver!(
    a_refused_launch_is_an_error,
    [("FAKE_DRIVER_FAIL", "cuLaunchKernelEx:701")],
    {
        let mut evaluations = Evaluations::new(&rkd());
        assert_eq!(evaluations.evaluator.set_overlap(true), Ok(true));
        let Evaluations {
            evaluator,
            rows,
            gradient,
            value,
        } = &mut evaluations;
        let refused = evaluator.launch(rows, rows, gradient, value);
        assert!(
            matches!(refused, Err(Error::Cuda { during, code: 701, .. }) if during.starts_with("relata_")),
            "{refused:?}"
        );
    }
);
