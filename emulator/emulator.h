// A CUDA block on a CPU. The host versions of kernels/common call these functions.
//
// Each CUDA thread is a fiber. The fibers of a block take turns on one thread of the CPU. A fiber
// runs until it reaches a barrier, or a collective of its warp, which contains one. It is resumed
// when all others have reached it. The scheduler is in Rust (src/gpu/emulator/schedule.rs). It
// calls relata_emulator_run to run a thread, which calls it back through Thread::wait.
#pragma once

// Not <cmath>: kernels call fma, sqrt and fmax by these names, as in CUDA.
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

// A field, as ARGUMENTS describes it. Mirrored in src/gpu/emulator/arguments.rs.
struct Field {
    const char* name;
    // The type of an element: u32, u64 (also a pointer), f32, f64 or struct.
    const char* kind;
    // From the beginning of the struct, in bytes.
    uint32_t offset;
    // The size with all elements.
    uint32_t bytes;
    // The fields of an element that is a struct, else none.
    Fields fields;
};

template <typename T>
constexpr const char* kind_of() {
    if (std::is_class_v<T>) return "struct";
    if (std::is_same_v<T, float>) return "f32";
    if (std::is_same_v<T, double>) return "f64";
    if (std::is_pointer_v<T> || std::is_same_v<T, uint64_t>) return "u64";
    return std::is_same_v<T, uint32_t> ? "u32" : "unknown to Rust";
}

// A field of type T. A struct in a struct needs ARGUMENTS of its own.
template <typename T>
constexpr Field field(const char* name, size_t offset) {
    using Element = std::remove_all_extents_t<T>;
    static_assert(sizeof(Element) >= 4, "src/gpu/arguments.rs has no smaller fields");
    Fields fields = {nullptr, 0};
    if constexpr (std::is_class_v<Element>)
        fields = fields_of(static_cast<const Element*>(nullptr));
    const auto bytes = static_cast<uint32_t>(sizeof(T));
    return {name, kind_of<Element>(), static_cast<uint32_t>(offset), bytes, fields};
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

// The declaration of a shared array in a kernel, for messages.
struct Site {
    const char* name;
    const char* file;
    unsigned line;
};

enum Wait : uint32_t { WAIT_WARP = 1, WAIT_BLOCK = 2, FAILED = 3 };

// What orders a thread's reads and writes of global memory.
enum Order : uint32_t { ORDER_FENCE = 1, ORDER_BEFORE_ATOMIC = 2, ORDER_AFTER_ATOMIC = 3 };

// How far approximations are off: not at all, by the most that CUDA's manual allows, or by
// anything up to it.
enum Errors : uint32_t { ERRORS_NONE = 0, ERRORS_UP = 1, ERRORS_DOWN = 2, ERRORS_HASHED = 3 };

// How the GPU computes. Mirrored in src/gpu/emulator/arithmetic.rs.
struct Arithmetic {
    Errors errors;
    // The products that tensor cores add at once, 8 or 16, and the bits that they keep behind the
    // leading bit of the largest one.
    uint32_t tensor_products, tensor_bits;
    uint32_t padding;
    // Chooses the errors that are hashed.
    uint64_t seed;
};

struct Block;

// The memory through which the lanes of a warp exchange values in a collective. There are two
// boards. A lane that is already in the next collective writes to the other board. No lane gets
// further before all lanes have read the first board.
struct alignas(64) Warp {
    unsigned char board[2][32][64];
    // The operands of an mma. The first lane that reaches it decodes them.
    float a[16][16];
    float b[16][8];
    uint64_t decoded;
};

// A CUDA thread. Mirrored in src/gpu/emulator/fibers.rs.
struct Thread {
    Index thread, block, block_dim, grid_dim;
    Block* shared;
    Warp* warp;
    // Suspends the fiber until all threads that it waits for have arrived.
    void (*wait)(void* fiber, uint32_t kind, const char* file, uint32_t line);
    void* fiber;
    // The number of collectives in which it has taken part.
    uint64_t collectives;
    struct Copies* copies;
    const Arithmetic* arithmetic;
    // The block's view of global memory, or null where all blocks see the same. `order` is told of
    // fences, and of the word that an atomic is about to change or has changed.
    void* memory;
    void (*order)(void* memory, uint32_t what, void* word);
};

// The thread that runs. It is the same for the whole life of a thread, so the compiler may merge
// calls.
__attribute__((const)) Thread* current();

void* shared_array(const Site* site, size_t bytes);
void* dynamic_shared();

void block_barrier(const char* file, unsigned line);
void warp_barrier(const char* file, unsigned line);

// Reports that the kernel did something a kernel must not do. It does not return.
[[noreturn]] void fail(const char* file, unsigned line, const char* what);

// Writes `bytes` bytes of `value` to the board of the warp and waits until all lanes have done so.
// Returns the board, 64 bytes for each lane.
const unsigned char (*exchange(const void* value, size_t bytes, const char* file, unsigned line))[64];

// __threadfence, atomicInc and atomicOr.
void fence();
unsigned atomic_increment(unsigned* counter, unsigned most);
void atomic_or(unsigned* flags, unsigned value);

// cp.async of 16 bytes: reads `valid` bytes and fills the rest with zeros. The bytes arrive at the
// wait for their group. Until then the destination holds NaN.
void copy_async(void* shared, const void* global, unsigned valid, const char* file, unsigned line);
void copy_commit();
void copy_wait(unsigned groups_in_flight);

// ldmatrix: four 8x8 matrices of 16-bit elements. Lanes 0-7, 8-15, 16-23 and 24-31 give the
// addresses of their rows.
void load_matrices(uint32_t (&registers)[4], const void* row, bool transposed, const char* file, unsigned line);

// mma.m16n8k16, f32 += f16 * f16 (or bf16 * bf16).
void multiply_accumulate(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool bf16, const char* file,
                         unsigned line);

// 2^x as ex2.approx.ftz computes it: without subnormal numbers, and up to 2 ulp off.
float exp2(float x);
// logf of CUDA: up to 1 ulp off.
float log(float x);

float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);

}  // namespace emulator
