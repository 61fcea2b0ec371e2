//! The plots, as SVG: it needs no fonts on this machine.

use std::path::Path;

use candle_core::Tensor;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::failure::{Failure, Result};
use crate::metrics::squared_distances;
use crate::statistics::Mean;
use crate::study::{Arm, Study};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Distinct for those who see few colours too (Okabe and Ito); without distillation is black.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 0, 0),
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
    RGBColor(120, 120, 120),
];

/// Recall@1 by epoch: a line per method, the mean over the seeds.
pub(crate) fn recall(study: &Study, path: &Path) -> Result<()> {
    let lines: Vec<Vec<(f64, f64)>> = study.arms.iter().map(mean_curve).collect();
    let points = || lines.iter().flatten();
    let last = points().map(|p| p.0).fold(1e-9, f64::max);
    let pixels = 100.0 * study.pixels.recall[0];
    let teacher = 100.0 * Mean::of(study.teachers.iter().map(|s| s.recall[0])).mean;
    let all = || points().map(|p| p.1).chain([pixels, teacher]);
    let lowest = all().fold(100.0, f64::min);
    let highest = all().fold(0.0, f64::max);
    let room = 0.05 * (highest - lowest).max(1.0);
    let area = SVGBackend::new(path, (860, 480)).into_drawing_area();
    let draw = || -> std::result::Result<(), Box<dyn std::error::Error>> {
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .margin_right(24)
            .x_label_area_size(40)
            .y_label_area_size(52)
            .caption(
                "Recall@1 on characters not trained on, %",
                ("sans-serif", 18),
            )
            .build_cartesian_2d(0.0..last, lowest - room..highest + room)?;
        chart
            .configure_mesh()
            .x_desc("epoch")
            .label_style(("sans-serif", 13))
            .light_line_style(TRANSPARENT)
            .draw()?;
        let flat = |at: f64| [(0.0, at), (last, at)];
        chart
            .draw_series(DashedLineSeries::new(
                flat(teacher),
                6,
                4,
                RGBColor(90, 90, 90).stroke_width(2),
            ))?
            .label("teacher, in the end")
            .legend(|(x, y)| {
                PathElement::new([(x, y), (x + 20, y)], RGBColor(90, 90, 90).stroke_width(2))
            });
        chart
            .draw_series(DashedLineSeries::new(
                flat(pixels),
                2,
                4,
                RGBColor(150, 150, 150).stroke_width(2),
            ))?
            .label("pixels, no network")
            .legend(|(x, y)| {
                PathElement::new(
                    [(x, y), (x + 20, y)],
                    RGBColor(150, 150, 150).stroke_width(2),
                )
            });
        for (i, (arm, line)) in study.arms.iter().zip(&lines).enumerate() {
            let style = COLOURS[i % COLOURS.len()].stroke_width(2);
            chart
                .draw_series(LineSeries::new(line.iter().copied(), style))?
                .label(arm.method.to_string())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.9))
            .border_style(RGBColor(200, 200, 200))
            .label_font(("sans-serif", 13))
            .draw()?;
        area.present()?;
        Ok(())
    };
    draw().map_err(|e| Failure::refused(path.display(), e))
}

/// Percent by epoch, the mean over the seeds.
fn mean_curve(arm: &Arm) -> Vec<(f64, f64)> {
    let Some(first) = arm.runs.first() else {
        return Vec::new();
    };
    let at = |i: usize| Mean::of(arm.runs.iter().map(|run| 100.0 * run.curve[i].1)).mean;
    first
        .curve
        .iter()
        .enumerate()
        .map(|(i, &(epoch, _))| (epoch, at(i)))
        .collect()
}

/// Of the set's characters and of each one's typefaces, so many are shown.
const SHOWN: [usize; 2] = [10, 4];
/// The side of a heat map in pixels, and the margins above it and next to it.
const MAP: i32 = 300;
const HEAD: i32 = 36;
const GAP: i32 = 16;
/// The distance, in units of the mean, that has the last colour.
const FAR: f64 = 1.6;

/// The distances, in units of their mean, between embeddings of the same images: teacher, plain
/// student, distilled student.
pub(crate) fn distances(study: &Study, path: &Path) -> Result<()> {
    let teacher = scaled_distances(&study.teacher_embedding, study.each)?;
    let mut maps = vec![("teacher".to_owned(), teacher.clone())];
    let students = [Some(&study.arms[0]), study.best()];
    for arm in students.into_iter().flatten() {
        let map = scaled_distances(&arm.embedding, study.each)?;
        let off = mean_difference(&map, &teacher);
        maps.push((format!("student, {}: off by {off:.3}", arm.method), map));
    }
    let width = GAP + maps.len() as i32 * (MAP + GAP);
    let size = (width as u32, (HEAD + MAP + HEAD) as u32);
    let area = SVGBackend::new(path, size).into_drawing_area();
    let draw = || -> std::result::Result<(), Box<dyn std::error::Error>> {
        area.fill(&WHITE)?;
        for (i, (title, map)) in maps.into_iter().enumerate() {
            let left = GAP + i as i32 * (MAP + GAP);
            area.draw(&Text::new(title, (left, HEAD / 2 - 6), ("sans-serif", 14)))?;
            heat_map(&area, left, &map)?;
        }
        let note = format!(
            "{} characters not trained on, {} typefaces each: dark is near, light is {FAR} times the mean distance \
             or farther; off by: mean difference to the teacher's",
            SHOWN[0], SHOWN[1],
        );
        area.draw(&Text::new(note, (GAP, HEAD + MAP + 10), ("sans-serif", 13)))?;
        area.present()?;
        Ok(())
    };
    draw().map_err(|e| Failure::refused(path.display(), e))
}

/// The mean of |a - b|, which leaves the diagonal out.
fn mean_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    let count = (a.len() * a.len().saturating_sub(1)).max(1);
    pairs.map(|(a, b)| (a - b).abs()).sum::<f32>() / count as f32
}

fn heat_map(
    area: &Area,
    left: i32,
    map: &[Vec<f32>],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let n = map.len() as i32;
    let edge = |i: usize| i as i32 * MAP / n.max(1);
    for (y, row) in map.iter().enumerate() {
        for (x, &distance) in row.iter().enumerate() {
            let colour = ViridisRGB.get_color((f64::from(distance) / FAR).clamp(0.0, 1.0));
            let corners = [
                (left + edge(x), HEAD + edge(y)),
                (left + edge(x + 1), HEAD + edge(y + 1)),
            ];
            area.draw(&Rectangle::new(corners, colour.filled()))?;
        }
    }
    Ok(())
}

/// The distances between the shown rows, divided by their mean, which leaves the diagonal out.
fn scaled_distances(embedding: &Tensor, each: usize) -> candle_core::Result<Vec<Vec<f32>>> {
    let [characters, typefaces] = [SHOWN[0], SHOWN[1].min(each)];
    let rows = (0..characters).flat_map(|c| (0..typefaces).map(move |t| (c * each + t) as u32));
    let rows = Tensor::new(rows.collect::<Vec<_>>(), embedding.device())?;
    let mut map = squared_distances(&embedding.index_select(&rows, 0)?)?
        .relu()?
        .sqrt()?
        .to_vec2::<f32>()?;
    for (i, row) in map.iter_mut().enumerate() {
        row[i] = 0.0;
    }
    let pairs = (map.len() * map.len().saturating_sub(1)).max(1) as f32;
    let mean = map.iter().flatten().sum::<f32>() / pairs;
    if mean > 0.0 {
        map.iter_mut()
            .flatten()
            .for_each(|distance| *distance /= mean);
    }
    Ok(map)
}
