//! Measures the cost of the emulator. It prints and asserts nothing:
//! `cargo test --release --features emulator cost -- --ignored --nocapture`.

use std::time::Instant;

use super::{Run, seeded_bugs};
use rayon::ThreadPoolBuilder;

seeded_bugs!(seeded_bugs_barriers);

#[test]
#[ignore = "a measurement"]
fn cost_of_a_barrier() {
    let pool = ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .expect("a thread");
    let time = |blocks: u32, count: usize, kind: u32| {
        let mut run = Run::new(&seeded_bugs_barriers, &[0.0f32])
            .count(count)
            .bug(kind);
        (run.blocks, run.threads) = (blocks, 256);
        let once = || {
            let start = Instant::now();
            pool.install(|| run.run::<f32>(0, 64)).expect("no fault");
            start.elapsed().as_secs_f64()
        };
        (0..5).map(|_| once()).fold(f64::MAX, f64::min)
    };
    for (kind, name) in ["block_barrier", "warp_barrier", "shuffle_xor"]
        .into_iter()
        .enumerate()
    {
        let per = time(10, 2000, kind as u32) / (10.0 * 256.0 * 2000.0);
        println!("{name}: {:.1} ns a thread", 1e9 * per);
    }
    let per = time(2000, 0, 0) / (2000.0 * 256.0);
    println!("a thread without any: {:.1} ns", 1e9 * per);
}
