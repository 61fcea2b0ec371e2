// The inner loop of the angle loss: one vertex j with the pairs of ends (i, k) of one thread.
// rkd_angle.cu and rkd_angle_small_batch.cu share it. A path says how edges are stored and how
// cosines are computed: `Fast` works in f32 with a sum of products, `Accurate` stores h as a pair
// of f32. The header of rkd_angle.cu has the formulas.
#pragma once

#include "element.cuh"
#include "pair_tile.cuh"

namespace triple {

// Ends i of a thread.
constexpr unsigned ROWS = 4;

// Factors that scale lengths to the unit in which the longest length is about 1. They are powers of
// two, so scaling is exact.
struct UnitScale {
    double h;
    float r;
};

DEVICE UnitScale unit_scale(double unit) { return {unit * unit, static_cast<float>(1 / unit)}; }

struct Fast {
    // Ends k of a thread.
    static constexpr unsigned COLUMNS = 8;
    static constexpr bool ACCURATE = false;
    // An edge to the vertex has two components: r and a = r h = ½ d.
    static constexpr unsigned COMPONENTS = 2;
    using Length = float;
    // The edge between the ends, h_ik, as a register holds it.
    struct Edge {
        float h;
    };

    DEVICE static Edge edge(float h, const UnitScale&) { return {h}; }
    DEVICE static void components(float h, float r, const UnitScale&, float (&to)[COMPONENTS]) {
        to[0] = r;
        to[1] = r * h;
    }
    // cos − other = r_i (a_k − r_k h_ik) + r_k a_i − other
    DEVICE static float cosine_minus(const float (&i)[COMPONENTS], const float (&k)[COMPONENTS],
                                     Edge ik, float other) {
        return fmaf(i[0], fmaf(-k[0], ik.h, k[1]), fmaf(k[0], i[1], -other));
    }
    // Adds w r_k to the sum of end i, and w r_i r_k to G of the edge between the ends.
    DEVICE static void accumulate(float w, float r_i, float r_k, float& g, float& sum_wr) {
        const float product = w * r_k;
        g = fmaf(product, r_i, g);
        sum_wr += product;
    }
};

struct Accurate {
    // Pairs that are closer than 2^-54 of the longest distance count as duplicates. Beyond this,
    // the sum of the squares of r leaves the range of f32, and the cosine has lost all its digits
    // long before.
    static constexpr float MAX_R = 0x1p54f;
    static constexpr unsigned COLUMNS = 4;
    static constexpr bool ACCURATE = true;
    // An edge to the vertex has three components: r, and h in two halves.
    static constexpr unsigned COMPONENTS = 3;
    using Length = double;
    struct Edge {
        float high, low;
    };

    DEVICE static Edge edge(double h, const UnitScale& unit) {
        const double scaled = h * unit.h;
        const float high = static_cast<float>(scaled);
        return {high, static_cast<float>(scaled - high)};
    }
    DEVICE static void components(double h, float r, const UnitScale& unit,
                                  float (&to)[COMPONENTS]) {
        const Edge e = edge(h, unit);
        const float scaled = r * unit.r;
        to[0] = scaled < MAX_R ? scaled : 0.0f;
        to[1] = e.high;
        to[2] = e.low;
    }
    DEVICE static float cosine_minus(const float (&i)[COMPONENTS], const float (&k)[COMPONENTS],
                                     Edge ik, float other) {
        const float large = fmaxf(i[1], k[1]), small = fminf(i[1], k[1]);
        // The low half of the smaller h is too small to matter, but adding it costs less than
        // leaving it out.
        const float between = (large - ik.high) + ((i[2] + k[2]) - ik.low);
        return fmaf(i[0] * k[0], between + small, -other);
    }
    // The cosine has already computed r_i r_k.
    DEVICE static void accumulate(float w, float r_i, float r_k, float& g, float& sum_wr) {
        g = fmaf(w, r_i * r_k, g);
        sum_wr = fmaf(w, r_k, sum_wr);
    }
};

// Loads all components of the edges to 4 contiguous ends, from shared memory that holds SIDE ends.
template <unsigned SIDE, unsigned COMPONENTS>
DEVICE void load_edges(const float* from, float (&to)[4][COMPONENTS]) {
    UNROLL
    for (unsigned component = 0; component < COMPONENTS; component++) {
        float values[4];
        pair_tile::load_side_by_side(from + component * SIDE, values);
        UNROLL
        for (unsigned i = 0; i < 4; i++) to[i][component] = values[i];
    }
}

// Four edges that are contiguous in global memory. They lead from one vertex to four ends or, in a
// tile whose rows are the ends, from four vertices to one end.
template <typename Path>
struct EdgeQuad {
    typename Path::Length h[4];
    float r[4];
};

// Stores a quad to shared memory: quad number `index` of those between 4 vertices and SIDE ends.
// `to` is the first component of the first vertex; vertices lie VERTEX_STRIDE floats apart. With
// `vertex_is_row` the quad leads from one vertex to four ends. `unit` is a copy: a reference to one
// of two would keep both, and all around them, on the stack.
template <unsigned SIDE, unsigned VERTEX_STRIDE, typename Path>
DEVICE void store_edges(const EdgeQuad<Path>& quad, UnitScale unit, unsigned index,
                        bool vertex_is_row, float* to) {
    constexpr unsigned COMPONENTS = Path::COMPONENTS;
    float components[4][COMPONENTS];
    UNROLL
    for (unsigned i = 0; i < 4; i++) Path::components(quad.h[i], quad.r[i], unit, components[i]);
    if (vertex_is_row) {
        to += index / (SIDE / 4) * VERTEX_STRIDE + index % (SIDE / 4) * 4;
        UNROLL
        for (unsigned c = 0; c < COMPONENTS; c++)
            store4(to + c * SIDE, components[0][c], components[1][c], components[2][c],
                   components[3][c]);
    } else {
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            UNROLL
            for (unsigned c = 0; c < COMPONENTS; c++)
                to[i * VERTEX_STRIDE + c * SIDE + index] = components[i][c];
        }
    }
}

// The addresses in shared memory where this thread reads edges of a vertex and writes its sums.
// They advance from vertex to vertex: otherwise the compiler computes each of them again for every
// vertex.
struct ThreadPointers {
    const float* edges_i;
    const float* edges_k;
    float* sums_i;
    float* sums_k;

    // Moves on to a vertex whose edges and sums are so many floats away.
    DEVICE void advance(unsigned edges, unsigned sums) {
        edges_i += edges;
        edges_k += edges;
        sums_i += sums;
        sums_k += sums;
    }
};

// Processes one vertex with this thread's pairs of ends. `x` and `y` are h_ik of the student and
// the teacher. Adds the penalties to `penalty` and w r_i r_k to `g`, and stores the sums for the
// edges to the vertex.
template <typename Path, unsigned SIDE>
DEVICE void accumulate_vertex(const ThreadPointers& at,
                              const typename Path::Edge (&x)[ROWS][Path::COLUMNS],
                              const typename Path::Edge (&y)[ROWS][Path::COLUMNS], float delta,
                              float (&g)[ROWS][Path::COLUMNS], float& penalty) {
    constexpr unsigned COMPONENTS = Path::COMPONENTS;
    // Load edges to ends i
    float xi[ROWS][COMPONENTS], yi[ROWS][COMPONENTS];
    load_edges<SIDE>(at.edges_i, xi);
    load_edges<SIDE>(at.edges_i + COMPONENTS * SIDE, yi);
    // Σ w r over the other ends, and Σ w cos.
    float sum_wr_i[ROWS] = {}, sum_wcos_i[ROWS] = {};
    // 4 columns at a time, because registers are scarce.
    UNROLL
    for (unsigned q0 = 0; q0 < Path::COLUMNS; q0 += 4) {
        // Load edges to ends k
        float xk[4][COMPONENTS], yk[4][COMPONENTS], sum_wr_k[4] = {}, sum_wcos_k[4] = {};
        load_edges<SIDE>(at.edges_k + q0 * 8, xk);
        load_edges<SIDE>(at.edges_k + COMPONENTS * SIDE + q0 * 8, yk);
        // Accumulate
        UNROLL
        for (unsigned p = 0; p < ROWS; p++) {
            UNROLL
            for (unsigned q = 0; q < 4; q++) {
                const float cosine = Path::cosine_minus(xi[p], xk[q], x[p][q0 + q], 0.0f);
                // The teacher's cosine minus the student's: this order saves one instruction, and
                // gives w the opposite sign.
                const float e = Path::cosine_minus(yi[p], yk[q], y[p][q0 + q], cosine);
                const float w = fminf(fmaxf(e, -delta), delta);
                penalty = fmaf(w, fmaf(-0.5f, w, e), penalty);
                Path::accumulate(w, xi[p][0], xk[q][0], g[p][q0 + q], sum_wr_i[p]);
                sum_wr_k[q] = fmaf(w, xi[p][0], sum_wr_k[q]);
                sum_wcos_i[p] = fmaf(w, cosine, sum_wcos_i[p]);
                sum_wcos_k[q] = fmaf(w, cosine, sum_wcos_k[q]);
            }
        }
        // Store Σ w r_i − r_k Σ w cos, with the sign that w has here. The factor r_k that is still
        // missing is applied once for all threads, where their sums are reduced.
        UNROLL
        for (unsigned q = 0; q < 4; q++)
            sum_wcos_k[q] = fmaf(xk[q][0], sum_wcos_k[q], -sum_wr_k[q]);
        store4(at.sums_k + q0 * 8, sum_wcos_k[0], sum_wcos_k[1], sum_wcos_k[2], sum_wcos_k[3]);
    }
    UNROLL
    for (unsigned p = 0; p < ROWS; p++) sum_wcos_i[p] = fmaf(xi[p][0], sum_wcos_i[p], -sum_wr_i[p]);
    store4(at.sums_i, sum_wcos_i[0], sum_wcos_i[1], sum_wcos_i[2], sum_wcos_i[3]);
}

}  // namespace triple
