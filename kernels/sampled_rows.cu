// Computes   The losses of each row from its products, and the coefficients of its keys in the
//            gradient: ∂loss/∂product.
// Buffers    products [sets, N, keys] f64: the student's become coefficients, the teacher's logits;
//            two normalizers, f64, of the student's and of the teacher's bank; losses [2, N] f64: the
//            loss, and the divergence where there is a teacher.
// Passes     The second: sampled_products, this, sampled_gradient, sampled_finish. One launch.
// Grid       N blocks.
// Block      256 threads. Thread t takes the keys t, t + 256, ...
// Shared     512 bytes, for reductions.
// Registers  at most 80.
// Work       1 exponential and 1 logarithm in f64 for each key of CRD; up to 11 exponentials of RRD.
// Floor      f64 issue.
// Numerics   All in f64. CRD: with l = log P − log(c + ε), the own key adds log(1 + e^−l), another
//            log(1 + e^l). RRD: where KL < 1, it and q − p are formed from differences of logits less
//            their mean under p, so that no digit is lost where student and teacher agree. The largest
//            logit is kept apart in a log-sum: it may have nearly all of the softmax.
// Order      Fixed: by thread, by warp.
// Reference  src/cpu/sampled.rs, Pass.
#include "common/collective.cuh"
#include "common/math.cuh"

namespace {

constexpr unsigned THREADS = 256;

// Mirrored in src/gpu/sampled/arguments.rs.
enum Kind : uint32_t { NCE = 0, SCORES = 1, SIMILARITIES = 2 };
struct Arguments {
    double* products;
    const double* normalizers[2];
    double* losses;
    double temperature[2];  // of student and teacher; CRD: its own
    double score_temperature;
    double noise;    // K/n_data
    double epsilon;
    uint32_t rows;
    uint32_t keys;
    uint32_t kind;
    uint32_t padding;
};
ARGUMENTS(Arguments, products, normalizers, losses, temperature, score_temperature, noise, epsilon, rows,
          keys, kind, padding);

DEVICE void nce_row(const Arguments& arguments, double* products) {
    const double offset = log(*arguments.normalizers[0]) + log(arguments.noise + arguments.epsilon);
    const double temperature = arguments.temperature[0];
    double loss = 0;
    for (uint32_t k = threadIdx.x; k < arguments.keys; k += THREADS) {
        const double sign = k == 0 ? -1 : 1;
        const double logit = sign * (products[k] / temperature - offset);
        const double decay = exp(-fabs(logit));
        // NaN stays NaN: a maximum would drop it.
        loss += (logit < 0 ? 0 : logit) + log1p(decay);
        products[k] = sign * (logit < 0 ? decay : 1) / (1 + decay) / temperature;
    }
    loss = block_reduce<THREADS>(loss, Sum());
    // What ε takes from the others' certainty
    loss += (arguments.keys - 1) * log1p(arguments.epsilon / arguments.noise);
    if (threadIdx.x == 0) arguments.losses[blockIdx.x] = loss;
}

// log Σ exp of logits, in two parts.
struct LogSum {
    double most;
    double excess;
    DEVICE double log_of(double logit) const { return logit - most - excess; }
};

// Turns products into logits, and gives their log-sum.
DEVICE LogSum logits_of(const Arguments& arguments, unsigned set, double* products SITE) {
    const double temperature = arguments.temperature[set];
    const bool scores = arguments.kind == SCORES;
    const double log_normalizer = scores ? log(*arguments.normalizers[set]) : 0;
    double most = -static_cast<double>(infinity());
    for (uint32_t k = threadIdx.x; k < arguments.keys; k += THREADS) {
        double logit = products[k];
        if (scores) logit = exp(logit / arguments.score_temperature - log_normalizer);
        logit /= temperature;
        products[k] = logit;
        most = fmax(most, logit);
    }
    most = block_reduce<THREADS>(most, Max() PASS_SITE);
    double sums[2] = {};
    for (uint32_t k = threadIdx.x; k < arguments.keys; k += THREADS) {
        const double logit = products[k];
        if (logit == most) {
            sums[1] += 1;
        } else {
            sums[0] += exp(logit - most);
        }
    }
    block_sums<THREADS>(sums PASS_SITE);
    return {most, log1p(sums[0] + (sums[1] - 1))};
}

// e^a − 1 − a for |a| < 0.1, by its series: the direct difference cancels.
DEVICE double excess_of(double a) {
    double series = 0;
    UNROLL
    for (unsigned k = 13; k > 2; k--) series = (1 + series) * a * (1.0 / k);
    return 0.5 * a * a * (1 + series);
}

// p (e^a − 1) and p (e^a − 1 − a).
struct Ratio {
    double less_p;
    double excess;
};
DEVICE Ratio ratio_of(double log_p, double p, double a) {
    if (fabs(a) < 0.1) {
        const double excess = excess_of(a);
        return {p * (a + excess), p * excess};
    }
    const double less_p = exp(log_p + a) - p;
    return {less_p, less_p - p * a};
}

DEVICE void teacher_row(const Arguments& arguments, double* student, double* teacher) {
    const LogSum q = logits_of(arguments, 0, student), p = logits_of(arguments, 1, teacher);
    // Both divergences by their formula
    double sums[4] = {};
    for (uint32_t k = threadIdx.x; k < arguments.keys; k += THREADS) {
        const double log_p = p.log_of(teacher[k]), log_q = q.log_of(student[k]), weight = exp(log_p);
        sums[0] = fma(-weight, log_q, sums[0]);
        sums[1] = fma(weight, log_p - log_q, sums[1]);
        sums[2] += weight;
        sums[3] = fma(weight, teacher[k] - student[k], sums[3]);
    }
    block_sums<THREADS>(sums);
    const double cross_entropy = sums[0], weight = sums[2];
    double divergence = sums[1], mean = sums[3] / weight, excess = 0;
    const bool close = divergence < 1;
    if (close) {
        // Once more: the first mean is only as exact as the largest difference.
        double rest = 0;
        for (uint32_t k = threadIdx.x; k < arguments.keys; k += THREADS)
            rest = fma(exp(p.log_of(teacher[k])), teacher[k] - student[k] - mean, rest);
        mean += block_reduce<THREADS>(rest, Sum()) / weight;
        for (uint32_t k = threadIdx.x; k < arguments.keys; k += THREADS) {
            const double log_p = p.log_of(teacher[k]);
            excess += ratio_of(log_p, exp(log_p), mean - (teacher[k] - student[k])).excess;
        }
        excess = block_reduce<THREADS>(excess, Sum());
        divergence = log1p(excess);
    }
    // Coefficients
    for (uint32_t k = threadIdx.x; k < arguments.keys; k += THREADS) {
        const double log_p = p.log_of(teacher[k]), of_p = exp(log_p), logit = student[k];
        double difference;
        if (close) {
            const Ratio ratio = ratio_of(log_p, of_p, mean - (teacher[k] - logit));
            difference = (ratio.less_p - of_p * excess) / (1 + excess);
        } else {
            difference = exp(q.log_of(logit)) - of_p;
        }
        // ∂logit/∂product
        const double slope = arguments.kind == SCORES ? logit / arguments.score_temperature
                                                      : 1 / arguments.temperature[0];
        student[k] = difference * slope;
    }
    if (threadIdx.x == 0) {
        arguments.losses[blockIdx.x] = cross_entropy;
        arguments.losses[static_cast<uint64_t>(arguments.rows) + blockIdx.x] = divergence;
    }
}

DEVICE void rows(const Arguments& arguments) {
    double* student = arguments.products + static_cast<uint64_t>(blockIdx.x) * arguments.keys;
    if (arguments.kind == NCE) {
        nce_row(arguments, student);
    } else {
        teacher_row(arguments, student,
                    student + static_cast<uint64_t>(arguments.rows) * arguments.keys);
    }
}

}  // namespace

EXPORT_KERNEL(relata_sampled_rows, THREADS, 3, Arguments, rows);
