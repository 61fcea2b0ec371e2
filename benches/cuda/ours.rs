//! relata's evaluations of slices on the GPU.

use std::sync::Arc;

use relata::cuda::cudarc::driver::safe::CudaGraph;
use relata::cuda::cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DeviceRepr, sys};
use relata::cuda::{Evaluator, Queue, VALUE_LEN};
use relata::{Cpu, Element, GpuElement, WeightPrecision};

use crate::Result;
use crate::cases::{Case, Inputs};
use crate::gpu::Gpu;
use crate::record::Ours as Times;

/// The seconds of a sample, which has as many evaluations as fit. Events are exact to half a
/// microsecond.
const SAMPLE: f64 = 1e-3;
/// The inputs of all copies together are this many times as large as L2.
const COLD: usize = 3;
const MOST_COPIES: usize = 256;

/// A case on the GPU, in so many copies that L2 does not hold the next one.
pub(crate) struct Ours<T: Element> {
    stream: Arc<CudaStream>,
    inputs: Inputs<T>,
    /// Of plain launches and, where they can be had, of those that overlap. Before the batches,
    /// which they use.
    graphs: Vec<Vec<CudaGraph>>,
    evaluator: Evaluator<T>,
    batches: Vec<OnGpu<T>>,
    /// The copy of the next evaluation.
    turn: usize,
}

struct OnGpu<T> {
    student: CudaSlice<T>,
    teacher: CudaSlice<T>,
    queue: Option<Queue<T>>,
    gradient: CudaSlice<f32>,
    value: CudaSlice<f32>,
}

impl<T: GpuElement + DeviceRepr> Ours<T> {
    pub(crate) fn new(gpu: &Gpu, case: &Case, weights: WeightPrecision) -> Result<Self> {
        let stream = quiet_stream(gpu)?;
        let mut inputs = case.inputs::<T>();
        inputs.problem = case.evaluating_only().with_weight_precision(weights);
        let mut evaluator = Evaluator::<T>::new(&stream, &inputs.problem)?;
        let bytes = case.elements() as usize * size_of::<T>();
        let copies = (COLD * gpu.l2_bytes).div_ceil(bytes).clamp(1, MOST_COPIES);
        let mut batches = (0..copies)
            .map(|_| OnGpu::new(&stream, &inputs))
            .collect::<Result<Vec<_>>>()?;
        let mut graphs = vec![captured(&stream, &mut evaluator, &mut batches)?];
        if evaluator.set_overlap(true)? {
            graphs.push(captured(&stream, &mut evaluator, &mut batches)?);
        }
        Ok(Ours {
            stream,
            inputs,
            graphs,
            evaluator,
            batches,
            turn: 0,
        })
    }

    pub(crate) fn copies(&self) -> usize {
        self.batches.len()
    }

    /// The bytes that an evaluation needs on top of its inputs.
    pub(crate) fn peak_bytes(&self) -> u64 {
        let results = 4 * (self.inputs.student.len() + 2);
        (self.evaluator.workspace_bytes() + results) as u64
    }

    /// The values of "launches overlap" that this GPU has.
    pub(crate) fn ways(&self) -> impl Iterator<Item = bool> + use<T> {
        [false, true].into_iter().take(self.graphs.len())
    }

    /// Returns an error if the results are wrong. It compares the results of a graph with those of
    /// the CPU path, and requires the same bits with and without overlapping launches.
    pub(crate) fn check(&mut self, tolerance: f64) -> Result<()> {
        let (gradient, value) = self.results(false, 0)?;
        let all = if self.graphs.len() > 1 {
            self.copies()
        } else {
            0
        };
        for copy in 0..all {
            // All copies hold the same numbers, at different addresses.
            let (overlapping, its_value) = self.results(true, copy)?;
            let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            if bits(&overlapping) != bits(&gradient) || bits(&its_value) != bits(&value) {
                return Err(
                    "overlapping launches: expected the same bits as without, got others".into(),
                );
            }
        }
        let want = self.inputs.problem.evaluate(&Cpu, self.inputs.batch())?;
        within(
            "loss",
            (f64::from(value[0]) - want.loss).abs() / want.loss.abs(),
            tolerance,
        )?;
        let pairs = gradient.iter().zip(&want.gradient);
        let norm =
            |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let off = norm(&mut pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
        within("gradient", off / want.gradient_norm(), tolerance)
    }

    /// One turn: evaluates for `budget` seconds in each way, and adds the seconds per evaluation to
    /// `times`.
    pub(crate) fn turn(&mut self, overlap: bool, budget: f64, times: &mut Times) -> Result<()> {
        let way = usize::from(overlap);
        self.evaluator.set_overlap(overlap)?;
        times.cold.extend(self.sample(budget, |ours| {
            ours.turn = (ours.turn + 1) % ours.batches.len();
            Ok(ours.graphs[way][ours.turn].launch()?)
        })?);
        times
            .warm
            .extend(self.sample(budget, |ours| Ok(ours.graphs[way][0].launch()?))?);
        times.launches.extend(self.sample(budget, |ours| {
            ours.turn = (ours.turn + 1) % ours.batches.len();
            ours.batches[ours.turn].launch(&mut ours.evaluator)
        })?);
        Ok(())
    }

    /// The gradient and the value of a graph. Both buffers hold NaN before.
    fn results(&mut self, overlap: bool, copy: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let batch = &mut self.batches[copy];
        let nan = vec![f32::NAN; batch.gradient.len()];
        self.stream.memcpy_htod(&nan, &mut batch.gradient)?;
        self.stream
            .memcpy_htod(&nan[..1].repeat(VALUE_LEN), &mut batch.value)?;
        self.graphs[usize::from(overlap)][copy].launch()?;
        let gradient = self.stream.clone_dtoh(&batch.gradient)?;
        let value = self.stream.clone_dtoh(&batch.value)?;
        self.stream.synchronize()?;
        Ok((gradient, value))
    }

    fn sample(
        &mut self,
        budget: f64,
        launch: impl Fn(&mut Self) -> Result<()>,
    ) -> Result<Vec<f64>> {
        // The warm-up decides how many evaluations make a sample.
        let several = |ours: &mut Self, count: usize| -> Result<f64> {
            let start = ours.event()?;
            for _ in 0..count {
                launch(ours)?;
            }
            let end = ours.event()?;
            Ok(f64::from(start.elapsed_ms(&end)?) / 1e3 / count as f64)
        };
        let one = several(self, 3)?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a small number
        let count = ((SAMPLE / one).ceil() as usize).clamp(1, 1000);
        let (mut samples, mut spent) = (Vec::new(), 0.0);
        while spent < budget {
            let seconds = several(self, count)?;
            spent += seconds * count as f64;
            samples.push(seconds);
        }
        Ok(samples)
    }

    fn event(&self) -> Result<CudaEvent> {
        Ok(self
            .stream
            .record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT))?)
    }
}

impl<T: GpuElement + DeviceRepr> OnGpu<T> {
    fn new(stream: &Arc<CudaStream>, inputs: &Inputs<T>) -> Result<Self> {
        let queue = match &inputs.queue {
            Some(host) => {
                let mut queue = Queue::new(stream, &inputs.problem)?;
                queue.restore(host)?;
                Some(queue)
            }
            None => None,
        };
        Ok(OnGpu {
            student: stream.clone_htod(&inputs.student)?,
            teacher: stream.clone_htod(&inputs.teacher)?,
            queue,
            gradient: stream.alloc_zeros(inputs.student.len())?,
            value: stream.alloc_zeros(VALUE_LEN)?,
        })
    }

    fn launch(&mut self, evaluator: &mut Evaluator<T>) -> Result<()> {
        let OnGpu {
            student,
            teacher,
            queue,
            gradient,
            value,
        } = self;
        match queue {
            Some(queue) => evaluator.launch_with_queue(student, teacher, queue, gradient, value)?,
            None => evaluator.launch(student, teacher, gradient, value)?,
        }
        Ok(())
    }
}

/// One evaluation without anything else, for a profiler.
pub(crate) fn once<T: GpuElement + DeviceRepr>(
    gpu: &Gpu,
    case: &Case,
    weights: WeightPrecision,
) -> Result<()> {
    let stream = quiet_stream(gpu)?;
    let mut inputs = case.inputs::<T>();
    inputs.problem = case.evaluating_only().with_weight_precision(weights);
    let mut evaluator = Evaluator::<T>::new(&stream, &inputs.problem)?;
    let mut batch = OnGpu::new(&stream, &inputs)?;
    batch.launch(&mut evaluator)?;
    Ok(stream.synchronize()?)
}

/// A graph of an evaluation of each batch.
fn captured<T: GpuElement + DeviceRepr>(
    stream: &Arc<CudaStream>,
    evaluator: &mut Evaluator<T>,
    batches: &mut [OnGpu<T>],
) -> Result<Vec<CudaGraph>> {
    let mut capture = |batch: &mut OnGpu<T>| -> Result<CudaGraph> {
        batch.launch(evaluator)?;
        stream.synchronize()?;
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        batch.launch(evaluator)?;
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0))?;
        let graph = graph.ok_or("no graph")?;
        graph.upload()?;
        Ok(graph)
    };
    batches.iter_mut().map(&mut capture).collect()
}

fn quiet_stream(gpu: &Gpu) -> Result<Arc<CudaStream>> {
    // SAFETY: only this stream is used.
    #[allow(unsafe_code, reason = "a capture must not wait for earlier events")]
    unsafe {
        gpu.context.disable_event_tracking();
    }
    Ok(gpu.context.new_stream()?)
}

/// Returns an error if `off` is larger than `tolerance`, or NaN.
fn within(what: &str, off: f64, tolerance: f64) -> Result<()> {
    if off <= tolerance {
        return Ok(());
    }
    Err(format!(
        "{what}: expected the CPU path's to {tolerance:e}, relatively, got one off by {off:e}"
    )
    .into())
}
