// What a GPU computes in its own way: approximations, and products on tensor cores. Conversions of
// halves too.
#include "emulator.h"

namespace emulator {

namespace {

constexpr float LEAST_NORMAL = 0x1p-126f;
constexpr uint32_t INFINITE = 0x7F800000;
// The products of an mma for each element of its result.
constexpr unsigned MOST_PRODUCTS = 16;

uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// All bits of the result depend on all bits of the number (the last steps of SplitMix64).
uint64_t hash(uint64_t number) {
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9;
    number = (number ^ number >> 27) * 0x94D049BB133111EB;
    return number ^ number >> 31;
}

// The result of an approximate function: at most `most` floats beside the nearest one. The same
// function of the same argument is always off by the same, as on a GPU.
float off(float nearest, int most, char function, float argument) {
    const Arithmetic& arithmetic = *current()->arithmetic;
    const uint32_t bits = bits_of(nearest), magnitude = bits & ~0x80000000;
    if (arithmetic.errors == ERRORS_NONE || magnitude == 0 || magnitude >= INFINITE) return nearest;
    int steps = arithmetic.errors == ERRORS_UP ? most : -most;
    if (arithmetic.errors == ERRORS_HASHED) {
        const uint64_t call = static_cast<uint64_t>(function) << 32 | bits_of(argument);
        steps += static_cast<int>(hash(hash(arithmetic.seed) ^ call) % (2 * most + 1));
    }
    // A negative number with a larger magnitude is smaller.
    const int64_t moved = static_cast<int64_t>(magnitude) + (bits == magnitude ? steps : -steps);
    const uint32_t within = moved < 0 ? 0 : moved > INFINITE ? INFINITE : static_cast<uint32_t>(moved);
    return float_of(within | (bits ^ magnitude));
}

}  // namespace

float exp2(float x) {
    // 2^0 is exactly 1.
    if (fabsf(x) < LEAST_NORMAL) return 1;
    const float power = off(exp2f(x), 2, '2', x);
    return power < LEAST_NORMAL ? 0 : power;
}

float log(float x) { return off(logf(x), 1, 'l', x); }

namespace {

float bf16_to_float(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }

double power_of_two(int exponent) {
    const uint64_t bits = static_cast<uint64_t>(exponent + 1023) << 52;
    double value;
    memcpy(&value, &bits, 8);
    return value;
}

// sum + Σ products, as tensor cores add `count` products at once: they shift all terms to the
// exponent of the largest one, keep `kept` bits behind its leading bit and cut off the rest. A
// float has 23. They cut the total off to a float.
float add_as_tensor_cores(float sum, const float* products, unsigned count, int kept) {
    float terms[MOST_PRODUCTS + 1] = {sum};
    memcpy(terms + 1, products, count * sizeof(float));
    uint32_t largest = 0;
    for (unsigned i = 0; i <= count; i++) {
        const uint32_t magnitude = bits_of(terms[i]) & ~0x80000000;
        if (magnitude > largest) largest = magnitude;
    }
    if (largest >= INFINITE) {
        for (unsigned k = 0; k < count; k++) sum += products[k];
        return sum;
    }
    const int exponent = (largest >> 23 != 0 ? static_cast<int>(largest >> 23) : 1) - 127;
    const double scale = power_of_two(kept - exponent);
    int64_t total = 0;
    for (unsigned i = 0; i <= count; i++) total += static_cast<int64_t>(static_cast<double>(terms[i]) * scale);
    uint64_t magnitude = static_cast<uint64_t>(total < 0 ? -total : total);
    const int bits = magnitude == 0 ? 0 : 64 - __builtin_clzll(magnitude);
    if (bits > 24) magnitude &= ~uint64_t{0} << (bits - 24);
    const double value = static_cast<double>(magnitude) / scale;
    return static_cast<float>(total < 0 ? -value : value);
}

}  // namespace

void multiply_accumulate(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool bf16, const char* file,
                         unsigned line) {
    uint32_t operands[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const auto* board = exchange(operands, sizeof operands, file, line);
    const Thread& thread = *current();
    Warp& warp = *thread.warp;
    const uint64_t turn = thread.collectives;
    if (warp.decoded != turn) {
        warp.decoded = turn;
        const auto convert = bf16 ? bf16_to_float : half_to_float;
        for (unsigned lane = 0; lane < 32; lane++) {
            uint16_t halves[12];
            memcpy(halves, board[lane], sizeof halves);
            const unsigned group = lane / 4, pair = lane % 4 * 2;
            for (unsigned half = 0; half < 2; half++) {
                warp.a[group][pair + half] = convert(halves[half]);
                warp.a[group + 8][pair + half] = convert(halves[2 + half]);
                warp.a[group][pair + 8 + half] = convert(halves[4 + half]);
                warp.a[group + 8][pair + 8 + half] = convert(halves[6 + half]);
                warp.b[pair + half][group] = convert(halves[8 + half]);
                warp.b[pair + 8 + half][group] = convert(halves[10 + half]);
            }
        }
    }
    const unsigned lane = thread.thread.x % 32, row = lane / 4, column = lane % 4 * 2;
    const Arithmetic& arithmetic = *thread.arithmetic;
    const unsigned count = arithmetic.tensor_products;
    for (unsigned i = 0; i < 4; i++) {
        const float* x = warp.a[row + i / 2 * 8];
        float products[MOST_PRODUCTS];
        for (unsigned k = 0; k < MOST_PRODUCTS; k++) products[k] = x[k] * warp.b[k][column + i % 2];
        for (unsigned k = 0; k < MOST_PRODUCTS; k += count)
            d[i] = add_as_tensor_cores(d[i], products + k, count, static_cast<int>(arithmetic.tensor_bits));
    }
}

float half_to_float(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    const uint32_t magnitude = bits & 0x7FFF;
    if (magnitude >= 0x7C00) return float_of(sign | INFINITE | (magnitude & 0x3FF) << 13);
    // Read as the bits of a float, the exponent of an f16 is 112 too small, also that of a
    // subnormal.
    const float value = float_of(magnitude << 13) * 0x1p112f;
    return sign ? -value : value;
}

uint16_t float_to_half(float value) {
    uint32_t bits = bits_of(value);
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    bits &= 0x7FFFFFFF;
    if (bits > INFINITE) return sign | 0x7FFF;
    if (bits >= 0x477FF000) return sign | 0x7C00;
    // Subnormal: after adding 0.5, the last bit of the float is the last bit of the f16.
    if (bits < 0x38800000) return sign | static_cast<uint16_t>(bits_of(float_of(bits) + 0.5f) - 0x3F000000);
    // Round to the nearest, ties to even.
    bits += 0xFFF + (bits >> 13 & 1);
    return sign | static_cast<uint16_t>((bits - 0x38000000) >> 13);
}

}  // namespace emulator
