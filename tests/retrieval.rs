//! Are the helpers around training right: recall@k, and batches with m samples of each class?

use proptest::prelude::*;
use relata::{Cpu, Error, MPerClassSampler, Reference, Rows, recall_at_k};

/// The share of rows that have a row of their own label among their k nearest others, by sorting.
fn by_sorting(points: &[f64], dim: usize, labels: &[u8], k: usize) -> f64 {
    let rows: Vec<&[f64]> = points.chunks_exact(dim).collect();
    let hits = (0..rows.len()).filter(|&i| {
        let distance = |j: usize| {
            let squares = rows[i].iter().zip(rows[j]).map(|(a, b)| (a - b).powi(2));
            squares.sum::<f64>().sqrt()
        };
        let mut others: Vec<usize> = (0..rows.len()).filter(|&j| j != i).collect();
        // The sort is stable: of equally near rows the first comes first.
        others.sort_by(|&a, &b| distance(a).total_cmp(&distance(b)));
        others.iter().take(k).any(|&j| labels[j] == labels[i])
    });
    hits.count() as f64 / rows.len() as f64
}

proptest! {
    #[test]
    fn recall_is_what_sorting_says(
        dim in 1usize..4,
        rows in prop::collection::vec(([-3i8..4, -3i8..4, -3i8..4], 0u8..4), 1..30),
    ) {
        // Small whole numbers: many distances are equal, and all are exact.
        let points: Vec<f64> =
            rows.iter().flat_map(|(x, _)| x[..dim].iter().map(|&x| f64::from(x))).collect();
        let labels: Vec<u8> = rows.iter().map(|&(_, label)| label).collect();
        let view = Rows::new(&points, [rows.len(), dim]).expect("rows");
        let ks = [1, 2, 5, 100];
        let want = ks.map(|k| by_sorting(&points, dim, &labels, k));
        prop_assert_eq!(recall_at_k(&Cpu, view, &labels, &ks).expect("recall"), want);
        prop_assert_eq!(recall_at_k(&Reference, view, &labels, &ks).expect("recall"), want);
    }

    #[test]
    fn batches_hold_m_samples_of_a_class_and_none_twice(
        labels in prop::collection::vec(0u8..6, 1..60),
        batch_size in 1usize..40,
        per_class in 1usize..7,
        seed: u64,
    ) {
        let sampler = MPerClassSampler::new(&labels, batch_size, per_class, seed).expect("sizes");
        let members = |class: u8| labels.iter().filter(|&&l| l == class).count();
        let most: usize = (0..6).map(|class| members(class).min(per_class)).sum();
        let batches: Vec<_> = sampler.clone().take(5).collect();
        for batch in &batches {
            prop_assert_eq!(batch.len(), batch_size.min(most));
            let mut distinct = batch.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), batch.len());
            // Full classes, but for the last one.
            let mut short = 0;
            for class in 0..6 {
                let count = batch.iter().filter(|&&i| labels[i] == class).count();
                prop_assert!(count <= per_class);
                short += usize::from(count > 0 && count < members(class).min(per_class));
            }
            prop_assert!(short <= 1);
        }
        prop_assert_eq!(batches, sampler.take(5).collect::<Vec<_>>());
    }
}

#[test]
fn every_sample_is_drawn() {
    let labels: Vec<u32> = (0..100).map(|i| i % 10).collect();
    let sampler = MPerClassSampler::new(&labels, 20, 4, 1).expect("sizes");
    let mut drawn = [0u32; 100];
    for batch in sampler.take(1000) {
        batch.into_iter().for_each(|i| drawn[i] += 1);
    }
    // 200 on average, with a standard deviation of 13.
    assert!(drawn.iter().all(|n| (140..260).contains(n)), "{drawn:?}");
}

#[test]
fn bad_arguments_are_named() {
    let points = [0.0f32, 1.0, f32::NAN];
    let rows = Rows::new(&points[..2], [2, 1]).expect("rows");
    let error = recall_at_k(&Cpu, rows, &[1], &[1]).expect_err("a label is missing");
    assert_eq!(error.to_string(), "labels: expected 2, got 1");
    let error = recall_at_k(&Cpu, rows, &[1, 1], &[1, 0]).expect_err("no neighbours");
    assert_eq!(error, Error::Empty { argument: "k" });
    let rows = Rows::new(&points, [3, 1]).expect("rows");
    let error = recall_at_k(&Cpu, rows, &[1, 1, 1], &[1]).expect_err("NaN");
    let expected = "embeddings: expected finite values, got NaN at row 2, column 0";
    assert_eq!(error.to_string(), expected);
    let none: [u8; 0] = [];
    let error = recall_at_k(
        &Cpu,
        Rows::new(&points[..0], [0, 1]).expect("rows"),
        &none,
        &[1],
    );
    assert_eq!(error, Err(Error::Empty { argument: "rows" }));

    for (labels, batch, each, argument) in [
        (&none[..], 4, 2, "labels"),
        (&[1][..], 0, 2, "batch_size"),
        (&[1][..], 4, 0, "per_class"),
    ] {
        let error = MPerClassSampler::new(labels, batch, each, 0).expect_err("an empty size");
        assert_eq!(error, Error::Empty { argument });
    }
}
