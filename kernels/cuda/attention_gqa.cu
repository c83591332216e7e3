// Grouped-query attention over a paged KV cache: decode, several query tokens, prefill
// chunks. Scores and outputs on tensor cores (mma.sync), KV through cp.async.
//
//   k, v    [pages, kv_heads, page, dim], bf16 or e4m3
//   q, out  [tokens, heads, dim], bf16
//
// Three shapes of one kernel, all with four warps and a ring of `stages` units of KV tokens
// in shared memory, 64 of them, or 32 where more than 16 rows have heads of 256:
//   narrow  tiles of 16 rows. Each warp has all rows and its own 16 tokens of each
//           unit, which only it loads and reads: no barrier but at the end of an item,
//           where the warps' results are merged. Decode is bound by memory; this keeps
//           loads in flight at all times.
//   middle  tiles of 32 rows, 16 for each of two pairs of warps, which share the tokens.
//   wide    tiles of 64 rows, 16 for each warp, and all warps read all tokens.
//
// Loads run `stages - 1` units ahead of the products, also from one item into the next.
#include "attention.cuh"
#include "mma.cuh"

// Two blocks of a multiprocessor share its memory: 228 KB on sm_90; on sm_80 164 KB,
// and one block may have 99 KB on the smaller chips of that family.
#ifndef GQA_STAGES
#if __CUDA_ARCH__ >= 900
#define GQA_STAGES 3
#else
#define GQA_STAGES 2
#endif
#endif
#ifndef GQA_BLOCKS
#define GQA_BLOCKS 2
#endif

#define GQA_WARPS 4

// `groups`: of 16 rows in a tile, 1, 2 or 4.
template <int dim, bool fp8, int groups, int stages>
struct Shared {
    static constexpr int unit = groups > 1 && dim == 256 ? 32 : 64;  // KV tokens of a unit
    static constexpr int row_bytes = dim * (fp8 ? 1 : 2);
    static constexpr int tile_bytes = unit * row_bytes;  // of K or V
    static constexpr int ring_bytes = stages * 2 * tile_bytes;
    static constexpr int merge_bytes = groups == 4 ? 0 : 2 * 16 * dim * 4;
    // Steps of 16 dims whose queries stay in registers; those of the others lie in shared memory, as
    // each thread has them.
    static constexpr int q_kept = groups > 1 && dim == 256 ? (groups == 2 ? 12 : 6) : dim / 16;
    static constexpr int q_bytes = (dim / 16 - q_kept) * 32 * GQA_WARPS * 16;
    static constexpr int total = ring_bytes + merge_bytes + 2 * GQA_WARPS * 16 * 4 + q_bytes;
};

// Where 16-byte chunk `c` of token `row` lies, so that eight rows of one chunk lie in
// different banks.
template <int row_bytes>
__device__ inline u32 swizzled(u32 row, u32 c) {
    if (row_bytes >= 128) return row * row_bytes + ((c ^ (row & 7)) << 4);
    return row * row_bytes + ((c ^ ((row >> 1) & 3)) << 4);
}

// Walks the units of a chunk.
struct Walk {
    u32 tile, head, unit, units, left;  // `units` of the tile for one head; `left` of the chunk
    __device__ inline bool next(const AttentionArgs& a, const PlanView& p) {
        left--;
        unit++;
        if (unit < units) return false;
        unit = 0;
        head++;
        if (head == a.kv_heads) {
            head = 0;
            tile++;
            if (left) units = tile_units(a, p.tiles[tile].limit);
        }
        return true;
    }
};

template <int dim, bool fp8, int groups, int stages>
__device__ inline void gqa(const AttentionArgs& a) {
    typedef Shared<dim, fp8, groups, stages> S;
    constexpr int unit = S::unit;
    constexpr int own = unit / GQA_WARPS;  // tokens of a unit that a warp loads
    constexpr int row_bytes = S::row_bytes;
    constexpr int chunks_of_row = row_bytes / 16;
    constexpr int rows_of_copy = 32 / chunks_of_row;
    constexpr int copies = own / rows_of_copy;  // for K and for V of a warp's tokens
    constexpr int k_steps = dim / 16;
    constexpr int n_tiles = dim / 8;
    constexpr int shares = GQA_WARPS / groups;  // warps that share the tokens of a unit
    constexpr int sub = unit / 16 / shares;     // groups of 16 tokens that a warp multiplies
    constexpr int q_kept = S::q_kept;
    extern __shared__ __align__(128) unsigned char shared[];

    let_next_come();  // the merge of pieces
    const PlanView p = plan_of(a);
    if (blockIdx.x >= p.header[2]) return;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 row_group = warp % groups, share = warp / groups;
    const u32 ring = shared_address(shared);
    float* merge = (float*)(shared + S::ring_bytes);
    float* merge_top = (float*)(shared + S::ring_bytes + S::merge_bytes);
    float* merge_sum = merge_top + GQA_WARPS * 16;
    uint4* q_rest = (uint4*)(merge_sum + GQA_WARPS * 16) + threadIdx.x;

    const ChunkBegin begin = p.chunks[blockIdx.x];
    TileRecord tile = p.tiles[begin.tile];
    Walk at = {begin.tile, begin.head, begin.unit, tile_units(a, tile.limit), begin.count};

    // The loading side: its own walk, and the page of the token that this lane looks
    // up for the next unit, read one unit ahead.
    Walk ahead = at;
    u32 ahead_limit = tile.limit, ahead_pages = tile.request * a.max_pages;
    u32 next_page = 0, next_row = 0;
    bool next_valid = false;
    auto look_up = [&]() {
        const u32 token = ahead.unit * unit + warp * own + lane % own;
        next_valid = ahead.left != 0 && token < ahead_limit;
        if (!next_valid) return;
        u32 page;
        if (a.page_shift < 32) {
            page = token >> a.page_shift;
            next_row = token & (a.page - 1);
        } else {
            page = token / a.page;
            next_row = token - page * a.page;
        }
        next_page = __ldg((const u32*)a.page_table + ahead_pages + page);
    };
    auto load = [&](u32 stage) {
        if (ahead.left) {
            const u32 mine = next_valid ? (next_page * a.kv_heads + ahead.head) * a.page + next_row : 0xffffffffu;
            const u32 tile_k = ring + stage * 2 * S::tile_bytes + warp * own * row_bytes;
            const u32 c = lane % chunks_of_row;
#pragma unroll
            for (int i = 0; i < copies; i++) {
                const u32 row = i * rows_of_copy + lane / chunks_of_row;
                const u32 from = __shfl_sync(0xffffffffu, mine, row);
                const bool valid = from != 0xffffffffu;
                const u64 offset = valid ? (u64)from * row_bytes + c * 16 : 0;
                const u32 to = tile_k + swizzled<row_bytes>(row, c);
                copy16(to, (const char*)a.k + offset, valid);
                copy16(to + S::tile_bytes, (const char*)a.v + offset, valid);
            }
            const u32 before = ahead.tile;
            ahead.next(a, p);
            if (ahead.left && ahead.tile != before) {
                const TileRecord t = p.tiles[ahead.tile];
                ahead_limit = t.limit;
                ahead_pages = t.request * a.max_pages;
            }
            look_up();
        }
        copy_commit();
    };
    look_up();
    for (u32 s = 0; s < stages - 1; s++) load(s);

    const u32 quad = lane % 4, group_row = lane / 4;
    u32 stage = 0, load_stage = stages - 1;
    while (at.left) {
        // One segment: this block's part of one item.
        const u32 first_unit = at.unit;
        const u32 count = at.units - at.unit < at.left ? at.units - at.unit : at.left;

        u32 q[k_steps][4];
        u32 limit[2];
        u64 to[2];
        bool exists[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const u32 row = row_group * 16 + group_row + 8 * h;
            exists[h] = row < tile.rows;
            const u32 in_request = tile.row_begin + (exists[h] ? row : 0);
            const u32 token = in_request / a.group;
            limit[h] = exists[h] ? row_limit(a, tile, token) : 0;
            const u32 head = at.head * a.group + in_request % a.group;
            to[h] = part_row(a, a.out_part_heads, tile.token_begin + token, head);
            const u16* from = (const u16*)a.q + part_row(a, a.q_part_heads, tile.token_begin + token, head) * dim;
#pragma unroll
            for (int k = 0; k < k_steps; k++) {
                if (fp8) {
                    // The keys come as even and odd dims of four, see high_bytes_to_f16.
                    uint2 v = make_uint2(0, 0);
                    if (exists[h]) v = *(const uint2*)(from + 16 * k + 4 * quad);
                    q[k][h] = pack_f16(bf16_to_f32((u16)v.x), bf16_to_f32((u16)v.y));
                    q[k][h + 2] = pack_f16(bf16_to_f32((u16)(v.x >> 16)), bf16_to_f32((u16)(v.y >> 16)));
                } else {
                    q[k][h] = exists[h] ? *(const u32*)(from + 16 * k + 2 * quad) : 0;
                    q[k][h + 2] = exists[h] ? *(const u32*)(from + 16 * k + 8 + 2 * quad) : 0;
                }
            }
        }
#pragma unroll
        for (int k = q_kept; k < k_steps; k++)
            q_rest[(k - q_kept) * 32 * GQA_WARPS] = make_uint4(q[k][0], q[k][1], q[k][2], q[k][3]);
        auto query = [&](int k, u32(&f)[4]) {
            if (k >= q_kept) {
                const uint4 v = q_rest[(k - q_kept) * 32 * GQA_WARPS];
                f[0] = v.x, f[1] = v.y, f[2] = v.z, f[3] = v.w;
            } else {
                f[0] = q[k][0], f[1] = q[k][1], f[2] = q[k][2], f[3] = q[k][3];
            }
        };
        const u32 all_see = row_limit(a, tile, tile.row_begin / a.group);  // what every row sees

        float o[n_tiles][4];
#pragma unroll
        for (int n = 0; n < n_tiles; n++) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.0f;
        float top[2] = {MINUS_INFINITY, MINUS_INFINITY}, sum[2] = {0.0f, 0.0f};

        for (u32 u = 0; u < count; u++) {
            copy_wait<stages - 2>();
            if (groups > 1) __syncthreads();
            else __syncwarp();
            load(load_stage);
            load_stage = load_stage + 1 == stages ? 0 : load_stage + 1;
            const u32 tile_k = ring + stage * 2 * S::tile_bytes + share * sub * 16 * row_bytes;
            const u32 first_token = (first_unit + u) * unit + share * sub * 16;
            stage = stage + 1 == stages ? 0 : stage + 1;
            const u32 tile_v = tile_k + S::tile_bytes;
            float s[sub * 2][4];
#pragma unroll
            for (int b = 0; b < sub; b++) {
#pragma unroll
                for (int j = 0; j < 4; j++) s[2 * b][j] = s[2 * b + 1][j] = 0.0f;
                if (fp8) {
                    // Matrices: tokens 0-7 and 8-15 of one 16-dim chunk, then of the next.
                    const u32 row = b * 16 + lane % 16;
#pragma unroll
                    for (int k = 0; k < k_steps; k += 2) {
                        u32 m[4];
                        load_matrices(m, tile_k + swizzled<row_bytes>(row, k + lane / 16));
                        u32 left[2][4];
                        query(k, left[0]);
                        query(k + 1, left[1]);
#pragma unroll
                        for (int j = 0; j < 4; j++)
                            multiply<true>(s[2 * b + j % 2], left[j / 2], low_bytes_to_f16(m[j]), high_bytes_to_f16(m[j]));
                    }
                } else {
                    const u32 row = b * 16 + lane % 8 + lane / 16 * 8;
#pragma unroll
                    for (int k = 0; k < k_steps; k++) {
                        u32 m[4], left[4];
                        load_matrices(m, tile_k + swizzled<row_bytes>(row, 2 * k + lane / 8 % 2));
                        query(k, left);
                        multiply<false>(s[2 * b], left, m[0], m[1]);
                        multiply<false>(s[2 * b + 1], left, m[2], m[3]);
                    }
                }
            }

            if (first_token + sub * 16 > all_see) {
#pragma unroll
                for (int n = 0; n < sub * 2; n++)
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        if (first_token + n * 8 + 2 * quad + j % 2 >= limit[j / 2]) s[n][j] = MINUS_INFINITY;
            }

            // The running maximum changes ever more seldom; without a change there is
            // nothing to exchange and nothing to rescale.
            float high[2] = {MINUS_INFINITY, MINUS_INFINITY};
#pragma unroll
            for (int n = 0; n < sub * 2; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) high[j / 2] = fmaxf(high[j / 2], s[n][j]);
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
                    for (int n = 0; n < n_tiles; n++) {
                        o[n][2 * h] *= keep;
                        o[n][2 * h + 1] *= keep;
                    }
                }
            }
            // A row that has seen nothing yet has top = -inf, and inf - inf is NaN.
            const float base[2] = {top[0] > MINUS_INFINITY ? top[0] * a.scale_log2 : 0.0f,
                                   top[1] > MINUS_INFINITY ? top[1] * a.scale_log2 : 0.0f};
#pragma unroll
            for (int n = 0; n < sub * 2; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    s[n][j] = exp2_fast(s[n][j] * a.scale_log2 - base[j / 2]);
                    sum[j / 2] += s[n][j];
                }

#pragma unroll
            for (int b = 0; b < sub; b++) {
                const u32 w[4] = {pack<fp8>(s[2 * b][0], s[2 * b][1]), pack<fp8>(s[2 * b][2], s[2 * b][3]),
                                  pack<fp8>(s[2 * b + 1][0], s[2 * b + 1][1]), pack<fp8>(s[2 * b + 1][2], s[2 * b + 1][3])};
                const u32 row = b * 16 + lane % 16;
#pragma unroll
                for (int d = 0; d < chunks_of_row; d += 2) {
                    u32 m[4];
                    load_matrices_transposed(m, tile_v + swizzled<row_bytes>(row, d + lane / 16));
                    if (fp8) {
                        multiply<true>(o[2 * d], w, low_bytes_to_f16(m[0]), low_bytes_to_f16(m[1]));
                        multiply<true>(o[2 * d + 1], w, high_bytes_to_f16(m[0]), high_bytes_to_f16(m[1]));
                        multiply<true>(o[2 * d + 2], w, low_bytes_to_f16(m[2]), low_bytes_to_f16(m[3]));
                        multiply<true>(o[2 * d + 3], w, high_bytes_to_f16(m[2]), high_bytes_to_f16(m[3]));
                    } else {
                        multiply<false>(o[d], w, m[0], m[1]);
                        multiply<false>(o[d + 1], w, m[2], m[3]);
                    }
                }
            }
        }

        float factor[2], lse[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
            sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
        }
        if (shares == 1) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                factor[h] = sum[h] > 0.0f ? 1.0f / sum[h] : 0.0f;
                lse[h] = sum[h] > 0.0f ? (top[h] * a.scale_log2 + __log2f(sum[h])) * 0.69314718056f : MINUS_INFINITY;
            }
        } else {
            if (quad == 0) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    merge_top[warp * 16 + group_row + 8 * h] = top[h];
                    merge_sum[warp * 16 + group_row + 8 * h] = sum[h];
                }
            }
            __syncthreads();
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const u32 row = row_group * 16 + group_row + 8 * h;
                float all = MINUS_INFINITY, total = 0.0f;
#pragma unroll
                for (int w = 0; w < shares; w++) all = fmaxf(all, merge_top[w * groups * 16 + row]);
#pragma unroll
                for (int w = 0; w < shares; w++) {
                    const float t = merge_top[w * groups * 16 + row];
                    if (t > MINUS_INFINITY) total += merge_sum[w * groups * 16 + row] * exp2_fast((t - all) * a.scale_log2);
                }
                factor[h] = top[h] > MINUS_INFINITY ? exp2_fast((top[h] - all) * a.scale_log2) / total : 0.0f;
                lse[h] = total > 0.0f ? (all * a.scale_log2 + __log2f(total)) * 0.69314718056f : MINUS_INFINITY;
            }
        }
#pragma unroll
        for (int n = 0; n < n_tiles; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) o[n][j] *= factor[j / 2] * a.v_scale;
        if (shares > 1) {
            // Warps 2 and 3 give to 0 and 1; then 1 gives to 0, if it has the same rows.
            float4* box = (float4*)merge;
#pragma unroll
            for (int half = 2; half >= groups; half--) {
                if (half == 2 ? warp >= 2 : warp == 1) {
#pragma unroll
                    for (int n = 0; n < n_tiles; n++)
                        box[((warp - half) * n_tiles + n) * 32 + lane] = make_float4(o[n][0], o[n][1], o[n][2], o[n][3]);
                }
                __syncthreads();
                if (warp < half) {
#pragma unroll
                    for (int n = 0; n < n_tiles; n++) {
                        const float4 v = box[(warp * n_tiles + n) * 32 + lane];
                        o[n][0] += v.x, o[n][1] += v.y, o[n][2] += v.z, o[n][3] += v.w;
                    }
                }
                if (half > groups) __syncthreads();
            }
        }
        if (warp < groups) {
            const bool whole = count == at.units;
            const u64 slot = 2 * (u64)blockIdx.x + (first_unit == 0 ? 1 : 0);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                if (!exists[h]) continue;
                const u32 row = row_group * 16 + group_row + 8 * h;
                if (whole) {
                    u16* out = (u16*)a.out + to[h] * dim;
#pragma unroll
                    for (int n = 0; n < n_tiles; n += (fp8 ? 2 : 1)) {
                        if (fp8)
                            *(uint2*)(out + 8 * n + 4 * quad) =
                                make_uint2(pack_bf16(o[n][2 * h], o[n + 1][2 * h]), pack_bf16(o[n][2 * h + 1], o[n + 1][2 * h + 1]));
                        else
                            *(u32*)(out + 8 * n + 2 * quad) = pack_bf16(o[n][2 * h], o[n][2 * h + 1]);
                    }
                    if (a.lse && quad == 0) ((float*)a.lse)[to[h]] = lse[h];
                } else {
                    float* out = (float*)a.partial_out + (slot * a.rows + row) * dim;
#pragma unroll
                    for (int n = 0; n < n_tiles; n += (fp8 ? 2 : 1)) {
                        if (fp8)
                            *(float4*)(out + 8 * n + 4 * quad) =
                                make_float4(o[n][2 * h], o[n + 1][2 * h], o[n][2 * h + 1], o[n + 1][2 * h + 1]);
                        else
                            *(float2*)(out + 8 * n + 2 * quad) = make_float2(o[n][2 * h], o[n][2 * h + 1]);
                    }
                    if (quad == 0) ((float*)a.partial_lse)[slot * a.rows + row] = lse[h];
                }
            }
        }

        // On to the next item, if this block has some of it.
        at.left -= count;
        at.unit = 0;
        if (at.left && ++at.head == a.kv_heads) {
            at.head = 0;
            tile = p.tiles[++at.tile];
            at.units = tile_units(a, tile.limit);
        }
    }
    copy_wait<0>();
}

#define GQA(name, dim, fp8, groups, stages) GQA_OF(name, dim, fp8, groups, stages, GQA_BLOCKS)
#define GQA_OF(name, dim, fp8, groups, stages, blocks)                                                                \
    extern "C" __global__ void __launch_bounds__(32 * GQA_WARPS, blocks) name(const __grid_constant__ AttentionArgs a) { \
        gqa<dim, fp8, groups, stages>(a);                                                                             \
    }
GQA(parplan_gqa_bf16_d64_narrow, 64, false, 1, 2 * GQA_STAGES)
GQA(parplan_gqa_bf16_d128_narrow, 128, false, 1, GQA_STAGES)
GQA(parplan_gqa_fp8_d64_narrow, 64, true, 1, 4 * GQA_STAGES)
GQA(parplan_gqa_fp8_d128_narrow, 128, true, 1, 2 * GQA_STAGES)
GQA(parplan_gqa_bf16_d64_middle, 64, false, 2, 2 * GQA_STAGES)
GQA(parplan_gqa_bf16_d128_middle, 128, false, 2, GQA_STAGES)
GQA(parplan_gqa_fp8_d64_middle, 64, true, 2, 4 * GQA_STAGES)
GQA(parplan_gqa_fp8_d128_middle, 128, true, 2, 2 * GQA_STAGES)
GQA(parplan_gqa_bf16_d64_wide, 64, false, 4, GQA_STAGES)
GQA(parplan_gqa_bf16_d128_wide, 128, false, 4, GQA_STAGES)
GQA(parplan_gqa_fp8_d64_wide, 64, true, 4, GQA_STAGES)
GQA(parplan_gqa_fp8_d128_wide, 128, true, 4, GQA_STAGES)
// Two units of 64 tokens of bf16 are as much as half a multiprocessor holds: one block then.
GQA_OF(parplan_gqa_bf16_d256_narrow, 256, false, 1, GQA_STAGES, 1)
GQA(parplan_gqa_fp8_d256_narrow, 256, true, 1, 2)
GQA(parplan_gqa_bf16_d256_middle, 256, false, 2, 2)
GQA(parplan_gqa_fp8_d256_middle, 256, true, 2, 2)
GQA(parplan_gqa_bf16_d256_wide, 256, false, 4, 2)
GQA(parplan_gqa_fp8_d256_wide, 256, true, 4, 2)
