//! A picture of what the losses compare: the cosines of all rows with one another, the student's, the
//! teacher's, and their difference.

use plotters::backend::SVGBackend;
use plotters::coord::Shift;
use plotters::prelude::{
    Color, DrawingArea, IntoDrawingArea, IntoTextStyle, RGBColor, Rectangle, Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use relata::{Cpu, Relation, Rows, relation_matrix};

use crate::failure::{Failure, Result};
use crate::files::Matrix;
use crate::inputs::Pictured;
use crate::out_file::OutFile;

/// The most cells on a side: of more rows a cell is the mean of several. More would be finer than the
/// picture, and the file larger than a page shows at once.
const MOST_CELLS: usize = 64;
/// Pixels of a side.
const SIDE: i32 = 320;
const MARGIN: i32 = 24;
const TITLE: i32 = 30;
/// Of the scale below a panel.
const SCALE: i32 = 12;
/// Shades on either side of 0. Neighbours of one shade are one shape in the file.
const SHADES: f64 = 32.0;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Draws the rows to a file, those of a label side by side.
pub(crate) fn draw(file: &OutFile, rows: &Pictured<'_>) -> Result<()> {
    let order = rows.by_label();
    let student = Cells::of(rows.student, &order)?;
    let teacher = Cells::of(rows.teacher, &order)?;
    let difference = student.less(&teacher);
    let mut svg = String::new();
    svg_of([&student, &teacher, &difference], &mut svg).map_err(|error| {
        Failure::refused("--plot", format!("expected to draw it, got: {error}"))
    })?;
    file.write_text(&svg)
}

/// The means of a matrix over square parts of it, row by row.
struct Cells {
    means: Vec<f64>,
    side: usize,
    /// What has the darkest shade.
    largest: f64,
}

impl Cells {
    /// Of the cosines of rows in this order.
    fn of(matrix: &Matrix, order: &[usize]) -> Result<Self> {
        let refused = |why| Failure::refused(&matrix.origin, why);
        let ordered: Vec<f64> = order
            .iter()
            .flat_map(|&row| &matrix.values[row * matrix.dim..][..matrix.dim])
            .copied()
            .collect();
        let n = order.len();
        let rows = Rows::new(&ordered, [n, matrix.dim]).map_err(refused)?;
        let cosines = relation_matrix(&Cpu, Relation::Cosine, rows).map_err(refused)?;
        let side = n.min(MOST_CELLS);
        let part = |cell: usize| cell * n / side..(cell + 1) * n / side;
        let mean = |at: usize| {
            let (rows, columns) = (part(at / side), part(at % side));
            let count = rows.len() * columns.len();
            let of_row = |row: usize| cosines[row * n..][columns.clone()].iter().sum::<f64>();
            rows.map(of_row).sum::<f64>() / count as f64
        };
        Ok(Cells {
            means: (0..side * side).map(mean).collect(),
            side,
            largest: 1.0,
        })
    }

    fn less(&self, other: &Cells) -> Self {
        let pairs = self.means.iter().zip(&other.means);
        let means: Vec<f64> = pairs.map(|(a, b)| a - b).collect();
        Cells {
            largest: means
                .iter()
                .fold(1e-9, |most: f64, mean| most.max(mean.abs())),
            means,
            side: self.side,
        }
    }

    /// From −1 to 1, in steps.
    fn shade(&self, mean: f64) -> f64 {
        (mean / self.largest * SHADES).round() / SHADES
    }
}

fn svg_of(panels: [&Cells; 3], svg: &mut String) -> Drawn {
    let size = [
        (3 * SIDE + 4 * MARGIN).unsigned_abs(),
        (TITLE + SIDE + 3 * SCALE + 2 * MARGIN).unsigned_abs(),
    ];
    let area = SVGBackend::with_string(svg, size.into()).into_drawing_area();
    area.fill(&WHITE)?;
    let titles = ["student", "teacher", "student − teacher"];
    for (i, (cells, title)) in (0i32..).zip(panels.into_iter().zip(titles)) {
        let left = MARGIN + i * (SIDE + MARGIN);
        text(&area, title, (left, MARGIN / 2), HPos::Left, 18)?;
        draw_cells(&area, cells, (left, TITLE + MARGIN / 2))?;
        draw_scale(&area, cells.largest, (left, TITLE + SIDE + MARGIN))?;
    }
    Ok(area.present()?)
}

/// Each row of cells, as runs of one shade.
fn draw_cells(area: &Area<'_>, cells: &Cells, (left, top): (i32, i32)) -> Drawn {
    let edge = |cell: usize| (cell as i32 * SIDE) / cells.side as i32;
    for (row, means) in cells.means.chunks_exact(cells.side).enumerate() {
        let mut column = 0;
        for run in means.chunk_by(|&a, &b| cells.shade(a) == cells.shade(b)) {
            let end = column + run.len();
            let corners = [
                (left + edge(column), top + edge(row)),
                (left + edge(end), top + edge(row + 1)),
            ];
            area.draw(&Rectangle::new(
                corners,
                colour(cells.shade(run[0])).filled(),
            ))?;
            column = end;
        }
    }
    Ok(())
}

/// The shades and what they stand for.
fn draw_scale(area: &Area<'_>, largest: f64, (left, top): (i32, i32)) -> Drawn {
    let steps = 2 * SHADES as i32;
    for step in 0..steps {
        let corners = [
            (left + step * SIDE / steps, top),
            (left + (step + 1) * SIDE / steps, top + SCALE),
        ];
        let shade = (f64::from(step) + 0.5) / SHADES - 1.0;
        area.draw(&Rectangle::new(corners, colour(shade).filled()))?;
    }
    let most = three_digits(largest);
    for (at, side, number) in [
        (0, HPos::Left, format!("-{most}")),
        (SIDE / 2, HPos::Center, "0".to_owned()),
        (SIDE, HPos::Right, most),
    ] {
        text(area, &number, (left + at, top + SCALE + 4), side, 13)?;
    }
    Ok(())
}

/// Three significant digits, as a power of ten where they would follow many zeros.
fn three_digits(number: f64) -> String {
    if number < 1e-3 {
        return format!("{number:.2e}");
    }
    let decimals = [1.0, 0.1, 0.01]
        .iter()
        .position(|&power| number >= power)
        .unwrap_or(3);
    format!("{number:.*}", decimals + 2)
}

/// Text below a point, on the side of it that is named.
fn text(area: &Area<'_>, text: &str, at: (i32, i32), side: HPos, size: u32) -> Drawn {
    let style = ("sans-serif", size)
        .into_text_style(area)
        .pos(Pos::new(side, VPos::Top));
    area.draw(&Text::new(text.to_owned(), at, style))?;
    Ok(())
}

/// Blue below 0, white at 0, red above: told apart by those who see few colours too.
fn colour(shade: f64) -> RGBColor {
    const BELOW: [f64; 3] = [33.0, 102.0, 172.0];
    const ABOVE: [f64; 3] = [178.0, 24.0, 43.0];
    if shade.is_nan() {
        return RGBColor(128, 128, 128);
    }
    let end = if shade < 0.0 { BELOW } else { ABOVE };
    let part = shade.abs().min(1.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // from 0 to 255
    let [r, g, b] = end.map(|end| (255.0 + part * (end - 255.0)).round() as u8);
    RGBColor(r, g, b)
}
