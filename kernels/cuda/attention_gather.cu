// All-gather over memory that the ranks' GPUs map from each other, for queries of ranks
// that share the KV: by lines of 128 bytes that are nothing but data.
//
// Eight neighbouring threads of a warp store a line in one instruction and load it in
// one, and NVLink and the GPU's memory keep such a line whole (NCCL's LL128 relies on the
// same, over NVLink from Volta on). So one word of a line tells of all of it: its last 4
// bytes, which travel inverted, are zero until the line is there, and the receiver makes
// them zero again. The data need no flag beside them and no fence behind them. A line
// whose last 4 bytes are zero when inverted has a mark of its own that follows it, behind
// a fence: rare, and right.
//
// Staging of a rank, zero at first: [2 parities][size sources][most lines], and behind it
// [2 parities][size sources][most] marks. All call counters advance in every call, so that
// they are equal between calls. Two parities suffice: a rank leaves call e + 1 only after
// it has something of call e + 1 from every peer, hence after that peer's call e ended, and
// only then are the lines of call e written again, in call e + 2. What a receiver made zero
// in call e is so by then, for the same reason.
#include "peer.cuh"

struct LineArgs {
    u64 staging[PARPLAN_MAX_RANKS];  // device address of each rank's staging memory
    u64 epoch;                       // u32[counters] of this rank, calls so far
    u32 rank;
    u32 size;
    u32 most;      // lines of a message that the staging memory has room for
    u32 counters;  // at least the blocks of any call
    u32 roles;     // 1: every block sends and receives; 2: one half of them each
    u32 pad;
};

struct Lines {
    uint4* words;
    u32* marks;
};

__device__ inline Lines lines_of(const LineArgs& a, u32 owner, u32 epoch, u32 source) {
    const u64 first = ((u64)(epoch & 1) * a.size + source) * a.most, all = (u64)2 * a.size * a.most;
    uint4* staging = (uint4*)a.staging[owner];
    Lines l;
    l.words = staging + first * 8;
    l.marks = (u32*)(staging + all * 8) + first;
    return l;
}

// Whole warps call these; lanes whose line does not exist are not `active`.
#ifdef PARPLAN_SHIM
__device__ inline void store_line(uint4* to, uint4 v, bool active) {
    const bool last = threadIdx.x % 8 == 7;
    if (active && !last) *to = v;
    if (active && last) to->x = v.x, to->y = v.y, to->z = v.z;
    __syncwarp();
    if (active && last) __atomic_store_n(&to->w, v.w, __ATOMIC_RELEASE);
}
__device__ inline uint4 load_line(const uint4* from, bool active) {
    const bool last = threadIdx.x % 8 == 7;
    sched_yield();
    const u32 w = active && last ? __atomic_load_n(&from->w, __ATOMIC_ACQUIRE) : 0;
    __syncwarp();
    uint4 v = make_uint4(0, 0, 0, 0);
    if (active) v.x = from->x, v.y = from->y, v.z = from->z, v.w = last ? w : from->w;
    return v;
}
__device__ inline void store_mark(u32* mark, u32 epoch) { __atomic_store_n(mark, epoch, __ATOMIC_RELEASE); }
__device__ inline u32 load_mark(const u32* mark) { return __atomic_load_n(mark, __ATOMIC_ACQUIRE); }
#else
__device__ inline void store_line(uint4* to, uint4 v, bool active) {
    __syncwarp();  // lanes that parted before would store apart
    if (active)
        asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
__device__ inline uint4 load_line(const uint4* from, bool active) {
    uint4 v = make_uint4(0, 0, 0, 0);
    __syncwarp();
    if (active)
        asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
    return v;
}
__device__ inline void store_mark(u32* mark, u32 epoch) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(mark), "r"(epoch) : "memory");
}
__device__ inline u32 load_mark(const u32* mark) {
    u32 v;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(mark) : "memory");
    return v;
}
#endif

// Polls between two looks at a line's mark.
#ifdef PARPLAN_SHIM
#define POLLS 2
#else
#define POLLS 64
#endif

// recv[source] = send of every rank, `words` of 16 bytes from each; blocks of whole warps.
// A block sends before it waits, and what it waits for is sent by blocks of no higher
// number, so that blocks need not all be resident at once.
extern "C" __global__ void __launch_bounds__(1024, 1)
    parplan_all_gather_lines(const __grid_constant__ LineArgs a, const uint4* send, uint4* recv, u64 words) {
    after_previous();
    const u32 epoch = ((const u32*)a.epoch)[blockIdx.x] + 1;
    // The part of the lines that this block has, for one or both of the two roles.
    const u32 parts = gridDim.x / a.roles, part = blockIdx.x % parts;
    const bool sends = blockIdx.x < parts, receives = blockIdx.x >= gridDim.x - parts;
    const u32 count = (u32)words, lines = (count + 7) / 8, each = (lines + parts - 1) / parts;
    const u32 first = each * part < lines ? each * part : lines;
    const u32 mine = first + each < lines ? each : lines - first;
    // Eight threads have one line for one peer at a time, so that lines for all peers are
    // under way at once.
    const u32 lane = threadIdx.x % 8, step = blockDim.x / 8, all = mine * (a.size - 1);
    const bool last = lane == 7;
    if (sends) {
#pragma unroll 1
        for (u32 base = threadIdx.x / 32 * 4; base < all; base += step) {
            const u32 at = base + threadIdx.x % 32 / 8, k = a.size == 2 ? 0 : at / mine, line = first + at - k * mine, word = line * 8 + lane;
            const u32 peer = a.rank + 1 + k < a.size ? a.rank + 1 + k : a.rank + 1 + k - a.size;
            const bool active = at < all, there = active && word < count;
            uint4 v = there ? send[word] : make_uint4(0, 0, 0, 0);
            if (there && k == 0 && receives) recv[(u64)a.rank * count + word] = v;
            if (last) v.w = ~v.w;
            const Lines to = lines_of(a, active ? peer : a.rank, epoch, a.rank);
            store_line(to.words + (u64)line * 8 + lane, v, active);
            const bool unseen = active && last && v.w == 0;
            if (__any_sync(0xffffffffu, unseen)) {
                __syncwarp();
                if (unseen) store_mark(to.marks + line, epoch);
            }
        }
    }
    if (receives) {
        // Where blocks do both, the own part went along with the first peer's.
        if (!sends || a.size == 1)
            for (u32 word = first * 8 + threadIdx.x; word < count && word < (first + mine) * 8; word += blockDim.x)
                recv[(u64)a.rank * count + word] = send[word];
#pragma unroll 1
        for (u32 base = threadIdx.x / 32 * 4; base < all; base += step) {
            const u32 at = base + threadIdx.x % 32 / 8, k = a.size == 2 ? 0 : at / mine, line = first + at - k * mine, word = line * 8 + lane;
            const u32 peer = a.rank + 1 + k < a.size ? a.rank + 1 + k : a.rank + 1 + k - a.size;
            const bool active = at < all;
            const Lines from = lines_of(a, a.rank, epoch, active ? peer : a.rank);
            uint4* slot = from.words + (u64)line * 8 + lane;
            uint4 v;
            u32 polls = 0;
            bool marked = false, waiting;
            do {
                v = load_line(slot, active);
                waiting = active && last && v.w == 0 && !marked;
                if (++polls % POLLS == 0) {
                    marked |= waiting && load_mark(from.marks + line) == epoch;
                    __syncwarp();  // what follows a mark is loaded once more
                }
            } while (__any_sync(0xffffffffu, waiting));
            if (active && last) {
                slot->w = 0;
                v.w = ~v.w;
            }
            if (active && word < count) recv[(u64)peer * count + word] = v;
        }
    }
    __syncthreads();
    // All threads of the block have read the number of the call before one changes it.
    for (u32 i = blockIdx.x + threadIdx.x * gridDim.x; i < a.counters; i += blockDim.x * gridDim.x) ((u32*)a.epoch)[i] = epoch;
}
