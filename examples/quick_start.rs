//! A loss and its gradient in twenty lines: `cargo run --example quick_start`.

use relata::{Cpu, Queue, Rkd, Rows, Rrd};

fn main() -> relata::Result<()> {
    // A batch of 4 samples: embeddings of 3 dimensions from the student and from the teacher.
    let student = [
        0.1f32, 0.9, -0.4, 0.3, 0.8, -0.2, -0.5, 0.2, 0.7, 0.0, -0.6, 0.4,
    ];
    let teacher = [
        0.2f32, 0.7, 0.1, -0.3, 0.4, 0.2, 0.9, -0.1, 0.0, 0.5, 0.5, -0.8,
    ];
    let student = Rows::new(&student, [4, 3])?;
    let teacher = Rows::new(&teacher, [4, 3])?;

    let rkd = Rkd::default().evaluate(&Cpu, student, teacher)?;
    println!(
        "RKD {:.4}, gradient of length {:.4}",
        rkd.loss,
        rkd.gradient_norm()
    );
    for (name, value) in rkd.terms.iter() {
        println!("  its part {name}: {value:.4}");
    }

    let mut queue = Queue::new(Rrd::QUEUE_CAPACITY, 3)?;
    let rrd = Rrd::default().evaluate_with_queue(&Cpu, student, teacher, &mut queue)?;
    println!("RRD {:.4}, the queue holds {} keys", rrd.loss, queue.len());
    Ok(())
}
