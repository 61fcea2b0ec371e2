//! The contraction: from coefficients of pairs to the gradient of rows.

use pulp::{Simd, WithSimd};

use crate::cpu::buffer::Buffer;
use crate::cpu::embeddings::Embeddings;
use crate::cpu::parallel::{for_each_block, try_map_blocks};
use crate::element::Real;
use crate::error::Result;
use crate::simd::{dispatch, in_steps, unroll};

/// Rows a task works on.
const BLOCK: usize = 12;
/// Rows of a tile.
const ROWS: usize = 6;
/// Rows j in a sum that starts at 0, so that the rounding errors of long sums stay small.
const CHUNK: usize = 128;

/// How Σ_j C_ij (x_i − x_j) is summed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::cpu) enum Form {
    /// By differences. Exact wherever the rows lie.
    Differences,
    /// As (Σ_j C_ij) x_i − Σ_j C_ij x_j with centred rows: half the instructions. It cancels where
    /// rows are much closer to each other than to the centre.
    Product,
}

/// gradient_i = factor · Σ_j C_ij (x_i − x_j). `coefficients`, `[N, stride]`, has a zero diagonal
/// and may be overwritten.
pub(in crate::cpu) fn contract<R: Real, G: Real>(
    form: Form,
    x: &Embeddings<R>,
    coefficients: &mut [R],
    stride: usize,
    factor: f64,
    gradient: &mut [G],
) -> Result<()> {
    let centred;
    let all = match form {
        Form::Differences => &x.data[..],
        Form::Product => {
            // With −Σ_j C_ij on the diagonal, the sum is −C x.
            for_each_block(&mut coefficients[..x.rows * stride], stride, &|i, row| {
                row[i] = R::from_f64(-dispatch(Sum(row)));
            });
            centred = x.centred()?;
            &centred[..]
        }
    };
    sum_rows(form, x, all, coefficients, stride, factor, gradient)
}

/// gradient_i = factor · Σ_j K_ij x_j, the diagonal included.
pub(super) fn contract_product<R: Real, G: Real>(
    x: &Embeddings<R>,
    coefficients: &[R],
    stride: usize,
    factor: f64,
    gradient: &mut [G],
) -> Result<()> {
    // The product form subtracts.
    let form = Form::Product;
    sum_rows(form, x, &x.data, coefficients, stride, -factor, gradient)
}

/// gradient_i = factor · Σ_j C_ij (all_i − all_j), or −factor · Σ_j C_ij all_j for a product.
fn sum_rows<R: Real, G: Real>(
    form: Form,
    x: &Embeddings<R>,
    all: &[R],
    coefficients: &[R],
    stride: usize,
    factor: f64,
    gradient: &mut [G],
) -> Result<()> {
    try_map_blocks(gradient, BLOCK * x.dim, &|block, out| {
        let mut sums = Buffer::zeros(BLOCK * x.stride)?;
        let first = block * BLOCK;
        dispatch(Block {
            form,
            all,
            rows: x.rows,
            dim: x.dim,
            coefficients,
            stride,
            first,
            sums: &mut sums,
        });
        for (i, out) in out.chunks_exact_mut(x.dim).enumerate() {
            let g = &sums[i * x.stride..][..x.stride];
            x.write_gradient(first + i, factor, g, out);
        }
        Ok(())
    })?;
    Ok(())
}

/// The sum of a row.
struct Sum<'a, R>(&'a [R]);

impl<R: Real> WithSimd for Sum<'_, R> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> f64 {
        let mut sum = R::splat(s, R::ZERO);
        for &v in R::vectors::<S>(self.0) {
            sum = R::vadd(s, sum, v);
        }
        R::reduce_sum(s, sum).to_f64()
    }
}

struct Block<'a, R> {
    form: Form,
    /// All rows x_j.
    all: &'a [R],
    rows: usize,
    dim: usize,
    coefficients: &'a [R],
    stride: usize,
    first: usize,
    /// `[BLOCK, stride of x]`
    sums: &'a mut [R],
}

impl<R: Real> WithSimd for Block<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let n = self.rows;
        let all = R::vectors::<S>(self.all);
        let vectors = all.len() / n;
        let sums = R::vectors_mut::<S>(self.sums);
        for j0 in (0..n).step_by(CHUNK) {
            for i0 in (0..BLOCK.min(n - self.first)).step_by(ROWS) {
                // Tiles at the edge repeat the last row. Their surplus sums are not used.
                let rows: [usize; ROWS] = std::array::from_fn(|t| (self.first + i0 + t).min(n - 1));
                let mut tile = Tile {
                    s,
                    all,
                    vectors,
                    used: self.dim.div_ceil(R::width::<S>()),
                    rows,
                    c: rows.map(|i| &self.coefficients[i * self.stride..][j0..n.min(j0 + CHUNK)]),
                    j0,
                    sums: &mut sums[i0 * vectors..][..ROWS * vectors],
                };
                match self.form {
                    Form::Differences => tile.add_strips::<true, 2>(),
                    // 24 sums do not fit into 16 registers.
                    Form::Product if S::REGISTER_COUNT < 32 => tile.add_strips::<false, 2>(),
                    Form::Product => tile.add_strips::<false, 4>(),
                }
            }
        }
    }
}

/// The sums of `ROWS` rows over a chunk of j.
struct Tile<'a, S: Simd, R: Real> {
    s: S,
    all: &'a [R::Of<S>],
    /// Registers by which rows lie apart.
    vectors: usize,
    /// Registers of a row that hold its elements.
    used: usize,
    rows: [usize; ROWS],
    /// C_ij of the chunk.
    c: [&'a [R]; ROWS],
    j0: usize,
    sums: &'a mut [R::Of<S>],
}

impl<S: Simd, R: Real> Tile<'_, S, R> {
    /// All registers, `W` at a time where there are so many.
    #[inline(always)]
    fn add_strips<const DIFFERENCES: bool, const W: usize>(&mut self) {
        let whole = self.used / W * W;
        for v in (0..whole).step_by(W) {
            self.add::<DIFFERENCES, W>(v);
        }
        for v in whole..self.used {
            self.add::<DIFFERENCES, 1>(v);
        }
    }

    /// Registers v0..v0 + W.
    #[inline(always)]
    fn add<const DIFFERENCES: bool, const W: usize>(&mut self, v0: usize) {
        let (s, vectors) = (self.s, self.vectors);
        let length = self.c[0].len();
        assert!(self.c.iter().all(|c| c.len() == length));
        let mut x_i = [[R::splat(s, R::ZERO); W]; ROWS];
        for (x_i, row) in x_i.iter_mut().zip(self.rows) {
            x_i.copy_from_slice(&self.all[row * vectors + v0..][..W]);
        }
        let mut sum = [[R::splat(s, R::ZERO); W]; ROWS];
        let all = self.all;
        let (j0, c) = (self.j0, self.c);
        in_steps::<4>(
            0..length,
            #[inline(always)]
            |j| {
                let x_j = &all[(j0 + j) * vectors + v0..][..W];
                unroll::<ROWS>(
                    #[inline(always)]
                    |i| {
                        let c = R::splat(s, c[i][j]);
                        unroll::<W>(
                            #[inline(always)]
                            |v| {
                                // x_i may be read from memory: there is no register for it.
                                let x = if DIFFERENCES {
                                    R::vsub(s, x_j[v], x_i[i][v])
                                } else {
                                    x_j[v]
                                };
                                sum[i][v] = R::vneg_mul_add(s, c, x, sum[i][v]);
                            },
                        );
                    },
                );
            },
        );
        for i in 0..ROWS {
            for v in 0..W {
                let out = &mut self.sums[i * vectors + v0 + v];
                *out = R::vadd(s, *out, sum[i][v]);
            }
        }
    }
}
