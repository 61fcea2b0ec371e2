//! Launches that begin before those before them are done.

use relata::cuda::cudarc::driver::CudaSlice;
use relata::cuda::{Evaluator, Queue};
use relata::{Error, Problem, Rkd, Rrd, Shapes};

use crate::support::{calls, deeds};
use crate::{beside, stream};

const ROWS: usize = 40;
const DIM: usize = 6;
/// CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, and what it is set to.
const EARLY: &str = " attribute 6 1";

fn rkd() -> Problem {
    let shapes = Shapes::new(ROWS, DIM, DIM);
    Rkd::default().problem(shapes).expect("shapes that fit")
}

/// An evaluator with what it takes.
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
            value: stream.alloc_zeros(2).expect("memory"),
        }
    }

    /// The launches of one more.
    fn launches(&mut self) -> Vec<String> {
        calls();
        let (gradient, value) = (&mut self.gradient, &mut self.value);
        let enqueued = self
            .evaluator
            .launch(&self.rows, &self.rows, gradient, value);
        enqueued.expect("launches");
        deeds(calls())
    }

    fn launches_with(&mut self, queue: &mut Queue<f32>) -> Vec<String> {
        calls();
        let (gradient, value) = (&mut self.gradient, &mut self.value);
        let enqueued = self
            .evaluator
            .launch_with_queue(&self.rows, &self.rows, queue, gradient, value);
        enqueued.expect("launches");
        deeds(calls())
    }
}

/// Without how they are launched.
fn what(launches: &[String]) -> Vec<String> {
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

beside!(all_launches_but_the_first_when_it_is_set, StandIn, [], {
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
        assert_eq!(what(&launches), plain);
    }
    evaluations.evaluator.set_upstream(2.0).expect("a factor");
    assert!(is_early(&evaluations.launches()[1]), "it stays set");
    evaluations.evaluator.set_upstream(1.0).expect("a factor");
    assert_eq!(evaluations.evaluator.set_overlap(false), Ok(false));
    assert_eq!(evaluations.launches(), plain);
});

// What enters the queue may come at any other time too.
beside!(a_queue_takes_its_keys_plainly, StandIn, [], {
    let shapes = Shapes::new(ROWS, DIM, DIM).with_queue(100);
    let problem = Rrd::default().problem(shapes).expect("shapes that fit");
    let mut evaluations = Evaluations::new(&problem);
    let mut queue = Queue::new(&stream(), &problem).expect("a queue");
    let plain = evaluations.launches_with(&mut queue);
    assert_eq!(evaluations.evaluator.set_overlap(true), Ok(true));
    let launches = evaluations.launches_with(&mut queue);
    assert_eq!(what(&launches), plain);
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

/// It is asked for and cannot be had.
fn stays_plain() {
    let mut evaluations = Evaluations::new(&rkd());
    let plain = evaluations.launches();
    assert_eq!(evaluations.evaluator.set_overlap(true), Ok(false));
    assert_eq!(evaluations.launches(), plain);
    assert!(all(&plain, is_plain), "{plain:#?}");
}

beside!(
    not_on_older_gpu,
    StandIn,
    [("STAND_IN_CAPABILITY", "80")],
    {
        stays_plain();
    }
);

// A driver that is told to compile them itself takes the PTX, which is for older GPUs.
beside!(
    not_where_kernels_do_not_wait,
    StandIn,
    [("STAND_IN_PTX", "80")],
    {
        stays_plain();
    }
);

beside!(not_by_older_drivers, StandIn, [], {
    let mut evaluations = Evaluations::new(&rkd());
    for (driver, can) in [("12020", false), ("12030", true), ("13000", true)] {
        // The kernels are newer than such drivers, and are asked for first.
        // SAFETY: no other thread of this process reads or writes the environment meanwhile.
        unsafe { std::env::set_var("STAND_IN_DRIVER", driver) };
        assert_eq!(evaluations.evaluator.set_overlap(true), Ok(can), "{driver}");
        assert_eq!(is_early(&evaluations.launches()[1]), can, "{driver}");
    }
});

beside!(
    what_the_driver_refuses_is_an_error,
    StandIn,
    [("STAND_IN_FAIL", "cuLaunchKernelEx:701")],
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
            matches!(refused, Err(Error::Cuda { doing, code: 701, .. }) if doing.starts_with("relata_")),
            "{refused:?}"
        );
    }
);
