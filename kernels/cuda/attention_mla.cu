// Multi-head latent attention (absorbed) over a paged cache, bf16 or e4m3, on any GPU
// from sm_80 on. sm_90 has a faster one, attention_mla_wgmma.cu.
//
//   k       [pages, page, 576]: 512 latent, which is also the value, then 64 rotary
//   q       [tokens, heads, 576]      out  [tokens, heads, 512]
//
// Tiles of 16 rows (query token times head), units of 32 KV tokens, eight warps. For
// the scores a warp has 8 of the 32 tokens and a part of the 576 dims; the parts are
// added in shared memory and every warp computes the same softmax. For the values a
// warp has 64 of the 512 columns. A unit is read once from global memory, and from
// shared memory once as key and once as value.
#include "attention.cuh"
#include "mma.cuh"

#define MLA_UNIT 32
#define MLA_WARPS 8
#define K_STEPS 36  // of 16 dims
#define FIRST_PART 20  // K steps of the first of two parts; e4m3 takes four at a time

// One block of a multiprocessor: 227 KB on sm_90, 99 KB on the smallest from sm_80 on.
#ifndef MLA_STAGES
#if __CUDA_ARCH__ >= 900
#define MLA_STAGES 5
#else
#define MLA_STAGES 2
#endif
#endif

template <bool fp8>
struct MlaShared {
    static constexpr int row_bytes = 576 * (fp8 ? 1 : 2);
    static constexpr int stages = fp8 ? 2 * MLA_STAGES : MLA_STAGES;
    static constexpr int unit_bytes = MLA_UNIT * row_bytes;
    static constexpr int scores = stages * unit_bytes;  // f32 [2 parts][16][MLA_UNIT], padded
    static constexpr int score_row = MLA_UNIT + 8;
    static constexpr int total = scores + 2 * 16 * score_row * 4;
};

// As in attention_gqa.cu; rows of 576 bytes lie at two places of a bank line.
template <int row_bytes>
__device__ inline u32 mla_swizzled(u32 row, u32 c) {
    if (row_bytes % 128 == 0) return row * row_bytes + ((c ^ (row & 7)) << 4);
    return row * row_bytes + ((c ^ ((row >> 1) & 3)) << 4);
}

template <bool fp8>
__device__ inline void mla(const AttentionArgs& a) {
    typedef MlaShared<fp8> S;
    constexpr int row_bytes = S::row_bytes;
    constexpr int row_chunks = row_bytes / 16;
    constexpr int stages = S::stages;
    extern __shared__ __align__(128) unsigned char shared[];
    let_next_come();  // the merge of pieces
    const PlanView p = plan_of(a);
    if (blockIdx.x >= p.header[2]) return;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, quad = lane % 4, group_row = lane / 4;
    const u32 base = shared_address(shared);
    float* scores = (float*)(shared + S::scores);

    const ChunkBegin begin = p.chunks[blockIdx.x];
    u32 left = begin.count;
    u32 tile_index = begin.tile, unit = begin.unit;
    TileRecord tile = p.tiles[tile_index];

    // The loading side. A thread brings chunks `threadIdx.x % 8`, +8, … of one row.
    u32 ahead_left = left, ahead_tile = tile_index, ahead_unit = unit;
    TileRecord ahead = tile;
    u32 next = 0xffffffffu;
    const u32 load_row = threadIdx.x / 8;
    auto look_up = [&]() {
        next = 0xffffffffu;
        const u32 token = ahead_unit * MLA_UNIT + load_row;
        if (ahead_left == 0 || token >= ahead.limit) return;
        u32 page, in_page;
        find_page(a, token, page, in_page);
        next = __ldg((const u32*)a.page_table + (u64)ahead.request * a.max_pages + page) * a.page + in_page;
    };
    auto load = [&](u32 stage) {
        if (ahead_left) {
            const bool valid = next != 0xffffffffu;
            const char* from = (const char*)a.k + (valid ? (u64)next * row_bytes : 0);
            const u32 to = base + stage * S::unit_bytes;
#pragma unroll
            for (int i = 0; i < (row_chunks + 7) / 8; i++) {
                const u32 c = threadIdx.x % 8 + 8 * i;
                if (row_chunks % 8 == 0 || c < row_chunks) copy16(to + mla_swizzled<row_bytes>(load_row, c), from + c * 16, valid);
            }
            ahead_left--;
            if (++ahead_unit == tile_units(a, ahead.limit)) {
                ahead_unit = 0;
                ahead_tile++;
                if (ahead_left) ahead = p.tiles[ahead_tile];
            }
            look_up();
        }
        copy_commit();
    };
    look_up();
    for (u32 s = 0; s < stages - 1; s++) load(s);

    const u32 part = warp / 4, my_token = warp % 4 * 8;
    const u32 first_step = part ? FIRST_PART : 0, steps = part ? K_STEPS - FIRST_PART : FIRST_PART;
    u32 stage = 0, load_stage = stages - 1;
    while (left) {
        const u32 first_unit = unit, units = tile_units(a, tile.limit);
        const u32 count = units - unit < left ? units - unit : left;

        u32 q[FIRST_PART][4];
        u32 limit[2];
        u64 to[2];
        bool exists[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const u32 row = group_row + 8 * h;
            exists[h] = row < tile.rows;
            const u32 in_request = tile.row_begin + (exists[h] ? row : 0);
            const u32 token = in_request / a.group, head = in_request % a.group;
            limit[h] = exists[h] ? row_limit(a, tile, token) : 0;
            to[h] = part_row(a, a.out_part_heads, tile.token_begin + token, head);
            const u16* from = (const u16*)a.q + part_row(a, a.q_part_heads, tile.token_begin + token, head) * 576 + first_step * 16;
#pragma unroll
            for (int k = 0; k < FIRST_PART; k++) {
                const bool has = exists[h] && k < steps;
                if (fp8) {
                    // Even and odd dims of four, see high_bytes_to_f16.
                    uint2 v = make_uint2(0, 0);
                    if (has) v = *(const uint2*)(from + 16 * k + 4 * quad);
                    q[k][h] = pack_f16(bf16_to_f32((u16)v.x), bf16_to_f32((u16)v.y));
                    q[k][h + 2] = pack_f16(bf16_to_f32((u16)(v.x >> 16)), bf16_to_f32((u16)(v.y >> 16)));
                } else {
                    q[k][h] = has ? *(const u32*)(from + 16 * k + 2 * quad) : 0;
                    q[k][h + 2] = has ? *(const u32*)(from + 16 * k + 8 + 2 * quad) : 0;
                }
            }
        }
        const u32 all_see = row_limit(a, tile, tile.row_begin / a.group);

        float o[8][4];
#pragma unroll
        for (int n = 0; n < 8; n++) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.0f;
        float top[2] = {MINUS_INFINITY, MINUS_INFINITY}, sum[2] = {0.0f, 0.0f};

        for (u32 u = 0; u < count; u++) {
            copy_wait<stages - 2>();
            __syncthreads();
            load(load_stage);
            load_stage = load_stage + 1 == stages ? 0 : load_stage + 1;
            const u32 keys = base + stage * S::unit_bytes;
            stage = stage + 1 == stages ? 0 : stage + 1;

            // Scores of 8 tokens over this warp's dims, in two chains.
            float s[2][4] = {{0.0f, 0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f, 0.0f}};
            const u32 row = my_token + lane % 8;
#pragma unroll
            for (int k = 0; k < FIRST_PART; k += fp8 ? 4 : 2) {
                if (k >= steps) break;
                u32 m[4];
                load_matrices(m, keys + mla_swizzled<row_bytes>(row, (first_step + k) * (fp8 ? 1 : 2) + lane / 8));
                if (fp8) {
#pragma unroll
                    for (int j = 0; j < 4; j++) multiply<true>(s[j % 2], q[k + j], low_bytes_to_f16(m[j]), high_bytes_to_f16(m[j]));
                } else {
                    multiply<false>(s[0], q[k], m[0], m[1]);
                    multiply<false>(s[1], q[k + 1], m[2], m[3]);
                }
            }
            float* mine = scores + (part * 16 + group_row) * S::score_row + my_token + 2 * quad;
            *(float2*)mine = make_float2(s[0][0] + s[1][0], s[0][1] + s[1][1]);
            *(float2*)(mine + 8 * S::score_row) = make_float2(s[0][2] + s[1][2], s[0][3] + s[1][3]);
            __syncthreads();

            float w[4][4];
            const u32 first_token = (first_unit + u) * MLA_UNIT;
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const float* from = scores + (group_row + 8 * h) * S::score_row + n * 8 + 2 * quad;
                    const float2 x = *(const float2*)from, y = *(const float2*)(from + 16 * S::score_row);
                    w[n][2 * h] = x.x + y.x;
                    w[n][2 * h + 1] = x.y + y.y;
                }
            if (first_token + MLA_UNIT > all_see) {
#pragma unroll
                for (int n = 0; n < 4; n++)
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        if (first_token + n * 8 + 2 * quad + j % 2 >= limit[j / 2]) w[n][j] = MINUS_INFINITY;
            }
            float high[2] = {MINUS_INFINITY, MINUS_INFINITY};
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) high[j / 2] = fmaxf(high[j / 2], w[n][j]);
            if (__any_sync(0xffffffffu, high[0] > top[0] || high[1] > top[1])) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    high[h] = fmaxf(high[h], __shfl_xor_sync(0xffffffffu, high[h], 1));
                    high[h] = fmaxf(high[h], __shfl_xor_sync(0xffffffffu, high[h], 2));
                    const float now = fmaxf(top[h], high[h]);
                    const float keep = now == top[h] ? 1.0f : exp2_fast((top[h] - now) * a.scale_log2);
                    top[h] = now;
                    sum[h] *= keep;
#pragma unroll
                    for (int n = 0; n < 8; n++) {
                        o[n][2 * h] *= keep;
                        o[n][2 * h + 1] *= keep;
                    }
                }
            }
            const float offset[2] = {top[0] > MINUS_INFINITY ? top[0] * a.scale_log2 : 0.0f,
                                     top[1] > MINUS_INFINITY ? top[1] * a.scale_log2 : 0.0f};
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    w[n][j] = exp2_fast(w[n][j] * a.scale_log2 - offset[j / 2]);
                    sum[j / 2] += w[n][j];
                }
#pragma unroll
            for (int b = 0; b < 2; b++) {
                const u32 f[4] = {pack<fp8>(w[2 * b][0], w[2 * b][1]), pack<fp8>(w[2 * b][2], w[2 * b][3]),
                                  pack<fp8>(w[2 * b + 1][0], w[2 * b + 1][1]), pack<fp8>(w[2 * b + 1][2], w[2 * b + 1][3])};
                const u32 value_row = b * 16 + lane % 16;
#pragma unroll
                for (int d = 0; d < (fp8 ? 4 : 8); d += 2) {
                    u32 m[4];
                    load_matrices_transposed(m, keys + mla_swizzled<row_bytes>(value_row, warp * (fp8 ? 4 : 8) + d + lane / 16));
                    if (fp8) {
                        multiply<true>(o[2 * d], f, low_bytes_to_f16(m[0]), low_bytes_to_f16(m[1]));
                        multiply<true>(o[2 * d + 1], f, high_bytes_to_f16(m[0]), high_bytes_to_f16(m[1]));
                        multiply<true>(o[2 * d + 2], f, low_bytes_to_f16(m[2]), low_bytes_to_f16(m[3]));
                        multiply<true>(o[2 * d + 3], f, high_bytes_to_f16(m[2]), high_bytes_to_f16(m[3]));
                    } else {
                        multiply<false>(o[d], f, m[0], m[1]);
                        multiply<false>(o[d + 1], f, m[2], m[3]);
                    }
                }
            }
        }

        const bool whole = count == units;
        const u64 piece = 2 * (u64)blockIdx.x + (first_unit == 0 ? 1 : 0);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
            sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
            if (!exists[h]) continue;
            const float norm = sum[h] > 0.0f ? a.v_scale / sum[h] : 0.0f;
            const float lse = sum[h] > 0.0f ? (top[h] * a.scale_log2 + __log2f(sum[h])) * 0.69314718056f : MINUS_INFINITY;
            const u32 row = group_row + 8 * h;
#pragma unroll
            for (int n = 0; n < 8; n += fp8 ? 2 : 1) {
                // Columns: pairs, or with e4m3 four of which `n` has the even ones.
                const u32 d = warp * 64 + 8 * n + (fp8 ? 4 : 2) * quad;
                const float x = o[n][2 * h] * norm, y = o[n][2 * h + 1] * norm;
                const float odd_x = fp8 ? o[n + 1 - !fp8][2 * h] * norm : 0.0f, odd_y = fp8 ? o[n + 1 - !fp8][2 * h + 1] * norm : 0.0f;
                if (whole) {
                    u16* out = (u16*)a.out + to[h] * 512 + d;
                    if (fp8) *(uint2*)out = make_uint2(pack_bf16(x, odd_x), pack_bf16(y, odd_y));
                    else *(u32*)out = pack_bf16(x, y);
                } else {
                    float* out = (float*)a.partial_out + (piece * a.rows + row) * 512 + d;
                    if (fp8) *(float4*)out = make_float4(x, odd_x, y, odd_y);
                    else *(float2*)out = make_float2(x, y);
                }
            }
            if (warp == 0 && quad == 0) {
                if (!whole) ((float*)a.partial_lse)[piece * a.rows + row] = lse;
                else if (a.lse) ((float*)a.lse)[to[h]] = lse;
            }
        }
        left -= count;
        unit = 0;
        if (left) tile = p.tiles[++tile_index];
    }
    copy_wait<0>();
}

extern "C" __global__ void __launch_bounds__(32 * MLA_WARPS, 1) parplan_mla_bf16(const __grid_constant__ AttentionArgs a) { mla<false>(a); }
extern "C" __global__ void __launch_bounds__(32 * MLA_WARPS, 1) parplan_mla_fp8(const __grid_constant__ AttentionArgs a) { mla<true>(a); }
