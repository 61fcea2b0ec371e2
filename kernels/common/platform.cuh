// Who compiles a kernel: nvcc for a GPU, or the host's C++ compiler against the emulator. Nothing outside
// kernels/common asks; kernels use what is declared here:
//
//   EXPORT_KERNEL(name, threads, blocks, Arguments, body)   an entry point: `body(arguments)` run by blocks of `threads`,
//                                                           once the launches before it are done
//   EXPORT_KERNEL_REGISTERS(name, threads, registers, Arguments, body)   the same, by how many registers a thread may have
//   ARGUMENTS(Arguments, field, ...)                        behind the struct that a kernel takes, and behind each struct in
//                                                           it: all its fields in order, `padding` too
//   SHARED_ARRAY(type, name, count)                         a static array in shared memory, 16-byte aligned
//   DYNAMIC_SHARED(type, name)                              the launch's dynamic shared memory
//   block_barrier(), warp_barrier()                         __syncthreads(), __syncwarp()
//   DEVICE                                                  what every function of a kernel is declared with
//   threadIdx, blockIdx, blockDim, gridDim                  as in CUDA
#pragma once

#if defined(__CUDACC__)

#include <cstdint>

#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define UNROLL_BY(count) RELATA_PRAGMA(unroll count)
#define RELATA_PRAGMA(text) _Pragma(#text)

// What every kernel begins with, so that its launch need not wait for the end of the one before it (programmatic dependent
// launch, docs/decisions/0015); where it does wait, neither instruction has anything to do.
//
// The wait is every thread's, before it touches memory and also where a block has nothing to do: then a grid that is done
// means that all grids before it are, and the next need wait for this one alone.
//
// That the next may come is said before the wait, not where results are written. It comes once all blocks of this grid have
// started, so it takes only room that this grid has no use for, and its blocks do nothing there but wait; the later this is
// said, the less of a launch is hidden, and most of our grids are short.
DEVICE void enter_grid() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#define RELATA_ENTRY(bound, name, Arguments, ...)                                                       \
    extern "C" __global__ void bound name(const __grid_constant__ Arguments arguments) {                \
        enter_grid();                                                                                   \
        __VA_ARGS__(arguments);                                                                         \
    }
// `blocks`: how many blocks a multiprocessor is to hold at once, which bounds the registers of a thread.
#define EXPORT_KERNEL(name, threads, blocks, Arguments, ...)                                            \
    RELATA_ENTRY(__launch_bounds__(threads, blocks), name, Arguments, __VA_ARGS__)
// `registers`: where it is the blocks of the next launch that are to find room beside this one's. nvcc takes one bound or the
// other; before 12.4 it knows only the threads'.
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1204
#define EXPORT_KERNEL_REGISTERS(name, threads, registers, Arguments, ...)                               \
    RELATA_ENTRY(__maxnreg__(registers), name, Arguments, __VA_ARGS__)
#else
#define EXPORT_KERNEL_REGISTERS(name, threads, registers, Arguments, ...)                               \
    EXPORT_KERNEL(name, threads, 1, Arguments, __VA_ARGS__)
#endif

// Only the emulator reads the list.
#define ARGUMENTS(Type, ...) static_assert(sizeof(Type) > 0, "")

#define SHARED_ARRAY(type, name, count) __shared__ alignas(16) type name[count]
#define DYNAMIC_SHARED(type, name)                                                                      \
    extern __shared__ __align__(128) unsigned char relata_dynamic_shared[];                             \
    type* name = reinterpret_cast<type*>(relata_dynamic_shared)

// Where a collective is called from: the emulator reports it, a GPU has no use for it.
#define SITE
#define SITE_ONLY
#define PASS_SITE
#define PASS_SITE_ONLY

DEVICE void block_barrier() { __syncthreads(); }
DEVICE void warp_barrier() { __syncwarp(); }

#else

#include "../../emulator/emulator.h"

#define DEVICE inline __attribute__((always_inline))
#define UNROLL
#define UNROLL_BY(count)

// One launch runs after the other.
DEVICE void enter_grid() {}

#define EXPORT_KERNEL(name, threads, blocks, Arguments, ...)                                            \
    static void name##_run(const void* arguments) {                                                     \
        enter_grid();                                                                                   \
        __VA_ARGS__(*static_cast<const Arguments*>(arguments));                                         \
    }                                                                                                   \
    extern "C" const emulator::Kernel name = {threads, sizeof(Arguments), emulator::fields<Arguments>(0), name##_run}
#define EXPORT_KERNEL_REGISTERS(name, threads, registers, Arguments, ...)                               \
    EXPORT_KERNEL(name, threads, 1, Arguments, __VA_ARGS__)

// A constant table of the fields, for Rust to compare with its own.
#define ARGUMENTS(Type, ...)                                                                            \
    constexpr emulator::Field Type##_fields[] = {RELATA_FOR_EACH(RELATA_FIELD, Type, __VA_ARGS__)};     \
    static_assert(emulator::cover(Type##_fields, sizeof(Type)), "every field of " #Type ", in order");   \
    constexpr emulator::Fields fields_of(const Type*) {                                                 \
        return {Type##_fields, sizeof Type##_fields / sizeof(emulator::Field)};                         \
    }                                                                                                   \
    static_assert(true, "")
#define RELATA_FIELD(Type, name) emulator::field<decltype(Type::name)>(#name, offsetof(Type, name)),

// macro(Type, a) macro(Type, b) ... for up to 256 names: the preprocessor looks at a macro's result again as often as
// RELATA_EXPAND says, and each time RELATA_FOR_EACH_AGAIN takes the next name.
#define RELATA_FOR_EACH(macro, Type, ...) RELATA_EXPAND(RELATA_FOR_EACH_NAME(macro, Type, __VA_ARGS__))
#define RELATA_FOR_EACH_NAME(macro, Type, name, ...)                                                    \
    macro(Type, name) __VA_OPT__(RELATA_FOR_EACH_AGAIN RELATA_NO_ARGUMENTS(macro, Type, __VA_ARGS__))
#define RELATA_FOR_EACH_AGAIN() RELATA_FOR_EACH_NAME
#define RELATA_NO_ARGUMENTS ()
#define RELATA_EXPAND(...) RELATA_EXPAND_64(RELATA_EXPAND_64(RELATA_EXPAND_64(RELATA_EXPAND_64(__VA_ARGS__))))
#define RELATA_EXPAND_64(...) RELATA_EXPAND_16(RELATA_EXPAND_16(RELATA_EXPAND_16(RELATA_EXPAND_16(__VA_ARGS__))))
#define RELATA_EXPAND_16(...) RELATA_EXPAND_4(RELATA_EXPAND_4(RELATA_EXPAND_4(RELATA_EXPAND_4(__VA_ARGS__))))
#define RELATA_EXPAND_4(...) RELATA_EXPAND_1(RELATA_EXPAND_1(RELATA_EXPAND_1(RELATA_EXPAND_1(__VA_ARGS__))))
#define RELATA_EXPAND_1(...) __VA_ARGS__

#define SHARED_ARRAY(type, name, count)                                                                 \
    static const emulator::Site name##_site{#name, __FILE__, __LINE__};                                 \
    type* const name = static_cast<type*>(emulator::shared_array(&name##_site, sizeof(type) * (count)))
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
