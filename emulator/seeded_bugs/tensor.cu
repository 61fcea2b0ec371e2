// Asynchronous copies and tensor cores. These kernels call the emulator directly, without
// kernels/common.
#include "seeded_bugs.cuh"

namespace {

constexpr unsigned CHUNKS = 4;

// Copies CHUNKS tiles of THREADS rows of 16 bytes asynchronously, then adds the 4 floats of each
// row in another thread than the one that copied it. In the last tile, the last `count` bytes of
// each row must arrive as zeros.
DEVICE void copies(const Arguments& arguments) {
    SHARED_ARRAY(float, tiles, CHUNKS* THREADS * 4);
    const unsigned thread = threadIdx.x, bug = arguments.bug;
    for (unsigned c = 0; c < CHUNKS; c++) {
        float* to = tiles + (c * THREADS + thread) * 4 + (bug == 3);
        const float* from = &input<float>(arguments, (c * THREADS + thread) * 4 + (bug == 4));
        if (bug == 5) to = &output<float>(arguments, 0);
        const unsigned valid = c == CHUNKS - 1 ? 16 - arguments.count : 16;
        emulator::copy_async(to, from, bug == 6 ? 17 : valid, __FILE__, __LINE__);
        emulator::copy_commit();
    }
    float sum = 0;
    // Waits for all but the `n` newest groups.
    const auto take = [&](unsigned n, unsigned c) {
        if (bug != 1) emulator::copy_wait(bug == 7 ? n + 1 : n);
        if (bug != 2) block_barrier();
        const float* row = tiles + (c * THREADS + THREADS - 1 - thread) * 4;
        sum += row[0] + row[1] + row[2] + row[3];
    };
    take(3, 0);
    take(2, 1);
    take(0, 2);
    take(0, 3);
    output<float>(arguments, thread) = sum;
}

// Loads four matrices, 32 rows of 8 halves, and writes what each lane gets. They are transposed if
// `count` is not 0.
DEVICE void matrices(const Arguments& arguments) {
    SHARED_ARRAY(uint16_t, tile, 33 * 8);
    for (unsigned i = threadIdx.x; i < 32 * 8; i += WARP) tile[i] = input<uint16_t>(arguments, i);
    warp_barrier();
    uint32_t registers[4];
    const uint16_t* row = tile + threadIdx.x * 8;
    if (arguments.bug == 1 && threadIdx.x == 3) row += 4;
    if (arguments.bug == 2 && threadIdx.x == 3) row = &input<uint16_t>(arguments, 0);
    emulator::load_matrices(registers, row, arguments.count != 0, __FILE__, __LINE__);
    for (unsigned m = 0; m < 4; m++) output<uint32_t>(arguments, threadIdx.x * 4 + m) = registers[m];
}

// D += A B of a warp, twice: A [16, 16] and B [16, 8] are halves, D [16, 8] floats. The halves are
// bf16 if `count` is not 0.
DEVICE void multiply(const Arguments& arguments) {
    const unsigned g = threadIdx.x / 4, t = threadIdx.x % 4;
    const auto pair = [&](unsigned first, unsigned second) {
        return input<uint16_t>(arguments, first) | static_cast<uint32_t>(input<uint16_t>(arguments, second)) << 16;
    };
    const auto of_a = [&](unsigned row, unsigned k) { return pair(row * 16 + k, row * 16 + k + 1); };
    const auto of_b = [&](unsigned k, unsigned column) { return pair(256 + k * 8 + column, 256 + (k + 1) * 8 + column); };
    const uint32_t a[4] = {of_a(g, 2 * t), of_a(g + 8, 2 * t), of_a(g, 2 * t + 8), of_a(g + 8, 2 * t + 8)};
    const uint32_t b[2] = {of_b(2 * t, g), of_b(2 * t + 8, g)};
    // The second time the halves of each pair of A are swapped. An emulator that kept the first
    // operands would fail.
    const uint32_t a_swapped[4] = {a[0] >> 16 | a[0] << 16, a[1] >> 16 | a[1] << 16, a[2] >> 16 | a[2] << 16,
                                   a[3] >> 16 | a[3] << 16};
    float d[4] = {1, 2, 3, 4};
    emulator::multiply_accumulate(d, a, b, arguments.count != 0, __FILE__, __LINE__);
    if (arguments.bug && threadIdx.x >= 30) return;
    emulator::multiply_accumulate(d, a_swapped, b, arguments.count != 0, __FILE__, __LINE__);
    output<float>(arguments, g * 8 + 2 * t) = d[0];
    output<float>(arguments, g * 8 + 2 * t + 1) = d[1];
    output<float>(arguments, (g + 8) * 8 + 2 * t) = d[2];
    output<float>(arguments, (g + 8) * 8 + 2 * t + 1) = d[3];
}

}  // namespace

EXPORT_KERNEL(seeded_bugs_copies, THREADS, 1, Arguments, copies);
EXPORT_KERNEL(seeded_bugs_matrices, WARP, 1, Arguments, matrices);
EXPORT_KERNEL(seeded_bugs_multiply, WARP, 1, Arguments, multiply);
