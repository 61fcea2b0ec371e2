#include "emulator.h"

#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace emulator {

namespace {

// The content of shared memory before it is written: NaN as f32, f16 and bf16, -1 as an integer.
constexpr unsigned char POISON = 0xFF;
// The content of the guards between arrays, which must be unchanged when the block is done. A
// kernel that reads it gets NaN too. No kernel has a reason to write these bytes.
constexpr unsigned char CANARY[2] = {0xFE, 0xFF};
constexpr size_t GUARD = 128;
// Arrays have the alignment that a GPU promises, and no more.
constexpr size_t STATIC_ALIGNMENT = 16, DYNAMIC_ALIGNMENT = 128;
// The bytes that every GPU has for the static arrays of a block.
constexpr size_t STATIC_LIMIT = 48 * 1024;
// More than any GPU has for a block, plus guards.
constexpr size_t CAPACITY = 256 * 1024;
constexpr unsigned MOST_ARRAYS = 32;

thread_local Thread* running = nullptr;

const char* file_name(const char* path) {
    const char* slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

}  // namespace

// The shared memory of the block that runs on this thread of the CPU. The next block uses it again.
struct Block {
    struct Array {
        // Null for dynamic shared memory.
        const Site* site;
        size_t offset, bytes;
    };

    unsigned char* memory;
    size_t used;
    size_t static_bytes, limit;
    // The first one is the dynamic shared memory.
    Array arrays[1 + MOST_ARRAYS];
    unsigned count;
    char fault[512];

    // Fills a guard. AddressSanitizer, where it is on, forbids to read it.
    void guard(size_t from, size_t to) {
        ASAN_UNPOISON_MEMORY_REGION(memory + from, to - from);
        for (size_t i = from; i < to; i++) memory[i] = CANARY[i % 2];
        ASAN_POISON_MEMORY_REGION(memory + from, to - from);
    }

    // Adds an array behind all others, between two guards.
    void* add_array(const Site* site, size_t bytes, size_t alignment) {
        // An odd multiple of the alignment: no array has a better alignment than a GPU promises.
        const size_t offset = (used + GUARD + alignment - 1) / (2 * alignment) * (2 * alignment) + alignment;
        guard(count == 0 ? 0 : used + GUARD, offset);
        ASAN_UNPOISON_MEMORY_REGION(memory + offset, bytes);
        memset(memory + offset, POISON, bytes);
        used = offset + bytes;
        guard(used, used + GUARD);
        arrays[count++] = {site, offset, bytes};
        return memory + offset;
    }

    bool holds(const void* address, size_t bytes) const {
        const auto at = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(memory);
        return at < used && bytes <= used - at;
    }

    bool intact(size_t at) const { return memory[at] == CANARY[at % 2]; }

    // Looks for a damaged guard and reports the nearer of the two arrays next to it.
    bool overrun() {
        size_t from = 0;
        for (unsigned i = 0; i <= count; i++) {
            const size_t to = i < count ? arrays[i].offset : used + GUARD;
            ASAN_UNPOISON_MEMORY_REGION(memory + from, to - from);
            size_t first = from, last = to;
            while (first < to && intact(first)) first++;
            if (first < to) {
                while (intact(last - 1)) last--;
                const size_t behind = first - from + 1, before = to - last + 1;
                const bool previous = i == count || (i > 0 && behind <= before);
                return previous ? report(arrays[i - 1], "behind", behind) : report(arrays[i], "before", before);
            }
            if (i < count) from = arrays[i].offset + arrays[i].bytes;
        }
        return false;
    }

    bool report(const Array& array, const char* where, size_t distance) {
        if (array.site)
            snprintf(fault, sizeof fault, "%s:%u: byte %zu %s the %zu bytes of shared array '%s' was written",
                     file_name(array.site->file), array.site->line, distance, where, array.bytes, array.site->name);
        else
            snprintf(fault, sizeof fault, "byte %zu %s the %zu bytes of dynamic shared memory was written", distance, where,
                     array.bytes);
        return true;
    }
};

// The asynchronous copies of a thread that have not arrived.
struct Copies {
    struct Copy {
        unsigned char* to;
        const unsigned char* from;
        unsigned valid;
        uint64_t group;
    };
    static constexpr unsigned MOST = 64;
    unsigned count;
    uint64_t group;
    Copy copies[MOST];
};

Thread* current() { return running; }

namespace {

void wait(uint32_t kind, const char* file, unsigned line) {
    Thread* self = running;
    self->wait(self->fiber, kind, file, line);
    running = self;
}

}  // namespace

void fail(const char* file, unsigned line, const char* what) {
    Block* block = running->shared;
    if (block->fault[0] == 0)
        snprintf(block->fault, sizeof block->fault, "thread %u at %s:%u: %s", running->thread.x, file_name(file), line, what);
    for (;;) wait(FAILED, file, line);
}

void block_barrier(const char* file, unsigned line) { wait(WAIT_BLOCK, file, line); }
void warp_barrier(const char* file, unsigned line) { wait(WAIT_WARP, file, line); }

void* shared_array(const Site* site, size_t bytes) {
    Block& block = *running->shared;
    for (unsigned i = 1; i < block.count; i++) {
        if (block.arrays[i].site == site) return block.memory + block.arrays[i].offset;
    }
    block.static_bytes += bytes;
    if (block.count > MOST_ARRAYS) fail(site->file, site->line, "more static shared arrays than the emulator keeps");
    if (block.static_bytes > STATIC_LIMIT) fail(site->file, site->line, "more than 48 KiB of static shared memory");
    if (block.static_bytes + block.arrays[0].bytes > block.limit)
        fail(site->file, site->line, "more shared memory, static and dynamic, than the GPU has for a block");
    return block.add_array(site, bytes, STATIC_ALIGNMENT);
}

void* dynamic_shared() { return running->shared->memory + running->shared->arrays[0].offset; }

const unsigned char (*exchange(const void* value, size_t bytes, const char* file, unsigned line))[64] {
    Thread* self = running;
    auto* board = self->warp->board[self->collectives++ % 2];
    memcpy(board[self->thread.x % 32], value, bytes);
    wait(WAIT_WARP, file, line);
    return board;
}

void copy_async(void* shared, const void* global, unsigned valid, const char* file, unsigned line) {
    Copies& c = *running->copies;
    if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || (valid > 0 && reinterpret_cast<uintptr_t>(global) % 16 != 0))
        fail(file, line, "cp.async of 16 bytes between addresses that are not multiples of 16");
    if (valid > 16) fail(file, line, "cp.async of more than 16 bytes");
    if (!running->shared->holds(shared, 16)) fail(file, line, "cp.async to an address outside shared memory");
    if (valid > 0 && running->shared->holds(global, 1)) fail(file, line, "cp.async from an address in shared memory");
    if (c.count == Copies::MOST) fail(file, line, "more cp.async under way than the emulator keeps");
    c.copies[c.count++] = {static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global), valid, c.group};
    memset(shared, POISON, 16);
}

void copy_commit() { running->copies->group++; }

void copy_wait(unsigned groups_in_flight) {
    Copies& c = *running->copies;
    unsigned kept = 0;
    for (unsigned i = 0; i < c.count; i++) {
        const Copies::Copy copy = c.copies[i];
        if (copy.group + groups_in_flight >= c.group) {
            c.copies[kept++] = copy;
        } else {
            memcpy(copy.to, copy.from, copy.valid);
            memset(copy.to + copy.valid, 0, 16 - copy.valid);
        }
    }
    c.count = kept;
}

void load_matrices(uint32_t (&registers)[4], const void* row, bool transposed, const char* file, unsigned line) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
        fail(file, line, "ldmatrix of a row whose address is not a multiple of 16");
    if (!running->shared->holds(row, 16)) fail(file, line, "ldmatrix of a row outside shared memory");
    const auto* board = exchange(&row, sizeof row, file, line);
    const unsigned lane = running->thread.x % 32;
    for (unsigned m = 0; m < 4; m++) {
        uint16_t pair[2];
        for (unsigned half = 0; half < 2; half++) {
            const unsigned r = transposed ? lane % 4 * 2 + half : lane / 4;
            const unsigned c = transposed ? lane / 4 : lane % 4 * 2 + half;
            const uint16_t* elements;
            memcpy(&elements, board[m * 8 + r], sizeof elements);
            pair[half] = elements[c];
        }
        registers[m] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
    }
}

namespace {

float bf16_to_float(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

double power_of_two(int exponent) {
    const uint64_t bits = static_cast<uint64_t>(exponent + 1023) << 52;
    double value;
    memcpy(&value, &bits, 8);
    return value;
}

// The number of products that tensor cores add to a sum at once.
constexpr unsigned TENSOR_BLOCK = 8;

// sum + Σ products, as the tensor cores of compute capability 8.x add (Fasi et al., PeerJ Computer
// Science 7:e330). They shift all terms to the exponent of the largest one, keep one bit more than
// a float has, and cut off the rest. They cut the total off to a float. Tensor cores of 9.0 keep
// another bit and add 16 products at once, so they are at least as exact.
float add_as_tensor_cores(float sum, const float* products) {
    constexpr int KEPT = 24;
    float terms[TENSOR_BLOCK + 1] = {sum};
    memcpy(terms + 1, products, TENSOR_BLOCK * sizeof(float));
    uint32_t largest = 0;
    for (const float& term : terms) {
        uint32_t bits;
        memcpy(&bits, &term, 4);
        const uint32_t magnitude = bits & 0x7FFFFFFF;
        if (magnitude > largest) largest = magnitude;
    }
    if (largest >= 0x7F800000) {
        for (unsigned k = 0; k < TENSOR_BLOCK; k++) sum += products[k];
        return sum;
    }
    const int exponent = (largest >> 23 != 0 ? static_cast<int>(largest >> 23) : 1) - 127;
    const double scale = power_of_two(KEPT - exponent);
    int64_t total = 0;
    for (const float& term : terms) total += static_cast<int64_t>(static_cast<double>(term) * scale);
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
    Warp& warp = *running->warp;
    const uint64_t turn = running->collectives;
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
    const unsigned lane = running->thread.x % 32, row = lane / 4, column = lane % 4 * 2;
    for (unsigned i = 0; i < 4; i++) {
        const float* x = warp.a[row + i / 2 * 8];
        float products[16];
        for (unsigned k = 0; k < 16; k++) products[k] = x[k] * warp.b[k][column + i % 2];
        for (unsigned k = 0; k < 16; k += TENSOR_BLOCK) d[i] = add_as_tensor_cores(d[i], products + k);
    }
}

float half_to_float(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    const uint32_t magnitude = bits & 0x7FFF;
    uint32_t wide;
    float value;
    if (magnitude >= 0x7C00) {
        wide = sign | 0x7F800000 | (magnitude & 0x3FF) << 13;
        memcpy(&value, &wide, 4);
        return value;
    }
    // Read as the bits of a float, the exponent of an f16 is 112 too small, also that of a
    // subnormal.
    wide = magnitude << 13;
    memcpy(&value, &wide, 4);
    value *= 0x1p112f;
    return sign ? -value : value;
}

uint16_t float_to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    bits &= 0x7FFFFFFF;
    if (bits > 0x7F800000) return sign | 0x7FFF;
    if (bits >= 0x477FF000) return sign | 0x7C00;
    if (bits < 0x38800000) {
        // Subnormal: after adding 0.5, the last bit of the float is the last bit of the f16.
        float magnitude;
        memcpy(&magnitude, &bits, 4);
        magnitude += 0.5f;
        memcpy(&bits, &magnitude, 4);
        return sign | static_cast<uint16_t>(bits - 0x3F000000);
    }
    // Round to the nearest, ties to even.
    bits += 0xFFF + (bits >> 13 & 1);
    return sign | static_cast<uint16_t>((bits - 0x38000000) >> 13);
}

}  // namespace emulator

// The functions that Rust calls.
extern "C" {

emulator::Block* relata_emulator_block_new() {
    auto* block = new emulator::Block();
    block->memory = static_cast<unsigned char*>(aligned_alloc(4096, emulator::CAPACITY));
    ASAN_POISON_MEMORY_REGION(block->memory, emulator::CAPACITY);
    return block;
}

void relata_emulator_block_delete(emulator::Block* block) {
    ASAN_UNPOISON_MEMORY_REGION(block->memory, emulator::CAPACITY);
    free(block->memory);
    delete block;
}

// Empties the shared memory for the next block, which may use `limit` bytes.
void relata_emulator_block_begin(emulator::Block* block, size_t dynamic_bytes, size_t limit) {
    ASAN_POISON_MEMORY_REGION(block->memory, emulator::CAPACITY);
    block->used = 0;
    block->static_bytes = 0;
    block->limit = limit;
    block->count = 0;
    block->fault[0] = 0;
    block->add_array(nullptr, dynamic_bytes, emulator::DYNAMIC_ALIGNMENT);
}

// The fault of the block in words, or null. The text lives until the next block begins.
const char* relata_emulator_block_end(emulator::Block* block) {
    return block->fault[0] != 0 || block->overrun() ? block->fault : nullptr;
}

size_t relata_emulator_warp_bytes() { return sizeof(emulator::Warp); }
size_t relata_emulator_copies_bytes() { return sizeof(emulator::Copies); }
size_t relata_emulator_thread_bytes() { return sizeof(emulator::Thread); }

// Runs a thread of a kernel to its end. The caller is a fiber.
void relata_emulator_run(const emulator::Kernel* kernel, emulator::Thread* thread, const void* arguments) {
    thread->collectives = 0;
    thread->copies->count = 0;
    thread->copies->group = 0;
    thread->warp->decoded = 0;
    emulator::running = thread;
    kernel->run(arguments);
}

// Forbids to read a region, and allows it again, where AddressSanitizer is on. Elsewhere they do
// nothing.
void relata_emulator_forbid(const void* address, size_t bytes) { ASAN_POISON_MEMORY_REGION(address, bytes); }
void relata_emulator_allow(const void* address, size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(address, bytes); }
}
