// Row kernels of DP gather and scatter, and the stand-in for the layer between them.
//
// Offsets and counts are read from device memory, so that one captured graph serves
// every batch of its bucket. Rows are moved as 16-byte words: the caller gives row
// sizes that are multiples of 16 and buffers that are 16-byte aligned.
#include "parplan.cuh"

// SUM_LEN placement: rows [offset, offset + count) of `global` become the rows of
// `local`, all other rows become zero. One pass instead of a fill and a copy.
//   global [total_rows, row_words]   local [>= count, row_words]
//   place  {offset, count} in rows
extern "C" __global__ void parplan_place_rows(uint4* __restrict__ global, const uint4* __restrict__ local,
                                              const u64* __restrict__ place, u64 total_rows, u64 row_words) {
    const u64 begin = place[0] * row_words;
    const u64 end = begin + place[1] * row_words;
    const u64 words = total_rows * row_words;
    const u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < words; i += stride) {
        uint4 v = make_uint4(0, 0, 0, 0);
        if (i >= begin && i < end) v = local[i - begin];
        global[i] = v;
    }
}

// SUM_LEN scatter: the first `count` rows of `local` become the rows of `global` at
// `offset`; rows of `local` beyond them stay as they are.
extern "C" __global__ void parplan_take_rows(uint4* __restrict__ local, const uint4* __restrict__ global,
                                             const u64* __restrict__ place, u64 local_rows, u64 row_words) {
    const u64 begin = place[0] * row_words;
    const u64 rows = place[1] < local_rows ? place[1] : local_rows;
    const u64 words = rows * row_words;
    const u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < words; i += stride) {
        local[i] = global[begin + i];
    }
}

// Stand-in for the FFN of one tensor-parallel rank: out = in * factor, in bf16, so
// that the sum over ranks is exactly known for small integers.
extern "C" __global__ void parplan_scale_bf16(u16* __restrict__ out, const u16* __restrict__ in, float factor, u64 count) {
    const u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        out[i] = f32_to_bf16(bf16_to_f32(in[i]) * factor);
    }
}
