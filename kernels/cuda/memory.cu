// Reading memory as fast as it goes, and filling it with known values.
#include "parplan.cuh"

// Reads `words` of 16 bytes; `sink` is written only if they are all of one unlikely sum,
// so that the reads cannot be left out.
extern "C" __global__ void __launch_bounds__(512) parplan_read(const uint4* __restrict__ from, u64 words, uint4* sink) {
    const u64 stride = (u64)gridDim.x * blockDim.x;
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    uint4 sum = make_uint4(0, 0, 0, 0);
    // Four loads in flight for each thread.
    for (; i + 3 * stride < words; i += 4 * stride) {
        const uint4 a = from[i], b = from[i + stride], c = from[i + 2 * stride], d = from[i + 3 * stride];
        sum.x ^= a.x ^ b.x ^ c.x ^ d.x;
        sum.y ^= a.y ^ b.y ^ c.y ^ d.y;
        sum.z ^= a.z ^ b.z ^ c.z ^ d.z;
        sum.w ^= a.w ^ b.w ^ c.w ^ d.w;
    }
    for (; i < words; i += stride) {
        const uint4 a = from[i];
        sum.x ^= a.x, sum.y ^= a.y, sum.z ^= a.z, sum.w ^= a.w;
    }
    if ((sum.x ^ sum.y ^ sum.z ^ sum.w) == 0x9e3779b9u && sum.x == 0x7f4a7c15u) *sink = sum;
}

// 64 bits that belong to (seed, index): splitmix64.
__device__ inline u64 mixed(u64 seed, u64 index) {
    u64 x = seed + (index + 1) * 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// Values of either sign between 0.25 and 2, each from its own bits of a word: sign and
// mantissa as they are, the exponent from two bits. `fp8`: e4m3, else bf16.
extern "C" __global__ void parplan_fill_values(u64* __restrict__ out, u64 words, u64 fp8, u64 seed) {
    const u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < words; i += stride) {
        const u64 bits = mixed(seed, i);
        u64 word = 0;
        if (fp8) {
            for (u32 j = 0; j < 64; j += 8) {
                const u64 b = (bits >> j) & 0xff;
                word |= ((b & 0x87) | (5 + ((b >> 3) & 1) + ((b >> 4) & 1)) << 3) << j;
            }
        } else {
            for (u32 j = 0; j < 64; j += 16) {
                const u64 b = (bits >> j) & 0xffff;
                word |= ((b & 0x807f) | (125 + ((b >> 7) & 1) + ((b >> 8) & 1)) << 7) << j;
            }
        }
        out[i] = word;
    }
}
