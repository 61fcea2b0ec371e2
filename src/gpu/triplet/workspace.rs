//! The layout of RKD's workspace.

use super::partition::AnglePartition;
use super::triple_partition::Tiles;
use crate::error::Result;
use crate::gpu::tuning::triplet::TILE;
use crate::gpu::workspace::{Layout, Region};
use crate::shapes::Shapes;

/// The regions of RKD's workspace. A pair is of the student and the teacher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Workspace {
    pub(super) scalars: Region,
    /// Partial statistics of the lengths, of the relation's blocks.
    pub(super) lengths: Region,
    /// Sums of the penalties of triples, of the angle's blocks.
    pub(super) triples: Region,
    /// Sums of all penalties, of the coefficients' blocks.
    pub(super) penalties: Region,
    pub(super) normalized: Option<[Region; 2]>,
    pub(super) norms: Region,
    pub(super) h: Option<[Region; 2]>,
    pub(super) r: [Region; 2],
    pub(super) sums: Region,
    /// In the place of the student's h, if there is one: it is no longer needed.
    pub(super) coefficients: Region,
}

/// Bytes of `rkd::Scalars` in kernels/common/rkd.cuh.
pub(super) const SCALARS: usize = 48;

impl Workspace {
    /// For this partition of the triples, if the angle takes part, and so many blocks of the
    /// relation (of the student, and of the teacher) and of the coefficients.
    pub(super) fn new(
        layout: &mut Layout,
        shapes: Shapes,
        normalize: bool,
        angle: Option<AnglePartition>,
        [relation_blocks, coefficient_blocks]: [usize; 2],
    ) -> Result<Self> {
        let n = shapes.rows;
        let tiles = Tiles::of(n);
        let padded = tiles.rows();
        // f64 is the wider of the two types that the paths store here.
        let mut half = || layout.push::<f64>(&[tiles.pairs(), TILE, TILE]);
        let h = match angle {
            Some(_) => Some([half()?, half()?]),
            None => None,
        };
        Ok(Workspace {
            h,
            r: [
                layout.push::<f32>(&[padded, padded])?,
                layout.push::<f32>(&[padded, padded])?,
            ],
            normalized: if normalize {
                Some([
                    layout.push::<f32>(&[n, shapes.student_dim])?,
                    layout.push::<f32>(&[n, shapes.teacher_dim])?,
                ])
            } else {
                None
            },
            norms: layout.push::<f32>(&[n])?,
            scalars: layout.push::<u8>(&[SCALARS])?,
            // `rkd::Lengths`, of student and teacher.
            lengths: layout.push::<f64>(&[2, relation_blocks, 3])?,
            triples: layout.push::<f64>(&[angle.map_or(0, AnglePartition::blocks)])?,
            // `rkd::Penalties`.
            penalties: layout.push::<f64>(&[coefficient_blocks, 3])?,
            sums: match angle {
                Some(angle) => layout.push::<f32>(&angle.sums_shape(n))?,
                None => layout.push::<f32>(&[0])?,
            },
            coefficients: match h {
                Some([student, _]) => student,
                None => layout.push::<f32>(&[padded, padded])?,
            },
        })
    }
}
