//! Which keys a row gets.

use std::collections::HashSet;

use relata::{Error, NegativeSampler};

const SAMPLES: [u32; 4] = [0, 11, 5, 11];

fn labels() -> Vec<u32> {
    (0..30).map(|i| i * i % 7).collect()
}

#[test]
fn a_seed_gives_the_same_keys_whatever_was_drawn_before() {
    let sampler = NegativeSampler::of_other_classes(&labels(), 9).expect("a sampler");
    let first = sampler.sample(&SAMPLES, 5).expect("keys");
    assert_ne!(sampler.sample(&SAMPLES, 6).expect("keys"), first);
    assert_eq!(sampler.sample(&SAMPLES, 5).expect("keys"), first);
    let again = NegativeSampler::of_other_classes(&labels(), 9).expect("a sampler");
    assert_eq!(again.sample(&SAMPLES, 5).expect("keys"), first);
    // And on every machine.
    let sampler = NegativeSampler::of_others(10, 4).expect("a sampler");
    let want = [3, 6, 1, 2, 5, 8, 6, 5, 7, 3];
    assert_eq!(sampler.sample(&[3, 8], 0).expect("keys"), want);
}

#[test]
fn negatives_are_different_samples_of_other_classes() {
    let labels = labels();
    let others = |sample: u32| {
        labels
            .iter()
            .filter(|&&l| l != labels[sample as usize])
            .count()
    };
    let fewest = SAMPLES.into_iter().map(others).min().expect("samples");
    for negatives in [1, 5, fewest] {
        let sampler = NegativeSampler::of_other_classes(&labels, negatives).expect("a sampler");
        for seed in 0..50 {
            let indices = sampler.sample(&SAMPLES, seed).expect("keys");
            assert_eq!(indices.len(), SAMPLES.len() * (negatives + 1));
            for (of_row, sample) in indices.chunks(negatives + 1).zip(SAMPLES) {
                assert_eq!(of_row[0], sample);
                let label = labels[sample as usize];
                assert!(of_row[1..].iter().all(|&k| labels[k as usize] != label));
                assert_eq!(of_row[1..].iter().collect::<HashSet<_>>().len(), negatives);
            }
        }
    }
}

#[test]
fn negatives_come_twice_where_there_are_too_few() {
    let labels = ["a", "a", "b", "a", "c"];
    let sampler = NegativeSampler::of_other_classes(&labels, 3).expect("a sampler");
    let mut seen = HashSet::new();
    for seed in 0..30 {
        let indices = sampler.sample(&[3], seed).expect("keys");
        assert!(
            indices[1..].iter().all(|k| [2, 4].contains(k)),
            "{indices:?}"
        );
        seen.extend(indices[1..].to_vec());
    }
    assert_eq!(seen.len(), 2);
}

/// Of 5 others each is drawn in 2 of 5 rows, and first in one of 5.
#[test]
fn all_others_are_equally_likely() {
    let sampler = NegativeSampler::of_others(6, 2).expect("a sampler");
    let (mut drawn, mut first) = ([0u32; 6], [0u32; 6]);
    for seed in 0..2000 {
        for of_row in sampler.sample(&[4, 4], seed).expect("keys").chunks(3) {
            first[of_row[1] as usize] += 1;
            of_row[1..].iter().for_each(|&k| drawn[k as usize] += 1);
        }
    }
    for k in [0, 1, 2, 3, 5] {
        assert!(drawn[k].abs_diff(1600) < 160, "{drawn:?}");
        assert!(first[k].abs_diff(800) < 120, "{first:?}");
    }
    assert_eq!(drawn[4], 0);
}

#[test]
fn a_relaxed_positive_is_any_sample_of_the_class() {
    let labels = ["a", "b", "a", "a", "b"];
    let sampler = NegativeSampler::of_other_classes(&labels, 2)
        .expect("a sampler")
        .with_relaxed(true);
    let mut seen = HashSet::new();
    for seed in 0..60 {
        let indices = sampler.sample(&[2], seed).expect("keys");
        seen.insert(indices[0]);
        assert!(
            indices[1..].iter().all(|k| [1, 4].contains(k)),
            "{indices:?}"
        );
    }
    assert_eq!(seen, HashSet::from([0, 2, 3]));
}

#[test]
fn errors_name_the_argument() {
    let empty = |argument| Some(Error::Empty { argument });
    let of = |labels: &[u32], negatives| NegativeSampler::of_other_classes(labels, negatives).err();
    assert_eq!(of(&[], 2), empty("labels"));
    assert_eq!(of(&[1, 1], 2), empty("other classes"));
    assert_eq!(of(&[1, 2], 0), empty("negatives"));
    let most = u32::MAX as usize - 1;
    for got in [most + 1, usize::MAX] {
        let refused = Error::TooLarge {
            argument: "negatives",
            most,
            got,
        };
        assert_eq!(of(&[1, 2], got), Some(refused.clone()));
        assert_eq!(NegativeSampler::of_others(2, got).err(), Some(refused));
    }
    assert_eq!(
        NegativeSampler::of_others(1, 2).err(),
        empty("other classes")
    );
    assert_eq!(
        NegativeSampler::of_others(0, 2).err(),
        empty("other classes")
    );
    let sampler = NegativeSampler::of_others(3, 2).expect("a sampler");
    let refused = Error::TooLarge {
        argument: "samples",
        most: 2,
        got: 3,
    };
    assert_eq!(sampler.sample(&[1, 3], 0), Err(refused));
}
