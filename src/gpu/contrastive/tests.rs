//! Which kernels a plan launches.

use crate::error::Result;
use crate::gpu::element::GpuDType;
use crate::gpu::machine::{Launch, Launcher, Limits};
use crate::gpu::plan::{Addresses, Plan, QueueAddresses};
use crate::loss::{InfoNce, Loss, Rrd};
use crate::problem::{Problem, WeightPrecision};
use crate::shapes::Shapes;

/// Collects the names of the kernels that it is asked to launch.
struct Names(Vec<&'static str>);

impl Launcher for Names {
    fn launch(&mut self, launch: Launch<'_>) -> Result<()> {
        self.0.push(launch.kernel.name);
        Ok(())
    }
}

fn launches(
    loss: impl Into<Loss>,
    queue: Option<usize>,
    dim: usize,
    dtype: GpuDType,
    weights: WeightPrecision,
) -> Vec<&'static str> {
    let limits = Limits::HOPPER;
    let shapes = Shapes {
        queue,
        ..Shapes::new(64, dim, dim)
    };
    let problem = Problem::new(loss, shapes).expect("shapes that fit");
    let problem = problem.with_weight_precision(weights);
    let plan = Plan::new(&problem, dtype, limits).expect("a plan");
    let nowhere = Addresses {
        student: 0,
        teacher: 0,
        queue: QueueAddresses::default(),
        gradient: 0,
        value: 0,
        workspace: 0,
        ..Addresses::default()
    };
    let mut names = Names(Vec::new());
    plan.launch(&mut names, &nowhere).expect("no launch fails");
    names.0
}

#[test]
fn a_plan_prepares_rows_only_for_kernels_that_do_not() {
    use GpuDType::{BF16, F16, F32};
    use WeightPrecision::{Half, Split};
    let (rrd, info_nce, queue) = (Rrd::default(), InfoNce::default(), Some(1000));
    // f16 and bf16 with a queue take two launches. RRD's third returns at once, unless the student
    // is near its teacher.
    assert_eq!(
        launches(rrd, queue, 128, BF16, Split),
        [
            "relata_attention_mma_128",
            "relata_rrd_bf16",
            "relata_rrd_divergence_bf16"
        ]
    );
    assert_eq!(
        launches(info_nce, queue, 64, F16, Split),
        ["relata_attention_mma_64", "relata_info_nce_f16"]
    );
    assert_eq!(
        launches(info_nce, None, 256, BF16, Split),
        [
            "relata_attention_rows_bf16",
            "relata_attention_mma_256_batch",
            "relata_info_nce_bf16"
        ]
    );
    assert_eq!(
        launches(rrd, queue, 300, F16, Split),
        [
            "relata_attention_rows_f16",
            "relata_attention_simt_f16",
            "relata_rrd_f16",
            "relata_rrd_divergence_f16"
        ]
    );
    // The precision of weights matters on tensor cores only.
    assert_eq!(
        launches(rrd, queue, 128, BF16, Half)[0],
        "relata_attention_mma_128_half_pair"
    );
    // Next to a flatter teacher, the student's would be lost in a difference.
    let flatter = Rrd {
        student_temperature: 0.1,
        teacher_temperature: 0.2,
        ..Rrd::default()
    };
    assert_eq!(
        launches(flatter, queue, 128, BF16, Half)[0],
        "relata_attention_mma_128_half"
    );
    assert_eq!(
        launches(info_nce, queue, 256, F16, Half)[0],
        "relata_attention_mma_256_half"
    );
    assert_eq!(
        launches(info_nce, None, 64, F16, Half)[1],
        "relata_attention_mma_64_half_batch"
    );
    for (dim, dtype) in [(128, F32), (300, F16)] {
        assert_eq!(
            launches(rrd, queue, dim, dtype, Half),
            launches(rrd, queue, dim, dtype, Split)
        );
    }
}
