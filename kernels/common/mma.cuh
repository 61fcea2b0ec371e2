// Tensor cores: products of small matrices that the lanes of a warp hold together. With g = lane /
// 4 and t = lane % 4, a lane holds:
//
//   a, 16x16   a[0] row g, columns 2t, 2t+1;   a[1] row g+8, the same columns;
//              a[2], a[3] the same rows, columns 2t+8, 2t+9
//   b, 16x8    b0 column g, rows 2t, 2t+1;     b1 rows 2t+8, 2t+9
//   d, 16x8    d[0], d[1] row g, columns 2t, 2t+1;   d[2], d[3] row g+8
#pragma once

#include "element.cuh"

#if defined(__CUDACC__)

// Loads four 8x8 matrices of 16-bit elements from shared memory.
//
// Before: lane 8i + r holds the address of row r of matrix i, a multiple of 16 bytes. After:
// register i of each lane holds elements 2t, 2t+1 of row g of matrix i.
DEVICE void load_matrices(uint32_t (&registers)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row))));
}

// Loads the four matrices transposed: register i holds elements 2t, 2t+1 of column g of matrix i.
DEVICE void load_matrices_transposed(uint32_t (&registers)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row))));
}

// d += a b. The elements of a and b are f16, and d is f32.
DEVICE void multiply_accumulate(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#else

DEVICE void load_matrices(uint32_t (&registers)[4], const void* row SITE) {
    emulator::load_matrices(registers, row, false PASS_SITE);
}
DEVICE void load_matrices_transposed(uint32_t (&registers)[4], const void* row SITE) {
    emulator::load_matrices(registers, row, true PASS_SITE);
}
DEVICE void multiply_accumulate(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                uint32_t b1 SITE) {
    const uint32_t b[2] = {b0, b1};
    emulator::multiply_accumulate(d, a, b, false PASS_SITE);
}

#endif
