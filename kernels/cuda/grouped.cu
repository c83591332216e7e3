// One matrix product for each expert over the rows that chose it, in one launch.
//
// Rows are sorted by expert on the device and cut into tiles there (`parplan_sort_pairs`),
// so the grid is that of the most tiles there can be, and blocks without one end at once:
// a captured graph serves every routing. A block makes `rows` x 128 of the result with
// mma.sync from a ring of cp.async stages.
//
// Weights are [experts, n, k] in bf16 or e4m3. Of e4m3 a fragment is made in registers:
// both bytes of a pair become f16 (2^-8 of the value, see mma.cuh), and the bf16 rows are
// rounded to f16 beside them. The order of k inside 16 columns is then (0,2 | 1,3) of each
// four, for both operands alike.
#include "grouped.cuh"
#include "mma.cuh"

#define COLUMNS 128
#define DEPTH 64

// Byte of 16-byte chunk `chunk` of a row of 128 bytes (bf16), so that eight rows of one
// chunk lie in eight different places.
__device__ inline u32 chunk_of(u32 row, u32 chunk) { return row * 128 + ((chunk ^ (row & 7u)) << 4); }
// The same for rows of 64 bytes (e4m3): two rows share 128 bytes.
__device__ inline u32 narrow_chunk_of(u32 row, u32 chunk) { return row * 64 + ((chunk ^ (row >> 1 & 3u)) << 4); }

template <int rows, bool fp8, int stages>
__device__ inline void grouped(const GroupedArgs& a) {
    extern __shared__ __align__(128) unsigned char ring[];
    constexpr u32 x_bytes = rows * DEPTH * 2, w_bytes = COLUMNS * DEPTH * (fp8 ? 1 : 2), stage_bytes = x_bytes + w_bytes;
    // Warps side by side over the columns, or two by two.
    constexpr int warp_rows = rows == 16 ? 16 : 32, warp_columns = rows == 16 ? 32 : 64;
    constexpr int m_tiles = warp_rows / 16, n_tiles = warp_columns / 8;

    const uint2* tiles = (const uint2*)a.tiles;
    if (blockIdx.y >= tiles[a.max_tiles].x) return;
    const uint2 tile = tiles[blockIdx.y];
    const u32 end = (u32)((const int*)a.offsets)[tile.x + 1];
    const int* order = (const int*)a.order;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 row0 = rows == 16 ? 0 : warp / 2 * warp_rows, column0 = rows == 16 ? warp * warp_columns : warp % 2 * warp_columns;
    const u32 n0 = blockIdx.x * COLUMNS;

    // What this thread copies in every stage: chunks of `rows` / 16 rows of x and of w.
    constexpr int x_copies = rows * 8 / 128, w_copies = COLUMNS * (fp8 ? 4 : 8) / 128;
    const u16* x_from[x_copies];
    bool x_valid[x_copies];
    const u32 x_chunk = threadIdx.x % 8;
#pragma unroll
    for (int i = 0; i < x_copies; i++) {
        const u32 slot = tile.y + threadIdx.x / 8 + i * 16;
        x_valid[i] = slot < end;
        const u32 row = !x_valid[i] ? 0 : a.to_slots ? (u32)order[slot] / a.top_k : slot;
        x_from[i] = (const u16*)a.x + (u64)row * a.x_pitch + x_chunk * 8;
    }
    const u64 w0 = (u64)tile.x * a.n * a.k;
    const u32 depth = (a.k + DEPTH - 1) / DEPTH;

    auto load = [&](u32 step) {
        if (step < depth) {
            const u32 at = shared_address(ring) + step % stages * stage_bytes, k0 = step * DEPTH;
#pragma unroll
            for (int i = 0; i < x_copies; i++)
                copy16(at + chunk_of(threadIdx.x / 8 + i * 16, x_chunk), x_from[i] + k0, x_valid[i] && k0 + x_chunk * 8 < a.k);
#pragma unroll
            for (int i = 0; i < w_copies; i++) {
                if (fp8) {
                    const u32 row = threadIdx.x / 4 + i * 32, chunk = threadIdx.x % 4;
                    const bool valid = n0 + row < a.n && k0 + chunk * 16 < a.k;
                    const unsigned char* from = (const unsigned char*)a.w + w0 + (u64)(n0 + row) * a.k + k0 + chunk * 16;
                    copy16(at + x_bytes + narrow_chunk_of(row, chunk), valid ? from : (const unsigned char*)a.w, valid);
                } else {
                    const u32 row = threadIdx.x / 8 + i * 16;
                    const bool valid = n0 + row < a.n && k0 + x_chunk * 8 < a.k;
                    const u16* from = (const u16*)a.w + w0 + (u64)(n0 + row) * a.k + k0 + x_chunk * 8;
                    copy16(at + x_bytes + chunk_of(row, x_chunk), valid ? from : (const u16*)a.w, valid);
                }
            }
        }
        copy_commit();
    };

    float sum[m_tiles][n_tiles][4];
#pragma unroll
    for (int i = 0; i < m_tiles; i++)
#pragma unroll
        for (int j = 0; j < n_tiles; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) sum[i][j][c] = 0.0f;

#pragma unroll
    for (int s = 0; s < stages - 1; s++) load(s);
    for (u32 step = 0; step < depth; step++) {
        copy_wait<stages - 2>();
        __syncthreads();
        load(step + stages - 1);
        const unsigned char* x_tile = ring + step % stages * stage_bytes;
        const unsigned char* w_tile = x_tile + x_bytes;
#pragma unroll
        for (u32 kk = 0; kk < DEPTH / 16; kk++) {
            u32 left[m_tiles][4];
#pragma unroll
            for (int i = 0; i < m_tiles; i++) {
                if (fp8) {
                    const u32 row = row0 + i * 16 + lane / 4, part = lane % 4;
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const uint2 four = *(const uint2*)(x_tile + chunk_of(row + h * 8, kk * 2 + part / 2) + part % 2 * 8);
                        left[i][h] = pack_f16(bits_to_f32(four.x << 16), bits_to_f32(four.y << 16));
                        left[i][h + 2] = pack_f16(bits_to_f32(four.x & 0xffff0000u), bits_to_f32(four.y & 0xffff0000u));
                    }
                } else {
                    const u32 row = row0 + i * 16 + lane % 16;
                    load_matrices(left[i], shared_address(x_tile) + chunk_of(row, kk * 2 + lane / 16));
                }
            }
#pragma unroll
            for (int j = 0; j < n_tiles; j += 2) {
                if (fp8) {
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const u32 row = column0 + (j + h) * 8 + lane / 4;
                        const u32 four = *(const u32*)(w_tile + narrow_chunk_of(row, kk) + lane % 4 * 4);
#pragma unroll
                        for (int i = 0; i < m_tiles; i++)
                            multiply<true>(sum[i][j + h], left[i], low_bytes_to_f16(four), high_bytes_to_f16(four));
                    }
                } else {
                    // Columns j*8 .. +16, both halves of k: lanes 0-7 and 8-15 the first 8 columns.
                    u32 right[4];
                    const u32 row = column0 + j * 8 + lane / 16 * 8 + lane % 8;
                    load_matrices(right, shared_address(w_tile) + chunk_of(row, kk * 2 + lane / 8 % 2));
#pragma unroll
                    for (int i = 0; i < m_tiles; i++) {
                        multiply<false>(sum[i][j], left[i], right[0], right[1]);
                        multiply<false>(sum[i][j + 1], left[i], right[2], right[3]);
                    }
                }
            }
        }
    }
    copy_wait<0>();

#pragma unroll
    for (int i = 0; i < m_tiles; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const u32 slot = tile.y + row0 + i * 16 + lane / 4 + h * 8;
            if (slot >= end) continue;
            const u64 row = a.to_slots ? slot : (u32)order[slot];
            u16* y = (u16*)a.y + row * a.n;
#pragma unroll
            for (int j = 0; j < n_tiles; j++) {
                const u32 column = n0 + column0 + j * 8 + lane % 4 * 2;
                if (column < a.n) *(u32*)(y + column) = pack_bf16(sum[i][j][2 * h] * a.scale, sum[i][j][2 * h + 1] * a.scale);
            }
        }
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define STAGES 4
#else
#define STAGES 3
#endif

extern "C" __global__ void __launch_bounds__(128) parplan_grouped_bf16_narrow(const __grid_constant__ GroupedArgs a) {
    grouped<16, false, STAGES>(a);
}
extern "C" __global__ void __launch_bounds__(128) parplan_grouped_bf16_wide(const __grid_constant__ GroupedArgs a) {
    grouped<64, false, STAGES>(a);
}
extern "C" __global__ void __launch_bounds__(128) parplan_grouped_fp8_narrow(const __grid_constant__ GroupedArgs a) {
    grouped<16, true, STAGES>(a);
}
extern "C" __global__ void __launch_bounds__(128) parplan_grouped_fp8_wide(const __grid_constant__ GroupedArgs a) {
    grouped<64, true, STAGES>(a);
}
