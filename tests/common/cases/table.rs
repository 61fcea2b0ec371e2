//! The table itself.

use relata::{
    Clip, DarkRank, Divergence, Gram, InfoNce, KdKl, Loss, Order, Pkt, Rkd, RkdAngle, RkdDistance,
    Rrd, SigLip, Sp, SupCon,
};

use super::losses::{divergences, rkd_losses};
use super::{Case, Data, Purpose};

/// N, D, D_t: no triplet or pair, one of each, and both sides of every width a kernel may work in.
const RELATIONAL: [[usize; 3]; 15] = [
    [1, 1, 1],
    [1, 7, 3],
    [2, 1, 1],
    [2, 16, 7],
    [3, 3, 1],
    [3, 130, 33],
    [5, 7, 16],
    [17, 1, 3],
    [17, 33, 130],
    [33, 16, 16],
    [33, 130, 7],
    [64, 3, 33],
    [64, 16, 1],
    [65, 7, 7],
    [65, 33, 16],
];

/// N, D of rows compared in one space.
const SQUARE: [[usize; 2]; 10] = [
    [1, 1],
    [2, 3],
    [3, 130],
    [5, 7],
    [17, 16],
    [33, 33],
    [33, 100],
    [64, 7],
    [65, 1],
    [65, 130],
];

/// N, D, capacity, keys of the past, whether the batch's own keys follow.
const QUEUED: [([usize; 4], bool); 15] = [
    ([1, 1, 1, 0], true),
    ([1, 3, 1, 1], false),
    ([2, 7, 3, 2], false),
    ([3, 16, 5, 4], true),
    ([5, 33, 64, 100], false),
    ([17, 100, 130, 200], true),
    ([17, 130, 65, 40], true),
    ([5, 300, 64, 40], false),
    ([17, 16, 7, 7], true),
    ([33, 3, 63, 63], false),
    ([64, 16, 130, 200], true),
    ([65, 33, 64, 0], true),
    ([65, 7, 200, 65], false),
    ([5, 16, 4097, 4097], false),
    ([3, 7, 33_000, 33_010], true),
];

const DEGENERATE: [(&str, Data); 12] = [
    ("clusters-5e-2", Data::Clusters { spread: 5e-2 }),
    ("clusters-1e-3", Data::Clusters { spread: 1e-3 }),
    ("clusters-1e-5", Data::Clusters { spread: 1e-5 }),
    ("offset-1e4", offset(1e4, 1.0)),
    ("offset-1e3-spread-1e-3", offset(1e3, 1e-3)),
    ("scaled-60", Data::Scaled { factor: 60.0 }),
    ("scaled-1e-3", Data::Scaled { factor: 1e-3 }),
    ("duplicates", Data::Duplicates),
    ("identical", Data::Identical),
    ("zero-row", Data::ZeroRow),
    ("teacher", Data::Teacher),
    ("near-teacher", Data::NearTeacher { noise: 1e-2 }),
];

const fn offset(offset: f64, spread: f64) -> Data {
    Data::Offset { offset, spread }
}

pub(super) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    relational(&mut cases);
    similarities(&mut cases);
    rankings(&mut cases);
    groups(&mut cases);
    rrd(&mut cases);
    info_nce(&mut cases);
    kd_kl(&mut cases);
    towers(&mut cases);
    timed(&mut cases);
    cases
}

fn relational(cases: &mut Vec<Case>) {
    for loss in rkd_losses(Rkd::default()) {
        let shapes = RELATIONAL.iter();
        cases.extend(shapes.map(|&[n, d, t]| case(loss, n, d).teacher_dim(t)));
        let data = DEGENERATE.iter();
        cases.extend(data.map(|&(label, data)| case(loss, 33, 16).data(data).label(label)));
    }
    // Distances so alike that no angle is obtuse.
    for loss in [RkdAngle::default().into(), Rkd::default().into()] {
        cases.push(case(loss, 33, 512).label("acute"));
    }
    let odd = |loss: Loss, label: &str| case(loss, 17, 16).teacher_dim(7).label(label);
    for delta in [0.05, 0.5] {
        for normalize in [false, true] {
            let label = format!("delta-{delta}{}", if normalize { "-normalize" } else { "" });
            let losses = rkd_losses(Rkd {
                distance_weight: 25.0,
                angle_weight: 50.0,
                delta,
                normalize,
            });
            cases.extend(losses.map(|loss| odd(loss, &label)));
        }
    }
    for (distance_weight, angle_weight) in [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)] {
        let loss = Rkd {
            distance_weight,
            angle_weight,
            ..Rkd::default()
        };
        let label = format!("weights-{distance_weight}-{angle_weight}");
        cases.push(odd(loss.into(), &label));
    }
}

fn similarities(cases: &mut Vec<Case>) {
    let sp = Loss::from(Sp);
    let shapes = RELATIONAL.iter();
    cases.extend(shapes.map(|&[n, d, t]| case(sp, n, d).teacher_dim(t)));
    let data = DEGENERATE.iter();
    cases.extend(data.map(|&(label, data)| case(sp, 33, 16).data(data).label(label)));

    let data = || DEGENERATE.into_iter().filter(|&(_, data)| !alike(data));
    let clamped = Loss::from(Gram { clamp: true });
    for (loss, option) in [
        (Gram::default().into(), ""),
        (clamped, "clamp-"),
        (Pkt.into(), ""),
        (Order::default().into(), ""),
    ] {
        for [n, d, t] in RELATIONAL {
            // Of rows of one element, PKT's gradient is what ε adds to cosines of ±1.
            if loss != Pkt.into() || d > 1 {
                let case = case(loss, n, d).teacher_dim(t);
                cases.push(if option.is_empty() {
                    case
                } else {
                    case.label("clamp")
                });
            }
        }
        // At the teacher, PKT's gradient is what ε adds to 0.
        let has_gradient = |data: Data| loss != Pkt.into() || data != Data::Teacher;
        let data = data().filter(|&(_, data)| has_gradient(data));
        cases.extend(data.map(|(label, data)| {
            case(loss, 33, 16)
                .data(data)
                .label(&format!("{option}{label}"))
        }));
    }
    // Most terms are above 0, and a kernel's last pairs fill no block.
    let wide = Loss::from(Order { margin: 0.5 });
    cases.push(case(wide, 17, 33).teacher_dim(130).label("margin-0.5"));
    let none = Loss::from(Order { margin: 0.0 });
    cases.push(case(none, 33, 16).label("margin-0"));
}

/// Cosines of rows that are all alike are 1, and rounding is all that a gradient has.
fn alike(data: Data) -> bool {
    matches!(data, Data::Offset { .. } | Data::Identical)
}

fn rankings(cases: &mut Vec<Case>) {
    let loss = Loss::from(DarkRank::default());
    let shapes = RELATIONAL.iter();
    cases.extend(shapes.map(|&[n, d, t]| case(loss, n, d).teacher_dim(t)));
    let data = DEGENERATE.iter();
    cases.extend(data.map(|&(label, data)| case(loss, 33, 16).data(data).label(label)));
    // Fewer than, more than and as many neighbours as there are, and more than there are.
    for length in [1, 16, 17, 32] {
        let loss = DarkRank {
            alpha: 0.02,
            beta: 1.5,
            length,
        };
        let label = format!("alpha-0.02-beta-1.5-length-{length}");
        cases.push(case(loss.into(), 17, 33).teacher_dim(130).label(&label));
    }
}

/// Groups of rows: some, and as many as there are rows, where the loss is 0 or that of a row alone.
/// The losses are those that compare no numbers: tests/groups.rs has all of them.
fn groups(cases: &mut Vec<Case>) {
    let losses = rkd_losses(Rkd::default()).into_iter().chain([
        Sp.into(),
        Gram::default().into(),
        Gram { clamp: true }.into(),
        Pkt.into(),
    ]);
    for loss in losses {
        for ([n, d, t], groups) in [([6, 5, 3], 6), ([10, 16, 7], 2), ([51, 33, 130], 3)] {
            let case = case(loss, n, d).teacher_dim(t).groups(groups);
            cases.push(if loss == (Gram { clamp: true }).into() {
                case.label("clamp")
            } else {
                case
            });
        }
    }
}

/// RKD of more rows than the kernels count as a small batch. In order: distances that are alike,
/// with the angles in f32; distances of very different size, with the angles in f64; angles in f32
/// that turn out to be too much alike; normalised rows; and so many elements that a kernel makes
/// the gradient 64 rows at a time.
pub(super) fn many_rows() -> Vec<Case> {
    let both = Loss::from(Rkd::default());
    let normalized = Rkd {
        normalize: true,
        ..Rkd::default()
    };
    let near = Data::NearTeacher { noise: 1e-2 };
    vec![
        case(both, 300, 512),
        case(both, 300, 16).teacher_dim(33),
        case(RkdAngle::default().into(), 260, 512)
            .data(near)
            .label("near-teacher"),
        case(normalized.into(), 300, 130).label("normalize"),
        case(RkdDistance::default().into(), 1000, 512),
    ]
}

/// One small case of each kind that has kernels of its own.
pub(super) const OF_EVERY_KERNEL: [&str; 28] = [
    "rkd-33x16",
    "rkd-17x16-to-7-delta-0.5-normalize",
    "rkd-distance-17x33-to-130",
    "sp-17x33-to-130",
    "gram-17x33-to-130",
    "gram-17x33-to-130-clamp",
    "gram-51x33-to-130-groups-3",
    "pkt-17x33-to-130",
    "order-17x33-to-130",
    "dark-rank-17x33-to-130",
    "rrd-17x16-k7-own",
    "rrd-17x100-k130-past-200-own",
    "rrd-17x130-k65-past-40-own",
    "rrd-5x300-k64-past-40",
    "info-nce-33x33",
    "info-nce-33x100",
    "info-nce-65x130",
    "info-nce-17x16-k7-own",
    "info-nce-17x100-k130-past-200-own",
    "info-nce-17x130-k65-past-40-own",
    "kd-kl-17x16",
    "kd-kl-2x20011",
    "kd-kl-17x16-js",
    "clip-34x33-to-130",
    "clip-34x16-alone",
    "clip-34x33-to-130-guided",
    "siglip-34x16",
    "sup-con-17x16-labels-6",
];

fn rrd(cases: &mut Vec<Case>) {
    let queued = |loss: Rrd, ([n, d, capacity, past], own): ([usize; 4], bool)| {
        case(loss.into(), n, d).queue(capacity, past, own)
    };
    cases.extend(QUEUED.map(|shape| queued(Rrd::default(), shape)));
    let shape = ([17, 33, 64, 100], true);
    let tau = |student_temperature, teacher_temperature| Rrd {
        student_temperature,
        teacher_temperature,
        ..Rrd::default()
    };
    // The other pair the authors have published, no scaling, nearly one-hot, nearly uniform.
    for (s, t) in [
        (0.04, 0.1),
        (1.0, 1.0),
        (0.1, 1e-3),
        (1e-3, 0.1),
        (0.1, 1e3),
    ] {
        cases.push(queued(tau(s, t), shape).label(&format!("tau-{s}-{t}")));
    }
    let raw = Rrd {
        normalize: false,
        ..tau(5.0, 3.0)
    };
    cases.push(queued(raw, shape).label("raw"));
    cases.extend(
        DEGENERATE.map(|(label, data)| queued(Rrd::default(), shape).data(data).label(label)),
    );
}

fn info_nce(cases: &mut Vec<Case>) {
    let loss = Loss::from(InfoNce::default());
    cases.extend(SQUARE.map(|[n, d]| case(loss, n, d)));
    cases.extend(
        QUEUED.map(|([n, d, capacity, past], own)| case(loss, n, d).queue(capacity, past, own)),
    );
    let variants = [
        (0.5, true, "tau-0.5"),
        (1e-3, true, "tau-1e-3"),
        (5.0, false, "raw"),
    ];
    for (temperature, normalize, label) in variants {
        let loss = InfoNce {
            temperature,
            normalize,
            ..InfoNce::default()
        };
        cases.push(case(loss.into(), 17, 33).label(label));
        cases.push(case(loss.into(), 17, 33).queue(64, 64, false).label(label));
    }
    cases.extend(DEGENERATE.map(|(label, data)| case(loss, 33, 16).data(data).label(label)));
}

fn kd_kl(cases: &mut Vec<Case>) {
    let loss = Loss::from(KdKl::default());
    cases.extend(SQUARE.map(|[n, d]| case(loss, n, d)));
    cases.extend([(3, 5003), (2, 20_011)].map(|(n, classes)| case(loss, n, classes)));
    for temperature in [0.25, 1.0, 20.0] {
        let label = format!("t-{temperature}");
        cases.push(case(KdKl::new(temperature).into(), 17, 130).label(&label));
    }
    cases.extend(DEGENERATE.map(|(label, data)| case(loss, 33, 16).data(data).label(label)));

    for (name, loss) in divergences(KdKl::default()) {
        let of = |n, classes| case(loss.into(), n, classes);
        let shapes = [[1, 1], [3, 130], [17, 16], [33, 33], [65, 130], [2, 20_011]];
        cases.extend(shapes.map(|[n, classes]| of(n, classes).label(name)));
        cases.extend(
            DEGENERATE.map(|(label, data)| of(33, 16).data(data).label(&format!("{name}-{label}"))),
        );
    }
    for temperature in [0.25, 1.0, 20.0] {
        for (name, loss) in divergences(KdKl::new(temperature)) {
            let label = format!("{name}-t-{temperature}");
            cases.push(case(loss.into(), 17, 130).label(&label));
        }
    }
}

fn towers(cases: &mut Vec<Case>) {
    let clip = Loss::from(Clip::default());
    cases.extend(RELATIONAL.map(|[n, d, t]| case(clip, 2 * n, d).teacher_dim(t)));
    cases.extend(SQUARE.map(|[n, d]| case(clip, 2 * n, d).alone()));
    let weights = |hard_weight, soft_weight| Clip {
        hard_weight,
        soft_weight,
        ..Clip::default()
    };
    let taus = |temperature, teacher_temperature| Clip {
        temperature,
        teacher_temperature,
        ..Clip::default()
    };
    let guided = |both_ways, guide_margin| Clip {
        both_ways,
        guided: true,
        guide_margin,
        ..Clip::default()
    };
    for (loss, label) in [
        (weights(0.0, 1.0), "soft"),
        (weights(1.0, 0.0), "hard"),
        (weights(0.25, 0.75), "weights-0.25-0.75"),
        (taus(0.01, 0.07), "tau-0.01-0.07"),
        (taus(0.07, 0.01), "tau-0.07-0.01"),
        (taus(1.0, 1e3), "tau-1-1e3"),
        (guided(true, 0.0), "guided"),
        (guided(false, -0.2), "guided-one-way"),
    ] {
        cases.push(case(loss.into(), 34, 33).teacher_dim(130).label(label));
    }
    // Pairs of a label are masked.
    cases.push(case(clip, 34, 33).labels(6));
    let sig_lip = |scale, bias| Loss::from(SigLip { scale, bias });
    let usual = Loss::from(SigLip::default());
    cases.extend(SQUARE.map(|[n, d]| case(usual, 2 * n, d).without_teacher()));
    for (scale, bias) in [(100.0, -10.0), (1.0, 0.0), (3.0, 0.5)] {
        let case = case(sig_lip(scale, bias), 34, 33).without_teacher();
        cases.push(case.label(&format!("scale-{scale}-bias-{bias}")));
    }
    let sup_con = Loss::from(SupCon::default());
    for [n, d] in SQUARE {
        // Labels of one row each, of some, and of all.
        for labels in [n.div_ceil(3), n, 1] {
            let case = case(sup_con, n, d).labels(labels);
            if !cases.contains(&case) {
                cases.push(case);
            }
        }
    }
    for temperature in [0.01, 0.5] {
        let loss = Loss::from(SupCon { temperature });
        let label = format!("tau-{temperature}");
        cases.push(case(loss, 34, 33).labels(17).label(&label));
    }
    let alone = |data| !matches!(data, Data::Teacher | Data::NearTeacher { .. });
    for (label, data) in DEGENERATE.into_iter().filter(|&(_, data)| !alike(data)) {
        cases.push(case(clip, 66, 16).data(data).label(label));
        if alone(data) {
            let case = |loss| case(loss, 66, 16).data(data);
            cases.push(case(usual).without_teacher().label(label));
            cases.push(case(sup_con).labels(33).label(label));
        }
    }
}

/// Sizes that trainers use. RRD comes twice: with a queue of past keys alone, and, as is the
/// crate's default, with the batch's own keys in it.
fn timed(cases: &mut Vec<Case>) {
    let [distance, angle, both] = rkd_losses(Rkd::default());
    cases.push(case(distance, 128, 512).purpose(Purpose::Both));
    cases.extend([512, 1024].map(|n| case(distance, n, 512).bench()));
    cases.extend([128, 256, 512, 1024, 2048].map(|n| case(angle, n, 512).bench()));
    cases.push(case(both, 128, 512).bench());
    for loss in [Sp.into(), Gram::default().into(), Pkt.into()] {
        cases.push(case(loss, 128, 512).purpose(Purpose::Both));
        cases.extend([512, 1024].map(|n| case(loss, n, 512).bench()));
    }
    // The patches of 16 images.
    let gram = Loss::from(Gram::default());
    for [n, d] in [[196, 384], [256, 1024]] {
        cases.push(case(gram, 16 * n, d).groups(16).bench());
    }
    let order = Loss::from(Order::default());
    cases.extend([128, 256].map(|n| case(order, n, 512).bench()));
    let dark_rank = Loss::from(DarkRank::default());
    cases.push(case(dark_rank, 128, 512).bench());
    for (n, keys) in [(64, 16_384), (256, 16_384), (256, 65_536)] {
        let loss = Loss::from(Rrd::default());
        cases.extend([false, true].map(|own| case(loss, n, 128).queue(keys, keys, own).bench()));
    }
    let info_nce = Loss::from(InfoNce::default());
    cases.push(case(info_nce, 1024, 128).bench());
    cases.push(
        case(info_nce, 256, 128)
            .queue(16_384, 16_384, false)
            .bench(),
    );
    let kd_kl = Loss::from(KdKl::default());
    cases.extend([(256, 32_000), (64, 151_936)].map(|(n, c)| case(kd_kl, n, c).bench()));
    for divergence in &Divergence::ALL[1..] {
        let loss = KdKl {
            divergence: *divergence,
            ..KdKl::default()
        };
        cases.push(
            case(loss.into(), 256, 32_000)
                .label(divergence.name())
                .bench(),
        );
    }
    let clip = Loss::from(Clip::default());
    cases.push(case(clip, 2048, 128).bench());
    cases.push(case(clip, 2048, 128).alone().bench());
    cases.push(case(clip, 1024, 512).bench());
    let sig_lip = Loss::from(SigLip::default());
    cases.push(case(sig_lip, 2048, 128).without_teacher().bench());
    let sup_con = Loss::from(SupCon::default());
    cases.push(case(sup_con, 1024, 128).labels(512).bench());
    // Only a GPU is quick enough for these.
    let rrd = |n: usize, d: usize| case(Rrd::default().into(), n, d).queue(65_536, 65_536, false);
    let large = [
        case(distance, 4096, 512),
        rrd(1024, 256),
        rrd(4096, 256),
        case(kd_kl, 8192, 151_936),
    ];
    cases.extend(large.map(|case| case.purpose(Purpose::Gpu)));
}

/// A test on gaussian rows of one dim.
fn case(loss: Loss, rows: usize, dim: usize) -> Case {
    Case {
        name: format!("{loss}-{rows}x{dim}"),
        loss,
        rows,
        student_dim: dim,
        teacher_dim: dim,
        groups: 1,
        labels: None,
        queue: None,
        past_keys: 0,
        own_keys: false,
        data: Data::Gaussian,
        seed: 0,
        purpose: Purpose::Test,
    }
}

/// Each of these says in the name what it changes.
impl Case {
    fn label(mut self, label: &str) -> Self {
        self.name += "-";
        self.name += label;
        self
    }

    fn teacher_dim(mut self, dim: usize) -> Self {
        self.teacher_dim = dim;
        if dim == self.student_dim {
            self
        } else {
            self.label(&format!("to-{dim}"))
        }
    }

    /// A loss that can do without a teacher does.
    fn alone(self) -> Self {
        self.without_teacher().label("alone")
    }

    /// A loss that has none.
    fn without_teacher(mut self) -> Self {
        self.teacher_dim = 0;
        self
    }

    fn labels(mut self, labels: usize) -> Self {
        self.labels = Some(labels);
        self.without_teacher().label(&format!("labels-{labels}"))
    }

    fn groups(mut self, groups: usize) -> Self {
        self.groups = groups;
        self.label(&format!("groups-{groups}"))
    }

    fn queue(mut self, capacity: usize, past: usize, own: bool) -> Self {
        self.queue = Some(capacity);
        self.past_keys = past;
        self.own_keys = own;
        let mut named = self.label(&format!("k{capacity}"));
        if past != capacity {
            named = named.label(&format!("past-{past}"));
        }
        if own { named.label("own") } else { named }
    }

    fn data(mut self, data: Data) -> Self {
        self.data = data;
        self
    }

    fn purpose(mut self, purpose: Purpose) -> Self {
        self.purpose = purpose;
        self
    }

    fn bench(self) -> Self {
        self.purpose(Purpose::Bench)
    }
}
