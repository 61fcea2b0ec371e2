//! Pairs that are left out of all softmaxes: of rows of one label, and those that a guide finds more
//! alike than a row's own pair.

use pulp::Simd;

use super::gradient::Side;
use super::strips::{Compared, Strips};
use crate::cpu::buffer::Buffer;
use crate::cpu::contrastive::tiles::{Keys, STRIP, products};
use crate::cpu::sums::dot;
use crate::element::Real;
use crate::error::Result;
use crate::loss::Clip;

/// Numbers of a row: that of its label, and the guide's product beyond which it leaves a key out.
pub(super) const MASK_FIELDS: usize = 2;

/// The masks of a batch.
pub(super) struct Masks<'a, R: Real> {
    pub(super) fields: Vec<[R; MASK_FIELDS]>,
    pub(super) guide: Option<Side<'a, R>>,
}

impl<'a, R: Real> Masks<'a, R> {
    /// Of rows with these numbers of labels, and of a guide with its margin, where there are any.
    pub(super) fn new(
        compared: Compared,
        numbers: Option<&[usize]>,
        guide: Option<(Side<'a, R>, f64)>,
    ) -> Self {
        let field = |i: usize| {
            // Exact: there are fewer rows than f32 can count.
            let number = numbers.map_or(i, |numbers| numbers[i]) as f64;
            // No product of rows at length 1 is as large as 4.
            let limit = guide.map_or(4.0, |(side, margin)| {
                let own = dot(side.rows.row(i), side.rows.row(compared.partner(i)));
                own - margin + Clip::GUIDE_SLACK
            });
            [number, limit].map(R::from_f64)
        };
        Masks {
            fields: (0..compared.rows).map(field).collect(),
            guide: guide.map(|(side, _)| side),
        }
    }

    /// The numbers of `count` rows from `first` on, one lane for each: `[MASK_FIELDS, lanes]`.
    pub(super) fn of_lanes(&self, first: usize, count: usize, lanes: usize) -> Result<Buffer<R>> {
        let mut of_lanes = Buffer::<R>::zeros(MASK_FIELDS * lanes)?;
        for (lane, fields) in self.fields[first..][..count].iter().enumerate() {
            for (f, &field) in fields.iter().enumerate() {
                of_lanes[f * lanes + lane] = field;
            }
        }
        Ok(of_lanes)
    }
}

/// Above 0 where the row leaves the key out, and where the key leaves the row out.
#[inline(always)]
pub(super) fn masked<S: Simd, R: Real>(
    s: S,
    guide: R::Of<S>,
    row: [R::Of<S>; MASK_FIELDS],
    key: [R::Of<S>; MASK_FIELDS],
) -> [R::Of<S>; 2] {
    let [zero, one] = [R::ZERO, R::ONE].map(|x| R::splat(s, x));
    let apart = R::vsub(s, row[0], key[0]);
    let same = R::if_positive(s, R::vmul(s, apart, apart), zero, one);
    [row[1], key[1]].map(|limit| R::if_positive(s, R::vsub(s, guide, limit), one, same))
}

/// The masks of a strip of rows with a block of keys.
pub(super) struct MaskedMeeting<'a, R: Real> {
    /// `[MASK_FIELDS, lanes]`
    pub(super) of_lanes: &'a [R],
    /// Of the keys.
    pub(super) fields: &'a [[R; MASK_FIELDS]],
    /// The guide's queries and keys.
    pub(super) guide: Option<(&'a [R], Keys<'a, R>)>,
}

impl<R: Real> MaskedMeeting<'_, R> {
    /// Makes the logits of a chunk of keys from `from` on the lowest number where the row leaves the
    /// key out, in `of_rows`, and where the key leaves the row out, in `of_keys`. Both hold the logits
    /// of all pairs, `[keys, lanes]`.
    #[inline(always)]
    pub(super) fn apply<S: Simd>(
        &self,
        s: S,
        from: usize,
        of_rows: &mut [R],
        of_keys: &mut [R],
    ) -> Result<()> {
        let lowest = R::splat(s, R::LOWEST);
        let of_lanes = R::vectors::<S>(self.of_lanes);
        let len = of_rows.len() / (STRIP * R::width::<S>());
        let mut guide = Buffer::<R>::zeros(of_rows.len())?;
        if let Some((queries, keys)) = self.guide {
            let queries = R::vectors::<S>(queries);
            let out = R::vectors_mut::<S>(&mut guide);
            products::<S, R>(s, queries, keys.part(from, from + len), out);
        }
        let guide = R::vectors::<S>(&guide).chunks_exact(STRIP);
        let of_rows = R::vectors_mut::<S>(of_rows).chunks_exact_mut(STRIP);
        let of_keys = R::vectors_mut::<S>(of_keys).chunks_exact_mut(STRIP);
        for (k, ((guide, of_rows), of_keys)) in guide.zip(of_rows).zip(of_keys).enumerate() {
            let key = self.fields[from + k].map(|field| R::splat(s, field));
            for w in 0..STRIP {
                let row = std::array::from_fn(|f| of_lanes[f * STRIP + w]);
                let [by_row, by_key] = masked::<S, R>(s, guide[w], row, key);
                of_rows[w] = R::if_positive(s, by_row, lowest, of_rows[w]);
                of_keys[w] = R::if_positive(s, by_key, lowest, of_keys[w]);
            }
        }
        Ok(())
    }
}

/// The strip of rows and the keys of a guide that meet.
pub(super) fn guide_of<'a, R: Real>(
    side: Side<'a, R>,
    first_row: usize,
    keys: [usize; 2],
) -> (&'a [R], Keys<'a, R>) {
    let strips: &'a Strips<R> = side.strips;
    let [first_key, len] = keys;
    (
        strips.strip(first_row),
        super::strips::keys_of(side.rows, first_key, len),
    )
}
