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
// Staging of a rank, zero at first: [2 parities][size sources][blocks][slots of a block],
// 16 bytes a slot, eight slots a line; behind it a u32 mark for every line. Why two
// parities suffice stands in peer.cuh: of whole launches, since every launch has lines for
// every peer and waits for theirs. What a receiver made zero in call e is so before
// anybody is told of its call e + 1, hence before anybody writes call e + 2.
#include "peer.cuh"

struct Lines {
    uint4* slots;
    u32* marks;
};

__device__ inline Lines lines_of(const PeerArgs& a, u32 owner, u32 epoch, u32 source) {
    const u64 index = ((u64)(epoch & 1) * a.size + source) * a.max_blocks + blockIdx.x;
    const u64 all = (u64)2 * a.size * a.max_blocks * a.slots_per_block;
    uint4* staging = (uint4*)a.staging[owner];
    Lines l;
    l.slots = staging + index * a.slots_per_block;
    l.marks = (u32*)(staging + all) + index * (a.slots_per_block / 8);
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
    if (active)
        asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
__device__ inline uint4 load_line(const uint4* from, bool active) {
    uint4 v = make_uint4(0, 0, 0, 0);
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
extern "C" __global__ void __launch_bounds__(1024, 1)
    parplan_all_gather_lines(const __grid_constant__ PeerArgs a, const uint4* send, uint4* recv, u64 words) {
    after_previous();
    const u32 epoch = begin_call(a);
    const u32 count = (u32)words, lines = (count + 7) / 8;
    const u32 each = (lines + gridDim.x - 1) / gridDim.x;
    const u32 first = each * blockIdx.x < lines ? each * blockIdx.x : lines;
    const u32 mine = first + each < lines ? each : lines - first;
    // Eight threads have one line for one peer at a time, so that lines for all peers are
    // under way at once.
    const u32 lane = threadIdx.x % 8, step = blockDim.x / 8, all = mine * (a.size - 1);
    const bool last = lane == 7;
#pragma unroll 1
    for (u32 base = threadIdx.x / 32 * 4; base < all; base += step) {
        const u32 at = base + threadIdx.x % 32 / 8, k = a.size == 2 ? 0 : at / mine, line = at - k * mine, word = (first + line) * 8 + lane;
        const u32 peer = a.rank + 1 + k < a.size ? a.rank + 1 + k : a.rank + 1 + k - a.size;
        const bool active = at < all, there = active && word < count;
        uint4 v = there ? send[word] : make_uint4(0, 0, 0, 0);
        if (there && k == 0) recv[(u64)a.rank * count + word] = v;
        if (last) v.w = ~v.w;
        const Lines to = lines_of(a, active ? peer : a.rank, epoch, a.rank);
        store_line(to.slots + line * 8 + lane, v, active);
        const bool unseen = active && last && v.w == 0;
        if (__any_sync(0xffffffffu, unseen)) {
            __syncwarp();
            if (unseen) store_mark(to.marks + line, epoch);
        }
    }
    if (a.size == 1)
        for (u32 word = first * 8 + threadIdx.x; word < count && word < (first + mine) * 8; word += blockDim.x) recv[word] = send[word];
#pragma unroll 1
    for (u32 base = threadIdx.x / 32 * 4; base < all; base += step) {
        const u32 at = base + threadIdx.x % 32 / 8, k = a.size == 2 ? 0 : at / mine, line = at - k * mine, word = (first + line) * 8 + lane;
        const u32 peer = a.rank + 1 + k < a.size ? a.rank + 1 + k : a.rank + 1 + k - a.size;
        const bool active = at < all;
        const Lines from = lines_of(a, a.rank, epoch, active ? peer : a.rank);
        uint4* slot = from.slots + line * 8 + lane;
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
    end_call(a, epoch);
}
