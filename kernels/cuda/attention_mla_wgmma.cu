// Multi-head latent attention (absorbed) over a paged bf16 cache, for sm_90a.
//
//   k       [pages, page, 576]: 512 latent, which is also the value, then 64 rotary
//   q       [tokens, heads, 576]      out  [tokens, heads, 512]
//
// A block has 64 rows of a tile (query token times head) and walks units of 64 KV
// tokens, of which two are in shared memory: each is read once from global memory and
// serves as key and as value. Four warpgroups:
//   0  copies units in, three barriers each, so that products begin on the first third
//   1  scores: 64x64 products over 576, the softmax, weights to shared memory
//   2, 3  values: each 256 columns of the output, in its registers
// The scores of the next unit run beside the values of this one. Tiles of 128 rows are
// shared by two neighbouring blocks that read the same KV at the same time, so that it
// comes from device memory once.
#include "attention.cuh"
#include "mma.cuh"
#include "wgmma.cuh"

#define WG_UNIT 64
#define BLOCK 8192  // bytes of 64 rows of 64 elements
#define Q_BYTES (8 * BLOCK)
#define K_BYTES (9 * BLOCK)
#define P_BYTES BLOCK
#define SHARED_P (Q_BYTES + 2 * K_BYTES)
#define SHARED_F32 (SHARED_P + 2 * P_BYTES)
#define SHARED_BARRIERS (SHARED_F32 + 4 * 64 * 4)

// Barriers, by offset.
#define FULL(stage, third) (SHARED_BARRIERS + 8 * (3 * (stage) + (third)))
#define EMPTY(stage) (SHARED_BARRIERS + 48 + 8 * (stage))
#define P_FULL(slot) (SHARED_BARRIERS + 64 + 8 * (slot))
#define P_EMPTY(slot) (SHARED_BARRIERS + 80 + 8 * (slot))
#define DONE_FULL (SHARED_BARRIERS + 96)
#define DONE_EMPTY (SHARED_BARRIERS + 104)

#define LN2 0.69314718056f

// One segment: what a block has of one item, which with a single KV head is a tile.
struct Segment {
    TileRecord tile;
    u32 first, count, units;
};

// Walks the segments of a chunk.
struct Segments {
    u32 tile, unit, left;
    __device__ inline bool next(const AttentionArgs& a, const PlanView& p, Segment* s) {
        if (left == 0) return false;
        s->tile = p.tiles[tile];
        s->units = tile_units(a, s->tile.limit);
        s->first = unit;
        s->count = s->units - unit < left ? s->units - unit : left;
        left -= s->count;
        unit = 0;
        tile++;
        return true;
    }
};

extern "C" __global__ void __launch_bounds__(512, 1) parplan_mla_bf16_wgmma(const __grid_constant__ AttentionArgs a) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(1024) unsigned char shared[];
    const PlanView p = plan_of(a);
    const u32 halves = a.rows / 64, chunk_index = blockIdx.x / halves, half_rows = blockIdx.x % halves * 64;
    if (chunk_index >= p.header[2]) return;
    const u32 base = shared_address(shared);
    const u32 warpgroup = threadIdx.x / 128, thread = threadIdx.x % 128;
    const u32 warp = thread / 32, lane = thread % 32, quad = lane % 4, group_row = lane / 4;
    float* keep_of = (float*)(shared + SHARED_F32);  // [2][64]
    float* norm_of = keep_of + 128;                  // [64]
    float* lse_of = keep_of + 192;                   // [64]

    if (threadIdx.x == 0) {
        for (u32 s = 0; s < 2; s++) {
            for (u32 t = 0; t < 3; t++) barrier_init(base + FULL(s, t), 128);
            barrier_init(base + EMPTY(s), 12);
            barrier_init(base + P_FULL(s), 4);
            barrier_init(base + P_EMPTY(s), 8);
        }
        barrier_init(base + DONE_FULL, 4);
        barrier_init(base + DONE_EMPTY, 8);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();

    const ChunkBegin begin = p.chunks[chunk_index];
    Segments walk = {begin.tile, begin.unit, begin.count};
    Segment segment;
    u32 n = 0;  // units so far

    if (warpgroup == 0) {
        registers_down<40>();
        const u32 c = thread % 8, first_row = thread / 8;
        // Eight threads bring 128 bytes of a row; this one serves four rows.
        u32 rows[4];
        auto look_up = [&](const Segment& s, u32 unit) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 token = unit * WG_UNIT + first_row + 16 * i;
                if (token >= s.tile.limit) {
                    rows[i] = 0xffffffffu;
                    continue;
                }
                u32 page, in_page;
                if (a.page_shift < 32) {
                    page = token >> a.page_shift;
                    in_page = token & (a.page - 1);
                } else {
                    page = token / a.page;
                    in_page = token - page * a.page;
                }
                rows[i] = __ldg((const u32*)a.page_table + (u64)s.tile.request * a.max_pages + page) * a.page + in_page;
            }
        };
        while (walk.next(a, p, &segment)) {
            look_up(segment, segment.first);
            for (u32 u = 0; u < segment.count; u++, n++) {
                const u32 stage = n % 2;
                const char* from[4];
                bool valid[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    valid[i] = rows[i] != 0xffffffffu;
                    from[i] = (const char*)a.k + (valid[i] ? (u64)rows[i] * 1152 : 0) + c * 16;
                }
                if (u + 1 < segment.count) look_up(segment, segment.first + u + 1);
                if (n >= 2) barrier_wait(base + EMPTY(stage), (n / 2 - 1) & 1);
                const u32 to = base + Q_BYTES + stage * K_BYTES + first_row * 128 + ((c ^ (first_row & 7)) << 4);
#pragma unroll
                for (int b = 0; b < 9; b++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) copy16(to + b * BLOCK + i * 16 * 128, from[i] + b * 128, valid[i]);
                    if (b % 3 == 2) barrier_arrive_after_copies(base + FULL(stage, b / 3));
                }
            }
        }
        asm volatile("cp.async.wait_all;" ::: "memory");
    } else if (warpgroup == 1) {
        u32 segments = 0;
        while (walk.next(a, p, &segment)) {
            const TileRecord& tile = segment.tile;
            // Everyone is through with the queries before.
            sync_warpgroup<1>();
            for (u32 i = thread; i < 64 * 64; i += 128) {
                const u32 row = i / 64, c = i % 64;  // 16-byte chunks of the latent part
                uint4 v = make_uint4(0, 0, 0, 0);
                if (half_rows + row < tile.rows) {
                    const u32 in_request = tile.row_begin + half_rows + row;
                    const u64 at = part_row(a, a.q_part_heads, tile.token_begin + in_request / a.group, in_request % a.group);
                    v = *(const uint4*)((const u16*)a.q + at * 576 + c * 8);
                }
                *(uint4*)(shared + c / 8 * BLOCK + row * 128 + ((c % 8 ^ (row & 7)) << 4)) = v;
            }
            u32 rotary[4][4];
            u32 limit[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const u32 row = half_rows + warp * 16 + group_row + 8 * h;
                const bool exists = row < tile.rows;
                const u32 in_request = tile.row_begin + (exists ? row : 0);
                limit[h] = exists ? row_limit(a, tile, in_request / a.group) : 0;
                const u64 at = part_row(a, a.q_part_heads, tile.token_begin + in_request / a.group, in_request % a.group);
                const u16* from = (const u16*)a.q + at * 576 + 512 + 2 * quad;
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    rotary[k][h] = exists ? *(const u32*)(from + 16 * k) : 0;
                    rotary[k][h + 2] = exists ? *(const u32*)(from + 16 * k + 8) : 0;
                }
            }
            const u32 all_see = row_limit(a, tile, tile.row_begin / a.group);
            fence_for_products();
            sync_warpgroup<1>();

            float top[2] = {MINUS_INFINITY, MINUS_INFINITY}, sum[2] = {0.0f, 0.0f};
            for (u32 u = 0; u < segment.count; u++, n++) {
                const u32 stage = n % 2, parity = (n / 2) & 1;
                const u32 keys = base + Q_BYTES + stage * K_BYTES;
                float s[32];
#pragma unroll
                for (int third = 0; third < 3; third++) {
                    barrier_wait(base + FULL(stage, third), parity);
                    fence_for_products();
                    products_begin();
#pragma unroll
                    for (int b = 3 * third; b < 3 * third + 3; b++)
#pragma unroll
                        for (int k = 0; k < 4; k++) {
                            const u64 key = tile_descriptor(keys + b * BLOCK + k * 32, 16, 1024);
                            if (b < 8)
                                multiply_64x64(s, tile_descriptor(base + b * BLOCK + k * 32, 16, 1024), key, b > 0 || k > 0);
                            else
                                multiply_64x64_registers(s, rotary[k], key, true);
                        }
                    products_commit();
                }
                products_wait();
                if (lane == 0) barrier_arrive(base + EMPTY(stage));

                const u32 first_token = (segment.first + u) * WG_UNIT;
                if (first_token + WG_UNIT > all_see) {
#pragma unroll
                    for (int i = 0; i < 32; i++)
                        if (first_token + i / 4 * 8 + 2 * quad + i % 2 >= limit[i / 2 % 2]) s[i] = MINUS_INFINITY;
                }
                float high[2] = {MINUS_INFINITY, MINUS_INFINITY}, keep[2] = {1.0f, 1.0f};
#pragma unroll
                for (int i = 0; i < 32; i++) high[i / 2 % 2] = fmaxf(high[i / 2 % 2], s[i]);
                if (__any_sync(0xffffffffu, high[0] > top[0] || high[1] > top[1])) {
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        high[h] = fmaxf(high[h], __shfl_xor_sync(0xffffffffu, high[h], 1));
                        high[h] = fmaxf(high[h], __shfl_xor_sync(0xffffffffu, high[h], 2));
                        const float now = fmaxf(top[h], high[h]);
                        keep[h] = now == top[h] ? 1.0f : exp2_fast((top[h] - now) * a.scale_log2);
                        top[h] = now;
                        sum[h] *= keep[h];
                    }
                }
                const float offset[2] = {top[0] > MINUS_INFINITY ? top[0] * a.scale_log2 : 0.0f,
                                         top[1] > MINUS_INFINITY ? top[1] * a.scale_log2 : 0.0f};
#pragma unroll
                for (int i = 0; i < 32; i++) {
                    s[i] = exp2_fast(s[i] * a.scale_log2 - offset[i / 2 % 2]);
                    sum[i / 2 % 2] += s[i];
                }
                if (n >= 2) barrier_wait(base + P_EMPTY(stage), (n / 2 - 1) & 1);
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const u32 row = warp * 16 + group_row + 8 * h;
                    unsigned char* to = shared + SHARED_P + stage * P_BYTES + row * 128 + quad * 4;
#pragma unroll
                    for (int i = 0; i < 8; i++) *(u32*)(to + ((i ^ (row & 7)) << 4)) = pack_bf16(s[4 * i + 2 * h], s[4 * i + 2 * h + 1]);
                    if (quad == 0) keep_of[stage * 64 + row] = keep[h];
                }
                fence_for_products();
                __syncwarp();
                if (lane == 0) barrier_arrive(base + P_FULL(stage));
            }

            if (segments) barrier_wait(base + DONE_EMPTY, (segments - 1) & 1);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
                sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
                if (quad == 0) {
                    const u32 row = warp * 16 + group_row + 8 * h;
                    norm_of[row] = sum[h] > 0.0f ? 1.0f / sum[h] : 0.0f;
                    lse_of[row] = sum[h] > 0.0f ? (top[h] * a.scale_log2 + __log2f(sum[h])) * LN2 : MINUS_INFINITY;
                }
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(base + DONE_FULL);
            segments++;
        }
    } else {
        registers_up<168>();
        const u32 side = warpgroup - 2;  // which 256 columns
        u32 segments = 0;
        while (walk.next(a, p, &segment)) {
            float o[128];
#pragma unroll
            for (int i = 0; i < 128; i++) o[i] = 0.0f;
            for (u32 u = 0; u < segment.count; u++, n++) {
                const u32 stage = n % 2;
                barrier_wait(base + P_FULL(stage), (n / 2) & 1);
                const float keep[2] = {keep_of[stage * 64 + warp * 16 + group_row], keep_of[stage * 64 + warp * 16 + group_row + 8]};
                if (__any_sync(0xffffffffu, keep[0] != 1.0f || keep[1] != 1.0f)) {
#pragma unroll
                    for (int i = 0; i < 128; i++) o[i] *= keep[i / 2 % 2];
                }
                fence_for_products();
                products_begin();
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    const u64 weights = tile_descriptor(base + SHARED_P + stage * P_BYTES + k * 32, 16, 1024);
                    const u32 values = base + Q_BYTES + stage * K_BYTES + side * 4 * BLOCK + k * 2048;
                    multiply_64x128<0>(o, weights, tile_descriptor(values, BLOCK, 1024));
                    multiply_64x128<1>(o, weights, tile_descriptor(values + 2 * BLOCK, BLOCK, 1024));
                }
                products_commit();
                products_wait();
                if (lane == 0) {
                    barrier_arrive(base + EMPTY(stage));
                    barrier_arrive(base + P_EMPTY(stage));
                }
            }
            barrier_wait(base + DONE_FULL, segments & 1);
            const bool whole = segment.count == segment.units;
            const u64 slot = 2 * (u64)chunk_index + (segment.first == 0 ? 1 : 0);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const u32 in_block = warp * 16 + group_row + 8 * h, row = half_rows + in_block;
                if (row >= segment.tile.rows) continue;
                const float norm = norm_of[in_block], lse = lse_of[in_block];
                if (whole) {
                    const u32 in_request = segment.tile.row_begin + row;
                    const u64 at = part_row(a, a.out_part_heads, segment.tile.token_begin + in_request / a.group, in_request % a.group);
                    u16* to = (u16*)a.out + at * 512 + side * 256 + 2 * quad;
#pragma unroll
                    for (int i = 0; i < 32; i++) *(u32*)(to + 8 * i) = pack_bf16(o[4 * i + 2 * h] * norm, o[4 * i + 2 * h + 1] * norm);
                    if (a.lse && side == 0 && quad == 0) ((float*)a.lse)[at] = lse;
                } else {
                    float* to = (float*)a.partial_out + (slot * a.rows + row) * 512 + side * 256 + 2 * quad;
#pragma unroll
                    for (int i = 0; i < 32; i++) *(float2*)(to + 8 * i) = make_float2(o[4 * i + 2 * h] * norm, o[4 * i + 2 * h + 1] * norm);
                    if (side == 0 && quad == 0) ((float*)a.partial_lse)[slot * a.rows + row] = lse;
                }
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(base + DONE_EMPTY);
            segments++;
        }
    }
#else
    __trap();  // chosen on sm_90 only
#endif
}
