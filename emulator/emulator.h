// A CUDA block on a CPU: what the host twins in kernels/common stand on.
//
// Every CUDA thread is a fiber. The fibers of a block take turns on one thread of the machine; one runs until it
// reaches a barrier (or a collective of its warp, which holds one) and is resumed when all others have. The
// scheduler is on the Rust side (src/gpu/emulator/block.rs), which calls in here to run a thread and is called
// back through Thread::wait.
#pragma once

// Not <cmath>: kernels call fma, sqrt, fmax of floats by these names, as in CUDA.
#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace emulator {

struct Index {
    unsigned x, y, z;
};

struct Field;

// The fields of a struct that a kernel takes. Mirrored in src/gpu/emulator/arguments.rs.
struct Fields {
    const Field* fields;
    uint32_t count;
};

// One of them, as ARGUMENTS describes it. Mirrored in src/gpu/emulator/arguments.rs.
struct Field {
    const char* name;
    // The type of an element: u32, u64 (also a pointer), f32, f64 or struct.
    const char* kind;
    // From the beginning of the struct, in bytes.
    uint32_t offset;
    // With all elements.
    uint32_t bytes;
    // Of an element that is a struct, else none.
    Fields fields;
};

template <typename T>
constexpr const char* kind_of() {
    if (std::is_class_v<T>) return "struct";
    if (std::is_same_v<T, float>) return "f32";
    if (std::is_same_v<T, double>) return "f64";
    return std::is_pointer_v<T> || std::is_same_v<T, uint64_t> ? "u64" : "u32";
}

// A field of type T. A struct in a struct needs ARGUMENTS of its own.
template <typename T>
constexpr Field field(const char* name, size_t offset) {
    using Element = std::remove_all_extents_t<T>;
    static_assert(sizeof(Element) >= 4, "a field of 4 bytes or more, as src/gpu/arguments.rs knows them");
    Fields fields = {nullptr, 0};
    if constexpr (std::is_class_v<Element>) fields = fields_of(static_cast<const Element*>(nullptr));
    return {name, kind_of<Element>(), static_cast<uint32_t>(offset), static_cast<uint32_t>(sizeof(T)), fields};
}

// Those of a kernel's arguments.
template <typename T>
constexpr auto fields(int) -> decltype(fields_of(static_cast<const T*>(nullptr))) {
    return fields_of(static_cast<const T*>(nullptr));
}
template <typename T>
constexpr Fields fields(long) {
    return {nullptr, 0};
}

// Whether the fields follow one another without gaps from 0 to `bytes`.
template <size_t COUNT>
constexpr bool cover(const Field (&fields)[COUNT], size_t bytes) {
    size_t end = 0;
    for (const Field& field : fields) {
        if (field.offset != end) return false;
        end += field.bytes;
    }
    return end == bytes;
}

// An entry point, as EXPORT_KERNEL describes it. Mirrored in src/gpu/kernels.rs.
struct Kernel {
    uint32_t threads;
    uint32_t arguments_bytes;
    Fields arguments;
    void (*run)(const void* arguments);
};

// A declaration in a kernel, for messages.
struct Site {
    const char* name;
    const char* file;
    unsigned line;
};

enum Wait : uint32_t { WAIT_WARP = 1, WAIT_BLOCK = 2, FAILED = 3 };

struct Block;

// What a warp's lanes show one another in a collective. There are two boards: a lane that has gone on to the next
// collective writes to the other one, and nobody gets further than that before all have read.
struct alignas(64) Warp {
    unsigned char board[2][32][64];
    // The operands of an mma, decoded by the first lane to get there.
    float a[16][16];
    float b[16][8];
    uint64_t decoded;
};

// A CUDA thread. Mirrored in src/gpu/emulator/fibers.rs.
struct Thread {
    Index thread, block, block_dim, grid_dim;
    Block* shared;
    Warp* warp;
    // Suspends the fiber until all it waits for have come.
    void (*wait)(void* fiber, uint32_t kind, const char* file, uint32_t line);
    void* fiber;
    // How many collectives it has taken part in.
    uint64_t collectives;
    struct Copies* copies;
};

// The same for all of a thread's life: calls may be put together.
__attribute__((const)) Thread* current();

void* shared_array(const Site* site, size_t bytes);
void* dynamic_shared();

void block_barrier(const char* file, unsigned line);
void warp_barrier(const char* file, unsigned line);

// Reports that the kernel did what a kernel must not, and never returns to it.
[[noreturn]] void fail(const char* file, unsigned line, const char* what);

// Shows `bytes` of `value` to the warp and waits until all lanes have shown theirs; gives the board, a slot of 64
// bytes a lane.
const unsigned char (*exchange(const void* value, size_t bytes, const char* file, unsigned line))[64];

// cp.async: 16 bytes of which `valid` are read and the rest zero. They arrive at the wait for their group; until
// then the destination holds NaN.
void copy_async(void* shared, const void* global, unsigned valid, const char* file, unsigned line);
void copy_commit();
void copy_wait(unsigned groups_in_flight);

// ldmatrix: four 8x8 matrices of 16-bit elements, rows at the addresses that lanes 0-7, 8-15, 16-23 and 24-31 give.
void load_matrices(uint32_t (&registers)[4], const void* row, bool transposed, const char* file, unsigned line);

// mma.m16n8k16, f32 += f16 * f16 (or bf16 * bf16).
void multiply_accumulate(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool bf16, const char* file,
                         unsigned line);

float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);

}  // namespace emulator
