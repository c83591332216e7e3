// Grouped-query attention for many query rows (prefill chunks) over a paged cache of bf16, heads of 128,
// by warpgroup products of sm_90a. Cache, queries and results are those of attention_gqa.cu.
//
// A block has a tile of 128 rows (query token times head of a KV head) and walks its KV by units of 128
// tokens. Three warpgroups:
//   0     brings queries, keys and values in, through a ring of three units
//   1, 2  multiply, 64 rows each; neither needs anything of the other
// A warpgroup begins the scores of the next unit before the values of this one, so that both run while it
// has the softmax of the next.
#include "attention.cuh"
#include "mma.cuh"
#include "wgmma.cuh"

#define ROWS 128
#define UNIT 128
#define STAGES 3
#define HALF 16384  // bytes of 128 rows of 64 columns
#define KEYS (2 * HALF)
#define VALUES (KEYS + STAGES * 2 * HALF)
#define BARRIERS (VALUES + STAGES * 2 * HALF)
#define LN2 0.69314718056f
// What weights are relative to is raised to a score that is 2^RAISE above it, not to every new
// maximum: each step costs a pass over the output, and f32 and bf16 have room for 2^8.
#define RAISE 8.0f
#define NO_ROW 0xffffffffu

// Barriers, by offset.
#define K_FULL(stage) (BARRIERS + 8 * (stage))
#define K_EMPTY(stage) (BARRIERS + 8 * (STAGES + (stage)))
#define V_FULL(stage) (BARRIERS + 8 * (2 * STAGES + (stage)))
#define V_EMPTY(stage) (BARRIERS + 8 * (3 * STAGES + (stage)))
#define Q_FULL (BARRIERS + 8 * 4 * STAGES)
#define Q_EMPTY (Q_FULL + 8)

#if __CUDA_ARCH__ >= 900

// One segment: what a block has of one item.
struct Segment {
    TileRecord tile;
    u32 head, first, count, units;
};

// Walks the segments of a chunk.
struct Segments {
    u32 tile, head, unit, left;
    __device__ inline bool next(const AttentionArgs& a, const PlanView& p, Segment* s) {
        if (left == 0) return false;
        s->tile = p.tiles[tile];
        s->head = head;
        s->units = tile_units(a, s->tile.limit);
        s->first = unit;
        s->count = s->units - unit < left ? s->units - unit : left;
        left -= s->count;
        unit = 0;
        if (++head == a.kv_heads) head = 0, tile++;
        return true;
    }
};

// Steps through the ring. `turn` counts its turns, which the barriers have the parity of.
struct Place {
    u32 stage, turn;
    __device__ inline void next() {
        if (++stage == STAGES) stage = 0, turn++;
    }
};

// Row of the queries, or of the results, that a row of a tile has.
__device__ inline u64 row_of(const AttentionArgs& a, const Segment& s, u32 part_heads, u32 in_tile) {
    const u32 in_request = s.tile.row_begin + in_tile;
    return part_row(a, part_heads, s.tile.token_begin + in_request / a.group, s.head * a.group + in_request % a.group);
}

// Warpgroup 0. Eight threads bring 128 bytes of a row; a thread serves eight rows, 16 apart.
struct GqaLoader {
    const AttentionArgs& a;
    u32 base, c, first_row, place;
    // One of the eight rows, which this thread looks up for the eight threads.
    u32 row;

    __device__ inline GqaLoader(const AttentionArgs& a, u32 base) : a(a), base(base), row(NO_ROW) {
        c = threadIdx.x % 8;
        first_row = threadIdx.x / 8;
        place = first_row * 128 + ((c ^ (first_row & 7)) << 4);
    }
    __device__ inline void look_up(const Segment& s, u32 unit) {
        const u32 token = unit * UNIT + first_row + 16 * c;
        row = NO_ROW;
        if (token >= s.tile.limit) return;
        u32 page, in_page;
        find_page(a, token, page, in_page);
        const u32 found = __ldg((const u32*)a.page_table + (u64)s.tile.request * a.max_pages + page);
        row = (found * a.kv_heads + s.head) * a.page + in_page;
    }
    // Brings rows of 256 bytes to two tiles of 64 columns; zeros where there is no row.
    __device__ inline void copy(u32 to, u64 from) const {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const u32 at = __shfl_sync(0xffffffffu, row, i, 8);
            const bool valid = at != NO_ROW;
            const char* source = (const char*)from + (valid ? (u64)at * 256 : 0) + c * 16;
            copy16(base + to + place + i * 2048, source, valid);
            copy16(base + to + HALF + place + i * 2048, source + 128, valid);
        }
    }
    __device__ inline void run(Segments walk, const PlanView& p) {
        Segment segment;
        Place at = {0, 0};
        for (u32 segments = 0; walk.next(a, p, &segment); segments++) {
            auto queries = [&]() {
                const u32 in_tile = first_row + 16 * c;
                row = in_tile < segment.tile.rows ? (u32)row_of(a, segment, a.q_part_heads, in_tile) : NO_ROW;
                if (segments) barrier_wait(base + Q_EMPTY, (segments - 1) & 1);
                copy(0, a.q);
                barrier_arrive_after_copies(base + Q_FULL);
            };
            // The place of the queries comes free with the last scores of the segment before; the ring has
            // room for two units until then.
            const u32 before = segments == 0 ? 0 : segment.count < 2 ? segment.count : 2;
            for (u32 u = 0; u < segment.count; u++, at.next()) {
                if (u == before) queries();
                look_up(segment, segment.first + u);
                if (at.turn) barrier_wait(base + K_EMPTY(at.stage), (at.turn - 1) & 1);
                copy(KEYS + at.stage * 2 * HALF, a.k);
                barrier_arrive_after_copies(base + K_FULL(at.stage));
                if (at.turn) barrier_wait(base + V_EMPTY(at.stage), (at.turn - 1) & 1);
                copy(VALUES + at.stage * 2 * HALF, a.v);
                barrier_arrive_after_copies(base + V_FULL(at.stage));
            }
            if (before == segment.count) queries();
        }
        asm volatile("cp.async.wait_all;" ::: "memory");
    }
};

// Warpgroups 1 and 2.
struct GqaSide {
    const AttentionArgs& a;
    u32 base, side, warp, lane, row;  // row: of the tile, the first of this thread's two; the other is 8 further
    float o[64], top[2], sum[2];

    __device__ inline void arrive(u32 barrier) const {
        if (lane == 0) barrier_arrive(base + barrier);
    }
    // Begins s = q k^T of a unit.
    __device__ inline void scores(float (&s)[64], const Place& at) const {
        barrier_wait(base + K_FULL(at.stage), at.turn & 1);
        fence_for_products();
        products_begin();
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const u32 column = k / 4 * HALF + k % 4 * 32;
            const u64 query = tile_descriptor(base + side * 8192 + column, 16, 1024);
            multiply_64x128_of(s, query, tile_descriptor(base + KEYS + at.stage * 2 * HALF + column, 16, 1024), k > 0);
        }
        products_commit();
    }
    // Begins o += weights * values of a unit.
    __device__ inline void values(const u32 (&weights)[8][4], const Place& at) {
        barrier_wait(base + V_FULL(at.stage), at.turn & 1);
        fence_for_products();
        products_begin();
#pragma unroll
        for (int k = 0; k < 8; k++)
            multiply_64x128_registers<false, 0>(o, weights[k], tile_descriptor(base + VALUES + at.stage * 2 * HALF + k * 2048, HALF, 1024));
        products_commit();
    }
    __device__ inline void mask(float (&s)[64], u32 first_token, const u32 (&limit)[2]) const {
#pragma unroll
        for (int i = 0; i < 64; i++)
            if (first_token + i / 4 * 8 + 2 * (lane % 4) + i % 2 >= limit[i / 2 % 2]) s[i] = MINUS_INFINITY;
    }
    // Scores become weights; `keep`: what the output so far is to be multiplied by.
    __device__ inline void softmax(float (&s)[64], float (&keep)[2]) {
        const float slack = RAISE / a.scale_log2;
        float high[2] = {MINUS_INFINITY, MINUS_INFINITY};
        keep[0] = keep[1] = 1.0f;
#pragma unroll
        for (int i = 0; i < 64; i++) high[i / 2 % 2] = fmaxf(high[i / 2 % 2], s[i]);
        if (__any_sync(0xffffffffu, high[0] > top[0] + slack || high[1] > top[1] + slack)) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                high[h] = fmaxf(high[h], __shfl_xor_sync(0xffffffffu, high[h], 1));
                high[h] = fmaxf(high[h], __shfl_xor_sync(0xffffffffu, high[h], 2));
                if (high[h] > top[h]) {
                    keep[h] = exp2_fast((top[h] - high[h]) * a.scale_log2);
                    top[h] = high[h];
                    sum[h] *= keep[h];
                }
            }
        }
        // A row that has seen nothing yet has top = -inf, and inf - inf is NaN.
        const float offset[2] = {top[0] > MINUS_INFINITY ? top[0] * a.scale_log2 : 0.0f,
                                 top[1] > MINUS_INFINITY ? top[1] * a.scale_log2 : 0.0f};
#pragma unroll
        for (int i = 0; i < 64; i++) {
            s[i] = exp2_fast(s[i] * a.scale_log2 - offset[i / 2 % 2]);
            sum[i / 2 % 2] += s[i];
        }
    }
    __device__ inline void write(const Segment& segment) {
        const u32 quad = lane % 4;
        const bool whole = segment.count == segment.units;
        const u64 slot = 2 * (u64)blockIdx.x + (segment.first == 0 ? 1 : 0);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
            sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
            const u32 in_tile = row + 8 * h;
            if (in_tile >= segment.tile.rows) continue;
            const float norm = sum[h] > 0.0f ? 1.0f / sum[h] : 0.0f;
            const float lse = sum[h] > 0.0f ? (top[h] * a.scale_log2 + __log2f(sum[h])) * LN2 : MINUS_INFINITY;
            if (whole) {
                const u64 at = row_of(a, segment, a.out_part_heads, in_tile);
                u16* to = (u16*)a.out + at * 128 + 2 * quad;
#pragma unroll
                for (int i = 0; i < 16; i++) *(u32*)(to + 8 * i) = pack_bf16(o[4 * i + 2 * h] * norm, o[4 * i + 2 * h + 1] * norm);
                if (a.lse && quad == 0) ((float*)a.lse)[at] = lse;
            } else {
                float* to = (float*)a.partial_out + (slot * a.rows + in_tile) * 128 + 2 * quad;
#pragma unroll
                for (int i = 0; i < 16; i++) *(float2*)(to + 8 * i) = make_float2(o[4 * i + 2 * h] * norm, o[4 * i + 2 * h + 1] * norm);
                if (quad == 0) ((float*)a.partial_lse)[slot * a.rows + in_tile] = lse;
            }
        }
    }
    __device__ inline void run(Segments walk, const PlanView& p) {
        Segment segment;
        Place at = {0, 0};
        for (u32 segments = 0; walk.next(a, p, &segment); segments++) {
            u32 limit[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                limit[h] = row + 8 * h < segment.tile.rows ? row_limit(a, segment.tile, (segment.tile.row_begin + row + 8 * h) / a.group) : 0;
                top[h] = MINUS_INFINITY;
                sum[h] = 0.0f;
            }
            const u32 all_see = row_limit(a, segment.tile, (segment.tile.row_begin + 64 * side) / a.group);
#pragma unroll
            for (int i = 0; i < 64; i++) o[i] = 0.0f;

            float s[64], keep[2];
            u32 weights[8][4];
            // What follows the scores of the unit at `of`, up to their weights.
            auto weigh = [&](u32 unit, const Place& of) {
                results_are_here(s);
                arrive(K_EMPTY(of.stage));
                if (unit + 1 == segment.count) arrive(Q_EMPTY);
                const u32 first_token = (segment.first + unit) * UNIT;
                if (first_token + UNIT > all_see) mask(s, first_token, limit);
                softmax(s, keep);
            };
            auto pack_weights = [&]() {
#pragma unroll
                for (int i = 0; i < 32; i++) weights[i / 4][i % 4] = pack_bf16(s[2 * i], s[2 * i + 1]);
            };
            barrier_wait(base + Q_FULL, segments & 1);
            scores(s, at);
            products_wait<0>();
            weigh(0, at);
            pack_weights();
            for (u32 u = 1; u < segment.count; u++) {
                const Place before = at;
                at.next();
                scores(s, at);
                values(weights, before);
                products_wait<1>();
                weigh(u, at);
                products_wait<0>();
                results_are_here(o);
                arrive(V_EMPTY(before.stage));
                if (__any_sync(0xffffffffu, keep[0] != 1.0f || keep[1] != 1.0f)) {
#pragma unroll
                    for (int i = 0; i < 64; i++) o[i] *= keep[i / 2 % 2];
                }
                pack_weights();
            }
            values(weights, at);
            products_wait<0>();
            results_are_here(o);
            arrive(V_EMPTY(at.stage));
            at.next();
            write(segment);
        }
    }
};
#endif

extern "C" __global__ void __launch_bounds__(384, 1) parplan_gqa_bf16_d128_wgmma(const __grid_constant__ AttentionArgs a) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(1024) unsigned char shared[];
    let_next_come();  // the merge of pieces
    const PlanView p = plan_of(a);
    if (blockIdx.x >= p.header[2]) return;
    const u32 base = shared_address(shared), warpgroup = threadIdx.x / 128;
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < STAGES; stage++) {
            barrier_init(base + K_FULL(stage), 128);
            barrier_init(base + V_FULL(stage), 128);
            barrier_init(base + K_EMPTY(stage), 8);
            barrier_init(base + V_EMPTY(stage), 8);
        }
        barrier_init(base + Q_FULL, 128);
        barrier_init(base + Q_EMPTY, 8);
    }
    fence_for_products();
    __syncthreads();
    const ChunkBegin begin = p.chunks[blockIdx.x];
    const Segments walk = {begin.tile, begin.head, begin.unit, begin.count};
    // A block has 168 registers a thread, which are 504 for one thread of each warpgroup.
    if (warpgroup == 0) {
        registers_down<40>();
        GqaLoader loader(a, base);
        loader.run(walk, p);
    } else {
        registers_up<232>();
        const u32 warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, side = warpgroup - 1;
        GqaSide of = {a, base, side, warp, lane, side * 64 + warp * 16 + lane / 4};
        of.run(walk, p);
    }
#else
    __trap();  // chosen on sm_90 only
#endif
}
