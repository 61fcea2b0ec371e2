//! Memory banks on the GPU.

use half::f16;
use relata::cuda::{Bank, Evaluator, Indices, OfRows, SampledKeys, Teacher, VALUE_LEN};
use relata::{Crd, Error, Loss, Problem, RrdBank, Shapes};

use crate::fake_driver::{actions, calls, kernels, with_fake_driver};
use crate::stream;

const ROWS: usize = 5;
const DIM: usize = 3;
const KEYS: usize = 4;
const SAMPLES: usize = 7;

fn shapes(loss: &Loss) -> Shapes {
    let shapes = match loss {
        Loss::Crd(_) => Shapes::new(ROWS, DIM, 0),
        _ => Shapes::new(ROWS, DIM, DIM),
    };
    shapes.with_bank(SAMPLES, KEYS)
}

fn host(samples: usize, dim: usize, normalizer: Option<f64>) -> relata::Bank<f32> {
    let bank = relata::Bank::new(samples, dim, 0).expect("a small bank");
    bank.with_normalizer(normalizer).expect("a number above 0")
}

with_fake_driver!(an_evaluation_with_a_bank_is_launches_alone, [], {
    let stream = stream();
    let rows = stream.alloc_zeros::<f16>(ROWS * DIM).expect("memory");
    let mut gradient = stream.alloc_zeros::<f32>(ROWS * DIM).expect("memory");
    let mut value = stream.alloc_zeros::<f32>(VALUE_LEN).expect("memory");
    let drawn = [6; ROWS * KEYS];
    let mut bank = Bank::new(&stream, &host(SAMPLES, DIM, Some(2.0))).expect("memory");
    let mut teachers = Bank::new(&stream, &host(SAMPLES, DIM, Some(3.0))).expect("memory");
    let mut indices = Indices::new(&stream, &drawn, [ROWS, KEYS], SAMPLES).expect("memory");
    for (loss, of_teacher) in [
        (Loss::from(Crd::default()), false),
        (RrdBank::default().into(), false),
        (RrdBank::default().into(), true),
    ] {
        let problem = Problem::new(loss, shapes(&loss)).expect("shapes that fit");
        let mut evaluator = Evaluator::<f16>::new(&stream, &problem).expect("an evaluator");
        calls();
        for _ in 0..2 {
            let keys = SampledKeys {
                bank: &mut bank,
                teacher_bank: of_teacher.then_some(&mut teachers),
                indices: &mut indices,
            };
            let of_rows = OfRows {
                keys: Some(keys),
                ..OfRows::default()
            };
            let teacher = match loss {
                Loss::Crd(_) => Teacher::None,
                _ => Teacher::Rows(&rows),
            };
            evaluator
                .launch_with(&rows, teacher, of_rows, &mut gradient, &mut value)
                .expect("launches");
            let passes = ["sampled_products_f16", "sampled_rows", "sampled_gradient"];
            assert_eq!(kernels(), [&passes[..], &["sampled_finish_f16"]].concat());
        }
    }
});

with_fake_driver!(an_update_takes_memory_for_the_largest_batch, [], {
    let stream = stream();
    let mut bank = Bank::new(&stream, &host(SAMPLES, DIM, None)).expect("memory");
    assert_eq!((bank.len(), bank.dim()), (SAMPLES, DIM));
    let allocations = || {
        let calls = calls();
        let is = |call: &&String, name: &str| call.starts_with(name);
        let launched = calls.iter().filter(|call| is(call, "cuLaunchKernel"));
        let names: Vec<_> = launched
            .map(|call| call.split(' ').nth(1).expect("a name").to_owned())
            .collect();
        assert_eq!(names, ["relata_measure_keys_f32", "relata_bank_update_f32"]);
        calls.iter().filter(|call| is(call, "cuMemAlloc")).count()
    };
    for (rows, wanted) in [(2, 2), (1, 0), (2, 0), (4, 2), (3, 0)] {
        let batch = stream.alloc_zeros::<f32>(rows * DIM).expect("memory");
        let samples: Vec<u32> = (0..rows as u32).collect();
        calls();
        bank.update::<f32>(&samples, &batch, 0.5).expect("launches");
        assert_eq!(allocations(), wanted, "{rows} rows");
    }
    let (bank, host) = (bank.to_host().expect("a copy"), host(SAMPLES, DIM, None));
    assert_eq!((bank.len(), bank.normalizer()), (host.len(), None));
});

with_fake_driver!(banks_that_do_not_fit_are_refused, [], {
    let stream = stream();
    let other_stream = stream.context().new_stream().expect("a stream");
    let drawn = [6; ROWS * KEYS];
    let indices_of = |shape: [usize; 2], samples: usize| {
        let drawn = &drawn[..shape[0] * shape[1]];
        Indices::new(&stream, drawn, shape, samples).expect("memory")
    };
    let bank_of = |samples, dim, normalizer| {
        Bank::new(&stream, &host(samples, dim, normalizer)).expect("memory")
    };
    let z = Some(2.0);
    let mut fine = bank_of(SAMPLES, DIM, z);
    let mut second = bank_of(SAMPLES, DIM, z);
    let mut longer = bank_of(SAMPLES + 1, DIM, z);
    let mut wider = bank_of(SAMPLES, DIM + 1, z);
    let mut without = bank_of(SAMPLES, DIM, None);
    let mut elsewhere = Bank::new(&other_stream, &host(SAMPLES, DIM, z)).expect("memory");
    let mut drawn_well = indices_of([ROWS, KEYS], SAMPLES);
    let mut fewer_rows = indices_of([ROWS - 1, KEYS], SAMPLES);
    let mut fewer_keys = indices_of([ROWS, KEYS - 1], SAMPLES);
    let mut of_more = indices_of([ROWS, KEYS], SAMPLES + 1);
    let mut drawn_elsewhere =
        Indices::new(&other_stream, &drawn, [ROWS, KEYS], SAMPLES).expect("memory");
    let dimension = |argument, expected, got| Error::Dimension {
        argument,
        expected,
        got,
    };
    let foreign = |argument, got: &str| Error::ForeignMemory {
        argument,
        got: got.to_owned(),
    };
    let crd = Loss::from(Crd::default());
    let rrd = Loss::from(RrdBank::default());
    let rows = stream.alloc_zeros::<f32>(ROWS * DIM).expect("memory");
    let mut gradient = stream.alloc_zeros::<f32>(ROWS * DIM).expect("memory");
    let mut value = stream.alloc_zeros::<f32>(VALUE_LEN).expect("memory");
    let mut refused = |loss: Loss, keys: Option<SampledKeys<'_>>| {
        let problem = Problem::new(loss, shapes(&loss)).expect("shapes that fit");
        let mut evaluator = Evaluator::<f32>::new(&stream, &problem).expect("an evaluator");
        let teacher = match loss {
            Loss::Crd(_) => Teacher::None,
            _ => Teacher::Rows(&rows),
        };
        let of_rows = OfRows {
            keys,
            ..OfRows::default()
        };
        calls();
        let why = evaluator.launch_with(&rows, teacher, of_rows, &mut gradient, &mut value);
        assert_eq!(actions(calls()), [""; 0]);
        why.expect_err("no evaluation")
    };
    assert_eq!(
        refused(crd, None),
        Error::Missing {
            argument: "bank",
            expected: "launch_with, with what the problem has",
        }
    );
    let mut refuses = |loss: Loss,
                       bank: &mut Bank,
                       teacher_bank: Option<&mut Bank>,
                       indices: &mut Indices,
                       error: Error| {
        let keys = SampledKeys {
            bank,
            teacher_bank,
            indices,
        };
        assert_eq!(refused(loss, Some(keys)), error);
    };
    refuses(
        crd,
        &mut longer,
        None,
        &mut drawn_well,
        dimension("bank samples", SAMPLES, SAMPLES + 1),
    );
    refuses(
        crd,
        &mut wider,
        None,
        &mut drawn_well,
        dimension("bank_dim", DIM, DIM + 1),
    );
    refuses(
        crd,
        &mut fine,
        None,
        &mut fewer_rows,
        dimension("rows of indices", ROWS, ROWS - 1),
    );
    refuses(
        crd,
        &mut fine,
        None,
        &mut fewer_keys,
        dimension("indices of a row", KEYS, KEYS - 1),
    );
    refuses(
        crd,
        &mut fine,
        None,
        &mut of_more,
        dimension("bank samples", SAMPLES, SAMPLES + 1),
    );
    refuses(
        crd,
        &mut elsewhere,
        None,
        &mut drawn_well,
        foreign("bank", "a bank of another stream"),
    );
    refuses(
        crd,
        &mut fine,
        None,
        &mut drawn_elsewhere,
        foreign("indices", "indices of another stream"),
    );
    refuses(
        crd,
        &mut fine,
        Some(&mut second),
        &mut drawn_well,
        Error::Unexpected {
            argument: "teacher_bank",
            loss: "crd",
        },
    );
    refuses(
        rrd,
        &mut fine,
        Some(&mut without),
        &mut drawn_well,
        Error::Missing {
            argument: "normalizer",
            expected: "a bank with its normalizer: see Bank::calibrate",
        },
    );
});

with_fake_driver!(indices_and_samples_that_do_not_exist_are_refused, [], {
    let stream = stream();
    let too_large = |argument, got| Error::TooLarge {
        argument,
        most: SAMPLES - 1,
        got,
    };
    let new = |drawn: &[u32], shape| Indices::new(&stream, drawn, shape, SAMPLES);
    calls();
    assert_eq!(
        new(&[0, 7], [1, 2]).err(),
        Some(too_large("indices", 7)),
        "beyond the bank"
    );
    let length = Error::Length {
        argument: "indices",
        expected: 4,
        got: 3,
    };
    assert_eq!(new(&[0; 3], [2, 2]).err(), Some(length.clone()));
    assert!(matches!(new(&[], [0, 2]).err(), Some(Error::Empty { .. })));
    assert_eq!(actions(calls()), [""; 0]);
    let mut indices = new(&[6; 4], [2, 2]).expect("memory");
    assert_eq!(indices.shape(), [2, 2]);
    assert_eq!(indices.write(&[0; 3]), Err(length));
    assert_eq!(indices.write(&[0, 1, 2, 9]), Err(too_large("indices", 9)));
    indices.write(&[0, 1, 2, 3]).expect("a copy");

    let mut bank = Bank::new(&stream, &host(SAMPLES, DIM, None)).expect("memory");
    let rows = stream.alloc_zeros::<f32>(2 * DIM).expect("memory");
    calls();
    let refused = [
        bank.update::<f32>(&[], &rows, 0.5),
        bank.update::<f32>(&[0, 7], &rows, 0.5),
        bank.update::<f32>(&[0, 1, 2], &rows, 0.5),
        bank.update::<f32>(&[0, 1], &rows, 1.5),
    ];
    assert_eq!(refused[1], Err(too_large("samples", 7)));
    assert_eq!(
        refused[2],
        Err(Error::Length {
            argument: "rows",
            expected: 9,
            got: 6
        })
    );
    let parameter = matches!(
        refused[3],
        Err(Error::Parameter {
            argument: "momentum",
            ..
        })
    );
    assert!(parameter, "{refused:?}");
    assert_eq!(
        refused[0],
        Err(Error::Empty {
            argument: "samples"
        })
    );
    assert_eq!(actions(calls()), [""; 0]);
});
