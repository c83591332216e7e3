// Multi-head latent attention (absorbed) over a paged cache, bf16 or e4m3, for sm_90a.
//
//   k       [pages, page, 576]: 512 latent, which is also the value, then 64 rotary
//   q       [tokens, heads, 576]      out  [tokens, heads, 512]
//
// A block has 64 rows of a tile (query token times head) and walks its KV by pairs of
// units of 64 tokens. Shared memory holds the queries and one pair, each unit read once
// from global memory as key and as value. Three warpgroups:
//   0     copies units in, and makes f16 of e4m3
//   1, 2  side 0 and side 1: side i has the scores and the softmax of unit i of each
//         pair, and columns 256 * i on of the output, in its registers
// The sides take turns on the tensor cores. While one has a softmax, the other multiplies:
//
//   side 0   scores of 0 | softmax | values of 0            | values of 1 | scores of 0 ...
//   side 1   scores of 1 |  wait   | values of 0, softmax   | values of 1 | scores of 1 ...
//
// Each side keeps its weights in registers for its own columns and hands them to the other
// through shared memory, with what they are relative to; both add unit 0 and then unit 1,
// so that their outputs stay relative to the same.
//
// A unit is handed over in five groups of columns, each with its own pair of barriers: it is
// multiplied as soon as it is there, and its place is loaded anew as soon as its last
// reader is through, while the others are still in use. That hides the loads: there is no
// room for a third unit.
//
// Tiles of 128 rows are shared by two neighbouring blocks that read the same KV at the
// same time, so that it comes from device memory once.
#include "attention_mla_wgmma.cuh"

#define LN2 0.69314718056f

// What weights are relative to is raised to a score that is 2^RAISE above it, not to every
// new maximum: each step costs a pass over the output, and f32 and bf16 have room for 2^8.
#define RAISE 8.0f

#if __CUDA_ARCH__ >= 900

// What the two sides do, and how they differ.
template <u32 side, bool fp8>
struct Side {
    const AttentionArgs& a;
    unsigned char* shared;
    u32 base, warp, lane, row;  // row: the first of this thread's two, the other is 8 further
    float scale_log2;
    float o[128], top[2], sum[2];

    __device__ inline void arrive(u32 barrier) const {
        if (lane == 0) barrier_arrive(base + barrier);
    }
    // By row: what the weights of a unit are relative to; the sum of a side's weights.
    __device__ inline float* tops(u32 unit) const { return (float*)(shared + SHARED_F32) + 64 * unit; }
    __device__ inline float* sums(u32 of_side) const { return (float*)(shared + SHARED_F32) + 128 + 64 * of_side; }

    __device__ inline void rescale(const float (&keep)[2]) {
        if (__any_sync(0xffffffffu, keep[0] != 1.0f || keep[1] != 1.0f)) {
#pragma unroll
            for (int i = 0; i < 128; i++) o[i] *= keep[i / 2 % 2];
        }
    }
    // Goes on relative to what the other side has chosen for its unit.
    __device__ inline void follow(u32 unit) {
        float keep[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float now = tops(unit)[row + 8 * h];
            keep[h] = now == top[h] ? 1.0f : exp2_fast((top[h] - now) * scale_log2);
            sum[h] *= keep[h];
            top[h] = now;
        }
        rescale(keep);
    }
    // Begins s = q k^T of this side's unit; the products are not waited for.
    __device__ inline void scores(float (&s)[32], const u32 (&rotary)[4][4], u32 parity) const {
        const u32 keys = base + SHARED_K + side * K_BYTES;
#pragma unroll
        for (u32 i = 0; i < GROUPS; i++) {
            // The rotary columns last: the queries' may still be on their way to registers.
            const u32 group = group_at(side, (i + 1) % GROUPS);
            barrier_wait(base + FULL(side, group), parity);
            fence_for_products();
            products_begin();
#pragma unroll
            for (u32 k = 0; k < (group == ROTARY ? 4 : 8); k++) {
                const u32 at = 2 * group * BLOCK + k / 4 * BLOCK + k % 4 * 32;
                const u64 key = tile_descriptor(keys + at, 16, 1024);
                if (group == ROTARY)
                    multiply_64x64_registers<fp8>(s, rotary[k], key, true);
                else
                    multiply_64x64<fp8>(s, tile_descriptor(base + at, 16, 1024), key, i > 0 || k > 0);
            }
            products_commit();
        }
    }
    // Scores become weights, packed as the first operand of products; `keep`: what the
    // output so far is to be multiplied by.
    __device__ inline void softmax(float (&s)[32], u32 (&weights)[4][4], float (&keep)[2]) {
        const float slack = RAISE / scale_log2;
        float high[2] = {MINUS_INFINITY, MINUS_INFINITY};
        keep[0] = keep[1] = 1.0f;
#pragma unroll
        for (int i = 0; i < 32; i++) high[i / 2 % 2] = fmaxf(high[i / 2 % 2], s[i]);
        if (__any_sync(0xffffffffu, high[0] > top[0] + slack || high[1] > top[1] + slack)) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                high[h] = fmaxf(high[h], __shfl_xor_sync(0xffffffffu, high[h], 1));
                high[h] = fmaxf(high[h], __shfl_xor_sync(0xffffffffu, high[h], 2));
                if (high[h] > top[h]) {
                    keep[h] = exp2_fast((top[h] - high[h]) * scale_log2);
                    top[h] = high[h];
                    sum[h] *= keep[h];
                }
            }
        }
        const float offset[2] = {top[0] > MINUS_INFINITY ? top[0] * scale_log2 : 0.0f,
                                 top[1] > MINUS_INFINITY ? top[1] * scale_log2 : 0.0f};
#pragma unroll
        for (int i = 0; i < 32; i++) {
            s[i] = exp2_fast(s[i] * scale_log2 - offset[i / 2 % 2]);
            sum[i / 2 % 2] += s[i];
        }
#pragma unroll
        for (int i = 0; i < 16; i++) weights[i / 4][i % 4] = pack<fp8>(s[2 * i], s[2 * i + 1]);
    }
    // Hands the weights to the other side, and what they are relative to.
    __device__ inline void hand_over(const u32 (&weights)[4][4]) const {
        const u32 quad = lane % 4;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            unsigned char* to = shared + SHARED_P + side * BLOCK + (row + 8 * h) * 128 + quad * 4;
#pragma unroll
            for (int i = 0; i < 8; i++) *(u32*)(to + ((i ^ (row & 7)) << 4)) = weights[i / 2][i % 2 * 2 + h];
            if (quad == 0) tops(side)[row + 8 * h] = top[h];
        }
        fence_for_products();
        __syncwarp();
        arrive(P_FULL(side));
    }
    // Begins o += weights * values of a unit, in two halves of this side's columns.
    template <class Multiply>
    __device__ inline void values(u32 unit, Multiply multiply) {
        const u32 values = base + SHARED_K + unit * K_BYTES + side * 4 * BLOCK;
        products_begin();
#pragma unroll
        for (int k = 0; k < 4; k++) multiply(Constant<0>(), k, tile_descriptor(values + k * 2048, BLOCK, 1024));
        products_commit();
#pragma unroll
        for (int k = 0; k < 4; k++) multiply(Constant<1>(), k, tile_descriptor(values + 2 * BLOCK + k * 2048, BLOCK, 1024));
        products_commit();
    }
    __device__ inline void values_of_other(u32 unit) {
        fence_for_products();
        values(unit, [&](auto part, int k, u64 value) {
            multiply_64x128<fp8, decltype(part)::value>(o, tile_descriptor(base + SHARED_P + unit * BLOCK + k * 32, 16, 1024), value);
        });
    }
    __device__ inline void values_of_mine(const u32 (&weights)[4][4]) {
        values(side, [&](auto part, int k, u64 value) { multiply_64x128_registers<fp8, decltype(part)::value>(o, weights[k], value); });
    }
    // Waits for the values of a unit that were begun last, and gives their places free.
    __device__ inline void finish_values(u32 unit) {
        products_wait<1>();
        arrive(EMPTY(unit, 2 * side));
        products_wait<0>();
        arrive(EMPTY(unit, 2 * side + 1));
        results_are_here(o);
    }

    __device__ inline void run(Segments walk, const PlanView& p, u32 chunk_index, u32 half_rows) {
        const u32 quad = lane % 4;
        u32 n = 0;  // pairs so far
        Segment segment;
        for (u32 segments = 0; walk.next(a, p, &segment); segments++) {
            const TileRecord& tile = segment.tile;
            u32 rotary[4][4], limit[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const bool exists = half_rows + row + 8 * h < tile.rows;
                const u32 in_request = tile.row_begin + (exists ? half_rows + row + 8 * h : 0);
                limit[h] = exists ? row_limit(a, tile, in_request / a.group) : 0;
                const u64 at = part_row(a, a.q_part_heads, tile.token_begin + in_request / a.group, in_request % a.group);
                const u16* from = (const u16*)a.q + at * 576 + 512 + 2 * quad;
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    rotary[k][h] = exists ? *(const u32*)(from + 16 * k) : 0;
                    rotary[k][h + 2] = exists ? *(const u32*)(from + 16 * k + 8) : 0;
                    if (fp8) {
                        rotary[k][h] = bf16_pair_to_f16(rotary[k][h]);
                        rotary[k][h + 2] = bf16_pair_to_f16(rotary[k][h + 2]);
                    }
                }
                top[h] = MINUS_INFINITY;
                sum[h] = 0.0f;
            }
            const u32 all_see = row_limit(a, tile, tile.row_begin / a.group);
#pragma unroll
            for (int i = 0; i < 128; i++) o[i] = 0.0f;
            barrier_wait(base + Q_FULL, segments & 1);

            for (u32 u = 0; u < segment.count; u += 2, n++) {
                const u32 parity = n & 1;
                float s[32], keep[2];
                u32 weights[4][4];
                scores(s, rotary, parity);
                if (side == 1) {
                    barrier_wait(base + P_FULL(0), parity);
                    follow(0);
                    values_of_other(0);
                    products_wait<2>();
                } else {
                    products_wait<0>();
                }
                results_are_here(s);
                arrive(EMPTY(side, ROTARY));
                if (u + 2 >= segment.count) arrive(Q_EMPTY);

                const u32 first_token = (segment.first + u + side) * WG_UNIT;
                if (first_token + WG_UNIT > all_see || u + side >= segment.count) {
#pragma unroll
                    for (int i = 0; i < 32; i++)
                        if (first_token + i / 4 * 8 + 2 * quad + i % 2 >= limit[i / 2 % 2] || u + side >= segment.count) s[i] = MINUS_INFINITY;
                }
                softmax(s, weights, keep);
                hand_over(weights);
                if (side == 1) finish_values(0);
                rescale(keep);
                values_of_mine(weights);
                finish_values(side);
                if (side == 0) {
                    barrier_wait(base + P_FULL(1), parity);
                    follow(1);
                    values_of_other(1);
                    finish_values(1);
                }
            }

#pragma unroll
            for (int h = 0; h < 2; h++) {
                sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
                sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
                if (quad == 0) sums(side)[row + 8 * h] = sum[h];
            }
            sync_warpgroups<1, 256>();
            const bool whole = segment.count == segment.units;
            const u64 slot = 2 * (u64)chunk_index + (segment.first == 0 ? 1 : 0);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const u32 in_tile = half_rows + row + 8 * h;
                if (in_tile >= tile.rows) continue;
                const float total = sums(0)[row + 8 * h] + sums(1)[row + 8 * h];
                const float norm = total > 0.0f ? (fp8 ? a.v_scale / FP8_AS_F16 : 1.0f) / total : 0.0f;
                const float lse = total > 0.0f ? (top[h] * scale_log2 + __log2f(total)) * LN2 : MINUS_INFINITY;
                if (whole) {
                    const u32 in_request = tile.row_begin + in_tile;
                    const u64 at = part_row(a, a.out_part_heads, tile.token_begin + in_request / a.group, in_request % a.group);
                    u16* to = (u16*)a.out + at * 512 + side * 256 + 2 * quad;
#pragma unroll
                    for (int i = 0; i < 32; i++) *(u32*)(to + 8 * i) = pack_bf16(o[4 * i + 2 * h] * norm, o[4 * i + 2 * h + 1] * norm);
                    if (a.lse && side == 0 && quad == 0) ((float*)a.lse)[at] = lse;
                } else {
                    float* to = (float*)a.partial_out + (slot * a.rows + in_tile) * 512 + side * 256 + 2 * quad;
#pragma unroll
                    for (int i = 0; i < 32; i++) *(float2*)(to + 8 * i) = make_float2(o[4 * i + 2 * h] * norm, o[4 * i + 2 * h + 1] * norm);
                    if (side == 0 && quad == 0) ((float*)a.partial_lse)[slot * a.rows + in_tile] = lse;
                }
            }
        }
    }
};
#endif

template <bool fp8>
__device__ inline void mla(const AttentionArgs& a) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(1024) unsigned char shared[];
    let_next_come();  // the merge of pieces
    const PlanView p = plan_of(a);
    const u32 halves = a.rows / 64, chunk_index = blockIdx.x / halves, half_rows = blockIdx.x % halves * 64;
    if (chunk_index >= p.header[2]) return;
    const u32 base = shared_address(shared);
    const u32 warpgroup = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;

    if (threadIdx.x == 0) {
        for (u32 unit = 0; unit < 2; unit++) {
            for (u32 group = 0; group < GROUPS; group++) {
                barrier_init(base + FULL(unit, group), 128);
                barrier_init(base + EMPTY(unit, group), 4);
            }
            barrier_init(base + P_FULL(unit), 4);
        }
        barrier_init(base + Q_FULL, 128);
        barrier_init(base + Q_EMPTY, 8);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();

    const ChunkBegin begin = p.chunks[chunk_index];
    const Segments walk = {begin.tile, begin.unit, begin.count};
    const u32 row = warp * 16 + lane / 4;
    // The arguments' scales are for e4m3 read as f16 that are 2^-8 of it; here it is read as it is.
    const float scale_log2 = fp8 ? a.scale_log2 / FP8_AS_F16 : a.scale_log2;
    // A block has 168 registers a thread, which are 504 for one thread of each warpgroup.
    if (warpgroup == 0) {
        registers_down<fp8 ? 56 : 40>();
        Loader<fp8> loader(a, shared, half_rows);
        if (fp8) loader.run_fp8(walk, p);
        else loader.run_bf16(walk, p);
    } else if (warpgroup == 1) {
        registers_up<fp8 ? 224 : 232>();
        Side<0, fp8> side = {a, shared, base, warp, lane, row, scale_log2};
        side.run(walk, p, chunk_index, half_rows);
    } else {
        registers_up<fp8 ? 224 : 232>();
        Side<1, fp8> side = {a, shared, base, warp, lane, row, scale_log2};
        side.run(walk, p, chunk_index, half_rows);
    }
#else
    __trap();  // chosen on sm_90 only
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) parplan_mla_bf16_wgmma(const __grid_constant__ AttentionArgs a) { mla<false>(a); }
extern "C" __global__ void __launch_bounds__(384, 1) parplan_mla_fp8_wgmma(const __grid_constant__ AttentionArgs a) { mla<true>(a); }
