//! Random numbers that do not change with the version of a crate.

use std::f64::consts::TAU;

/// SplitMix64 (Steele, Lea, Flood: *Fast splittable pseudorandom number generators*, OOPSLA 2014),
/// with normals by the method of Box and Muller. A seed gives the same numbers everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1]: its logarithm is finite.
    pub(crate) fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Two independent standard normals from two uniform numbers.
    fn normal_pair(&mut self) -> [f64; 2] {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        let (sin, cos) = (TAU * self.uniform()).sin_cos();
        [radius * cos, radius * sin]
    }

    /// Standard normals, the first of each pair.
    pub(crate) fn normals(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.normal_pair()[0]).collect()
    }

    /// Standard normals, both of each pair. The case table draws its numbers so.
    pub(crate) fn paired_normals(&mut self, len: usize) -> Vec<f64> {
        let mut normals = Vec::with_capacity(len + 1);
        while normals.len() < len {
            normals.extend(self.normal_pair());
        }
        normals.truncate(len);
        normals
    }
}
