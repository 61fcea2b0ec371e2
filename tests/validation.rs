//! Every error, reached through the public interface: the argument it names, the value it expects
//! and the value it got.

mod common;

use common::losses::{losses_against_teachers as losses, rkd_losses, shapes_of};
use common::{Input, for_every_dtype};
use relata::{
    Batch, Cpu, DType, DarkRank, Divergence, Element, Error, Family, InfoNce, KdKl, Loss, Order,
    Problem, Queue, QueueUse, Reference, Relation, Rkd, RkdAngle, RkdDistance, Rows, Rrd, Shapes,
    relation_matrix, softmax,
};

fn rows<T: Element>(data: &[T], shape: [usize; 2]) -> Rows<'_, T> {
    Rows::new(data, shape).expect("data of this shape")
}

#[track_caller]
fn refused<T>(result: relata::Result<T>) -> Error {
    match result {
        Ok(_) => panic!("accepted"),
        Err(error) => error,
    }
}

#[test]
fn rows_refuse_a_slice_of_another_length() {
    for (len, shape, expected) in [
        (5, [2, 3], 6),
        (7, [2, 3], 6),
        (0, [1, 1], 1),
        (1, [0, 4], 0),
        (4, [usize::MAX, 2], usize::MAX),
    ] {
        let data = vec![0.0f32; len];
        let want = Error::Length {
            argument: "rows",
            expected,
            got: len,
        };
        assert_eq!(refused(Rows::new(&data, shape)), want);
    }
    let error = refused(Rows::new(&[0.0f64; 5], [2, 3]));
    assert_eq!(error.to_string(), "rows: expected 6 elements, got 5");
    let data = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
    let batch = rows(&data, [2, 3]);
    assert_eq!((batch.len(), batch.dim(), batch.is_empty()), (2, 3, false));
    assert_eq!((batch.row(0), batch.row(1)), (&data[..3], &data[3..]));
    assert_eq!(batch.iter().collect::<Vec<_>>(), [&data[..3], &data[3..]]);
    assert_eq!(rows::<f32>(&[], [0, 3]).iter().len(), 0);
    assert_eq!(rows::<f32>(&[], [3, 0]).iter().len(), 0);
}

// The offset of this row, in an unsigned integer that wraps, is that of row 0.
#[test]
#[should_panic(expected = "row 9223372036854775808 of 2")]
fn rows_panic_on_a_row_beyond_the_last() {
    let data = [1.0f32, 2.0, 3.0, 4.0];
    let _ = rows(&data, [2, 2]).row(1 << 63);
}

#[test]
fn problems_queues_and_building_blocks_refuse_an_empty_dimension() {
    for loss in losses() {
        for shapes in shapes_of(&loss, [3, 4, 4, 5]) {
            for (argument, shapes) in [
                ("rows", Shapes { rows: 0, ..shapes }),
                (
                    "student_dim",
                    Shapes {
                        student_dim: 0,
                        ..shapes
                    },
                ),
                (
                    "teacher_dim",
                    Shapes {
                        teacher_dim: 0,
                        ..shapes
                    },
                ),
            ] {
                let error = refused(Problem::new(loss, shapes));
                assert_eq!(error, Error::Empty { argument }, "{loss}");
            }
            if shapes.queue.is_some() {
                let error = refused(Problem::new(loss, shapes.with_queue(0)));
                assert_eq!(
                    error,
                    Error::Empty {
                        argument: "queue keys"
                    }
                );
            }
        }
    }
    assert_eq!(
        refused(Queue::<f32>::new(0, 3)),
        Error::Empty {
            argument: "queue capacity"
        }
    );
    assert_eq!(
        refused(Queue::<f32>::new(3, 0)),
        Error::Empty {
            argument: "queue_dim"
        }
    );
    for (shape, argument) in [([0, 3], "rows"), ([3, 0], "dim")] {
        let want = Error::Empty { argument };
        let none = rows::<f32>(&[], shape);
        assert_eq!(refused(relation_matrix(&Cpu, Relation::Dot, none)), want);
        assert_eq!(refused(softmax(&Reference, none, 1.0)), want);
    }
    let error = Error::Empty { argument: "rows" };
    assert_eq!(error.to_string(), "rows: expected at least 1, got 0");
}

#[test]
fn problems_refuse_dimensions_that_do_not_match() {
    // Losses that compare the two spaces need one dimension for both; relational losses do not.
    for loss in losses() {
        let shapes = Shapes::new(3, 4, 6);
        let shapes = match loss.spec().queue {
            QueueUse::Required => shapes.with_queue(5),
            QueueUse::Optional | QueueUse::Never => shapes,
        };
        let result = Problem::new(loss, shapes);
        if loss.spec().same_dim {
            let want = Error::Dimension {
                argument: "teacher_dim",
                expected: 4,
                got: 6,
            };
            assert_eq!(refused(result), want, "{loss}");
        } else {
            assert!(result.is_ok());
        }
    }
    // A problem's shapes are those of the batch.
    let problem = RkdDistance::default()
        .problem(Shapes::new(3, 2, 4))
        .expect("shapes that fit");
    let evaluate = |student: [usize; 2], teacher: [usize; 2]| {
        let (x, y) = (
            vec![1.0f32; student[0] * student[1]],
            vec![1.0; teacher[0] * teacher[1]],
        );
        problem.evaluate(&Cpu, Batch::new(rows(&x, student), rows(&y, teacher)))
    };
    assert!(evaluate([3, 2], [3, 4]).is_ok());
    for (student, teacher, argument, expected, got) in [
        ([2, 2], [3, 4], "student rows", 3, 2),
        ([3, 3], [3, 4], "student_dim", 2, 3),
        ([3, 2], [4, 4], "teacher rows", 3, 4),
        ([3, 2], [3, 1], "teacher_dim", 4, 1),
    ] {
        let want = Error::Dimension {
            argument,
            expected,
            got,
        };
        assert_eq!(refused(evaluate(student, teacher)), want);
    }
    let error = refused(evaluate([2, 2], [3, 4]));
    assert_eq!(error.to_string(), "student rows: expected 3, got 2");
    // Its queue is that of the batch too.
    let (x, loss) = ([0.5f32; 6], Rrd::default());
    let problem = loss
        .problem(Shapes::new(2, 3, 3).with_queue(4))
        .expect("shapes that fit");
    for (keys, dim, argument, expected, got) in
        [(3, 3, "queue keys", 4, 3), (4, 2, "queue_dim", 3, 2)]
    {
        let mut queue = Queue::new(8, dim).expect("a queue");
        queue
            .enqueue(rows(&vec![1.0f32; keys * dim], [keys, dim]))
            .expect("keys");
        let batch = Batch::new(rows(&x, [2, 3]), rows(&x, [2, 3])).with_queue(&queue);
        let want = Error::Dimension {
            argument,
            expected,
            got,
        };
        assert_eq!(refused(problem.evaluate(&Cpu, batch)), want);
    }
    // `evaluate` makes its own problem and checks the whole batch.
    let error = refused(RkdAngle::default().evaluate(&Cpu, rows(&x, [2, 3]), rows(&x, [3, 2])));
    assert_eq!(
        error,
        Error::Dimension {
            argument: "teacher rows",
            expected: 2,
            got: 3
        }
    );
}

#[test]
fn order_refuses_more_pairs_than_it_counts() {
    let most = 1 << 16;
    let problem = |rows| Problem::new(Order::default(), Shapes::new(rows, 3, 3));
    assert!(problem(most).is_ok());
    let want = Error::TooLarge {
        argument: "rows",
        most,
        got: most + 1,
    };
    assert_eq!(refused(problem(most + 1)), want);
}

#[test]
fn dark_rank_refuses_no_neighbours_and_more_than_it_ranks() {
    let problem = |length| {
        let loss = DarkRank {
            length,
            ..DarkRank::default()
        };
        Problem::new(loss, Shapes::new(3, 3, 3))
    };
    assert!(problem(1).is_ok() && problem(32).is_ok());
    let none = Error::Empty { argument: "length" };
    assert_eq!(refused(problem(0)), none);
    let many = Error::TooLarge {
        argument: "length",
        most: 32,
        got: 33,
    };
    assert_eq!(refused(problem(33)), many);
}

#[test]
fn evaluate_into_refuses_a_gradient_of_another_length() {
    let x = [0.5f32, 1.0, 2.0, 4.0, 3.0, 0.0];
    let batch = Batch::new(rows(&x, [3, 2]), rows(&x, [3, 2]));
    let problem = KdKl::default()
        .problem(batch.shapes())
        .expect("shapes that fit");
    for len in [0, 5, 7] {
        let mut gradient = vec![7.0; len];
        let want = Error::Length {
            argument: "gradient",
            expected: 6,
            got: len,
        };
        assert_eq!(
            refused(problem.evaluate_into(&Cpu, batch, &mut gradient)),
            want
        );
        assert!(gradient.iter().all(|&g| g == 7.0), "written to");
    }
}

#[test]
fn problems_refuse_a_missing_or_unexpected_queue() {
    let error = refused(Rrd::default().problem(Shapes::new(2, 3, 3)));
    let want = Error::Missing {
        argument: "queue",
        expected: "a queue of teacher keys",
    };
    assert_eq!(error, want);
    assert_eq!(
        error.to_string(),
        "queue: expected a queue of teacher keys, got none"
    );
    for loss in losses() {
        if loss.spec().queue != QueueUse::Never {
            continue;
        }
        let error = refused(Problem::new(loss, Shapes::new(2, 3, 3).with_queue(4)));
        assert_eq!(
            error,
            Error::Unexpected {
                argument: "queue",
                loss: loss.name()
            }
        );
    }
    let (x, mut queue) = ([0.5f32; 6], Queue::new(4, 3).expect("a queue"));
    queue.enqueue(rows(&x, [2, 3])).expect("keys");
    let batch = Batch::new(rows(&x, [2, 3]), rows(&x, [2, 3]));
    // InfoNCE takes a queue or none, but only as its problem was made.
    let in_batch = InfoNce::default()
        .problem(batch.shapes())
        .expect("shapes that fit");
    let error = refused(in_batch.evaluate(&Cpu, batch.with_queue(&queue)));
    assert_eq!(
        error,
        Error::Unexpected {
            argument: "queue",
            loss: "info-nce"
        }
    );
    let text = "this info-nce takes no queue";
    assert_eq!(error.to_string(), text);
    let shapes = batch.with_queue(&queue).shapes();
    assert_eq!(shapes.queue, Some(2));
    let queued = InfoNce::default().problem(shapes).expect("shapes that fit");
    let error = refused(queued.evaluate(&Cpu, batch));
    assert!(matches!(
        error,
        Error::Missing {
            argument: "queue",
            ..
        }
    ));
}

#[test]
fn problems_refuse_a_parameter_out_of_range() {
    let delta = |delta| {
        rkd_losses(Rkd {
            delta,
            ..Rkd::default()
        })
    };
    let temperatures = |temperature| -> [(Loss, &str); 5] {
        [
            (KdKl::new(temperature).into(), "student_temperature"),
            (
                KdKl {
                    teacher_temperature: temperature,
                    ..KdKl::default()
                }
                .into(),
                "teacher_temperature",
            ),
            (
                InfoNce {
                    temperature,
                    ..InfoNce::default()
                }
                .into(),
                "temperature",
            ),
            (
                Rrd {
                    student_temperature: temperature,
                    ..Rrd::default()
                }
                .into(),
                "student_temperature",
            ),
            (
                Rrd {
                    teacher_temperature: temperature,
                    ..Rrd::default()
                }
                .into(),
                "teacher_temperature",
            ),
        ]
    };
    #[track_caller]
    fn assert_refused(loss: Loss, name: &str, value: f64, wanted: &str) {
        let shapes = shapes_of(&loss, [2, 3, 3, 4])[0];
        let Error::Parameter {
            argument,
            got,
            expected,
        } = refused(Problem::new(loss, shapes))
        else {
            panic!("{loss}: another error");
        };
        assert_eq!(argument, name, "{loss}");
        assert_eq!(got.to_bits(), value.to_bits(), "{loss}");
        assert!(expected.starts_with(wanted), "{loss}: {expected}");
    }
    for bad in [-0.1, 1.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for (divergence, name) in [
            (Divergence::Js { beta: bad }, "beta"),
            (Divergence::Skew { alpha: bad }, "alpha"),
            (Divergence::SkewReverse { alpha: bad }, "alpha"),
        ] {
            let loss = KdKl {
                divergence,
                ..KdKl::default()
            };
            assert_refused(loss.into(), name, bad, "a number from 0 to 1");
        }
    }
    for bad in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for loss in delta(bad) {
            assert_refused(loss, "delta", bad, "a finite number");
        }
        for (loss, name) in temperatures(bad) {
            assert_refused(loss, name, bad, "a finite number");
        }
        let x = [0.5f32; 6];
        let error = refused(softmax(&Cpu, rows(&x, [2, 3]), bad));
        assert!(matches!(
            error,
            Error::Parameter {
                argument: "temperature",
                ..
            }
        ));
    }
    for bad in [1e-30f64.next_down(), 1e30f64.next_up()] {
        for (loss, name) in temperatures(bad) {
            assert_refused(loss, name, bad, "a finite number");
        }
        assert!(softmax(&Cpu, rows(&[0.5f32; 6], [2, 3]), bad).is_err());
    }
    for bad in [-1.0, f64::NAN, f64::INFINITY] {
        assert_refused(
            Order { margin: bad }.into(),
            "margin",
            bad,
            "a finite number",
        );
        let alpha = DarkRank {
            alpha: bad,
            ..DarkRank::default()
        };
        assert_refused(alpha.into(), "alpha", bad, "a finite number");
        let beta = DarkRank {
            beta: bad,
            ..DarkRank::default()
        };
        assert_refused(beta.into(), "beta", bad, "a finite number");
        let distance = Rkd {
            distance_weight: bad,
            ..Rkd::default()
        };
        assert_refused(distance.into(), "distance_weight", bad, "a finite number");
        let angle = Rkd {
            angle_weight: bad,
            ..Rkd::default()
        };
        assert_refused(angle.into(), "angle_weight", bad, "a finite number");
    }
    // The ranges contain their ends.
    for good in [1e-30, 1e30] {
        for (loss, _) in temperatures(good) {
            assert!(Problem::new(loss, shapes_of(&loss, [2, 3, 3, 4])[0]).is_ok());
        }
        assert!(softmax(&Cpu, rows(&[0.5f32; 6], [2, 3]), good).is_ok());
    }
    for loss in delta(f64::MIN_POSITIVE).into_iter().chain(delta(f64::MAX)) {
        assert!(Problem::new(loss, Shapes::new(2, 3, 3)).is_ok());
    }
    let none = Rkd {
        distance_weight: 0.0,
        angle_weight: 0.0,
        ..Rkd::default()
    };
    assert!(none.problem(Shapes::new(2, 3, 3)).is_ok());
    // The message has readable digits.
    for (delta, got) in [
        (-1.0, "-1"),
        (-0.25, "-0.25"),
        (-1e-300, "-1e-300"),
        (-1e300, "-1e300"),
        (f64::NAN, "NaN"),
    ] {
        let loss = RkdAngle {
            delta,
            ..RkdAngle::default()
        };
        assert_eq!(
            refused(loss.problem(Shapes::new(2, 3, 3))).to_string(),
            format!("delta: expected a finite number above 0, got {got}")
        );
    }
}

#[test]
fn checked_mode_names_the_first_bad_element() {
    fn assert_names<T: Element>() {
        for loss in common::losses::against_teachers() {
            for shapes in shapes_of(&loss, [5, 3, 3, 4]) {
                for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                    // Logits of −∞ mask classes: tests/masked_logits.rs.
                    if bad < 0.0 && matches!(loss.spec().family, Family::Logits(_)) {
                        continue;
                    }
                    for (argument, row, column) in [("student", 3, 1), ("teacher", 0, 2)] {
                        let mut input = Input::normal(2, shapes);
                        let values = match argument {
                            "student" => &mut input.student,
                            _ => &mut input.teacher,
                        };
                        values[row * 3 + column] = bad;
                        values[14] = f64::NAN; // not the first
                        let problem = input.problem(loss);
                        let inputs = input.inputs::<T>(&problem);
                        let batch = inputs.batch();
                        assert!(problem.evaluate(&Cpu, batch).expect("a NaN").loss.is_nan());
                        let error = refused(problem.with_checked(true).evaluate(&Cpu, batch));
                        let Error::NotFinite {
                            argument: a,
                            row: r,
                            column: c,
                            got,
                        } = error
                        else {
                            panic!("{error:?}");
                        };
                        assert_eq!((a, r, c), (argument, row, column), "{loss}");
                        assert!(got == bad || got.is_nan() && bad.is_nan());
                    }
                }
                let input = Input::normal(2, shapes);
                let problem = input.problem(loss).with_checked(true);
                assert!(input.run::<T, _>(&Cpu, &problem).loss.is_finite());
            }
        }
    }
    for_every_dtype!(assert_names());
    let mut x = [0.5f32; 6];
    x[4] = f32::INFINITY;
    let error = refused(rows(&x, [3, 2]).check_finite("student"));
    let text = "student: expected finite values, got inf at row 2, column 0";
    assert_eq!(error.to_string(), text);
    assert!(
        rows(&[1.0f32, f32::MAX], [1, 2])
            .check_finite("student")
            .is_ok()
    );
}

#[test]
fn loss_names_parse_and_unknown_names_are_refused() {
    let names: Vec<&str> = Loss::all().iter().map(Loss::name).collect();
    assert_eq!(
        names,
        [
            "rkd-distance",
            "rkd-angle",
            "rkd",
            "sp",
            "gram",
            "pkt",
            "order",
            "dark-rank",
            "rrd",
            "info-nce",
            "clip",
            "siglip",
            "sup-con",
            "crd",
            "rrd-bank",
            "kd-kl"
        ]
    );
    for loss in Loss::all() {
        assert_eq!(loss.name().parse::<Loss>(), Ok(loss));
        assert_eq!(loss.to_string(), loss.name());
    }
    for name in ["", "RKD", "rkd_angle", " rkd", "dist"] {
        let error = refused(name.parse::<Loss>());
        let want = Error::UnknownLoss {
            expected: names.join(", "),
            got: name.to_owned(),
        };
        assert_eq!(error, want);
    }
    let text = "loss: expected one of rkd-distance, rkd-angle, rkd, sp, gram, pkt, order, \
                dark-rank, rrd, info-nce, clip, siglip, sup-con, crd, rrd-bank, kd-kl, got \"dist\"";
    assert_eq!(refused("dist".parse::<Loss>()).to_string(), text);
}

#[test]
fn queues_refuse_more_memory_than_the_machine_has() {
    let error = refused(Queue::<f32>::new(usize::MAX, 2));
    assert_eq!(
        error,
        Error::OutOfMemory {
            argument: "queue",
            bytes: usize::MAX
        }
    );
    let error = refused(Queue::<f64>::new(1 << 57, 2));
    let want = Error::OutOfMemory {
        argument: "queue",
        bytes: 1 << 61,
    };
    assert_eq!(error, want);
    let text = format!("out of memory: queue needs {} bytes", 1u64 << 61);
    assert_eq!(error.to_string(), text);
    assert_eq!(DType::ALL.len(), 4);
}

#[test]
fn prefixes_have_to_fit_the_loss_and_the_rows() {
    let shapes = Shapes::new(4, 20, 6);
    let with_prefixes = |loss: Loss, widths: &[usize]| {
        let problem = Problem::new(loss, shapes).expect("a problem");
        refused(problem.with_prefixes(widths))
    };
    let gram = || Loss::from(relata::Gram::default());
    let empty = Error::Empty {
        argument: "prefixes",
    };
    assert_eq!(with_prefixes(gram(), &[]), empty);
    for (widths, got) in [(&[0, 3][..], 0.0), (&[3, 3], 3.0), (&[2, 9, 4], 4.0)] {
        let want = Error::Parameter {
            argument: "prefixes",
            expected: "widths of at least 1 that increase",
            got,
        };
        assert_eq!(with_prefixes(gram(), widths), want);
    }
    let text = "prefixes: expected widths of at least 1 that increase, got 4";
    assert_eq!(with_prefixes(gram(), &[9, 4]).to_string(), text);
    let too_large = |argument, most, got| Error::TooLarge {
        argument,
        most,
        got,
    };
    assert_eq!(
        with_prefixes(gram(), &[3, 21]),
        too_large("prefixes", 20, 21)
    );
    let many: Vec<usize> = (1..=17).collect();
    let want = too_large("number of prefixes", 16, 17);
    assert_eq!(with_prefixes(gram(), &many), want);
    for loss in common::losses::against_teachers() {
        let mut shapes = Shapes::new(4, 20, 20);
        if loss.spec().queue == QueueUse::Required {
            shapes = shapes.with_queue(4);
        }
        let problem = Problem::new(loss, shapes).expect("a problem");
        let of_cosines = matches!(loss, Loss::Gram(_) | Loss::Pkt(_) | Loss::Order(_));
        let want = Error::Unexpected {
            argument: "prefixes",
            loss: loss.name(),
        };
        match problem.with_prefixes(&many[..16]) {
            Ok(_) => assert!(of_cosines, "{loss}"),
            Err(error) => assert!(!of_cosines && error == want, "{loss}: {error}"),
        }
    }
}

#[test]
fn groups_have_to_fit_the_loss_and_the_rows() {
    for loss in common::losses::against_teachers() {
        let mut shapes = Shapes::new(12, 5, 5);
        if loss.spec().queue == QueueUse::Required {
            shapes = shapes.with_queue(4);
        }
        let problem = Problem::new(loss, shapes).expect("a problem");
        if !matches!(loss.spec().family, Family::Pairwise(_) | Family::Triplet(_)) {
            let error = refused(problem.with_groups(3));
            let want = Error::Unexpected {
                argument: "groups",
                loss: loss.name(),
            };
            assert_eq!(error, want);
            assert_eq!(error.to_string(), format!("this {loss} takes no groups"));
            continue;
        }
        let none = Error::Empty { argument: "groups" };
        assert_eq!(refused(problem.with_groups(0)), none, "{loss}");
        for groups in [5, 7, 8, 11, 13, 24, usize::MAX] {
            let error = refused(problem.with_groups(groups));
            let want = Error::Parameter {
                argument: "groups",
                expected: "a divisor of the number of rows",
                got: groups as f64,
            };
            assert_eq!(error, want, "{loss}");
        }
        for groups in [1, 2, 3, 4, 6, 12] {
            let problem = problem.with_groups(groups).expect("a divisor");
            assert_eq!(problem.groups(), groups, "{loss}");
        }
    }
    let problem = Problem::new(relata::Gram::default(), Shapes::new(12, 5, 5));
    let error = refused(problem.expect("a problem").with_groups(5));
    let text = "groups: expected a divisor of the number of rows, got 5";
    assert_eq!(error.to_string(), text);
    // The batch is still that of all groups, and the checked mode names the row of the batch.
    let problem = problem_of_groups().with_checked(true);
    let x = [0.5f32; 18];
    let batch = Batch::new(rows(&x, [6, 3]), rows(&x, [6, 3]));
    assert!(problem.evaluate(&Cpu, batch).is_ok());
    let group = Batch::new(rows(&x[..9], [3, 3]), rows(&x[..9], [3, 3]));
    let want = Error::Dimension {
        argument: "student rows",
        expected: 6,
        got: 3,
    };
    assert_eq!(refused(problem.evaluate(&Cpu, group)), want);
    let mut bad = x;
    bad[13] = f32::NAN;
    let batch = Batch::new(rows(&x, [6, 3]), rows(&bad, [6, 3]));
    let error = refused(problem.evaluate(&Cpu, batch));
    let text = "teacher: expected finite values, got NaN at row 4, column 1";
    assert_eq!(error.to_string(), text);
}

fn problem_of_groups() -> Problem {
    let problem = Problem::new(relata::Gram::default(), Shapes::new(6, 3, 3));
    problem
        .and_then(|problem| problem.with_groups(2))
        .expect("two groups of three rows")
}
