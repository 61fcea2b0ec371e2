//! Which path the data choose, as the scalars in the workspace tell.

use super::*;
use crate::gpu::emulator::Emulator;
use crate::gpu::machine::Machine;
use crate::gpu::plan::QueueAddresses;

/// Whether the accurate path has the last word on these rows.
fn ends_accurate(student: &[f32], teacher: &[f32], [n, dim]: [usize; 2], loss: Rkd) -> bool {
    let mut machine = Emulator::new().machine();
    let problem = Problem::new(loss, Shapes::new(n, dim, dim)).unwrap();
    let mut layout = Layout::new();
    let plan = Plan::new(&loss, &problem, DType::F32, machine.limits(), &mut layout).unwrap();
    let mut memory = |bytes: &[u8]| {
        let mut memory = machine.allocate("test", bytes.len()).unwrap();
        machine.write(&mut memory, bytes).unwrap();
        let address = machine.address(&memory);
        (memory, address)
    };
    let (_student, student) = memory(bytemuck::cast_slice(student));
    let (_teacher, teacher) = memory(bytemuck::cast_slice(teacher));
    let (_gradient, gradient) = memory(&vec![0; 4 * n * dim]);
    let (_value, value) = memory(&[0; 8]);
    let (workspace, at) = memory(&vec![0; layout.bytes()]);
    let addresses = Addresses {
        student,
        teacher,
        queue: QueueAddresses::default(),
        gradient,
        value,
        workspace: at,
    };
    plan.enqueue(&mut machine, &addresses).unwrap();
    let mut bytes = vec![0; layout.bytes()];
    machine.read(&workspace, &mut bytes).unwrap();
    assert!(
        bytes[..Layout::COUNTERS].iter().all(|&byte| byte == 0),
        "counters"
    );
    let accurate = plan.at.scalars.at(0) as usize + SCALARS - 8;
    bytes[accurate] != 0
}

/// Rows of which any two are about as far apart as any other two, and noise.
fn alike([n, dim]: [usize; 2], noise: f32, seed: f32) -> Vec<f32> {
    let wave = |at: usize| (at as f32 * 12.9898 + seed).sin() * noise;
    (0..n * dim)
        .map(|at| wave(at) + f32::from(u8::from(at / dim % dim == at % dim)))
        .collect()
}

#[test]
fn the_data_choose_the_path() {
    let shape @ [n, dim] = [260, 260];
    let angle = Rkd::from(crate::RkdAngle::default());
    let (x, y) = (alike(shape, 0.02, 1.0), alike(shape, 0.005, 2.0));
    // Lengths alike, angles not: f32 will do.
    let loud = alike(shape, 0.05, 3.0);
    assert!(!ends_accurate(&loud, &y, shape, angle));
    // Angles alike as well.
    assert!(ends_accurate(&x, &x, shape, angle));
    // Two rows close together.
    let mut close = loud.clone();
    close.copy_within(0..dim, dim);
    close[dim] += 0.01;
    assert!(ends_accurate(&close, &y, shape, angle));
    assert!(ends_accurate(&y, &close, shape, angle));
    // Which distances alone do not mind; squares out of range they do.
    let distance = Rkd::from(crate::RkdDistance::default());
    assert!(!ends_accurate(&close, &y, shape, distance));
    let tiny: Vec<f32> = close.iter().map(|x| x * 1e-25).collect();
    assert!(ends_accurate(&tiny, &y, shape, distance));
    // Few rows go there at once.
    assert!(ends_accurate(&y[..3 * dim], &y[..3 * dim], [3, dim], angle));
    assert_eq!(n, dim);
}
