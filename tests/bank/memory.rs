//! The bank itself: its first rows, updates, checkpoints, and what it refuses.

use relata::{Bank, Error, Rows};

use crate::common::Random;

#[test]
fn noise_depends_on_the_seed_alone() {
    let bank = |seed| Bank::<f32>::new(1000, 12, seed).expect("a bank");
    assert_eq!(bank(1), bank(1));
    assert_ne!(bank(1), bank(2));
    assert_eq!(bank(1).normalizer(), None);
    let bank = bank(3);
    let all = bank.rows().as_slice();
    assert!(all.iter().all(|x| x.abs() <= 0.5), "√(3/12)");
    let mean_square = all.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 1000.0;
    assert!((mean_square - 1.0).abs() < 0.02, "{mean_square}");
    let mean = all.iter().map(|&x| f64::from(x)).sum::<f64>() / all.len() as f64;
    assert!(mean.abs() < 0.01, "{mean}");
}

/// Another implementation of the generator would start other training runs.
#[test]
fn noise_is_the_same_on_every_machine() {
    let bank = Bank::<f64>::new(1, 3, 0).expect("a bank");
    assert_eq!(bank.rows().as_slice(), FIRST_NUMBERS);
}

const FIRST_NUMBERS: [f64; 3] = [
    0.20525521438203453,
    -0.9901014072373301,
    -0.8104818409339626,
];

#[test]
fn an_update_is_a_mean_at_length_one() {
    let first = [3.0, 4.0, 1.0, 0.0, 0.0, 2.0];
    let mut bank =
        Bank::<f64>::from_rows(Rows::new(&first, [3, 2]).expect("rows")).expect("a bank");
    let new = [0.0, 5.0];
    bank.update(&[1], Rows::new(&new, [1, 2]).expect("rows"), 0.75)
        .expect("updates");
    let length = (0.75f64.powi(2) + 0.25f64.powi(2)).sqrt();
    let want = [0.75 / length, 0.25 / length];
    for (got, want) in bank.rows().row(1).iter().zip(want) {
        assert!((got - want).abs() < 1e-15);
    }
    // The others are as they were, to the last bit.
    assert_eq!(bank.rows().row(0), &first[..2]);
    assert_eq!(bank.rows().row(2), &first[4..]);
    // What has no direction stays without one.
    bank.update(
        &[2],
        Rows::new(&[0.0, -2.0], [1, 2]).expect("rows"),
        2.0 / 3.0,
    )
    .expect("updates");
    let opposite = bank.rows().row(2);
    assert!(opposite.iter().all(|x| x.is_finite()), "{opposite:?}");
    bank.update(&[1], Rows::new(&[0.0, 0.0], [1, 2]).expect("rows"), 0.0)
        .expect("updates");
    assert_eq!(bank.rows().row(1), [0.0, 0.0]);
}

#[test]
fn the_last_row_of_a_sample_wins() {
    let mut random = Random::new(5);
    let first = random.normals(6 * 4);
    let bank = Bank::<f64>::from_rows(Rows::new(&first, [6, 4]).expect("rows")).expect("a bank");
    let rows = random.normals(5 * 4);
    let updated = |samples: &[u32], which: &[usize]| {
        let mut bank = bank.clone();
        let rows: Vec<f64> = which
            .iter()
            .flat_map(|&i| &rows[4 * i..][..4])
            .copied()
            .collect();
        let rows = Rows::new(&rows, [which.len(), 4]).expect("rows");
        bank.update(samples, rows, 0.5).expect("updates");
        bank
    };
    let twice = updated(&[2, 4, 2, 0, 4], &[0, 1, 2, 3, 4]);
    assert_eq!(
        twice,
        updated(&[2, 0, 4], &[2, 3, 4]),
        "from the old rows, not from one another"
    );
    assert_ne!(twice, updated(&[2, 4, 0], &[0, 1, 3]));
}

/// A run that goes on from a checkpoint gives the bits of one that was never interrupted.
#[test]
fn a_checkpoint_restores_every_bit() {
    fn run<R: relata::Real>() {
        let mut random = Random::new(9);
        let mut bank = Bank::<R>::new(20, 7, 4).expect("a bank");
        let mut step = |banks: &mut [&mut Bank<R>]| {
            let rows = crate::common::cast::<R>(&random.normals(6 * 7));
            let rows = Rows::new(&rows, [6, 7]).expect("rows");
            let of_batch = random.normals(6);
            let samples: Vec<u32> = of_batch
                .iter()
                .map(|x| (x.abs() * 7.0) as u32 % 20)
                .collect();
            for bank in banks {
                bank.calibrate(rows, &samples, 0.07).expect("calibrates");
                bank.update(&samples, rows, 0.5).expect("updates");
            }
        };
        for _ in 0..3 {
            step(&mut [&mut bank]);
        }
        let saved = (bank.rows().as_slice().to_vec(), bank.normalizer());
        let mut restored = Bank::from_rows(Rows::new(&saved.0, [20, 7]).expect("rows"))
            .and_then(|bank| bank.with_normalizer(saved.1))
            .expect("a bank");
        for _ in 0..3 {
            step(&mut [&mut bank, &mut restored]);
        }
        assert!(bank.normalizer().is_some());
        assert_eq!(restored, bank);
        assert_ne!(bank.rows().as_slice(), &saved.0[..]);
    }
    run::<f32>();
    run::<f64>();
}

#[test]
fn a_normalizer_is_set_once() {
    let rows = [1.0f64, 0.0, 0.0, 1.0];
    let mut bank = Bank::from_rows(Rows::new(&rows, [2, 2]).expect("rows")).expect("a bank");
    let first = [2.0f64, 0.0];
    let first = Rows::new(&first, [1, 2]).expect("rows");
    let z = bank.calibrate(first, &[0, 1, 1], 0.5).expect("calibrates");
    assert!((z - 2.0 * (2f64.exp() + 2.0) / 3.0).abs() < 1e-14);
    let again = bank.calibrate(first, &[1, 1, 1], 0.1).expect("calibrates");
    assert_eq!((again, bank.normalizer()), (z, Some(z)));
    // Beyond f64.
    let mut other = Bank::from_rows(Rows::new(&rows, [2, 2]).expect("rows")).expect("a bank");
    let refused = Error::Parameter {
        argument: "normalizer",
        expected: "a finite number above 0",
        got: f64::INFINITY,
    };
    assert_eq!(other.calibrate(first, &[0], 1e-3), Err(refused));
    assert_eq!(other.normalizer(), None);
}

#[test]
fn errors_name_the_argument_and_change_nothing() {
    let first = Bank::<f32>::new(4, 2, 0).expect("a bank");
    let update = |samples: &[u32], rows: &[f32], dim: usize, momentum: f64| {
        let mut bank = first.clone();
        let rows = Rows::new(rows, [rows.len() / dim, dim]).expect("rows");
        let refused = bank.update(samples, rows, momentum).expect_err("refused");
        assert_eq!(bank, first);
        refused
    };
    let dimension = |argument, expected, got| Error::Dimension {
        argument,
        expected,
        got,
    };
    let two = [1.0, 0.0, 0.0, 1.0];
    assert_eq!(update(&[0], &two, 2, 0.5), dimension("samples", 2, 1));
    assert_eq!(update(&[0], &two, 4, 0.5), dimension("bank_dim", 2, 4));
    let too_large = |argument, got| Error::TooLarge {
        argument,
        most: 3,
        got,
    };
    assert_eq!(update(&[0, 4], &two, 2, 0.5), too_large("samples", 4));
    assert!(matches!(
        update(&[0, 1], &two, 2, 1.5),
        Error::Parameter {
            argument: "momentum",
            ..
        }
    ));
    assert!(matches!(
        update(&[0, 1], &[1.0, 0.0, 0.0, f32::NAN], 2, 0.5),
        Error::NotFinite {
            argument: "rows",
            row: 1,
            column: 1,
            ..
        }
    ));
    let bank = |samples, dim| Bank::<f32>::new(samples, dim, 0).map(|_| ());
    assert_eq!(
        bank(0, 2),
        Err(Error::Empty {
            argument: "bank samples"
        })
    );
    assert_eq!(
        bank(2, 0),
        Err(Error::Empty {
            argument: "bank_dim"
        })
    );
    assert!(matches!(
        bank(1 << 33, 2),
        Err(Error::TooLarge {
            argument: "bank samples",
            ..
        })
    ));
    let rows = Rows::new(&[f32::INFINITY, 0.0], [1, 2]).expect("rows");
    assert!(matches!(
        Bank::from_rows(rows),
        Err(Error::NotFinite {
            argument: "bank",
            ..
        })
    ));
    for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let refused = first.clone().with_normalizer(Some(wrong));
        assert!(matches!(
            refused,
            Err(Error::Parameter {
                argument: "normalizer",
                ..
            })
        ));
    }
    let calibrate = |rows: &[f32], dim: usize, indices: &[u32], temperature: f64| {
        let rows = Rows::new(rows, [rows.len() / dim, dim]).expect("rows");
        first
            .clone()
            .calibrate(rows, indices, temperature)
            .expect_err("refused")
    };
    assert_eq!(
        calibrate(&[], 2, &[], 1.0),
        Error::Empty { argument: "rows" }
    );
    assert_eq!(
        calibrate(&two, 2, &[0], 1.0),
        Error::Empty {
            argument: "indices"
        }
    );
    assert_eq!(calibrate(&two, 4, &[0], 1.0), dimension("bank_dim", 2, 4));
    assert_eq!(calibrate(&two, 2, &[0, 9], 1.0), too_large("indices", 9));
    assert!(matches!(
        calibrate(&two, 2, &[0, 1, 2], 1.0),
        Error::Length {
            argument: "indices",
            expected: 4,
            got: 3
        }
    ));
    assert!(matches!(
        calibrate(&two, 2, &[0, 1], 0.0),
        Error::Parameter {
            argument: "temperature",
            ..
        }
    ));
}
