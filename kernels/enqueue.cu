// Computes   Adds a batch of keys to a queue, in order. Where the queue is full the oldest keys are
//            overwritten. Of a batch larger than the ring the last keys enter. Keys are divided by
//            their norms where the queue asks for it. If an element is not finite, nothing changes.
// Buffers    batch [B, D] f32, f16 or bf16, aligned to its element; keys [capacity, pitch] f32 or
//            f16, written to `pitch` with zeros from D on; state [next, len] u32; norms [B] f64;
//            flag, counter u32, 0 before and after.
// Passes     Two launches. `measure` computes the norms, and raises the flag where one is not
//            finite. `write` puts the keys in their slots, and its last block moves the ring on and
//            lowers the flag. All of it is on the device, so a captured graph fills the ring
//            further each time it is replayed.
// Grid       ⌈B/4⌉ each.
// Block      128 threads: warp w takes key 4 · blockIdx.x + w, and lane l takes elements l, l + 32,
//            ...
// Shared     16 bytes, for the ticket.
// Registers  at most 64.
// Work       3 B D flop, in f64; 2 B D elements read, B pitch elements written.
// Floor      Latency: two launches and three reads of a short row, about 5 µs.
// Numerics   Squares are summed in f64, so none overflows or vanishes. x/‖x‖ is rounded once to
//            f32, and once more to f16 where the queue holds that. A zero key stays zero.
// Order      Fixed: by lane, by warp.
// Reference  src/queue.rs.
#include "common/collective.cuh"
#include "common/element.cuh"

namespace {

constexpr unsigned THREADS = 128;
constexpr unsigned WARPS = THREADS / WARP;

// Mirrored in src/gpu/queue.rs.
struct Arguments {
    const void* batch;
    void* keys;
    uint32_t* state;
    double* norms;
    uint32_t* flag;
    unsigned* counter;
    uint32_t rows;
    uint32_t dim;
    uint32_t pitch;
    uint32_t capacity;
    uint32_t normalize;
    uint32_t half;  // whether keys are stored as f16
};
ARGUMENTS(Arguments, batch, keys, state, norms, flag, counter, rows, dim, pitch, capacity,
          normalize, half);

template <typename T>
DEVICE void measure(const Arguments& arguments) {
    const uint64_t row = static_cast<uint64_t>(blockIdx.x) * WARPS + warp_index();
    if (row >= arguments.rows) return;
    const T* x = static_cast<const T*>(arguments.batch) + row * arguments.dim;
    double squares = 0;
    for (uint32_t d = lane_index(); d < arguments.dim; d += WARP) {
        const double element = to_float(x[d]);
        squares = fma(element, element, squares);
    }
    const double norm = sqrt(warp_reduce(squares, Sum()));
    if (lane_index() == 0) {
        arguments.norms[row] = norm;
        if (!(norm * 0 == 0)) atomic_or(arguments.flag, 1);
    }
}

template <typename T>
DEVICE void write(const Arguments& arguments) {
    const uint32_t rows = arguments.rows, capacity = arguments.capacity;
    const uint32_t skipped = rows > capacity ? rows - capacity : 0;
    const uint64_t row = static_cast<uint64_t>(blockIdx.x) * WARPS + warp_index();
    const uint32_t next = arguments.state[0], len = arguments.state[1];
    const bool finite = *arguments.flag == 0;
    // Store the key in its slot
    if (finite && row >= skipped && row < rows) {
        const T* x = static_cast<const T*>(arguments.batch) + row * arguments.dim;
        const double norm = arguments.norms[row];
        const double factor = !arguments.normalize ? 1 : norm == 0 ? 0 : 1 / norm;
        const uint64_t slot = (next + (row - skipped)) % capacity;
        for (uint32_t d = lane_index(); d < arguments.pitch; d += WARP) {
            const float element =
                d < arguments.dim ? static_cast<float>(to_float(x[d]) * factor) : 0;
            const uint64_t at = slot * arguments.pitch + d;
            if (arguments.half) {
                static_cast<f16*>(arguments.keys)[at] = to_f16(element);
            } else {
                static_cast<float*>(arguments.keys)[at] = element;
            }
        }
    }
    // Move the ring on. All blocks have read the state by now.
    if (is_last_block(arguments.counter) && threadIdx.x == 0) {
        if (finite) {
            const uint64_t added = rows - skipped;
            arguments.state[0] = static_cast<uint32_t>((next + added) % capacity);
            arguments.state[1] =
                len + added < capacity ? static_cast<uint32_t>(len + added) : capacity;
        }
        *arguments.flag = 0;
    }
}

}  // namespace

EXPORT_KERNEL(relata_measure_keys_f32, THREADS, 8, Arguments, measure<float>);
EXPORT_KERNEL(relata_measure_keys_f16, THREADS, 8, Arguments, measure<f16>);
EXPORT_KERNEL(relata_measure_keys_bf16, THREADS, 8, Arguments, measure<bf16>);
EXPORT_KERNEL(relata_write_keys_f32, THREADS, 8, Arguments, write<float>);
EXPORT_KERNEL(relata_write_keys_f16, THREADS, 8, Arguments, write<f16>);
EXPORT_KERNEL(relata_write_keys_bf16, THREADS, 8, Arguments, write<bf16>);
