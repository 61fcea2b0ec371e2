// A kernel has two compilers: nvcc for a GPU, and the host's C++ compiler against the emulator.
// Only kernels/common knows which one compiles. Kernels use what is declared here:
//
//   EXPORT_KERNEL(name, threads, blocks, Arguments, body)
//       An entry point. Blocks of `threads` run `body(arguments)` after the launches before it.
//       `blocks` is how many blocks a multiprocessor must hold.
//   EXPORT_KERNEL_REGISTERS(name, threads, registers, Arguments, body)
//       An entry point with a bound on the registers of a thread instead.
//   ARGUMENTS(Arguments, field, ...)
//       Stands after the struct that a kernel takes, and after each struct in it. It lists all
//       fields in order, `padding` too.
//   SHARED_ARRAY(type, name, count)          a static array in shared memory, 16-byte aligned
//   DYNAMIC_SHARED(type, name)               the dynamic shared memory of the launch
//   block_barrier(), warp_barrier()          __syncthreads(), __syncwarp()
//   DEVICE                                   the qualifiers of every function of a kernel
//   DEVICE_CALL                              those of a function that is called, not inlined
//   UNROLL, UNROLL_BY(count)                 #pragma unroll
//   threadIdx, blockIdx, blockDim, gridDim   as in CUDA
#pragma once

#if defined(__CUDACC__)

#include <cstdint>

#define DEVICE __device__ __forceinline__
#define DEVICE_CALL __device__ __noinline__
#define UNROLL _Pragma("unroll")
#define UNROLL_BY(count) RELATA_PRAGMA(unroll count)
#define RELATA_PRAGMA(text) _Pragma(#text)

// Every kernel begins with this. It lets a launch start before the launch before it has ended
// (programmatic dependent launch, docs/decisions/0015). In a launch without that attribute both
// instructions do nothing.
//
// Every thread waits, before it touches memory, and also in a block that has no work. So if a grid
// has ended, all grids before it have ended too, and the next grid has to wait for this one alone.
//
// We trigger the next launch before we wait, not after we write the results. The next grid starts
// when all blocks of this grid have started. So it takes only room that this grid does not need,
// and its blocks only wait there. The later the trigger, the less of a launch it hides; most of our
// grids are short.
DEVICE void enter_grid() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#define RELATA_ENTRY(bound, name, Arguments, ...)                                                  \
    extern "C" __global__ void bound name(const __grid_constant__ Arguments arguments) {           \
        enter_grid();                                                                              \
        __VA_ARGS__(arguments);                                                                    \
    }
// `blocks` is the number of blocks that a multiprocessor must hold at once. It bounds the registers
// of a thread.
#define EXPORT_KERNEL(name, threads, blocks, Arguments, ...)                                       \
    RELATA_ENTRY(__launch_bounds__(threads, blocks), name, Arguments, __VA_ARGS__)
// A kernel bounds `registers` where the blocks of the next launch must find room next to its own.
// nvcc takes one bound or the other; before 12.4 it has only the bound by blocks.
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1204
#define EXPORT_KERNEL_REGISTERS(name, threads, registers, Arguments, ...)                          \
    RELATA_ENTRY(__maxnreg__(registers), name, Arguments, __VA_ARGS__)
#else
#define EXPORT_KERNEL_REGISTERS(name, threads, registers, Arguments, ...)                          \
    EXPORT_KERNEL(name, threads, 1, Arguments, __VA_ARGS__)
#endif

// Only the emulator reads the list of fields.
#define ARGUMENTS(Type, ...) static_assert(sizeof(Type) > 0, "")

#define SHARED_ARRAY(type, name, count) __shared__ alignas(16) type name[count]
#define DYNAMIC_SHARED(type, name)                                                                 \
    extern __shared__ __align__(128) unsigned char relata_dynamic_shared[];                        \
    type* name = reinterpret_cast<type*>(relata_dynamic_shared)

// The place in the source that calls a collective. The emulator reports it; a GPU does not need it.
#define SITE
#define SITE_ONLY
#define PASS_SITE
#define PASS_SITE_ONLY

DEVICE void block_barrier() { __syncthreads(); }
DEVICE void warp_barrier() { __syncwarp(); }

#else

#include "../../emulator/emulator.h"

#define DEVICE inline __attribute__((always_inline))
#define DEVICE_CALL inline
#define UNROLL
#define UNROLL_BY(count)

// The emulator runs one launch after the other.
DEVICE void enter_grid() {}

#define EXPORT_KERNEL(name, threads, blocks, Arguments, ...)                                       \
    static void name##_run(const void* arguments) {                                                \
        enter_grid();                                                                              \
        __VA_ARGS__(*static_cast<const Arguments*>(arguments));                                    \
    }                                                                                              \
    extern "C" const emulator::Kernel name = {threads, sizeof(Arguments),                          \
                                              fields_of(static_cast<const Arguments*>(nullptr)), \
                                              name##_run}
#define EXPORT_KERNEL_REGISTERS(name, threads, registers, Arguments, ...)                          \
    EXPORT_KERNEL(name, threads, 1, Arguments, __VA_ARGS__)

// A constant table of the fields, for Rust to compare with its own.
#define ARGUMENTS(Type, ...)                                                                       \
    inline constexpr emulator::Field Type##_fields[] = {                                              \
        RELATA_FOR_EACH(RELATA_FIELD, Type, __VA_ARGS__)};                                         \
    static_assert(emulator::cover(Type##_fields, sizeof(Type)),                                    \
                  "every field of " #Type ", in order");                                           \
    constexpr emulator::Fields fields_of(const Type*) {                                            \
        return {Type##_fields, sizeof Type##_fields / sizeof(emulator::Field)};                    \
    }                                                                                              \
    static_assert(true, "")
#define RELATA_FIELD(Type, name) emulator::field<decltype(Type::name)>(#name, offsetof(Type, name)),

// macro(Type, a) macro(Type, b) ... for up to 256 names. The preprocessor scans the result of a
// macro again as often as RELATA_EXPAND says, and each time RELATA_FOR_EACH_AGAIN takes the next
// name.
#define RELATA_FOR_EACH(macro, Type, ...)                                                          \
    RELATA_EXPAND(RELATA_FOR_EACH_NAME(macro, Type, __VA_ARGS__))
#define RELATA_FOR_EACH_NAME(macro, Type, name, ...)                                               \
    macro(Type, name)                                                                              \
        __VA_OPT__(RELATA_FOR_EACH_AGAIN RELATA_NO_ARGUMENTS(macro, Type, __VA_ARGS__))
#define RELATA_FOR_EACH_AGAIN() RELATA_FOR_EACH_NAME
#define RELATA_NO_ARGUMENTS ()
#define RELATA_EXPAND(...)                                                                         \
    RELATA_EXPAND_64(RELATA_EXPAND_64(RELATA_EXPAND_64(RELATA_EXPAND_64(__VA_ARGS__))))
#define RELATA_EXPAND_64(...)                                                                      \
    RELATA_EXPAND_16(RELATA_EXPAND_16(RELATA_EXPAND_16(RELATA_EXPAND_16(__VA_ARGS__))))
#define RELATA_EXPAND_16(...)                                                                      \
    RELATA_EXPAND_4(RELATA_EXPAND_4(RELATA_EXPAND_4(RELATA_EXPAND_4(__VA_ARGS__))))
#define RELATA_EXPAND_4(...)                                                                       \
    RELATA_EXPAND_1(RELATA_EXPAND_1(RELATA_EXPAND_1(RELATA_EXPAND_1(__VA_ARGS__))))
#define RELATA_EXPAND_1(...) __VA_ARGS__

#define SHARED_ARRAY(type, name, count)                                                            \
    static const emulator::Site name##_site{#name, __FILE__, __LINE__};                            \
    type* const name =                                                                             \
        static_cast<type*>(emulator::shared_array(&name##_site, sizeof(type) * (count)))
#define DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(emulator::dynamic_shared())

#define SITE , const char *site_file = __builtin_FILE(), unsigned site_line = __builtin_LINE()
#define SITE_ONLY const char *site_file = __builtin_FILE(), unsigned site_line = __builtin_LINE()
#define PASS_SITE , site_file, site_line
#define PASS_SITE_ONLY site_file, site_line

DEVICE void block_barrier(SITE_ONLY) { emulator::block_barrier(site_file, site_line); }
DEVICE void warp_barrier(SITE_ONLY) { emulator::warp_barrier(site_file, site_line); }

#define threadIdx (emulator::current()->thread)
#define blockIdx (emulator::current()->block)
#define blockDim (emulator::current()->block_dim)
#define gridDim (emulator::current()->grid_dim)

#endif

constexpr unsigned WARP = 32;

DEVICE unsigned lane_index() { return threadIdx.x % WARP; }
DEVICE unsigned warp_index() { return threadIdx.x / WARP; }
