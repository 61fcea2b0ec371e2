//! relata's side: evaluations of slices on the card.

use std::sync::Arc;

use relata::cuda::cudarc::driver::safe::CudaGraph;
use relata::cuda::cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DeviceRepr, sys};
use relata::cuda::{Evaluator, Queue};
use relata::{Cpu, Element, Enqueue, GpuElement, Loss, Problem, WeightPrecision};

use crate::Result;
use crate::card::Card;
use crate::cases::{Case, Inputs};

/// A sample is of so many evaluations that it takes this long: events are good to half a microsecond.
const SAMPLE: f64 = 1e-3;
/// The inputs of so many evaluations are to be this many times what L2 holds.
const COLD: usize = 3;
const MOST_COPIES: usize = 256;

/// A case on the card, in as many copies as it takes to be cold.
pub(crate) struct Ours<T: Element> {
    stream: Arc<CudaStream>,
    inputs: Inputs<T>,
    /// Before the batches, which its graphs use.
    graphs: Vec<CudaGraph>,
    evaluator: Evaluator<T>,
    batches: Vec<OnCard<T>>,
    /// The copy whose turn it is.
    turn: usize,
}

struct OnCard<T> {
    student: CudaSlice<T>,
    teacher: CudaSlice<T>,
    queue: Option<Queue<T>>,
    gradient: CudaSlice<f32>,
    value: CudaSlice<f32>,
}

impl<T: GpuElement + DeviceRepr> Ours<T> {
    pub(crate) fn new(card: &Card, case: &Case, weights: WeightPrecision) -> Result<Self> {
        let stream = quiet_stream(card)?;
        let mut inputs = case.inputs::<T>();
        inputs.problem = evaluating_only(case)?.weight_precision(weights);
        let mut evaluator = Evaluator::<T>::new(&stream, &inputs.problem)?;
        let bytes = case.elements() as usize * size_of::<T>();
        let copies = (COLD * card.l2_bytes).div_ceil(bytes).clamp(1, MOST_COPIES);
        let mut batches = (0..copies)
            .map(|_| OnCard::new(&stream, &inputs))
            .collect::<Result<Vec<_>>>()?;
        let mut graphs = Vec::new();
        for batch in &mut batches {
            batch.enqueue(&mut evaluator)?;
            stream.synchronize()?;
            stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
            batch.enqueue(&mut evaluator)?;
            let graph = stream
                .end_capture(sys::CUgraphInstantiate_flags(0))?
                .ok_or("no graph")?;
            graph.upload()?;
            graphs.push(graph);
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

    /// What an evaluation adds to the inputs.
    pub(crate) fn peak_bytes(&self) -> u64 {
        let results = 4 * (self.inputs.student.len() + 2);
        (self.evaluator.workspace_bytes() + results) as u64
    }

    /// Refuses to time what is not right: a graph's results against those of the CPU path.
    pub(crate) fn check(&mut self, tolerance: f64) -> Result<()> {
        self.graphs[0].launch()?;
        let gradient = self.stream.clone_dtoh(&self.batches[0].gradient)?;
        let value = self.stream.clone_dtoh(&self.batches[0].value)?;
        self.stream.synchronize()?;
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

    /// Seconds of an evaluation as a graph whose inputs are in no cache: samples for `budget` seconds.
    pub(crate) fn cold(&mut self, budget: f64) -> Result<Vec<f64>> {
        self.sample(budget, |ours| {
            ours.turn = (ours.turn + 1) % ours.graphs.len();
            Ok(ours.graphs[ours.turn].launch()?)
        })
    }

    /// The same of one graph again and again.
    pub(crate) fn warm(&mut self, budget: f64) -> Result<Vec<f64>> {
        self.sample(budget, |ours| Ok(ours.graphs[0].launch()?))
    }

    /// The same without a graph, launch by launch, cold.
    pub(crate) fn launches(&mut self, budget: f64) -> Result<Vec<f64>> {
        self.sample(budget, |ours| {
            ours.turn = (ours.turn + 1) % ours.batches.len();
            ours.batches[ours.turn].enqueue(&mut ours.evaluator)
        })
    }

    fn sample(
        &mut self,
        budget: f64,
        enqueue: impl Fn(&mut Self) -> Result<()>,
    ) -> Result<Vec<f64>> {
        // A warm-up says how many make a sample.
        let several = |ours: &mut Self, count: usize| -> Result<f64> {
            let start = ours.event()?;
            for _ in 0..count {
                enqueue(ours)?;
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

impl<T: GpuElement + DeviceRepr> OnCard<T> {
    fn new(stream: &Arc<CudaStream>, inputs: &Inputs<T>) -> Result<Self> {
        let queue = match &inputs.queue {
            Some(host) => {
                let mut queue = Queue::new(stream, &inputs.problem)?;
                queue.restore(host)?;
                Some(queue)
            }
            None => None,
        };
        Ok(OnCard {
            student: stream.clone_htod(&inputs.student)?,
            teacher: stream.clone_htod(&inputs.teacher)?,
            queue,
            gradient: stream.alloc_zeros(inputs.student.len())?,
            value: stream.alloc_zeros(2)?,
        })
    }

    fn enqueue(&mut self, evaluator: &mut Evaluator<T>) -> Result<()> {
        let OnCard {
            student,
            teacher,
            queue,
            gradient,
            value,
        } = self;
        match queue {
            Some(queue) => {
                evaluator.enqueue_with_queue(student, teacher, queue, gradient, value)?
            }
            None => evaluator.enqueue(student, teacher, gradient, value)?,
        }
        Ok(())
    }
}

/// The case's problem without the batch entering the queue: that is not what is timed.
fn evaluating_only(case: &Case) -> Result<Problem> {
    let loss = match case.loss {
        Loss::Rrd(mut loss) => {
            loss.enqueue = Enqueue::Never;
            Loss::from(loss)
        }
        Loss::InfoNce(mut loss) => {
            loss.enqueue = Enqueue::Never;
            Loss::from(loss)
        }
        loss => loss,
    };
    Ok(Problem::new(loss, case.shapes())?)
}

fn quiet_stream(card: &Card) -> Result<Arc<CudaStream>> {
    // SAFETY: this stream is the only one that is used.
    #[allow(unsafe_code, reason = "no capture may wait for events from before it")]
    unsafe {
        card.context.disable_event_tracking();
    }
    Ok(card.context.new_stream()?)
}

/// NaN is not within anything.
fn within(what: &str, off: f64, tolerance: f64) -> Result<()> {
    if off <= tolerance {
        return Ok(());
    }
    Err(format!(
        "{what}: expected the CPU path's to {tolerance:e}, relatively, got one off by {off:e}"
    )
    .into())
}
