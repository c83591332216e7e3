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

struct LineRegion {
    uint4* lines;
    u32* marks;
};

__device__ inline LineRegion lines_of(const PeerArgs& a, u32 owner, u32 epoch, u32 source, u32 block) {
    const u64 index = ((u64)(epoch & 1) * a.size + source) * a.max_blocks + block;
    const u64 all = (u64)2 * a.size * a.max_blocks * a.slots_per_block;
    LineRegion r;
    r.lines = (uint4*)a.staging[owner] + index * a.slots_per_block;
    r.marks = (u32*)((uint4*)a.staging[owner] + all) + index * (a.slots_per_block / 8);
    return r;
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

#define V_TRIGGER 4
#define V_SPLIT 8
#define V_SLEEP 16
#define V_NO_OWN 32
#define V_TRIGGER_LATE 64
#define V_NARROW 512
#define V_PAIR 1024

// recv[source] = send of every rank, `words` of 16 bytes from each; blocks of whole warps.
extern "C" __global__ void __launch_bounds__(1024, 1)
    parplan_gather_lines_x(const __grid_constant__ PeerArgs a, const uint4* send, uint4* recv, u64 words, u32 variant) {
    if (variant & V_TRIGGER) let_next_come();
    after_previous();
    const u32 epoch = begin_call(a);
    const bool split = variant & V_SPLIT;
    const u32 blocks = split ? gridDim.x / 2 : gridDim.x, block = split && blockIdx.x >= blocks ? blockIdx.x - blocks : blockIdx.x;
    const bool sends = !split || blockIdx.x < blocks, receives = !split || blockIdx.x >= blocks;
    const u32 count = (u32)words, lines = (count + 7) / 8, each = (lines + blocks - 1) / blocks;
    const u32 first = each * block < lines ? each * block : lines;
    const u32 mine = first + each < lines ? each : lines - first;
    // Eight threads have one line for one peer at a time, so that lines for all peers are
    // under way at once.
    const u32 lane = threadIdx.x % 8, step = blockDim.x / 8, all = mine * (a.size - 1);
    const bool last = lane == 7;
#ifndef PARPLAN_SHIM
    if (sends && (variant & V_PAIR) && a.size == 2) {
        const u32 peer = 1 - a.rank;
        const LineRegion to = lines_of(a, peer, epoch, a.rank, block);
#pragma unroll 1
        for (u32 i = threadIdx.x; i < mine * 8; i += 4 * blockDim.x) {
            uint4 v[4];
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const u32 at = i + j * blockDim.x;
                v[j] = at < mine * 8 && first * 8 + at < count ? send[first * 8 + at] : make_uint4(0, 0, 0, 0);
            }
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const u32 at = i + j * blockDim.x;
                const bool active = at < mine * 8;
                uint4 w = v[j];
                if (last) w.w = ~w.w;
                store_line(to.lines + at, w, active);
                const bool unseen = active && last && w.w == 0;
                if (__any_sync(0xffffffffu, unseen)) {
                    __syncwarp();
                    if (unseen) store_mark(to.marks + at / 8, epoch);
                }
                if (active && first * 8 + at < count && !split && !(variant & V_NO_OWN)) recv[(u64)a.rank * count + first * 8 + at] = v[j];
            }
        }
    } else
#endif
    if (sends)
#pragma unroll 1
        for (u32 base = threadIdx.x / 32 * 4; base < all; base += step) {
            const u32 at = base + threadIdx.x % 32 / 8, k = a.size == 2 ? 0 : at / mine, line = at - k * mine, word = (first + line) * 8 + lane;
            const u32 peer = a.rank + 1 + k < a.size ? a.rank + 1 + k : a.rank + 1 + k - a.size;
            const bool active = at < all, full = active && word < count;
            uint4 v = full ? send[word] : make_uint4(0, 0, 0, 0);
            if (full && k == 0 && !split && !(variant & V_NO_OWN)) recv[(u64)a.rank * count + word] = v;
            if (last) v.w = ~v.w;
            const LineRegion to = lines_of(a, active ? peer : a.rank, epoch, a.rank, block);
            store_line(to.lines + line * 8 + lane, v, active);
            const bool unseen = active && last && v.w == 0;
            if (__any_sync(0xffffffffu, unseen)) {
                __syncwarp();
                if (unseen) store_mark(to.marks + line, epoch);
            }
        }
    if (variant & V_TRIGGER_LATE) let_next_come();
    if (split && receives && !(variant & V_NO_OWN))
        for (u32 word = first * 8 + threadIdx.x; word < count && word < (first + mine) * 8; word += blockDim.x) recv[(u64)a.rank * count + word] = send[word];
    if (a.size == 1)
        for (u32 word = first * 8 + threadIdx.x; word < count && word < (first + mine) * 8; word += blockDim.x) recv[word] = send[word];
    if (receives)
#pragma unroll 1
        for (u32 base = threadIdx.x / 32 * 4; base < all; base += step) {
            const u32 at = base + threadIdx.x % 32 / 8, k = a.size == 2 ? 0 : at / mine, line = at - k * mine, word = (first + line) * 8 + lane;
            const u32 peer = a.rank + 1 + k < a.size ? a.rank + 1 + k : a.rank + 1 + k - a.size;
            const bool active = at < all;
            const LineRegion from = lines_of(a, a.rank, epoch, active ? peer : a.rank, block);
            uint4* slot = from.lines + line * 8 + lane;
            uint4 v;
            u32 polls = 0;
            bool marked = false, waiting;
#ifndef PARPLAN_SHIM
            if (variant & V_NARROW) {
                bool missing;
                do {
                    u32 w = 1;
                    if (active && last) asm volatile("ld.volatile.global.u32 %0, [%1];" : "=r"(w) : "l"(&slot->w) : "memory");
                    missing = w == 0;
                    if (++polls % POLLS == 0) {
                        marked = marked || (missing && load_mark(from.marks + line) == epoch);
                        __syncwarp();
                    }
                } while (__any_sync(0xffffffffu, missing && !marked));
            }
#endif
            do {
                v = load_line(slot, active);
                waiting = active && last && v.w == 0 && !marked;
                if (++polls % POLLS == 0) {
                    marked = marked || (waiting && load_mark(from.marks + line) == epoch);
                    __syncwarp();  // what follows a mark is loaded once more
                }
#ifndef PARPLAN_SHIM
                if ((variant & V_SLEEP) && waiting) __nanosleep(100);
#endif
            } while (__any_sync(0xffffffffu, waiting));
            if (active && last) {
                if (v.w != 0) slot->w = 0;
                v.w = ~v.w;
            }
            if (active && word < count) recv[(u64)peer * count + word] = v;
        }
    end_call(a, epoch);
}

// All-gather by lines of 128 bytes: 15 words of 8 bytes and, in the last 8 bytes, the
// number of the call. Eight neighbouring threads of a warp store a line in one
// instruction and load it in one, and NVLink and the GPU's memory keep such a line whole,
// so that data and arrival are one store as with packets, at 15/16 of the link instead of
// half of it. (NCCL calls this LL128 and uses it over NVLink from Volta on.) Received
// words are copied on while the next lines are still on their way.
//
// Staging of a rank: [2 parities][size sources][blocks][slots of a block], 16 bytes a slot,
// eight slots a line. Why two parities suffice stands in peer.cuh; a block without lines
// relies on those of the same launch that have some.
#define LINE_WORDS 15

__device__ inline uint4* old_lines_of(const PeerArgs& a, u32 owner, u32 epoch, u32 source) {
    const u64 region = (u64)(epoch & 1) * a.size + source;
    return (uint4*)a.staging[owner] + (region * a.max_blocks + blockIdx.x) * a.slots_per_block;
}

// Whole warps call these; lanes whose line does not exist are not `active`. The flag is
// the last element of what every eighth lane has.
#ifdef PARPLAN_SHIM
__device__ inline void send_line(uint4* to, uint4 v, bool active) {
    const bool last = threadIdx.x % 8 == 7;
    if (active && !last) *to = v;
    if (active && last) to->x = v.x, to->y = v.y;
    __syncwarp();
    if (active && last) __atomic_store_n((u64*)to + 1, (u64)v.z | (u64)v.w << 32, __ATOMIC_RELEASE);
}
__device__ inline uint4 receive_line(const uint4* from, u32 flag, bool active) {
    const bool last = threadIdx.x % 8 == 7;
    bool waiting;
    do {
        waiting = active && last && (u32)(__atomic_load_n((const u64*)from + 1, __ATOMIC_ACQUIRE) >> 32) != flag;
        if (waiting) sched_yield();
    } while (__any_sync(0xffffffffu, waiting));
    return active ? *from : make_uint4(0, 0, 0, 0);
}
#else
__device__ inline void send_line(uint4* to, uint4 v, bool active) {
    if (active)
        asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
__device__ inline uint4 receive_line(const uint4* from, u32 flag, bool active) {
    uint4 v = make_uint4(0, 0, 0, flag);
    bool waiting;
    do {
        if (active)
            asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
        waiting = threadIdx.x % 8 == 7 && v.w != flag;
    } while (__any_sync(0xffffffffu, waiting));
    return v;
}
#endif

// recv[source] = send of every rank, `words` 8-byte words from each; blocks of whole warps.
extern "C" __global__ void __launch_bounds__(1024)
    parplan_all_gather_lines(const __grid_constant__ PeerArgs a, const uint2* send, uint2* recv, u64 words) {
    const u32 epoch = begin_call(a);
    const u32 count = (u32)words, lines = (count + LINE_WORDS - 1) / LINE_WORDS;
    const u32 each = (lines + gridDim.x - 1) / gridDim.x;
    const u32 first = each * blockIdx.x < lines ? each * blockIdx.x : lines;
    const u32 mine = first + each < lines ? each : lines - first;
    // Eight threads have one line for one peer at a time, so that lines for all peers are
    // under way at once. The words of a thread are `lane` and `lane + 8`; the last has but one.
    const u32 lane = threadIdx.x % 8, step = blockDim.x / 8, all = mine * (a.size - 1);
    for (u32 base = threadIdx.x / 32 * 4; base < all; base += step) {
        const u32 at = base + threadIdx.x % 32 / 8, k = a.size == 2 ? 0 : at / mine, line = at - k * mine, word = (first + line) * LINE_WORDS + lane;
        const u32 peer = a.rank + 1 + k < a.size ? a.rank + 1 + k : a.rank + 1 + k - a.size;
        const bool active = at < all, low = active && word < count, high = active && lane < 7 && word + 8 < count;
        const uint2 v = low ? send[word] : make_uint2(0, 0);
        const uint2 w = high ? send[word + 8] : make_uint2(epoch, epoch);
        send_line(old_lines_of(a, active ? peer : a.rank, epoch, a.rank) + line * 8 + lane, make_uint4(v.x, v.y, w.x, w.y), active);
        uint2* to = recv + (u64)a.rank * count + word;
        if (low && k == 0) to[0] = v;
        if (high && k == 0) to[8] = w;
    }
    if (a.size == 1)
        for (u32 word = first * LINE_WORDS + threadIdx.x; word < count && word < (first + mine) * LINE_WORDS; word += blockDim.x) recv[word] = send[word];
    for (u32 base = threadIdx.x / 32 * 4; base < all; base += step) {
        const u32 at = base + threadIdx.x % 32 / 8, k = a.size == 2 ? 0 : at / mine, line = at - k * mine, word = (first + line) * LINE_WORDS + lane;
        const u32 peer = a.rank + 1 + k < a.size ? a.rank + 1 + k : a.rank + 1 + k - a.size;
        const bool active = at < all;
        const uint4 v = receive_line(old_lines_of(a, a.rank, epoch, active ? peer : a.rank) + line * 8 + lane, epoch, active);
        uint2* to = recv + (u64)peer * count + word;
        if (active && word < count) to[0] = make_uint2(v.x, v.y);
        if (active && lane < 7 && word + 8 < count) to[8] = make_uint2(v.z, v.w);
    }
    end_call(a, epoch);
}
