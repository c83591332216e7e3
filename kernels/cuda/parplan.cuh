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

// For kernels that may be launched while the one before them in the stream still ends
// (programmatic dependent launch; see `Grid::early` in the executor): waits until all of it
// is done and can be seen. Nothing that it wrote may be read before, and nothing that it
// reads may be written. Where a kernel was launched after the one before, no time passes.
__device__ inline void after_previous() {
#if !defined(PARPLAN_SHIM) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Once all blocks have said so or ended, the next kernel may be launched, if it is one that may come
// early. Only where that next kernel is known to wait with after_previous: a kernel says this about
// whatever follows it in the stream or graph, and what comes early without waiting reads what is not
// yet written. NCCL is such a one: it launches its symmetric kernels so that they may come early, and
// those of 2.28.3 to 2.30.4 do not wait (2.27 and 2.30.7 do). So only the attentions say it, which the
// executor follows with the merge of their pieces in the same call; kernels/tests/early.rs holds the
// code to that. Any other kernel lets the next come by ending.
__device__ inline void let_next_come() {
#if !defined(PARPLAN_SHIM) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
