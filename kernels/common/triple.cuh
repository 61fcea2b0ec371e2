// A vertex and the pairs of ends that a thread has: what rkd_angle and rkd_angle_small_batch do with it. In f32 by a sum of
// products, or with h as a pair of f32: see the header of rkd_angle.cu.
#pragma once

#include "element.cuh"
#include "pair_tile.cuh"

namespace triple {

// Ends i of a thread.
constexpr unsigned ROWS = 4;

// What takes lengths to the unit in which the longest is about 1: powers of two, so nothing is lost.
struct Unit {
    double of_h;
    float of_r;
};

DEVICE Unit unit_of(double unit) { return {unit * unit, static_cast<float>(1 / unit)}; }

// How edges are kept and cosines computed.
struct Fast {
    // Ends k of a thread.
    static constexpr unsigned COLUMNS = 8;
    static constexpr bool ACCURATE = false;
    // r and a = r h = ½ d.
    static constexpr unsigned PARTS = 2;
    using Length = float;
    // h_ik as it lies in registers.
    struct Edge {
        float h;
    };

    DEVICE static Edge edge(float h, const Unit&) { return {h}; }
    DEVICE static void parts(float h, float r, const Unit&, float (&to)[PARTS]) {
        to[0] = r;
        to[1] = r * h;
    }
    // cos − other: r_i (a_k − r_k h_ik) + r_k a_i − other
    DEVICE static float cosine_less(const float (&i)[PARTS], const float (&k)[PARTS], Edge ik, float other) {
        return fmaf(i[0], fmaf(-k[0], ik.h, k[1]), fmaf(k[0], i[1], -other));
    }
    // w r_k to the sum of end i, w r_i r_k to that of the edge between the ends.
    DEVICE static void add(float w, float r_i, float r_k, float& g, float& reach) {
        const float product = w * r_k;
        g = fmaf(product, r_i, g);
        reach += product;
    }
};

struct Accurate {
    // Pairs closer than that to one another, in the unit of the longest distance, count as duplicates: the sum of the squares
    // of r leaves f32's range, and cos has lost all its digits long before.
    static constexpr float MOST_R = 0x1p54f;
    static constexpr unsigned COLUMNS = 4;
    static constexpr bool ACCURATE = true;
    // r, and h in two halves.
    static constexpr unsigned PARTS = 3;
    using Length = double;
    struct Edge {
        float high, low;
    };

    DEVICE static Edge edge(double h, const Unit& unit) {
        const double scaled = h * unit.of_h;
        const float high = static_cast<float>(scaled);
        return {high, static_cast<float>(scaled - high)};
    }
    DEVICE static void parts(double h, float r, const Unit& unit, float (&to)[PARTS]) {
        const Edge e = edge(h, unit);
        const float scaled = r * unit.of_r;
        to[0] = scaled < MOST_R ? scaled : 0.0f;
        to[1] = e.high;
        to[2] = e.low;
    }
    DEVICE static float cosine_less(const float (&i)[PARTS], const float (&k)[PARTS], Edge ik, float other) {
        const float large = fmaxf(i[1], k[1]), small = fminf(i[1], k[1]);
        // The low half of the smaller one is too small to matter; it costs less than to leave it out.
        const float between = (large - ik.high) + ((i[2] + k[2]) - ik.low);
        return fmaf(i[0] * k[0], between + small, -other);
    }
    // The cosine has formed r_i r_k already.
    DEVICE static void add(float w, float r_i, float r_k, float& g, float& reach) {
        g = fmaf(w, r_i * r_k, g);
        reach = fmaf(w, r_k, reach);
    }
};

// All parts of the edges to 4 ends that lie side by side, of a tile with SIDE of them.
template <unsigned SIDE, unsigned PARTS>
DEVICE void load_edges(const float* from, float (&to)[4][PARTS]) {
    UNROLL
    for (unsigned part = 0; part < PARTS; part++) {
        float values[4];
        pair_tile::load_side_by_side(from + part * SIDE, values);
        UNROLL
        for (unsigned i = 0; i < 4; i++) to[i][part] = values[i];
    }
}

// Four edges that lie side by side in memory: from one vertex to four ends or, in a tile that lies the other way round,
// from four vertices to one end.
template <typename Path>
struct Four {
    typename Path::Length h[4];
    float r[4];
};

// Puts the `which`th four of those between 4 vertices and SIDE ends to shared memory, where `to` is the first vertex's
// first part and the vertices lie EDGES apart. `along`: from one vertex to four ends. `unit` is a copy: as a reference to one of two
// it would keep both, and all around them, on the stack.
template <unsigned SIDE, unsigned EDGES, typename Path>
DEVICE void put_edges(const Four<Path>& four, Unit unit, unsigned which, bool along, float* to) {
    constexpr unsigned PARTS = Path::PARTS;
    float parts[4][PARTS];
    UNROLL
    for (unsigned i = 0; i < 4; i++) Path::parts(four.h[i], four.r[i], unit, parts[i]);
    if (along) {
        to += which / (SIDE / 4) * EDGES + which % (SIDE / 4) * 4;
        UNROLL
        for (unsigned part = 0; part < PARTS; part++)
            store4(to + part * SIDE, parts[0][part], parts[1][part], parts[2][part], parts[3][part]);
    } else {
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            UNROLL
            for (unsigned part = 0; part < PARTS; part++) to[i * EDGES + part * SIDE + which] = parts[i][part];
        }
    }
}

// Where this thread reads and writes for a vertex: kept as addresses that move on from vertex to vertex, or the
// compiler works each of them out again for every vertex.
struct Place {
    const float* edges_i;
    const float* edges_k;
    float* sums_i;
    float* sums_k;

    // `edges` and `sums` lie between vertices.
    DEVICE void next(unsigned edges, unsigned sums) {
        edges_i += edges;
        edges_k += edges;
        sums_i += sums;
        sums_k += sums;
    }
};

// One vertex and this thread's pairs of ends. Adds the penalty to `penalty`, w r r to `g`.
template <typename Path, unsigned SIDE>
DEVICE void vertex(const Place& place, const typename Path::Edge (&x)[ROWS][Path::COLUMNS],
                   const typename Path::Edge (&y)[ROWS][Path::COLUMNS], float delta, float (&g)[ROWS][Path::COLUMNS],
                   float& penalty) {
    constexpr unsigned PARTS = Path::PARTS;
    float xi[ROWS][PARTS], yi[ROWS][PARTS];
    load_edges<SIDE>(place.edges_i, xi);
    load_edges<SIDE>(place.edges_i + PARTS * SIDE, yi);
    // Σ w r over the other ends, and Σ w cos.
    float reach_i[ROWS] = {}, along_i[ROWS] = {};
    // 4 columns at a time: registers are what there is least of.
    UNROLL
    for (unsigned q0 = 0; q0 < Path::COLUMNS; q0 += 4) {
        float xk[4][PARTS], yk[4][PARTS], reach_k[4] = {}, along_k[4] = {};
        load_edges<SIDE>(place.edges_k + q0 * 8, xk);
        load_edges<SIDE>(place.edges_k + PARTS * SIDE + q0 * 8, yk);
        UNROLL
        for (unsigned p = 0; p < ROWS; p++) {
            UNROLL
            for (unsigned q = 0; q < 4; q++) {
                const float cosine = Path::cosine_less(xi[p], xk[q], x[p][q0 + q], 0.0f);
                // The teacher's less the student's, for the sake of one instruction.
                const float e = Path::cosine_less(yi[p], yk[q], y[p][q0 + q], cosine);
                const float w = fminf(fmaxf(e, -delta), delta);
                penalty = fmaf(w, fmaf(-0.5f, w, e), penalty);
                Path::add(w, xi[p][0], xk[q][0], g[p][q0 + q], reach_i[p]);
                reach_k[q] = fmaf(w, xi[p][0], reach_k[q]);
                along_i[p] = fmaf(w, cosine, along_i[p]);
                along_k[q] = fmaf(w, cosine, along_k[q]);
            }
        }
        // Σ w r_i − r_k Σ w cos, with the sign that w has here. Who adds up multiplies by r_k, once for all threads.
        UNROLL
        for (unsigned q = 0; q < 4; q++) along_k[q] = fmaf(xk[q][0], along_k[q], -reach_k[q]);
        store4(place.sums_k + q0 * 8, along_k[0], along_k[1], along_k[2], along_k[3]);
    }
    UNROLL
    for (unsigned p = 0; p < ROWS; p++) along_i[p] = fmaf(xi[p][0], along_i[p], -reach_i[p]);
    store4(place.sums_i, along_i[0], along_i[1], along_i[2], along_i[3]);
}

}  // namespace triple
