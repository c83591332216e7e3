// One matrix product for each expert over the rows that chose it, for many rows an expert and
// weights in bf16, by warpgroup products of sm_90a. Rows, order and tiles are those of grouped.cu,
// a tile 192 rows.
//
// The product is computed transposed, y^T = w x^T: the 64 rows that a warpgroup product has at
// least are columns of the result, of which there are always enough, and the tile's rows, of which
// a small expert has few, are the side that may be 64, 128 or 192.
//
// A block walks the tiles of 192 rows times 256 columns with a stride of the grid. Three warpgroups:
//   0     brings x and w in, 64 columns of k at a time, through a ring
//   1, 2  multiply, each two blocks of 64 columns of the result
// What limits them is how fast x and w come from L2, so the tile is as large as registers allow.
#include "grouped.cuh"
#include "mma.cuh"
#include "wgmma.cuh"

#define TILE_ROWS 192
#define COLUMNS 256
#define DEPTH 64
#define STAGES 4
#define X_BYTES (TILE_ROWS * DEPTH * 2)
#define STAGE_BYTES (X_BYTES + COLUMNS * DEPTH * 2)
#define FULL (STAGES * STAGE_BYTES)  // barriers, by offset
#define EMPTY (FULL + 8 * STAGES)

#if __CUDA_ARCH__ >= 900

// Steps through the ring. `turn` counts its turns, which the barriers have the parity of.
struct Place {
    u32 stage, turn;
    __device__ inline void next() {
        if (++stage == STAGES) stage = 0, turn++;
    }
    __device__ inline u32 x(u32 base) const { return base + stage * STAGE_BYTES; }
    __device__ inline u32 w(u32 base) const { return x(base) + X_BYTES; }
    __device__ inline u32 full(u32 base) const { return base + FULL + 8 * stage; }
    __device__ inline u32 empty(u32 base) const { return base + EMPTY + 8 * stage; }
};

// What a block multiplies at a time.
struct GroupedTile {
    u32 expert, slot, rows, column;  // first slot, rows that exist, first column
};
struct GroupedWalk {
    u32 at, total, columns;
    __device__ inline GroupedWalk(const GroupedArgs& a) {
        columns = (a.n + COLUMNS - 1) / COLUMNS;
        at = blockIdx.x;
        total = ((const uint2*)a.tiles)[a.max_tiles].x * columns;
    }
    __device__ inline bool next(const GroupedArgs& a, GroupedTile* t) {
        if (at >= total) return false;
        const uint2 tile = ((const uint2*)a.tiles)[at / columns];
        const u32 rest = (u32)((const int*)a.offsets)[tile.x + 1] - tile.y;
        *t = {tile.x, tile.y, rest < TILE_ROWS ? rest : TILE_ROWS, at % columns * COLUMNS};
        at += gridDim.x;
        return true;
    }
};

// Byte of 16-byte chunk `chunk` of a row of 128 bytes, as products expect it.
__device__ inline u32 chunk_of(u32 row, u32 chunk) { return row * 128 + ((chunk ^ (row & 7u)) << 4); }

// Warpgroup 0: eight threads bring 128 bytes of a row, each of every 16th row.
__device__ inline void load(const GroupedArgs& a, u32 base) {
    constexpr u32 x_copies = TILE_ROWS / 16, w_copies = COLUMNS / 16;
    const u32 own = threadIdx.x / 8, chunk = threadIdx.x % 8, at = chunk_of(own, chunk);
    const u32 depth = (a.k + DEPTH - 1) / DEPTH;
    GroupedWalk walk(a);
    GroupedTile t;
    Place place = {0, 0};
    while (walk.next(a, &t)) {
        // Rows of x, in units of 16 bytes, and how many of this thread's there are of x and of w.
        u32 from[x_copies], x_rows = 0;
#pragma unroll
        for (u32 i = 0; i < x_copies; i++) {
            const u32 row = own + 16 * i;
            from[i] = 0;
            if (row >= t.rows) continue;
            const u32 slot = t.slot + row;
            from[i] = (a.to_slots ? (u32)((const int*)a.order)[slot] / a.top_k : slot) * (a.x_pitch / 8);
            x_rows = i + 1;
        }
        const u32 column = t.column + own, w_rows = column < a.n ? (a.n - column + 15) / 16 : 0;
        const u16* w = (const u16*)a.w + ((u64)t.expert * a.n + (w_rows ? column : 0)) * a.k + chunk * 8;
        for (u32 d = 0; d < depth; d++, place.next()) {
            const u32 k = d * DEPTH;
            const bool inside = k + chunk * 8 < a.k;
            const uint4* x = (const uint4*)((const u16*)a.x + k) + chunk;
            if (place.turn) barrier_wait(place.empty(base), (place.turn - 1) & 1);
#pragma unroll
            for (u32 i = 0; i < w_copies; i++) {
                const bool valid = i < w_rows && inside;
                copy16(place.w(base) + at + i * 2048, w + (valid ? (u64)i * 16 * a.k + k : 0), valid);
            }
#pragma unroll
            for (u32 i = 0; i < x_copies; i++) {
                const bool valid = i < x_rows && inside;
                copy16(place.x(base) + at + i * 2048, valid ? x + from[i] : (const uint4*)a.x, valid);
            }
            barrier_arrive_after_copies(place.full(base));
        }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
}

__device__ inline u32 transposed_8x8(u32 pair) {
    u32 r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(pair));
    return r;
}

// Warpgroups 1 and 2.
struct GroupedProducts {
    const GroupedArgs& a;
    u32 base, side, warp, lane, depth;
    Place place;
    float sum[TILE_ROWS];  // columns of the result: 64 * side on, and in the second half 128 further

    __device__ inline void arrive(const Place& of) const {
        if (lane == 0) barrier_arrive(of.empty(base));
    }
    // Over all of k, for the tile's first `rows` rows; `both`: also for the second columns.
    template <int rows, bool both>
    __device__ inline void multiply() {
#pragma unroll
        for (int i = 0; i < TILE_ROWS; i++) sum[i] = 0.0f;
        Place before = place;
        for (u32 d = 0; d < depth; d++) {
            barrier_wait(place.full(base), place.turn & 1);
            fence_for_products();
            products_begin();
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const u64 x = tile_descriptor(place.x(base) + k * 32, 16, 1024);
                const u32 w = place.w(base) + side * 8192 + k * 32;
                multiply_rows<rows, 0>(sum, tile_descriptor(w, 16, 1024), x);
                if (both) multiply_rows<rows, TILE_ROWS / 2>(sum, tile_descriptor(w + 2 * 8192, 16, 1024), x);
            }
            products_commit();
            products_wait<1>();
            if (d > 0) arrive(before);
            before = place;
            place.next();
        }
        products_wait<0>();
        arrive(before);
        results_are_here(sum);
    }
    template <int rows>
    __device__ inline void multiply_columns(bool both) {
        if (both) multiply<rows, true>();
        else multiply<rows, false>();
    }
    // `rows`: of the result, of which this lane knows every 32nd.
    __device__ inline void write(const GroupedTile& t, const u32 (&rows)[TILE_ROWS / 32]) const {
#pragma unroll
        for (int part = 0; part < 2; part++) {
            const u32 column = t.column + (2 * part + side) * 64 + warp * 16 + lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < TILE_ROWS / 8; j++) {
                const float* s = sum + TILE_ROWS / 2 * part + 4 * j;
                const u32 first = transposed_8x8(pack_bf16(s[0] * a.scale, s[1] * a.scale));
                const u32 second = transposed_8x8(pack_bf16(s[2] * a.scale, s[3] * a.scale));
                u16* y = (u16*)a.y + (u64)__shfl_sync(0xffffffffu, rows[j / 4], j % 4 * 8 + lane / 4) * a.n;
                if (8 * j + lane / 4 < t.rows) {
                    if (column < a.n) *(u32*)(y + column) = first;
                    if (column + 8 < a.n) *(u32*)(y + column + 8) = second;
                }
                __syncwarp();
            }
        }
    }
    __device__ inline void run() {
        GroupedWalk walk(a);
        GroupedTile t;
        while (walk.next(a, &t)) {
            u32 rows[TILE_ROWS / 32];
#pragma unroll
            for (u32 i = 0; i < TILE_ROWS / 32; i++) {
                const u32 row = lane + 32 * i;
                rows[i] = row >= t.rows ? 0 : a.to_slots ? t.slot + row : (u32)((const int*)a.order)[t.slot + row];
            }
            const bool both = t.column + (2 + side) * 64 < a.n;
            if (t.rows <= 64) multiply_columns<64>(both);
            else if (t.rows <= 128) multiply_columns<128>(both);
            else multiply_columns<192>(both);
            write(t, rows);
        }
    }
};
#endif

extern "C" __global__ void __launch_bounds__(384, 1) parplan_grouped_bf16_wgmma(const __grid_constant__ GroupedArgs a) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 base = shared_address(shared);
    if (threadIdx.x == 0) {
        for (Place p = {0, 0}; p.turn == 0; p.next()) {
            barrier_init(p.full(base), 128);
            barrier_init(p.empty(base), 8);
        }
    }
    fence_for_products();
    __syncthreads();
    const u32 warpgroup = threadIdx.x / 128;
    // A block has 168 registers a thread, which are 504 for one thread of each warpgroup.
    if (warpgroup == 0) {
        registers_down<56>();
        load(a, base);
    } else {
        registers_up<224>();
        GroupedProducts products = {a, base, warpgroup - 1, threadIdx.x / 32 % 4, threadIdx.x % 32, (a.k + DEPTH - 1) / DEPTH, {0, 0}};
        products.run();
    }
#else
    __trap();  // chosen on sm_90 only
#endif
}
