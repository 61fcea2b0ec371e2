// Elements of embeddings: f32, f16, bf16. f16 and bf16 are stored as bits, and arithmetic is in
// f32.
#pragma once

#include "platform.cuh"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

struct f16 {
    uint16_t bits;
};
struct bf16 {
    uint16_t bits;
};

DEVICE float to_float(float x) { return x; }

#if defined(__CUDACC__)
DEVICE float to_float(f16 x) { return __half2float(__ushort_as_half(x.bits)); }
DEVICE f16 to_f16(float x) { return {__half_as_ushort(__float2half_rn(x))}; }
DEVICE float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
DEVICE uint32_t float_to_bits(float x) { return __float_as_uint(x); }
#else
DEVICE float to_float(f16 x) { return emulator::half_to_float(x.bits); }
DEVICE f16 to_f16(float x) { return {emulator::float_to_half(x)}; }
DEVICE float bits_to_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
DEVICE uint32_t float_to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
#endif

DEVICE float to_float(bf16 x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }

DEVICE bf16 to_bf16(float x) {
    const uint32_t bits = float_to_bits(x);
    if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
    // Round to the nearest, ties to even.
    return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

template <typename T>
DEVICE T from_float(float x);
template <>
DEVICE float from_float<float>(float x) {
    return x;
}
template <>
DEVICE f16 from_float<f16>(float x) {
    return to_f16(x);
}
template <>
DEVICE bf16 from_float<bf16>(float x) {
    return to_bf16(x);
}

// Two numbers as f16 in a word, the first in the lower half.
DEVICE uint32_t pack_f16(float low, float high) {
#if defined(__CUDACC__)
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return to_f16(low).bits | static_cast<uint32_t>(to_f16(high).bits) << 16;
#endif
}

// 16 bytes, the widest load and store.
struct alignas(16) Bytes16 {
    uint32_t words[4];
};

// Elements in 16 bytes.
template <typename T>
constexpr unsigned CHUNK = 16 / sizeof(T);

DEVICE bool aligned16(const void* address) {
    return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

// 16 bytes of elements as they lie in memory. They can be loaded long before they are unpacked.
template <typename T>
union Chunk {
    Bytes16 bytes;
    T elements[CHUNK<T>];
};

// The first `count` of the CHUNK elements at `from`, then zeros. `aligned` says that `from` is a
// multiple of 16 bytes and that `count` is 0 or CHUNK: they are then one load.
template <typename T>
DEVICE Chunk<T> fetch_chunk(const T* from, bool aligned, unsigned count) {
    Chunk<T> chunk = {};
    if (aligned) {
        if (count > 0) chunk.bytes = *reinterpret_cast<const Bytes16*>(from);
    } else {
        UNROLL
        for (unsigned i = 0; i < CHUNK<T>; i++) {
            if (i < count) chunk.elements[i] = from[i];
        }
    }
    return chunk;
}

// Converts a chunk to f32.
template <typename T>
DEVICE void unpack(const Chunk<T>& chunk, float (&to)[CHUNK<T>]) {
    UNROLL
    for (unsigned i = 0; i < CHUNK<T>; i++) to[i] = to_float(chunk.elements[i]);
}

// Loads the CHUNK elements at `from`, a multiple of 16 bytes, and converts them to f32.
template <typename T>
DEVICE void load_chunk(const T* from, float (&to)[CHUNK<T>]) {
    unpack<T>({*reinterpret_cast<const Bytes16*>(from)}, to);
}

// Stores four floats to a multiple of 16 bytes.
DEVICE void store4(float* to, float a, float b, float c, float d) {
    *reinterpret_cast<Bytes16*>(to) = {
        {float_to_bits(a), float_to_bits(b), float_to_bits(c), float_to_bits(d)}};
}

// Stores four floats, one by one where the address is not aligned.
DEVICE void store4(float* to, bool aligned, float a, float b, float c, float d) {
    if (aligned) {
        store4(to, a, b, c, d);
    } else {
        to[0] = a;
        to[1] = b;
        to[2] = c;
        to[3] = d;
    }
}

// Loads and stores of 16 bytes that are not used again soon: the caches evict them first.
#if defined(__CUDACC__)
DEVICE Bytes16 load_streaming(const void* from) {
    const uint4 words = __ldcs(static_cast<const uint4*>(from));
    return {{words.x, words.y, words.z, words.w}};
}
DEVICE void store4_streaming(float* to, float a, float b, float c, float d) {
    __stcs(reinterpret_cast<float4*>(to), make_float4(a, b, c, d));
}
#else
DEVICE Bytes16 load_streaming(const void* from) { return *static_cast<const Bytes16*>(from); }
DEVICE void store4_streaming(float* to, float a, float b, float c, float d) {
    store4(to, a, b, c, d);
}
#endif

// Stores two floats to a multiple of 8 bytes.
DEVICE void store2(float* to, float a, float b) {
    struct alignas(8) Pair {
        float a, b;
    };
    *reinterpret_cast<Pair*>(to) = {a, b};
}
