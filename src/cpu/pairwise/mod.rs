//! Losses over pairs of rows, and what they share with RKD's triples.

pub(in crate::cpu) mod contraction;
pub(in crate::cpu) mod pairs;
pub(in crate::cpu) mod relation;
pub(in crate::cpu) mod rkd_distance;
