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

// One block. Reads the lengths of the step and writes the plan.
extern "C" __global__ void __launch_bounds__(PLAN_THREADS) parplan_attention_plan(const __grid_constant__ AttentionArgs a) {
    __shared__ u32 scratch[PLAN_THREADS];
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

    u32 units = 0;  // of one KV head
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
            mine = tile_units(a, record.limit);
        }
        record.start = units + block_scan(mine, scratch, &total);
        if (i < tiles) p.tiles[i] = record;
        units += total;
    }
    __syncthreads();

    const u32 all = units * a.kv_heads;
    u32 chunk = (all + a.chunks - 1) / a.chunks;
    if (chunk < a.min_chunk) chunk = a.min_chunk;
    const u32 used = (all + chunk - 1) / chunk;
    for (u32 c = t; c < used; c += PLAN_THREADS) {
        const u32 at = c * chunk;
        u32 low = 0, high = tiles;
        while (high - low > 1) {
            const u32 middle = (low + high) / 2;
            if (p.tiles[middle].start * a.kv_heads <= at) low = middle;
            else high = middle;
        }
        const TileRecord record = p.tiles[low];
        const u32 each = tile_units(a, record.limit);
        const u32 inside = at - record.start * a.kv_heads;
        ChunkBegin begin = {low, inside / each, inside % each, 0};
        p.chunks[c] = begin;
    }
    if (t == 0) {
        p.header[0] = all;
        p.header[1] = chunk;
        p.header[2] = used;
        p.header[3] = tiles;
    }
}

#define COMBINE_WARPS 4

// Merges the pieces of the items that were cut. Grid: (chunks, rows of a tile); a block
// merges one row of the item that begins in the chunk before its own and goes on in its
// own, with its warps over the pieces. Value dims of `32 * per_lane`.
template <int per_lane>
__device__ inline void combine(const AttentionArgs& a) {
    __shared__ float lse_of[COMBINE_WARPS];
    __shared__ float sum_of[COMBINE_WARPS][32 * per_lane];
    const PlanView p = plan_of(a);
    const u32 c = blockIdx.x, row = blockIdx.y;
    const u32 chunk = p.header[1], used = p.header[2];
    if (c >= used) return;
    const ChunkBegin begin = p.chunks[c];
    if (begin.unit == 0 || begin.unit > chunk) return;
    const TileRecord tile = p.tiles[begin.tile];
    if (row >= tile.rows) return;
    const u32 units = tile_units(a, tile.limit);
    const u32 item_begin = c * chunk - begin.unit;
    const u32 last = (item_begin + units - 1) / chunk;
    const u32 pieces = last - (c - 1) + 1;
    const u32 dim = 32 * per_lane;

    const float* partial_out = (const float*)a.partial_out;
    const float* partial_lse = (const float*)a.partial_lse;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // Piece 0 began with the item, so it is the second of its chunk.
    auto slot = [&](u32 piece) { return (u64)(piece == 0 ? 2 * (c - 1) + 1 : 2 * (c - 1 + piece)) * a.rows + row; };

    float top = MINUS_INFINITY;
    for (u32 i = warp; i < pieces; i += COMBINE_WARPS) top = fmaxf(top, partial_lse[slot(i)]);
    float total = 0.0f, acc[per_lane];
    for (int j = 0; j < per_lane; j++) acc[j] = 0.0f;
    if (top > MINUS_INFINITY) {
#pragma unroll 4
        for (u32 i = warp; i < pieces; i += COMBINE_WARPS) {
            const u64 s = slot(i);
            const float w = expf(partial_lse[s] - top);
            const float* from = partial_out + s * dim + lane;
            total += w;
            for (int j = 0; j < per_lane; j++) acc[j] += w * from[32 * j];
        }
    }
    if (lane == 0) lse_of[warp] = top > MINUS_INFINITY ? top + logf(total) : MINUS_INFINITY;
    for (int j = 0; j < per_lane; j++) sum_of[warp][32 * j + lane] = total > 0.0f ? acc[j] / total : 0.0f;
    __syncthreads();

    float all_top = MINUS_INFINITY;
    for (u32 w = 0; w < COMBINE_WARPS; w++) all_top = fmaxf(all_top, lse_of[w]);
    float weight[COMBINE_WARPS], all_total = 0.0f;
    for (u32 w = 0; w < COMBINE_WARPS; w++) {
        weight[w] = all_top > MINUS_INFINITY ? expf(lse_of[w] - all_top) : 0.0f;
        all_total += weight[w];
    }
    const u32 in_request = tile.row_begin + row;
    const u64 to = part_row(a, a.out_part_heads, tile.token_begin + in_request / a.group, begin.head * a.group + in_request % a.group);
    u16* out = (u16*)a.out + to * dim;
    for (u32 d = threadIdx.x; d < dim; d += 32 * COMBINE_WARPS) {
        float sum = 0.0f;
        for (u32 w = 0; w < COMBINE_WARPS; w++) sum += weight[w] * sum_of[w][d];
        out[d] = f32_to_bf16(all_total > 0.0f ? sum / all_total : 0.0f);
    }
    if (a.lse && threadIdx.x == 0) ((float*)a.lse)[to] = all_total > 0.0f ? all_top + logf(all_total) : MINUS_INFINITY;
}

extern "C" __global__ void __launch_bounds__(128) parplan_attention_combine_d64(const __grid_constant__ AttentionArgs a) { combine<2>(a); }
extern "C" __global__ void __launch_bounds__(128) parplan_attention_combine_d128(const __grid_constant__ AttentionArgs a) { combine<4>(a); }
extern "C" __global__ void __launch_bounds__(128) parplan_attention_combine_d512(const __grid_constant__ AttentionArgs a) { combine<16>(a); }
