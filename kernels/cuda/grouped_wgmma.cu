// One matrix product for each expert over the rows that chose it, for many rows an expert, by
// warpgroup products of sm_90a. Rows, order and tiles are those of grouped.cu, a tile 192 rows, of e4m3 128.
//
// The product is computed transposed, y^T = w x^T: the 64 rows that a warpgroup product has at
// least are columns of the result, of which there are always enough, and the tile's rows, of which
// a small expert has few, are the side that may be 64, 128 or 192.
//
// A block walks the tiles of rows times 256 columns with a stride of the grid. Three warpgroups:
//   0     brings x and w in, 64 columns of k at a time, through a ring
//   1, 2  multiply, each two blocks of 64 columns of the result
// What limits them is how fast x and w come from L2, so the tile is as large as registers allow.
//
// Weights in e4m3 stay bytes in shared memory; whoever multiplies makes them bf16 in registers,
// exactly. There a thread gets four bytes that follow each other in k, and holds the columns
// (2q, 2q + 1) and (2q + 8, 2q + 9) of 16 with them; so x comes by pairs of columns, those of each
// 16 in the order (0, 2, 4, 6 | 1, 3, 5, 7): `parplan_pair_order` of layer.cu. Registers then have
// room for the sums of 128 rows.
#include "grouped.cuh"
#include "mma.cuh"
#include "wgmma.cuh"

#define COLUMNS 256
#define DEPTH 64

template <bool fp8>
struct Ring {
    static constexpr u32 rows = fp8 ? 128 : 192;  // of a tile
    static constexpr u32 stages = fp8 ? 6 : 4;
    static constexpr u32 x_bytes = rows * DEPTH * 2, w_bytes = COLUMNS * DEPTH * (fp8 ? 1 : 2);
    static constexpr u32 stage_bytes = x_bytes + w_bytes;
    static constexpr u32 full = stages * stage_bytes, empty = full + 8 * stages;  // barriers
};

#if __CUDA_ARCH__ >= 900

// Steps through the ring. `turn` counts its turns, which the barriers have the parity of.
template <bool fp8>
struct Place {
    u32 stage, turn;
    __device__ inline void next() {
        if (++stage == Ring<fp8>::stages) stage = 0, turn++;
    }
    __device__ inline u32 x(u32 base) const { return base + stage * Ring<fp8>::stage_bytes; }
    __device__ inline u32 w(u32 base) const { return x(base) + Ring<fp8>::x_bytes; }
    __device__ inline u32 full(u32 base) const { return base + Ring<fp8>::full + 8 * stage; }
    __device__ inline u32 empty(u32 base) const { return base + Ring<fp8>::empty + 8 * stage; }
};

// What a block multiplies at a time.
struct GroupedTile {
    u32 expert, slot, rows, column;  // first slot, rows that exist, first column
};
template <bool fp8>
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
        *t = {tile.x, tile.y, rest < Ring<fp8>::rows ? rest : Ring<fp8>::rows, at % columns * COLUMNS};
        at += gridDim.x;
        return true;
    }
};

// Byte of 16-byte chunk `chunk` of a row of 128 bytes, as products expect it.
__device__ inline u32 chunk_of(u32 row, u32 chunk) { return row * 128 + ((chunk ^ (row & 7u)) << 4); }
// The same for rows of 64 bytes: two rows share 128 bytes.
__device__ inline u32 narrow_chunk_of(u32 row, u32 chunk) { return row * 64 + ((chunk ^ (row >> 1 & 3u)) << 4); }

// Warpgroup 0.
template <bool fp8>
struct GroupedLoader {
    typedef Ring<fp8> R;
    const GroupedArgs& a;
    u32 base;

    // Row of x at a slot, in units of 16 bytes.
    __device__ inline u32 row_of(u32 slot) const {
        const u32 row = a.to_slots ? (u32)((const int*)a.order)[slot] / a.top_k : slot;
        return row * (a.x_pitch / 8);
    }

    __device__ inline void run() const {
        // Eight threads bring 128 bytes of a row, each of every 16th row; four bring 64 bytes of e4m3.
        constexpr u32 x_rows = R::rows / 16;  // that a thread brings a part of
        constexpr u32 w_chunks = fp8 ? 4 : 8, w_step = 128 / w_chunks, w_copies = COLUMNS / w_step, w_size = fp8 ? 1 : 2;
        const u32 thread = threadIdx.x;
        const u32 depth = (a.k + DEPTH - 1) / DEPTH;
        const u32 x_chunk = thread % 8, x_row = thread / 8, x_place = chunk_of(x_row, x_chunk);
        const u32 w_chunk = thread % w_chunks, w_row = thread / w_chunks;
        const u32 w_place = fp8 ? narrow_chunk_of(w_row, w_chunk) : chunk_of(w_row, w_chunk);

        GroupedWalk<fp8> walk(a);
        GroupedTile t;
        Place<fp8> place = {0, 0};
        while (walk.next(a, &t)) {
            u32 from[x_rows], exist = 0;  // how many of this thread's rows there are
#pragma unroll
            for (u32 i = 0; i < x_rows; i++) {
                const u32 row = x_row + 16 * i;
                from[i] = row < t.rows ? row_of(t.slot + row) : 0;
                if (row < t.rows) exist = i + 1;
            }
            const u32 column = t.column + w_row;
            const u32 w_rows = column < a.n ? (a.n - column + w_step - 1) / w_step : 0;
            const char* w = (const char*)a.w + ((u64)t.expert * a.n + (w_rows ? column : 0)) * a.k * w_size + w_chunk * 16;
            for (u32 d = 0; d < depth; d++, place.next()) {
                const u32 k0 = d * DEPTH;
                if (place.turn) barrier_wait(place.empty(base), (place.turn - 1) & 1);
                const bool w_in = k0 + w_chunk * (16 / w_size) < a.k;
#pragma unroll
                for (u32 i = 0; i < w_copies; i++) {
                    const bool valid = i < w_rows && w_in;
                    copy16(place.w(base) + w_place + i * 2048, w + (valid ? ((u64)i * w_step * a.k + k0) * w_size : 0), valid);
                }
                const bool x_in = k0 + x_chunk * 8 < a.k;
                const char* x = (const char*)a.x + (u64)k0 * 2 + x_chunk * 16;
#pragma unroll
                for (u32 i = 0; i < x_rows; i++) {
                    const bool valid = i < exist && x_in;
                    copy16(place.x(base) + x_place + i * 2048, valid ? x + (u64)from[i] * 16 : (const char*)a.x, valid);
                }
                barrier_arrive_after_copies(place.full(base));
            }
        }
        asm volatile("cp.async.wait_all;" ::: "memory");
    }
};

// Two e4m3 in the high bytes of each half become bf16. The exponents' biases differ by 120; small
// values that e4m3 has no full exponent for come out right.
__device__ inline u32 high_bytes_to_bf16(u32 w) {
    const u32 small = (w & 0x80008000u) | ((w >> 4) & 0x07f007f0u);
    u32 r;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(small), "r"(0x7b807b80u));
    return r;
}

__device__ inline u32 transposed_8x8(u32 pair) {
    u32 r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(pair));
    return r;
}

// Warpgroups 1 and 2.
template <bool fp8>
struct GroupedProducts {
    typedef Ring<fp8> R;
    static constexpr int half = R::rows / 2;  // registers of 64 columns' sums
    const GroupedArgs& a;
    u32 base, side, warp, lane, depth;
    Place<fp8> place;
    float sum[2 * half];  // columns of the result: 64 * side on, and 128 further

    __device__ inline void arrive(const Place<fp8>& of) const {
        if (lane == 0) barrier_arrive(of.empty(base));
    }
    __device__ inline u64 x_of(int k) const { return tile_descriptor(place.x(base) + k * 32, 16, 1024); }

    // Over all of k, for the tile's first `rows` rows; `both`: also for the second columns.
    template <int rows, bool both>
    __device__ inline void multiply() {
#pragma unroll
        for (int i = 0; i < 2 * half; i++) sum[i] = 0.0f;
        Place<fp8> before = place;
#pragma unroll 1
        for (u32 d = 0; d < depth; d++) {
            barrier_wait(place.full(base), place.turn & 1);
            fence_for_products();
            if constexpr (fp8) {
                // While a side waits here or makes bytes bf16, the other multiplies.
                multiply_e4m3<rows, 0>();
                if (both) multiply_e4m3<rows, 1>();
                products_wait<0>();
                arrive(place);
            } else {
                products_begin();
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    const u32 w = place.w(base) + side * 8192 + k * 32;
                    multiply_rows<rows, 0>(sum, tile_descriptor(w, 16, 1024), x_of(k));
                    if (both) multiply_rows<rows, half>(sum, tile_descriptor(w + 2 * 8192, 16, 1024), x_of(k));
                }
                products_commit();
                products_wait<1>();
                if (d > 0) arrive(before);
            }
            before = place;
            place.next();
        }
        if (!fp8) {
            products_wait<0>();
            arrive(before);
        }
        results_are_here(sum);
    }
    // Begins the products of one block of columns. Those of the other go on while the bytes of this
    // one become bf16.
    template <int rows, int block>
    __device__ inline void multiply_e4m3() {
        u32 bytes[2][4], w[4][4];
        const u32 row = (2 * block + side) * 64 + warp * 16 + lane % 16;
#pragma unroll
        for (u32 i = 0; i < 2; i++) load_matrices(bytes[i], place.w(base) + narrow_chunk_of(row, 2 * i + lane / 16));
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const u32 four = bytes[i / 4][i % 4];
            w[i / 2][i % 2] = high_bytes_to_bf16(__byte_perm(four, 0, 0x1404));
            w[i / 2][i % 2 + 2] = high_bytes_to_bf16(__byte_perm(four, 0, 0x3424));
        }
        products_begin();
#pragma unroll
        for (int k = 0; k < 4; k++) multiply_rows_registers<rows, block * half>(sum, w[k], x_of(k));
        products_commit();
    }

    __device__ inline void write(const GroupedTile& t, const u32 (&rows)[R::rows / 32]) const {
        const float scale = fp8 ? a.scale / FP8_AS_F16 : a.scale;  // made for e4m3 that is read as 2^-8 of it
#pragma unroll
        for (int part = 0; part < 2; part++) {
            const u32 column = t.column + (2 * part + side) * 64 + warp * 16 + lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < R::rows / 8; j++) {
                const float* s = sum + half * part + 4 * j;
                const u32 first = transposed_8x8(pack_bf16(s[0] * scale, s[1] * scale));
                const u32 second = transposed_8x8(pack_bf16(s[2] * scale, s[3] * scale));
                u16* y = (u16*)a.y + (u64)__shfl_sync(0xffffffffu, rows[j / 4], j % 4 * 8 + lane / 4) * a.n;
                if (8 * j + lane / 4 < t.rows) {
                    if (column < a.n) *(u32*)(y + column) = first;
                    if (column + 8 < a.n) *(u32*)(y + column + 8) = second;
                }
                __syncwarp();
            }
        }
    }

    template <int rows>
    __device__ inline void multiply_columns(bool both) {
        if (both) multiply<rows, true>();
        else multiply<rows, false>();
    }
    __device__ inline void run() {
        GroupedWalk<fp8> walk(a);
        GroupedTile t;
        place = {0, 0};
        while (walk.next(a, &t)) {
            // Rows of the result, of which this lane knows every 32nd.
            u32 rows[R::rows / 32];
#pragma unroll
            for (u32 i = 0; i < R::rows / 32; i++) {
                const u32 row = lane + 32 * i;
                rows[i] = row >= t.rows ? 0 : a.to_slots ? t.slot + row : (u32)((const int*)a.order)[t.slot + row];
            }
            const bool both = t.column + (2 + side) * 64 < a.n;
            if (t.rows <= 64) multiply_columns<64>(both);
            else if (t.rows <= 128) multiply_columns<128>(both);
            else if constexpr (!fp8) multiply_columns<192>(both);
            write(t, rows);
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
        for (Place<fp8> p = {0, 0}; p.turn == 0; p.next()) {
            barrier_init(p.full(base), 128);
            barrier_init(p.empty(base), 8);
        }
    }
    fence_for_products();
    __syncthreads();
    const u32 warpgroup = threadIdx.x / 128;
    // A block has 168 registers a thread, which are 504 for one thread of each warpgroup.
    if (warpgroup == 0) {
        registers_down<fp8 ? 40 : 56>();
        GroupedLoader<fp8> loader = {a, base};
        loader.run();
    } else {
        registers_up<fp8 ? 232 : 224>();
        GroupedProducts<fp8> products = {a, base, warpgroup - 1, threadIdx.x / 32 % 4, threadIdx.x % 32, (a.k + DEPTH - 1) / DEPTH};
        products.run();
    }
#else
    __trap();  // chosen on sm_90 only
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) parplan_grouped_bf16_wgmma(const __grid_constant__ GroupedArgs a) { grouped_wgmma<false>(a); }
extern "C" __global__ void __launch_bounds__(384, 1) parplan_grouped_fp8_wgmma(const __grid_constant__ GroupedArgs a) { grouped_wgmma<true>(a); }
