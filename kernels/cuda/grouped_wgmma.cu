// One matrix product for each expert over the rows that chose it, for many rows an expert, by
// warpgroup products of sm_90a. Rows, order and tiles are those of grouped.cu, a tile 128 rows.
//
// The product is computed transposed, y^T = w x^T: the 64 rows that a warpgroup product has at
// least are columns of the result, of which there are always enough, and the tile's rows, of which
// a small expert has few, are the side that may be 64 as well as 128.
//
// A block walks the tiles of 128 rows times 256 columns with a stride of the grid. Three warpgroups:
//   0     brings x and w in, 64 columns of k at a time, through a ring
//   1, 2  multiply, each two blocks of 64 columns of the result
// Weights in e4m3 become bf16 on the way, exactly: warpgroup 0 brings their bytes to a ring of their
// own and writes them as bf16 to the one that the products read. Each of its threads makes what it
// has brought, so nobody else waits for that.
#include "grouped.cuh"
#include "mma.cuh"
#include "wgmma.cuh"

#define ROWS 128
#define COLUMNS 256
#define DEPTH 64
#define X_BYTES (ROWS * DEPTH * 2)
#define W_BYTES (COLUMNS * DEPTH * 2)
#define BYTES_OF_E4M3 (COLUMNS * DEPTH)
#define STAGES 4

// Shared memory: the rings of x, of w and of e4m3, and the barriers.
template <bool fp8>
struct Rings {
    static constexpr u32 w_stages = fp8 ? 3 : STAGES, e4m3_stages = fp8 ? 3 : 0;
    static constexpr u32 w = STAGES * X_BYTES;
    static constexpr u32 e4m3 = w + w_stages * W_BYTES;
    static constexpr u32 full = e4m3 + e4m3_stages * BYTES_OF_E4M3;
    static constexpr u32 empty = full + 8 * STAGES;
};

#if __CUDA_ARCH__ >= 900

// A tile of a block's walk.
struct GroupedTile {
    u32 expert, slot, end, column;  // first slot and the one behind the expert's last; first column
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
        *t = {tile.x, tile.y, (u32)((const int*)a.offsets)[tile.x + 1], at % columns * COLUMNS};
        at += gridDim.x;
        return true;
    }
};

__device__ inline u32 chunk_of(u32 row, u32 chunk) { return row * 128 + ((chunk ^ (row & 7u)) << 4); }

// Two e4m3 in the high bytes of each half become bf16. The exponents' biases differ by 120;
// small values that e4m3 has no full exponent for come out right.
__device__ inline u32 high_bytes_to_bf16(u32 w) {
    const u32 small = (w & 0x80008000u) | ((w >> 4) & 0x07f007f0u);
    u32 r;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(small), "r"(0x7b807b80u));
    return r;
}
__device__ inline uint2 e4m3_to_bf16(u32 four) {
    return make_uint2(high_bytes_to_bf16(__byte_perm(four, 0, 0x1404)), high_bytes_to_bf16(__byte_perm(four, 0, 0x3424)));
}

// Warpgroup 0.
template <bool fp8>
struct GroupedLoader {
    const GroupedArgs& a;
    unsigned char* shared;
    u32 base, depth;
    GroupedWalk walk;
    // The tile that is being brought: 8 rows of x, 16 apart, and as many bytes of w.
    const char *x[8], *w;
    u32 x_rows, w_rows;  // how many of this thread's rows exist
    u32 k0;
    bool more;

    __device__ inline GroupedLoader(const GroupedArgs& a, unsigned char* shared)
        : a(a), shared(shared), base(shared_address(shared)), depth((a.k + DEPTH - 1) / DEPTH), walk(a) {
        next_tile();
    }
    // Chunks of 16 bytes of a row of w: this thread's, and the rows that as many threads as there
    // are chunks leave for it.
    static constexpr u32 w_chunks = fp8 ? 4 : 8, w_step = 128 / w_chunks, w_copies = COLUMNS / w_step;
    static constexpr u32 w_size = fp8 ? 1 : 2;

    __device__ inline void next_tile() {
        GroupedTile t;
        k0 = 0;
        more = walk.next(a, &t);
        if (!more) return;
        const u32 row = threadIdx.x / 8, rows = t.end - t.slot;
        x_rows = rows > row ? (rows - row + 15) / 16 : 0;
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            const u32 slot = t.slot + row + 16 * i;
            const u32 from = i >= x_rows ? 0 : a.to_slots ? (u32)((const int*)a.order)[slot] / a.top_k : slot;
            x[i] = (const char*)a.x + ((u64)from * a.x_pitch + threadIdx.x % 8 * 8) * 2;
        }
        const u32 column = t.column + threadIdx.x / w_chunks;
        w_rows = column < a.n ? (a.n - column + w_step - 1) / w_step : 0;
        w = (const char*)a.w + (((u64)t.expert * a.n + (w_rows ? column : 0)) * a.k) * w_size + threadIdx.x % w_chunks * 16;
    }
    // Brings the next 64 columns of k to places `x_at` and `w_at`.
    __device__ inline void bring(u32 x_at, u32 w_at) {
        const bool x_in = k0 + threadIdx.x % 8 * 8 < a.k, w_in = k0 + threadIdx.x % w_chunks * (16 / w_size) < a.k;
        const u32 x_to = base + x_at + chunk_of(threadIdx.x / 8, threadIdx.x % 8);
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            const bool valid = i < x_rows && x_in;
            copy16(x_to + i * 2048, x[i] + (valid ? (u64)k0 * 2 : 0), valid);
        }
        const u32 w_to = base + w_at + (fp8 ? threadIdx.x * 16 : chunk_of(threadIdx.x / 8, threadIdx.x % 8));
#pragma unroll
        for (u32 i = 0; i < w_copies; i++) {
            const bool valid = i < w_rows && w_in;
            copy16(w_to + i * 2048, w + (valid ? ((u64)i * w_step * a.k + k0) * w_size : 0), valid);
        }
        k0 += DEPTH;
        if (k0 >= depth * DEPTH) next_tile();
    }

    __device__ inline void wait_for_place(u32 step) const {
        if (step >= STAGES) barrier_wait(base + Rings<fp8>::empty + 8 * (step % STAGES), (step / STAGES - 1) & 1);
    }

    __device__ inline void run_bf16() {
        for (u32 step = 0; more; step++) {
            const u32 stage = step % STAGES;
            wait_for_place(step);
            bring(stage * X_BYTES, Rings<fp8>::w + stage * W_BYTES);
            barrier_arrive_after_copies(base + Rings<fp8>::full + 8 * stage);
        }
        asm volatile("cp.async.wait_all;" ::: "memory");
    }

    // Two steps are on their way while one is made bf16.
    __device__ inline void run_fp8() {
        u32 brought = 0;
        auto bring_next = [&]() {
            if (more) {
                wait_for_place(brought);
                bring(brought % STAGES * X_BYTES, Rings<fp8>::e4m3 + brought % 3 * BYTES_OF_E4M3);
                brought++;
            }
            copy_commit();
        };
        bring_next();
        bring_next();
        for (u32 step = 0; step < brought; step++) {
            bring_next();
            copy_wait<2>();
            // The place of w was another step's three steps ago, which place `brought` of x waited for, or:
            if (step >= 3) barrier_wait(base + Rings<fp8>::empty + 8 * ((step - 3) % STAGES), (step - 3) / STAGES & 1);
            const unsigned char* from = shared + Rings<fp8>::e4m3 + step % 3 * BYTES_OF_E4M3 + threadIdx.x * 16;
            unsigned char* to = shared + Rings<fp8>::w + step % 3 * W_BYTES;
            const u32 row = threadIdx.x / 4, chunk = threadIdx.x % 4 * 2;
#pragma unroll
            for (u32 i = 0; i < w_copies; i++) {
                const uint4 v = *(const uint4*)(from + i * 2048);
                const uint2 p = e4m3_to_bf16(v.x), q = e4m3_to_bf16(v.y), r = e4m3_to_bf16(v.z), s = e4m3_to_bf16(v.w);
                *(uint4*)(to + chunk_of(row + i * w_step, chunk)) = make_uint4(p.x, p.y, q.x, q.y);
                *(uint4*)(to + chunk_of(row + i * w_step, chunk + 1)) = make_uint4(r.x, r.y, s.x, s.y);
            }
            fence_for_products();
            barrier_arrive(base + Rings<fp8>::full + 8 * (step % STAGES));
        }
        copy_wait<0>();
    }
};

__device__ inline u32 transposed_8x8(u32 pair) {
    u32 r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(pair));
    return r;
}

// Warpgroups 1 and 2.
template <bool fp8>
struct GroupedProducts {
    const GroupedArgs& a;
    u32 base, side, warp, lane, depth, step;
    float sum[128];  // columns of the result: 64 * side on, and 128 further

    // Over all of k, for the tile's first `rows` rows; `both`: also for the second columns.
    template <int rows, bool both>
    __device__ inline void multiply() {
#pragma unroll
        for (int i = 0; i < 128; i++) sum[i] = 0.0f;
        for (u32 d = 0; d < depth; d++, step++) {
            const u32 stage = step % STAGES;
            barrier_wait(base + Rings<fp8>::full + 8 * stage, step / STAGES & 1);
            fence_for_products();
            const u32 x = base + stage * X_BYTES, w = base + Rings<fp8>::w + step % Rings<fp8>::w_stages * W_BYTES + side * 8192;
            products_begin();
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const u64 right = tile_descriptor(x + k * 32, 16, 1024);
                multiply_rows<rows, 0>(sum, tile_descriptor(w + k * 32, 16, 1024), right);
                if (both) multiply_rows<rows, 64>(sum, tile_descriptor(w + 2 * 8192 + k * 32, 16, 1024), right);
            }
            products_commit();
            products_wait<1>();
            if (d > 0) arrive(step - 1);
        }
        products_wait<0>();
        arrive(step - 1);
        results_are_here(sum);
    }
    __device__ inline void arrive(u32 of_step) const {
        if (lane == 0) barrier_arrive(base + Rings<fp8>::empty + 8 * (of_step % STAGES));
    }

    __device__ inline void write(const GroupedTile& t) const {
        const float scale = fp8 ? a.scale / FP8_AS_F16 : a.scale;  // made for e4m3 that is read as 2^-8 of it
#pragma unroll
        for (int part = 0; part < 2; part++) {
            const u32 column = t.column + (2 * part + side) * 64 + warp * 16 + lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < 16; j++) {
                const float* s = sum + 64 * part + 4 * j;
                const u32 first = transposed_8x8(pack_bf16(s[0] * scale, s[1] * scale));
                const u32 second = transposed_8x8(pack_bf16(s[2] * scale, s[3] * scale));
                const u32 slot = t.slot + 8 * j + lane / 4;
                if (slot < t.end) {
                    u16* y = (u16*)a.y + (u64)(a.to_slots ? slot : (u32)((const int*)a.order)[slot]) * a.n;
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
        step = 0;
        while (walk.next(a, &t)) {
            const bool few = t.end - t.slot <= 64, both = t.column + (2 + side) * 64 < a.n;
            if (few) {
                if (both) multiply<64, true>();
                else multiply<64, false>();
            } else {
                if (both) multiply<128, true>();
                else multiply<128, false>();
            }
            write(t);
        }
    }
};
#endif

template <bool fp8>
__device__ inline void grouped_wgmma(const GroupedArgs& a) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 base = shared_address(shared);
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < STAGES; stage++) {
            barrier_init(base + Rings<fp8>::full + 8 * stage, 128);
            barrier_init(base + Rings<fp8>::empty + 8 * stage, 8);
        }
    }
    fence_for_products();
    __syncthreads();
    const u32 warpgroup = threadIdx.x / 128;
    // A block has 168 registers a thread, which are 504 for one thread of each warpgroup.
    if (warpgroup == 0) {
        registers_down<88>();
        GroupedLoader<fp8> loader(a, shared);
        if (fp8) loader.run_fp8();
        else loader.run_bf16();
    } else {
        registers_up<208>();
        GroupedProducts<fp8> products = {a, base, warpgroup - 1, threadIdx.x / 32 % 4, threadIdx.x % 32, (a.k + DEPTH - 1) / DEPTH};
        products.run();
    }
#else
    __trap();  // chosen on sm_90 only
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) parplan_grouped_bf16_wgmma(const __grid_constant__ GroupedArgs a) { grouped_wgmma<false>(a); }
extern "C" __global__ void __launch_bounds__(384, 1) parplan_grouped_fp8_wgmma(const __grid_constant__ GroupedArgs a) { grouped_wgmma<true>(a); }
