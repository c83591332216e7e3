// The plan of splits, and the merge of what was split. Plain SIMT.
#include "attention.cuh"

#define PLAN_THREADS 256

// Exclusive prefix sum over the block; `total` gets the sum. All threads call it.
__device__ inline u32 block_scan(u32 value, u32* scratch, u32* total) {
    const u32 t = threadIdx.x;
    scratch[t] = value;
    __syncthreads();
    for (u32 step = 1; step < PLAN_THREADS; step *= 2) {
        const u32 below = t >= step ? scratch[t - step] : 0;
        __syncthreads();
        scratch[t] += below;
        __syncthreads();
    }
    const u32 inclusive = scratch[t];
    *total = scratch[PLAN_THREADS - 1];
    __syncthreads();
    return inclusive - value;
}

__device__ inline u32 query_len(const AttentionArgs& a, u32 request) {
    const u32* offsets = (const u32*)a.query_offsets;
    return offsets[request + 1] - offsets[request];
}

// Where the work is cut: an item, a unit of it, and the units of all items before. An item costs
// `item_units` before its first unit.
struct Cut {
    u32 tile, head, unit, before;
};
__device__ inline Cut cut_at(const AttentionArgs& a, const PlanView& p, u32 tiles, u32 all, u32 at) {
    if (at >= all) return {tiles, 0, 0, all - a.item_units * tiles * a.kv_heads};
    u32 low = 0, high = tiles;
    while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        if (p.tiles[middle].start * a.kv_heads <= at) low = middle;
        else high = middle;
    }
    const TileRecord record = p.tiles[low];
    const u32 each = tile_units(a, record.limit) + a.item_units;
    const u32 inside = at - record.start * a.kv_heads, head = inside / each, offset = inside % each;
    const u32 cost = offset < a.item_units ? offset : a.item_units;  // of that before a first unit
    return {low, head, offset - cost, at - a.item_units * (low * a.kv_heads + head) - cost};
}

// One block. Reads the lengths of the step and writes the plan.
extern "C" __global__ void __launch_bounds__(PLAN_THREADS) parplan_attention_plan(const __grid_constant__ AttentionArgs a) {
    __shared__ u32 scratch[PLAN_THREADS];
    __shared__ u32 longest;
    const PlanView p = plan_of(a);
    const u32 t = threadIdx.x;

    u32 tiles = 0;
    for (u32 base = 0; base < a.requests; base += PLAN_THREADS) {
        const u32 r = base + t;
        u32 mine = 0, total = 0;
        if (r < a.requests) mine = (query_len(a, r) * a.group + a.rows - 1) / a.rows;
        const u32 before = block_scan(mine, scratch, &total);
        if (r < a.requests) p.first_tile[r] = tiles + before;
        tiles += total;
    }
    if (t == 0) p.first_tile[a.requests] = tiles;
    __syncthreads();
    // Offsets that belong to more tokens than the plan was made for are a caller's
    // error; the plan must not be overrun all the same.
    if (tiles > a.max_tiles) tiles = a.max_tiles;

    u32 units = 0;  // cost of one KV head, in units
    if (t == 0) longest = 0;
    for (u32 base = 0; base < tiles; base += PLAN_THREADS) {
        const u32 i = base + t;
        TileRecord record = {0, 0, 0, 0, 0, 0, 0, 0};
        u32 mine = 0, total = 0;
        if (i < tiles) {
            // The last request whose first tile is not behind this one, and that has tiles.
            u32 low = 0, high = a.requests;
            while (high - low > 1) {
                const u32 middle = (low + high) / 2;
                if (p.first_tile[middle] <= i) low = middle;
                else high = middle;
            }
            record.request = low;
            record.token_begin = ((const u32*)a.query_offsets)[low];
            record.query_len = query_len(a, low);
            record.kv_len = ((const u32*)a.kv_lens)[low];
            record.row_begin = (i - p.first_tile[low]) * a.rows;
            const u32 rest = record.query_len * a.group - record.row_begin;
            record.rows = rest < a.rows ? rest : a.rows;
            const u32 last = (record.row_begin + record.rows - 1) / a.group;
            record.limit = row_limit(a, record, last);
            mine = tile_units(a, record.limit) + a.item_units;
        }
        record.start = units + block_scan(mine, scratch, &total);
        if (i < tiles) p.tiles[i] = record;
        atomicMax(&longest, mine);
        units += total;
    }
    __syncthreads();

    const u32 all = units * a.kv_heads;
    u32 chunk = (all + a.chunks - 1) / a.chunks;
    if (chunk < a.min_chunk) chunk = a.min_chunk;
    u32 used = (all + chunk - 1) / chunk;
    // Where every block can have an item of its own and would hardly be late, nothing is
    // cut: a cut costs the writing, reading and merging of its pieces.
    const u32 items = tiles * a.kv_heads;
    const bool whole = items <= a.chunks && longest * 10 <= chunk * 11;
    if (whole) used = items;
    for (u32 c = t; c < used; c += PLAN_THREADS) {
        if (whole) {
            const u32 tile = c / a.kv_heads;
            p.chunks[c] = {tile, c % a.kv_heads, 0, tile_units(a, p.tiles[tile].limit)};
            continue;
        }
        const Cut from = cut_at(a, p, tiles, all, c * chunk), to = cut_at(a, p, tiles, all, (c + 1) * chunk);
        // None, where all of it is before an item's first unit.
        p.chunks[c] = {from.tile, from.head, from.unit, to.before - from.before};
    }
    __syncthreads();
    // A chunk that begins inside an item, and not with a later piece of it than the second.
    u32 cuts = 0;
    for (u32 base = 0; base < used; base += PLAN_THREADS) {
        const u32 c = base + t;
        u32 total = 0;
        ChunkBegin begin = {0, 0, 0, 0};
        if (!whole && c > 0 && c < used) begin = p.chunks[c];
        const bool cut = begin.unit != 0 && begin.unit <= chunk;
        const u32 before = block_scan(cut ? 1 : 0, scratch, &total);
        if (cut) {
            const TileRecord tile = p.tiles[begin.tile];
            const u32 last = (c * chunk - begin.unit + tile_units(a, tile.limit) - 1) / chunk;
            p.cuts[cuts + before] = {c - 1, last - (c - 1) + 1, tile.rows, tile.token_begin, tile.row_begin, begin.head, {0, 0}};
        }
        cuts += total;
    }
    if (t == 0) {
        p.header[0] = all;
        p.header[1] = chunk;
        p.header[2] = used;
        p.header[3] = tiles;
        p.header[4] = cuts;
    }
}

#define COMBINE_WARPS 8  // of a block, at most
#define FEW_PIECES 4

// One warp's merge of the pieces `first`, first + step, … of a row, for dims
// 4 * lane + 128 * j of `dim`. The result is normalised.
template <int fours, class Slot>
__device__ inline void merge_pieces(const AttentionArgs& a, Slot slot, u32 first, u32 step, u32 pieces, u32 dim, float* lse, float4 (&acc)[fours]) {
    const float* partial_lse = (const float*)a.partial_lse;
    const u32 lane = threadIdx.x % 32;
    float top = MINUS_INFINITY, total = 0.0f;
    for (u32 i = first + lane * step; i < pieces; i += 32 * step) top = fmaxf(top, partial_lse[slot(i)]);
    for (u32 other = 16; other; other /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, other));
    for (int j = 0; j < fours; j++) acc[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (top > MINUS_INFINITY) {
        // So many loads are under way at once: 64 bytes of each lane, with few dims 128.
#pragma unroll (fours == 1 ? 8 : 4)
        for (u32 i = first; i < pieces; i += step) {
            const u64 s = slot(i);
            const float w = expf(partial_lse[s] - top);
            const float4* from = (const float4*)((const float*)a.partial_out + s * dim);
            total += w;
            for (int j = 0; j < fours; j++) {
                if (4 * lane + 128 * j >= dim) continue;
                const float4 v = from[lane + 32 * j];
                acc[j].x += w * v.x, acc[j].y += w * v.y, acc[j].z += w * v.z, acc[j].w += w * v.w;
            }
        }
        const float norm = 1.0f / total;
        for (int j = 0; j < fours; j++) acc[j].x *= norm, acc[j].y *= norm, acc[j].z *= norm, acc[j].w *= norm;
    }
    *lse = total > 0.0f ? top + logf(total) : MINUS_INFINITY;
}

__device__ inline uint2 four_bf16(float4 v) {
    return make_uint2((u32)f32_to_bf16(v.x) | (u32)f32_to_bf16(v.y) << 16, (u32)f32_to_bf16(v.z) | (u32)f32_to_bf16(v.w) << 16);
}

// Merges the pieces of the items that were cut. Grid: (any, rows of a tile that may exist); a block
// of up to COMBINE_WARPS warps takes every gridDim.x-th item. Of few pieces a warp merges a row, and
// one block in as many as it has warps has work; of many all warps of a block merge one row.
// It comes early itself, and lets no kernel do so: a collective of NCCL's may follow.
template <int dim>
__device__ inline void combine(const AttentionArgs& a) {
    constexpr int fours = (dim + 127) / 128;
    __shared__ float lse_of[COMBINE_WARPS];
    __shared__ __align__(16) float sum_of[COMBINE_WARPS][dim];
    const PlanView p = plan_of(a);
    const u32 warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32;
    // The plan is of a kernel before the one that wrote the pieces.
    const u32 cuts = p.header[4];
    CutRecord cut = p.cuts[blockIdx.x];
    after_previous();
    for (u32 c = blockIdx.x; c < cuts; c += gridDim.x) {
        if (c != blockIdx.x) cut = p.cuts[c];
        const bool few = cut.pieces <= FEW_PIECES;
        if (few && blockIdx.y % warps != 0) continue;
        const u32 row = blockIdx.y + (few ? warp : 0);
        if (few ? row >= cut.rows : blockIdx.y >= cut.rows) continue;

        auto slot = [&](u32 piece) { return (u64)(2 * (cut.first_chunk + piece) + (piece == 0 ? 1 : 0)) * a.rows + row; };
        float lse;
        float4 acc[fours];
        merge_pieces<fours>(a, slot, few ? 0 : warp, few ? 1 : warps, cut.pieces, dim, &lse, acc);

        const u32 in_request = cut.row_begin + row;
        const u64 to = part_row(a, a.out_part_heads, cut.token_begin + in_request / a.group, cut.head * a.group + in_request % a.group);
        uint2* out = (uint2*)((u16*)a.out + to * dim);
        if (few) {
            for (int j = 0; j < fours; j++)
                if (4 * lane + 128 * j < dim) out[lane + 32 * j] = four_bf16(acc[j]);
            if (a.lse && lane == 0) ((float*)a.lse)[to] = lse;
            continue;
        }
        if (lane == 0) lse_of[warp] = lse;
        for (int j = 0; j < fours; j++)
            if (4 * lane + 128 * j < dim) *(float4*)&sum_of[warp][4 * lane + 128 * j] = acc[j];
        __syncthreads();
        float top = MINUS_INFINITY, total = 0.0f, weight[COMBINE_WARPS];
        for (u32 w = 0; w < COMBINE_WARPS; w++) top = fmaxf(top, w < warps ? lse_of[w] : MINUS_INFINITY);
        for (u32 w = 0; w < COMBINE_WARPS; w++) {
            weight[w] = w < warps && top > MINUS_INFINITY ? expf(lse_of[w] - top) : 0.0f;
            total += weight[w];
        }
        for (u32 d = 4 * threadIdx.x; d < dim; d += 4 * 32 * warps) {
            float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            for (u32 w = 0; w < COMBINE_WARPS; w++) {
                if (w >= warps) break;
                const float4 v = *(const float4*)&sum_of[w][d];
                const float f = total > 0.0f ? weight[w] / total : 0.0f;
                sum.x += f * v.x, sum.y += f * v.y, sum.z += f * v.z, sum.w += f * v.w;
            }
            out[d / 4] = four_bf16(sum);
        }
        if (a.lse && threadIdx.x == 0) ((float*)a.lse)[to] = total > 0.0f ? top + logf(total) : MINUS_INFINITY;
        __syncthreads();  // before the next item's sums
    }
}

extern "C" __global__ void __launch_bounds__(32 * COMBINE_WARPS) parplan_attention_combine_d64(const __grid_constant__ AttentionArgs a) { combine<64>(a); }
extern "C" __global__ void __launch_bounds__(32 * COMBINE_WARPS) parplan_attention_combine_d128(const __grid_constant__ AttentionArgs a) { combine<128>(a); }
extern "C" __global__ void __launch_bounds__(32 * COMBINE_WARPS) parplan_attention_combine_d256(const __grid_constant__ AttentionArgs a) { combine<256>(a); }
extern "C" __global__ void __launch_bounds__(32 * COMBINE_WARPS) parplan_attention_combine_d512(const __grid_constant__ AttentionArgs a) { combine<512>(a); }
