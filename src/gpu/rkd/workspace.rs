//! What lies where in RKD's workspace.

use super::angle::Angle;
use super::triple_partition::{TILE, Tiles};
use crate::error::Result;
use crate::gpu::workspace::{Layout, Region};
use crate::shapes::Shapes;

/// Where things lie in the workspace; of student and teacher where there are two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Workspace {
    pub(super) scalars: Region,
    /// What the relation's blocks know of lengths.
    pub(super) lengths: Region,
    /// Of the angle's blocks: the penalty of their triples.
    pub(super) triples: Region,
    /// Of the coefficients' blocks.
    pub(super) penalties: Region,
    pub(super) normalized: Option<[Region; 2]>,
    pub(super) norms: Region,
    pub(super) h: Option<[Region; 2]>,
    pub(super) r: [Region; 2],
    pub(super) sums: Region,
    /// Over what h leaves, where there is one.
    pub(super) coefficients: Region,
}

/// Bytes of `rkd::Scalars` in kernels/common/rkd.cuh.
pub(super) const SCALARS: usize = 48;

impl Workspace {
    /// For the angle, if it takes part; so many blocks make the relation of each, and the coefficients.
    pub(super) fn new(
        layout: &mut Layout,
        shapes: Shapes,
        normalize: bool,
        angle: Option<Angle>,
        [relation_blocks, coefficient_blocks]: [usize; 2],
    ) -> Result<Self> {
        let n = shapes.rows;
        let tiles = Tiles::of(n);
        let padded = tiles.rows();
        // In f64, the widest the fast and the accurate path put here.
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
            triples: layout.push::<f64>(&[angle.map_or(0, Angle::blocks)])?,
            // `rkd::Penalties`.
            penalties: layout.push::<f64>(&[coefficient_blocks, 3])?,
            sums: match angle {
                Some(angle) => layout.push::<f32>(&angle.sums(n))?,
                None => layout.push::<f32>(&[0])?,
            },
            coefficients: match h {
                Some([student, _]) => student,
                None => layout.push::<f32>(&[padded, padded])?,
            },
        })
    }
}
