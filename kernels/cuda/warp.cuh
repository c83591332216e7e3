// Sums over a warp and over a block.
#pragma once
#include "parplan.cuh"

__device__ inline float warp_sum(float v) {
    for (u32 other = 16; other; other /= 2) v += __shfl_xor_sync(0xffffffffu, v, other);
    return v;
}

// Over all threads of the block, whole warps of them; every thread gets the sum.
__device__ inline float block_sum(float v) {
    __shared__ float sums[32];
    v = warp_sum(v);
    // Nobody reads the last call's sums any more.
    __syncthreads();
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0.0f;
    for (u32 w = 0; w < blockDim.x / 32; w++) v += sums[w];
    return v;
}
