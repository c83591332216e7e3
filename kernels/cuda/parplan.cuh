// What all kernels share. Plain C++ wherever possible: the same files run under g++
// with shim/cuda_shim.h in place of the CUDA headers.
#pragma once

#ifdef PARPLAN_SHIM
#include "cuda_shim.h"
#endif

typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;

__device__ inline float bits_to_f32(u32 bits) {
    union {
        u32 u;
        float f;
    } v;
    v.u = bits;
    return v.f;
}

__device__ inline u32 f32_to_bits(float f) {
    union {
        u32 u;
        float f;
    } v;
    v.f = f;
    return v.u;
}

__device__ inline float bf16_to_f32(u16 h) { return bits_to_f32((u32)h << 16); }

// Round to nearest, ties to even; NaN stays NaN.
__device__ inline u16 f32_to_bf16(float f) {
    u32 bits = f32_to_bits(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)((bits >> 16) | 0x40u);
    bits += 0x7fffu + ((bits >> 16) & 1u);
    return (u16)(bits >> 16);
}
