//! Tests of the kernels on a GPU. Without a GPU each test prints SKIPPED and passes, or fails if
//! RELATA_REQUIRE_CUDA=1.
#![cfg(feature = "cuda")]
#![allow(unsafe_code, reason = "the raw evaluator, and graphs")]

mod common;

use std::io::Write;
use std::sync::Arc;

use common::cases::{self, Case, Inputs};
use common::compare::{assert_gradient, assert_loss, assert_same_bits};
use common::compare_to_reference::{
    assert_half_weights_right, assert_kernels_right, assert_many_rows_right,
};
use common::{Input, cast};
use half::{bf16, f16};
use relata::cuda::cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, sys,
};
use relata::cuda::{
    self, Buffers, Evaluator, Indices, OfRows, Queue, RawEvaluator, SampledKeys, Teacher, VALUE_LEN,
};
use relata::{
    Bank, Batch, Crd, Cuda, DType, Evaluation, GpuElement, InfoNce, KdKl, Loss, NegativeSampler,
    Problem, QueueUse, Reference, Relation, Rows, Rrd, RrdBank, Shapes, TopK, relation_matrix,
    softmax,
};

/// The first GPU. Without one it prints why and returns None.
fn gpu() -> Option<Cuda> {
    match Cuda::new(0) {
        Ok(cuda) => Some(cuda),
        Err(why) if is_required() => panic!("RELATA_REQUIRE_CUDA=1 and no GPU: {why}"),
        Err(why) => {
            let thread = std::thread::current();
            let test = thread.name().unwrap_or("cuda");
            // Written directly to stderr: the test runner captures what print macros write.
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
            None
        }
    }
}

fn is_required() -> bool {
    std::env::var("RELATA_REQUIRE_CUDA").is_ok_and(|required| required == "1")
}

/// The GPU. Without one the test returns.
macro_rules! gpu_or_skip {
    () => {
        match gpu() {
            Some(cuda) => cuda,
            None => return,
        }
    };
}

macro_rules! for_every_gpu_dtype {
    ($check:ident($($argument:expr),*)) => {
        [$check::<f32>($($argument),*), $check::<f16>($($argument),*), $check::<bf16>($($argument),*)]
    };
}

/// Whether launches must overlap: a GPU is required, it is of compute capability 9.0, there are
/// kernels for it, and its driver supports CUDA 12.3 or later.
fn overlap_is_required() -> bool {
    let mut driver = 0;
    // SAFETY: it writes to the address of an int.
    let asked = unsafe { sys::cuDriverGetVersion(&raw mut driver) };
    asked.result().expect("a driver's version");
    let context = CudaContext::new(0).expect("a GPU");
    let capability = context.compute_capability().expect("a capability");
    let targets = relata::cuda::build().targets;
    is_required()
        && capability == (9, 0)
        && targets.iter().any(|target| target.starts_with("sm_90"))
        && driver >= 12_030
}

/// A stream that can be captured: its slices have no events for which a capture would wait.
fn stream_for_captures() -> Arc<CudaStream> {
    let context = CudaContext::new(0).expect("a GPU");
    // SAFETY: only this stream is used.
    unsafe { context.disable_event_tracking() };
    context.new_stream().expect("a stream")
}

/// The cases without a queue.
fn without_queue() -> impl Iterator<Item = Case> {
    cases::tests().filter(|case| case.queue.is_none())
}

/// The inputs and results of an evaluator. Each lies between canaries.
struct OnGpu<T> {
    /// How many elements student, teacher and gradient start behind an aligned address.
    shifts: [usize; 3],
    stream: Arc<CudaStream>,
    problem: Problem,
    student: CudaSlice<T>,
    teacher: CudaSlice<T>,
    queue: Option<Queue<T>>,
    gradient: CudaSlice<f32>,
    value: CudaSlice<f32>,
}

/// The number of elements in a margin, before and after the data. It keeps the alignment of fresh
/// memory, on which the order of sums may depend.
const MARGIN: usize = 128;
const CANARY: f32 = -1.25e33;

impl<T: GpuElement + DeviceRepr> OnGpu<T> {
    fn new(stream: &Arc<CudaStream>, inputs: &Inputs<T>) -> Self {
        OnGpu::shifted(stream, inputs, [0; 3])
    }

    fn shifted(stream: &Arc<CudaStream>, inputs: &Inputs<T>, shifts: [usize; 3]) -> Self {
        let upload = |data: &[T], shift: usize| {
            let nan = |len| vec![T::from_f64(f64::NAN); len];
            stream
                .clone_htod(&[&nan(MARGIN + shift), data, &nan(MARGIN)].concat())
                .expect("memory")
        };
        let canaries = |len| {
            stream
                .clone_htod(&vec![CANARY; len + 2 * MARGIN])
                .expect("memory")
        };
        OnGpu {
            shifts,
            stream: Arc::clone(stream),
            problem: inputs.problem,
            student: upload(&inputs.student, shifts[0]),
            teacher: upload(&inputs.teacher, shifts[1]),
            queue: inputs.queue.as_ref().map(|host| {
                let mut queue = Queue::new(stream, &inputs.problem).expect("memory");
                queue.restore(host).expect("keys that fit");
                queue
            }),
            gradient: canaries(inputs.student.len() + shifts[2]),
            value: canaries(VALUE_LEN),
        }
    }

    fn launch(&mut self, evaluator: &mut Evaluator<T>) {
        let inner = |len: usize, shift: usize| MARGIN + shift..len - MARGIN;
        let [of_student, of_teacher, of_gradient] = self.shifts;
        let (student, teacher) = (
            self.student.slice(inner(self.student.len(), of_student)),
            self.teacher.slice(inner(self.teacher.len(), of_teacher)),
        );
        let gradient = inner(self.gradient.len(), of_gradient);
        let value = inner(self.value.len(), 0);
        let mut gradient = self.gradient.slice_mut(gradient);
        let mut value = self.value.slice_mut(value);
        let launched = match &mut self.queue {
            None => evaluator.launch(&student, &teacher, &mut gradient, &mut value),
            Some(queue) => {
                evaluator.launch_with_queue(&student, &teacher, queue, &mut gradient, &mut value)
            }
        };
        launched.expect("slices that fit");
    }

    /// The loss and the gradient. Checks the canaries.
    fn results(&self, name: &str) -> (f32, Vec<f32>) {
        let download = |slice, shift| {
            let mut all = self.stream.clone_dtoh(slice).expect("results");
            self.stream.synchronize().expect("no fault on the GPU");
            let margins = [
                all.split_off(all.len() - MARGIN),
                all.drain(..MARGIN + shift).collect(),
            ]
            .concat();
            assert_eq!(
                margins,
                vec![CANARY; 2 * MARGIN + shift],
                "{name}: written outside of the result"
            );
            all
        };
        let gradient = download(&self.gradient, self.shifts[2]);
        (download(&self.value, 0)[0], gradient)
    }

    /// Exchanges student and teacher: the next step of a training has other numbers at the same
    /// addresses.
    fn swap_inputs(&mut self) {
        let (student, teacher) = (self.student.len(), self.teacher.len());
        assert_eq!(student, teacher, "a case whose dims are equal");
        assert_eq!(self.shifts[0], self.shifts[1], "equally shifted");
        std::mem::swap(&mut self.student, &mut self.teacher);
    }
}

fn on_host<T: GpuElement>(cuda: &Cuda, inputs: &Inputs<T>) -> Evaluation<f32> {
    let evaluation = inputs.problem.evaluate(cuda, inputs.batch());
    evaluation.expect("a case that fits")
}

#[test]
fn every_case_in_every_dtype() {
    let cuda = gpu_or_skip!();
    fn right<T: GpuElement>(cuda: &Cuda, case: &Case) {
        assert_kernels_right::<T, _>(cuda, case);
    }
    for case in cases::tests() {
        for_every_gpu_dtype!(right(&cuda, &case));
    }
}

#[test]
fn weights_in_one_f16_are_right() {
    let cuda = gpu_or_skip!();
    for case in cases::tests() {
        for_every_gpu_dtype!(half(&cuda, &case));
    }
    fn half<T: GpuElement>(cuda: &Cuda, case: &Case) {
        assert_half_weights_right::<T, _>(cuda, case);
    }
}

#[test]
fn host_slices_and_gpu_slices_give_the_same_bits() {
    let cuda = gpu_or_skip!();
    fn same<T: GpuElement + DeviceRepr>(cuda: &Cuda, case: &Case) {
        let inputs = case.inputs::<T>();
        let name = format!("{} in {}", case.name, T::DTYPE);
        let first = on_host(cuda, &inputs);
        let again = on_host(cuda, &inputs);
        assert_same_bits(&name, &again.gradient, &first.gradient);
        assert_same_bits(&name, &[again.loss], &[first.loss]);
        if inputs.queue.is_some() {
            return;
        }
        let stream = CudaContext::new(0).expect("a GPU").default_stream();
        let mut on_gpu = OnGpu::new(&stream, &inputs);
        let mut evaluator = Evaluator::<T>::new(&stream, &inputs.problem).expect("an evaluator");
        for _ in 0..3 {
            on_gpu.launch(&mut evaluator);
            let (loss, gradient) = on_gpu.results(&name);
            assert_same_bits(&name, &gradient, &first.gradient);
            assert_same_bits(&name, &[f64::from(loss)], &[first.loss]);
        }
    }
    for case in cases::tests() {
        for_every_gpu_dtype!(same(&cuda, &case));
    }
}

/// Views of larger tensors begin anywhere. A kernel may load and store 16 bytes at once only where
/// each address allows it, and the results have the same bits.
#[test]
fn rows_may_begin_at_any_address() {
    /// Student, teacher and gradient: all apart, and each alone.
    const SHIFTS: [[usize; 3]; 6] = [
        [1, 2, 3],
        [0, 1, 2],
        [3, 0, 1],
        [0, 0, 1],
        [0, 2, 0],
        [3, 0, 0],
    ];
    let _cuda = gpu_or_skip!();
    fn same<T: GpuElement + DeviceRepr>(case: &Case) {
        let mut inputs = case.inputs::<T>();
        inputs.problem = case.evaluating_only();
        let stream = CudaContext::new(0).expect("a GPU").default_stream();
        let mut evaluator = Evaluator::<T>::new(&stream, &inputs.problem).expect("an evaluator");
        let mut at = |shifts| {
            let mut on_gpu = OnGpu::shifted(&stream, &inputs, shifts);
            on_gpu.launch(&mut evaluator);
            on_gpu.results(&format!(
                "{} in {}, shifted by {shifts:?}",
                case.name,
                T::DTYPE
            ))
        };
        let (loss, gradient) = at([0; 3]);
        for shifts in SHIFTS {
            let name = format!("{} in {}, shifted by {shifts:?}", case.name, T::DTYPE);
            let (shifted_loss, shifted_gradient) = at(shifts);
            assert_same_bits(&name, &shifted_gradient, &gradient);
            assert_same_bits(&name, &[shifted_loss], &[loss]);
        }
    }
    for case in cases::tests() {
        for_every_gpu_dtype!(same(&case));
    }
}

#[test]
fn a_graph_evaluates_the_current_data() {
    let _cuda = gpu_or_skip!();
    let stream = stream_for_captures();
    for case in without_queue().filter(|case| case.student_dim == case.teacher_dim) {
        let inputs = case.inputs::<f32>();
        let mut on_gpu = OnGpu::new(&stream, &inputs);
        let mut evaluator = Evaluator::<f32>::new(&stream, &inputs.problem).expect("an evaluator");
        // Capture before any launch: the constructor has done all work for a first launch.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).expect("a capture");
        on_gpu.launch(&mut evaluator);
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        let graph = graph
            .expect("nothing that a graph cannot hold")
            .expect("a graph");
        let replayed = [(); 2].map(|()| {
            graph.launch().expect("a launch");
            on_gpu.results(&case.name)
        });
        on_gpu.launch(&mut evaluator);
        let (loss, gradient) = on_gpu.results(&case.name);
        for replayed in replayed {
            assert_same_bits(&case.name, &replayed.1, &gradient);
            assert_same_bits(&case.name, &[replayed.0], &[loss]);
        }
        // The graph holds addresses, not numbers.
        let teacher = on_gpu.teacher.clone();
        stream
            .memcpy_dtod(&teacher, &mut on_gpu.student)
            .expect("a copy");
        graph.launch().expect("a launch");
        let (at_teacher, _) = on_gpu.results(&case.name);
        on_gpu.launch(&mut evaluator);
        assert_same_bits(&case.name, &[at_teacher], &[on_gpu.results(&case.name).0]);
    }
}

/// A launch that does not wait for earlier launches would read old data. So this repeats
/// evaluations with changing numbers, in a stream and as a graph, one directly after another.
#[test]
fn overlapping_launches_give_the_same_bits() {
    let _cuda = gpu_or_skip!();
    let stream = stream_for_captures();
    fn same<T: GpuElement + DeviceRepr>(stream: &Arc<CudaStream>, case: &Case) {
        let name = format!("{} in {}", case.name, T::DTYPE);
        let mut inputs = case.inputs::<T>();
        inputs.problem = case.evaluating_only();
        let mut on_gpu = OnGpu::new(stream, &inputs);
        let mut evaluator = Evaluator::<T>::new(stream, &inputs.problem).expect("an evaluator");
        let want = [(); 2].map(|()| {
            on_gpu.launch(&mut evaluator);
            let results = on_gpu.results(&name);
            on_gpu.swap_inputs();
            results
        });
        let check = |(loss, gradient): (f32, Vec<f32>), (of, all): &(f32, Vec<f32>)| {
            assert_same_bits(&name, &gradient, all);
            assert_same_bits(&name, &[loss], &[*of]);
        };
        if !evaluator.set_overlap(true).expect("an answer") {
            assert!(
                !overlap_is_required(),
                "{name}: launches do not overlap here"
            );
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED {name}: launches do not overlap here"
            );
            return;
        }
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let graphs = [(); 2].map(|()| {
            stream.begin_capture(mode).expect("a capture");
            on_gpu.launch(&mut evaluator);
            let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
            on_gpu.swap_inputs();
            let graph = graph.expect("nothing that a graph cannot hold");
            graph.expect("a graph")
        });
        for _ in 0..20 {
            for (graph, want) in graphs.iter().zip(&want) {
                // The workspace holds the numbers of the other graph.
                graph.launch().expect("a launch");
                check(on_gpu.results(&name), want);
            }
            for want in &want {
                on_gpu.launch(&mut evaluator);
                check(on_gpu.results(&name), want);
                on_gpu.swap_inputs();
            }
            // Wait only after the last launch.
            for graph in graphs.iter().chain(&graphs) {
                graph.launch().expect("a launch");
            }
            check(on_gpu.results(&name), &want[1]);
        }
    }
    for case in cases::tests().filter(|case| case.student_dim == case.teacher_dim) {
        for_every_gpu_dtype!(same(&stream, &case));
    }
}

#[test]
fn an_evaluator_serves_batch_after_batch() {
    let _cuda = gpu_or_skip!();
    let stream = CudaContext::new(0).expect("a GPU").default_stream();
    for case in without_queue().filter(|case| case.student_dim == case.teacher_dim) {
        let inputs = case.inputs::<f32>();
        let mut on_gpu = OnGpu::new(&stream, &inputs);
        let mut evaluator = Evaluator::<f32>::new(&stream, &on_gpu.problem).expect("an evaluator");
        on_gpu.launch(&mut evaluator);
        let first = on_gpu.results(&case.name);
        on_gpu.swap_inputs();
        on_gpu.launch(&mut evaluator);
        on_gpu.results(&case.name);
        on_gpu.swap_inputs();
        evaluator.set_upstream(2.0).expect("a factor");
        on_gpu.launch(&mut evaluator);
        let doubled = on_gpu.results(&case.name);
        assert_same_bits(&case.name, &[doubled.0], &[first.0]);
        let twice: Vec<f64> = first.1.iter().map(|g| 2.0 * f64::from(*g)).collect();
        assert_gradient(&case.name, &doubled.1, &twice, case.student_dim, 1e-6);
    }
}

#[test]
fn the_raw_evaluator_on_a_foreign_stream() {
    let cuda = gpu_or_skip!();
    let context = CudaContext::new(0).expect("a GPU");
    let stream = context.default_stream();
    let mut foreign = std::ptr::null_mut();
    // SAFETY: it writes a stream's handle to the address of one. A context is current.
    let made = unsafe { sys::cuStreamCreate(&raw mut foreign, 0) };
    made.result().expect("a stream");
    for case in without_queue().filter(|case| case.rows < 20) {
        let inputs = case.inputs::<bf16>();
        let want = on_host(&cuda, &inputs);
        let evaluator = RawEvaluator::new::<bf16>(&inputs.problem).expect("an evaluator");
        let student = stream.clone_htod(&inputs.student).expect("memory");
        let teacher = stream.clone_htod(&inputs.teacher).expect("memory");
        let mut gradient = stream
            .alloc_zeros::<f32>(inputs.student.len())
            .expect("memory");
        let mut value = stream.alloc_zeros::<f32>(VALUE_LEN).expect("memory");
        let mut workspace = stream
            .alloc_zeros::<u8>(evaluator.workspace_bytes())
            .expect("memory");
        stream.synchronize().expect("all copies are done");
        let buffers = Buffers {
            student: student.device_ptr(&stream).0,
            teacher: teacher.device_ptr(&stream).0,
            gradient: gradient.device_ptr_mut(&stream).0,
            value: value.device_ptr_mut(&stream).0,
            workspace: workspace.device_ptr_mut(&stream).0,
            ..Buffers::default()
        };
        evaluator.check(&buffers).expect("memory of this GPU");
        // SAFETY: memory of these lengths and a stream of the current context. All live until the
        // end.
        unsafe { evaluator.initialize(buffers.workspace, foreign.cast()) }.expect("cleared");
        // SAFETY: as above.
        unsafe { evaluator.launch(&buffers, foreign.cast()) }.expect("launches");
        // SAFETY: the stream was created above.
        let done = unsafe { sys::cuStreamSynchronize(foreign) };
        done.result().expect("no fault on the GPU");
        let got = stream.clone_dtoh(&gradient).expect("the gradient");
        assert_same_bits(&case.name, &got, &want.gradient);
    }
    // SAFETY: the stream was created above, and nothing uses it any more.
    let gone = unsafe { sys::cuStreamDestroy_v2(foreign) };
    gone.result().expect("no stream");
}

/// Compares steps of a training with the queue on the GPU with the same steps with the queue on the
/// host. Batches differ in size.
#[test]
fn a_queue_fills_on_the_gpu() {
    let cuda = gpu_or_skip!();
    fn steps<T: GpuElement + DeviceRepr>(cuda: &Cuda, loss: Loss, capacity: usize, dim: usize) {
        let stream = CudaContext::new(0).expect("a GPU").default_stream();
        let problem_of = |rows| {
            let shapes = Shapes::new(rows, dim, dim).with_queue(capacity);
            Problem::new(loss, shapes).expect("shapes that fit")
        };
        let mut queue = Queue::<T>::new(&stream, &problem_of(17)).expect("a queue");
        let mut host = relata::Queue::<f32>::new(capacity, dim).expect("a queue");
        let mut value = stream.alloc_zeros::<f32>(VALUE_LEN).expect("memory");
        for (step, rows) in [17, 17, 5, 40, 17].into_iter().enumerate() {
            let problem = problem_of(rows);
            let shapes = problem.shapes();
            let mut evaluator = Evaluator::<T>::new(&stream, &problem).expect("an evaluator");
            let mut gradient = stream.alloc_zeros::<f32>(rows * dim).expect("memory");
            queue.reserve(rows).expect("memory");
            let name = format!("{loss} {shapes:?} in {}, step {step}", T::DTYPE);
            let input = common::Input::normal(step as u64, Shapes::new(rows, dim, dim));
            let (x, y) = (
                common::cast::<T>(&input.student),
                common::cast::<T>(&input.teacher),
            );
            let [student, teacher] = [&x, &y].map(|rows| stream.clone_htod(rows).expect("memory"));
            evaluator
                .launch_with_queue(&student, &teacher, &mut queue, &mut gradient, &mut value)
                .expect("slices that fit");
            let rows_of = |data| Rows::new(data, [rows, dim]).expect("whole rows");
            let want = loss.evaluate_with_queue(cuda, rows_of(&x), rows_of(&y), &mut host);
            let want = want.expect("a batch that fits");
            let got = stream.clone_dtoh(&gradient).expect("the gradient");
            stream.synchronize().expect("no fault on the GPU");
            let want: Vec<f64> = want.gradient.iter().map(|g| f64::from(*g)).collect();
            // The results differ by rounding. Here the keys are split by the capacity, there by
            // their number. For halves, keys are rounded to f16 from f64 here and from f32 there.
            let tolerance = if T::DTYPE == DType::F32 { 1e-5 } else { 2e-3 };
            assert_gradient(&name, &got, &want, dim, tolerance);
            assert_eq!(queue.to_host().expect("keys").len(), host.len(), "{name}");
        }
    }
    for (capacity, dim) in [(1000, 20), (60, 130), (200, 300)] {
        let loss = Loss::from(Rrd::default());
        for_every_gpu_dtype!(steps(&cuda, loss, capacity, dim));
    }
}

/// Steps with a memory bank on the GPU. Each evaluation has the bits of one with the same bank on the
/// host, which is right, and each update gives the rows that it gives on the host.
#[test]
fn a_bank_on_the_gpu_is_that_of_the_host() {
    let cuda = gpu_or_skip!();
    fn steps<T: GpuElement<Real = f32> + DeviceRepr>(cuda: &Cuda, loss: Loss, dim: usize) {
        const SAMPLES: usize = 90;
        let (rows, keys) = (7, 40);
        let stream = CudaContext::new(0).expect("a GPU").default_stream();
        let has_teacher = matches!(loss, Loss::RrdBank(_));
        let shapes = Shapes::new(rows, dim, if has_teacher { dim } else { 0 });
        let problem = Problem::new(loss, shapes.with_bank(SAMPLES, keys)).expect("shapes that fit");
        let mut evaluator = Evaluator::<T>::new(&stream, &problem).expect("an evaluator");
        let sampler = NegativeSampler::of_others(SAMPLES, keys - 1).expect("enough samples");
        let host_of = |seed: u64| {
            let bank = Bank::<f32>::new(SAMPLES, dim, seed).expect("a small bank");
            bank.with_normalizer(Some(50.0 + seed as f64))
                .expect("above 0")
        };
        let on_gpu = |host: &Bank<f32>| cuda::Bank::new(&stream, host).expect("memory");
        let (mut host, mut of_teachers) = (host_of(1), host_of(2));
        let [mut bank, mut teachers] = [on_gpu(&host), on_gpu(&of_teachers)];
        let drawn = vec![0; rows * keys];
        let mut indices = Indices::new(&stream, &drawn, [rows, keys], SAMPLES).expect("memory");
        let mut value = stream.alloc_zeros::<f32>(VALUE_LEN).expect("memory");
        let mut gradient = stream.alloc_zeros::<f32>(rows * dim).expect("memory");
        for step in 0..3 {
            let name = format!("{loss} in {}, step {step}", T::DTYPE);
            let input = Input::normal(step, Shapes::new(rows, dim, dim));
            let [x, y] = [cast::<T>(&input.student), cast::<T>(&input.teacher)];
            let [student, teacher] = [&x, &y].map(|rows| stream.clone_htod(rows).expect("memory"));
            // One sample twice.
            let samples: Vec<u32> = [3, 8, 13, 3, 89, 0, 21].to_vec();
            let drawn = sampler.sample(&samples, step).expect("known samples");
            indices.write(&drawn).expect("a copy");
            let keys = SampledKeys {
                bank: &mut bank,
                teacher_bank: has_teacher.then_some(&mut teachers),
                indices: &mut indices,
            };
            let of_rows = OfRows {
                keys: Some(keys),
                ..OfRows::default()
            };
            let of_teacher = match has_teacher {
                true => Teacher::Rows(&teacher),
                false => Teacher::None,
            };
            evaluator
                .launch_with(&student, of_teacher, of_rows, &mut gradient, &mut value)
                .expect("slices that fit");
            let got = stream.clone_dtoh(&gradient).expect("the gradient");
            stream.synchronize().expect("no fault on the GPU");
            let rows_of = |data| Rows::new(data, [rows, dim]).expect("whole rows");
            let batch = match has_teacher {
                true => Batch::new(rows_of(&x), rows_of(&y)),
                false => Batch::of_student(rows_of(&x)),
            };
            let batch = batch.with_bank(&host, &drawn);
            let batch = match has_teacher {
                true => batch.with_teacher_bank(&of_teachers),
                false => batch,
            };
            let want = problem.evaluate(cuda, batch).expect("a batch that fits");
            assert_same_bits(&name, &got, &want.gradient);
            let right = problem
                .evaluate(&Reference, batch)
                .expect("a batch that fits");
            assert_loss(&name, want.loss, right.loss, 2e-6);
            assert_gradient(&name, &got, &right.gradient, dim, 1e-5);
            for (gpu, host, new, batch) in [
                (&mut bank, &mut host, &y, &teacher),
                (&mut teachers, &mut of_teachers, &x, &student),
            ] {
                gpu.update::<T>(&samples, batch, 0.5).expect("launches");
                host.update(&samples, rows_of(new), 0.5)
                    .expect("finite rows");
                let got = gpu.to_host().expect("a copy");
                let pairs = got.rows().as_slice().iter().zip(host.rows().as_slice());
                for (got, want) in pairs {
                    assert!((got - want).abs() <= f32::EPSILON * want.abs(), "{name}");
                }
                // The last bit of a row may differ, and the next evaluation is to have the same.
                *host = got;
            }
        }
    }
    for loss in [Loss::from(Crd::default()), RrdBank::default().into()] {
        for_every_gpu_dtype!(steps(&cuda, loss, 130));
    }
}

const RELATIONS: [Relation; 6] = [
    Relation::Distance,
    Relation::SquaredDistance,
    Relation::Dot,
    Relation::Cosine,
    Relation::PositiveCosine,
    Relation::ShiftedCosine,
];

#[test]
fn building_blocks_are_right() {
    let cuda = gpu_or_skip!();
    fn right<T: GpuElement>(cuda: &Cuda, [n, dim]: [usize; 2]) {
        let data = common::Input::normal(7, Shapes::new(n, dim, 1)).student;
        let data = common::cast::<T>(&data);
        let rows = Rows::new(&data, [n, dim]).expect("whole rows");
        for relation in RELATIONS {
            let got = relation_matrix(cuda, relation, rows).expect("a relation");
            let want = relation_matrix(&Reference, relation, rows).expect("a relation");
            let name = format!("{relation:?} {n}x{dim} in {}", T::DTYPE);
            assert_gradient(&name, &got, &want, n, 1e-6);
        }
        let got = softmax(cuda, rows, 0.3).expect("a softmax");
        let want = softmax(&Reference, rows, 0.3).expect("a softmax");
        let name = format!("softmax {n}x{dim} in {}", T::DTYPE);
        assert_gradient(&name, &got, &want, dim, 1e-6);
    }
    for shape in [[1, 1], [5, 7], [64, 33], [130, 257]] {
        for_every_gpu_dtype!(right(&cuda, shape));
    }
}

/// Small cases that run every kernel of the losses, for compute-sanitizer.
#[test]
fn every_kernel_is_right() {
    let cuda = gpu_or_skip!();
    fn right<T: GpuElement<Real = f32>>(cuda: &Cuda, case: &Case) {
        assert_kernels_right::<T, _>(cuda, case);
        assert_half_weights_right::<T, _>(cuda, case);
    }
    fn many_right<T: GpuElement>(cuda: &Cuda, case: &Case) {
        assert_many_rows_right::<T, _>(cuda, case);
    }
    for case in cases::of_every_kernel() {
        for_every_gpu_dtype!(right(&cuda, &case));
    }
    for case in cases::many_rows() {
        for_every_gpu_dtype!(many_right(&cuda, &case));
    }
}

/// The kernels that only weights, losses of rows and lists of classes launch.
#[test]
fn every_kernel_of_weights_and_lists_is_right() {
    let cuda = gpu_or_skip!();
    fn right<T: GpuElement<Real = f32>>(cuda: &Cuda) {
        let run = |loss: Loss, batch: Batch<'_, T>| {
            let problem = Problem::new(loss, batch.shapes()).expect("a batch that fits");
            let got = problem.evaluate_rows(cuda, batch).expect("launches");
            let want = problem.evaluate_rows(&Reference, batch).expect("finite");
            let label = loss.name();
            // A queue's keys of half types are rounded to f16.
            let within = if T::DTYPE == DType::F32 { 2e-5 } else { 2e-3 };
            assert_loss(label, got.loss, want.loss, within);
            assert_gradient(label, &got.gradient, &want.gradient, 5, within);
            for (got, want) in got.row_losses.iter().zip(want.row_losses) {
                assert_loss(label, *got, want, within);
            }
        };
        let weights = [0.5, 0.0, 2.0, 1.25];
        for loss in [
            Rrd::default().into(),
            InfoNce::default().into(),
            KdKl::default().into(),
        ] {
            let loss: Loss = loss;
            let mut shapes = Shapes::new(4, 5, 5);
            shapes.queue = (loss.spec().queue == QueueUse::Required).then_some(9);
            let input = Input::normal(7, shapes);
            let inputs = input.inputs::<T>(&input.problem(loss));
            run(loss, inputs.batch().with_row_weights(&weights));
        }
        let input = Input::normal(8, Shapes::new(4, 5, 5));
        let student = cast::<T>(&input.student);
        let student = Rows::new(&student, [4, 5]).expect("whole rows");
        let logarithms = [-1.0f32; 4];
        let lists = TopK::new(&[0, 4, 2, 1], &logarithms, [4, 1]).expect("a class a row");
        let batch = Batch::of_top_k(student, lists).with_row_weights(&weights);
        run(KdKl::default().into(), batch);
    }
    for_every_gpu_dtype!(right(&cuda));
}

#[test]
fn a_nan_or_infinity_makes_the_loss_nan() {
    let cuda = gpu_or_skip!();
    for case in cases::tests().filter(|case| (3..20).contains(&case.rows)) {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut inputs = case.inputs::<f32>();
            inputs.student[case.student_dim] = bad;
            assert!(
                on_host(&cuda, &inputs).loss.is_nan(),
                "{}: student {bad}",
                case.name
            );
            let mut inputs = case.inputs::<f32>();
            inputs.teacher[case.teacher_dim] = bad;
            assert!(
                on_host(&cuda, &inputs).loss.is_nan(),
                "{}: teacher {bad}",
                case.name
            );
        }
    }
}

#[test]
fn every_row_of_a_large_batch_counts() {
    let cuda = gpu_or_skip!();
    for case in cases::benches().filter(|case| case.flops() < 1 << 31 && case.triplets() < 1 << 25)
    {
        let inputs = case.inputs::<f32>();
        let got = on_host(&cuda, &inputs);
        let batch: Batch<'_, f32> = inputs.batch();
        let want = inputs
            .problem
            .evaluate(&relata::Cpu, batch)
            .expect("a case that fits");
        let want: Vec<f64> = want.gradient.iter().map(|g| f64::from(*g)).collect();
        assert_gradient(&case.name, &got.gradient, &want, case.student_dim, 1e-4);
    }
}
