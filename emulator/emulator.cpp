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

void order(Order what, void* word) {
    Thread* self = running;
    if (self->memory) self->order(self->memory, what, word);
}

}  // namespace

void fence() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    order(ORDER_FENCE, nullptr);
}

unsigned atomic_increment(unsigned* counter, unsigned most) {
    order(ORDER_BEFORE_ATOMIC, counter);
    unsigned was = __atomic_load_n(counter, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(counter, &was, was >= most ? 0 : was + 1, true, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED)) {
    }
    order(ORDER_AFTER_ATOMIC, counter);
    return was;
}

void atomic_or(unsigned* flags, unsigned value) {
    order(ORDER_BEFORE_ATOMIC, flags);
    __atomic_fetch_or(flags, value, __ATOMIC_RELAXED);
    order(ORDER_AFTER_ATOMIC, flags);
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
