// Merges of attention over the ranks that share the KV (decode context parallelism).
//
// Every rank has attended with the query heads of all `size` ranks to its own KV: its
// partial output is `parts` [size, rows, dim] in bf16, normalised, and `lses` [size, rows]
// in f32, natural logarithm. Part r is of the heads of rank r; a row is a token times a
// head of a rank. The merged row is
//   out = sum_s exp(lse_s - lse) out_s,   lse = log sum_s exp(lse_s)
// over the ranks s. A rank whose LSE is not finite held nothing of the row; its output
// is not read. Where nobody held anything the output is 0 and the LSE negative infinity.
#include "peer.cuh"

struct MergeArgs {
    u64 out;      // bf16 [rows, dim]
    u64 lse_out;  // f32 [rows]
    u64 parts;    // bf16, see each kernel
    u64 lses;     // f32, see each kernel
    u32 rows;     // of one part
    u32 dim;      // a multiple of 8
    u32 rank;
    u32 size;
};

__device__ inline bool is_finite(float x) { return (f32_to_bits(x) & 0x7f800000u) != 0x7f800000u; }

struct Four {
    float v[4];
    __device__ inline void clear() { v[0] = v[1] = v[2] = v[3] = 0.0f; }
    __device__ inline void scale(float f) { v[0] *= f, v[1] *= f, v[2] *= f, v[3] *= f; }
    __device__ inline void add(uint2 x, float w) {
        if (w == 0.0f) return;  // what it holds may be anything
        v[0] += w * bf16_to_f32((u16)x.x);
        v[1] += w * bf16_to_f32((u16)(x.x >> 16));
        v[2] += w * bf16_to_f32((u16)x.y);
        v[3] += w * bf16_to_f32((u16)(x.y >> 16));
    }
    __device__ inline uint2 get() const {
        return make_uint2((u32)f32_to_bf16(v[0]) | (u32)f32_to_bf16(v[1]) << 16, (u32)f32_to_bf16(v[2]) | (u32)f32_to_bf16(v[3]) << 16);
    }
};

// The merge of one piece of a row after the other. Loops over ranks that use it are not
// unrolled: these kernels run for microseconds, and fetching long code takes as long.
struct Running {
    float top, total;
    __device__ inline void clear() { top = bits_to_f32(0xff800000u), total = 0.0f; }
    // Factors of what was summed so far and of the piece with this LSE.
    __device__ inline void take(float lse, float* keep, float* add) {
        *keep = 1.0f, *add = 0.0f;
        if (!is_finite(lse)) return;
        const float now = fmaxf(top, lse);
        *keep = expf(top - now);
        *add = expf(lse - now);
        total = total * *keep + *add;
        top = now;
    }
    __device__ inline float lse() const { return total > 0.0f ? top + logf(total) : bits_to_f32(0xff800000u); }
    __device__ inline float norm() const { return total > 0.0f ? 1.0f / total : 0.0f; }
};

// What one rank adds to a sum over ranks: parts [size, rows, dim] of this rank, each row
// times its weight, in place. `lses` [size ranks, size parts, rows] of all ranks.
extern "C" __global__ void __launch_bounds__(256) parplan_dcp_correct(const __grid_constant__ MergeArgs m) {
    const u32 words = m.dim / 4;
    const u64 all = (u64)m.size * m.rows * words, stride = (u64)gridDim.x * blockDim.x;
    const float* lses = (const float*)m.lses;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < all; i += stride) {
        const u64 row = i / words;
        Running merged;
        float keep, add;
        merged.clear();
#pragma unroll 1
        for (u32 s = 0; s < m.size; s++) merged.take(lses[(u64)s * m.size * m.rows + row], &keep, &add);
        const float own = lses[(u64)m.rank * m.size * m.rows + row];
        Four sum;
        sum.clear();
        sum.add(((const uint2*)m.parts)[i], is_finite(own) ? expf(own - merged.top) * merged.norm() : 0.0f);
        ((uint2*)m.parts)[i] = sum.get();
        if (row / m.rows == m.rank && i % words == 0) ((float*)m.lse_out)[row % m.rows] = merged.lse();
    }
}

// The merge of what all ranks sent: parts [size ranks, rows, dim], lses [size ranks, rows].
extern "C" __global__ void __launch_bounds__(256) parplan_dcp_merge(const __grid_constant__ MergeArgs m) {
    const u32 words = m.dim / 4;
    const u64 all = (u64)m.rows * words, stride = (u64)gridDim.x * blockDim.x;
    const float* lses = (const float*)m.lses;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < all; i += stride) {
        const u64 row = i / words;
        Running merged;
        Four sum;
        float keep, add;
        merged.clear();
        sum.clear();
#pragma unroll 1
        for (u32 s = 0; s < m.size; s++) {
            merged.take(lses[(u64)s * m.rows + row], &keep, &add);
            sum.scale(keep);
            sum.add(((const uint2*)m.parts)[s * all + i], add);
        }
        sum.scale(merged.norm());
        ((uint2*)m.out)[i] = sum.get();
        if (i % words == 0) ((float*)m.lse_out)[row] = merged.lse();
    }
}

// Exchange and merge in one kernel, by packets (see peer.cuh): for few rows, where
// latency decides. A row is dim / 4 words and one word for its LSE. Part `peer` of
// `parts` and `lses` goes to that rank; the own part is read where it lies.
extern "C" __global__ void __launch_bounds__(512)
    parplan_dcp_merge_packets(const __grid_constant__ PeerArgs a, const __grid_constant__ MergeArgs m) {
    after_previous();
    const u32 epoch = begin_call(a);
    const u32 words = m.dim / 4, message = words + 1;
    const u32 each = (m.rows + gridDim.x - 1) / gridDim.x;
    const u32 first = each * blockIdx.x < m.rows ? each * blockIdx.x : m.rows;
    const u32 count = first + each < m.rows ? each : m.rows - first;
    const uint2* parts = (const uint2*)m.parts;
    const float* lses = (const float*)m.lses;
    for (u32 i = threadIdx.x; i < count * message; i += blockDim.x) {
        const u32 row = i / message, j = i % message;
#pragma unroll 1
        for (u32 k = 1; k < a.size; k++) {
            const u32 peer = (a.rank + k) % a.size;
            const u64 at = (u64)peer * m.rows + first + row;
            const uint2 v = j < words ? parts[at * words + j] : make_uint2(f32_to_bits(lses[at]), 0);
            send_packet(slots_of(a, peer, epoch, 0, a.rank) + i, v.x, v.y, epoch);
        }
    }
    for (u32 i = threadIdx.x; i < count * words; i += blockDim.x) {
        const u32 row = i / words, j = i % words;
        const u64 own = (u64)a.rank * m.rows + first + row;
        const uint2 mine = parts[own * words + j];
        Running merged;
        Four sum;
        float keep, add;
        merged.clear();
        sum.clear();
        merged.take(lses[own], &keep, &add);
        sum.add(mine, add);
#pragma unroll 1
        for (u32 k = 1; k < a.size; k++) {
            const Packet* from = slots_of(a, a.rank, epoch, 0, (a.rank + k) % a.size) + row * message;
            uint2 data;
            u32 bits, unused;
            bool there;
            do {
                there = receive_packet(from + j, epoch, &data.x, &data.y);
                there &= receive_packet(from + words, epoch, &bits, &unused);
            } while (!there);
            merged.take(bits_to_f32(bits), &keep, &add);
            sum.scale(keep);
            sum.add(data, add);
        }
        sum.scale(merged.norm());
        ((uint2*)m.out)[(u64)(first + row) * words + j] = sum.get();
        if (j == 0) ((float*)m.lse_out)[first + row] = merged.lse();
    }
    end_call(a, epoch);
}

// Larger messages go as plain 16-byte stores into the peers' staging memory, with one
// flag for each block behind them: half the bytes of packets, and a fence.
//
// Staging of a rank: [2 parities][size sources][stride bytes]; flags u32 [size sources][blocks].
// All calls over one staging have the same grid, so the call numbers of all blocks are
// equal. A block sets its flag of call e + 1 in a kernel that began after that rank's
// kernel of call e ended, hence after it had read everything of call e; only then are the
// same bytes written again, in call e + 2.
struct BulkArgs {
    u64 staging[PARPLAN_MAX_RANKS];  // device address of each rank's staging memory
    u64 flags[PARPLAN_MAX_RANKS];    // and of its flags, zero at first
    u64 epoch;                       // u32[blocks] of this rank, calls so far
    u64 stride;                      // bytes for one source, a multiple of 16
    u32 rank;
    u32 size;
};

#ifdef PARPLAN_SHIM
__device__ inline void raise_flag(u32* flag, u32 epoch) { __atomic_store_n(flag, epoch, __ATOMIC_RELEASE); }
__device__ inline u32 read_flag(const u32* flag) {
    sched_yield();
    return __atomic_load_n(flag, __ATOMIC_ACQUIRE);
}
__device__ inline uint4 read_past_l1(const uint4* p) { return *p; }
#else
__device__ inline void raise_flag(u32* flag, u32 epoch) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(epoch) : "memory");
}
__device__ inline u32 read_flag(const u32* flag) {
    u32 v;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory");
    return v;
}
__device__ inline uint4 read_past_l1(const uint4* p) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}
#endif

__device__ inline uint4* staging_of(const BulkArgs& a, u32 owner, u32 epoch, u32 source) {
    return (uint4*)(a.staging[owner] + ((u64)(epoch & 1) * a.size + source) * a.stride);
}

// After the block's stores to all peers: says so to each, and waits for theirs.
__device__ inline void exchange_flags(const BulkArgs& a, u32 epoch) {
    __syncthreads();
    if (threadIdx.x < a.size && threadIdx.x != a.rank) {
        const u32 peer = threadIdx.x;
        raise_flag((u32*)a.flags[peer] + a.rank * gridDim.x + blockIdx.x, epoch);
        const u32* mine = (const u32*)a.flags[a.rank] + peer * gridDim.x + blockIdx.x;
        // A peer may be one call ahead.
        while ((int)(read_flag(mine) - epoch) < 0) {
        }
    }
    __syncthreads();
}

__device__ inline u32 begin_bulk(const BulkArgs& a) { return ((const u32*)a.epoch)[blockIdx.x] + 1; }
__device__ inline void end_bulk(const BulkArgs& a, u32 epoch) {
    __syncthreads();
    if (threadIdx.x == 0) ((u32*)a.epoch)[blockIdx.x] = epoch;
}

// As parplan_dcp_merge_packets. A source's staging: rows [rows, dim] of bf16, then [rows] of f32.
extern "C" __global__ void __launch_bounds__(512)
    parplan_dcp_merge_bulk(const __grid_constant__ BulkArgs a, const __grid_constant__ MergeArgs m) {
    after_previous();
    const u32 epoch = begin_bulk(a);
    const u32 words = m.dim / 8;
    const u32 each = (m.rows + gridDim.x - 1) / gridDim.x;
    const u32 first = each * blockIdx.x < m.rows ? each * blockIdx.x : m.rows;
    const u32 count = first + each < m.rows ? each : m.rows - first;
    const uint4* parts = (const uint4*)m.parts;
    const float* lses = (const float*)m.lses;
    for (u32 k = 1; k < a.size; k++) {
        const u32 peer = (a.rank + k) % a.size;
        uint4* to = staging_of(a, peer, epoch, a.rank);
        const uint4* from = parts + (u64)peer * m.rows * words;
        for (u32 i = threadIdx.x; i < count * words; i += blockDim.x) to[(u64)first * words + i] = from[(u64)first * words + i];
        float* to_lse = (float*)(to + (u64)m.rows * words);
        for (u32 i = threadIdx.x; i < count; i += blockDim.x) to_lse[first + i] = lses[(u64)peer * m.rows + first + i];
    }
    exchange_flags(a, epoch);
    for (u32 i = threadIdx.x; i < count * words; i += blockDim.x) {
        const u32 row = first + i / words, j = i % words;
        const u64 at = (u64)row * words + j;
        const u64 own = (u64)a.rank * m.rows;
        const uint4 mine = parts[own * words + at];
        Running merged;
        Four low, high;
        float keep, add;
        merged.clear();
        low.clear();
        high.clear();
        merged.take(lses[own + row], &keep, &add);
        low.add(make_uint2(mine.x, mine.y), add);
        high.add(make_uint2(mine.z, mine.w), add);
#pragma unroll 1
        for (u32 k = 1; k < a.size; k++) {
            const uint4* from = staging_of(a, a.rank, epoch, (a.rank + k) % a.size);
            const uint4 data = read_past_l1(from + at);
            // The four floats that this row's LSE is one of; the region is whole words.
            const uint4 four = read_past_l1(from + (u64)m.rows * words + row / 4);
            merged.take(bits_to_f32(row % 4 == 0 ? four.x : row % 4 == 1 ? four.y : row % 4 == 2 ? four.z : four.w), &keep, &add);
            low.scale(keep);
            high.scale(keep);
            low.add(make_uint2(data.x, data.y), add);
            high.add(make_uint2(data.z, data.w), add);
        }
        low.scale(merged.norm());
        high.scale(merged.norm());
        const uint2 l = low.get(), h = high.get();
        ((uint4*)m.out)[at] = make_uint4(l.x, l.y, h.x, h.y);
        if (j == 0) ((float*)m.lse_out)[row] = merged.lse();
    }
    end_bulk(a, epoch);
}
