// How ranks send each other packets over memory that their GPUs map from each other.
//
// Every 8 bytes that cross the link carry 4 bytes of data and a 4-byte flag, so data
// and its arrival are one store and there is no barrier: a receiver polls its own
// memory until the flag is the number of this call. (NCCL calls such a protocol LL.)
//
// Staging memory of a rank, as peers see it:
//   [2 parities][2 phases][size ranks][blocks][slots of a block], 16 bytes a slot
// Block b of every call uses only its own slots and its own call number epoch[b], so
// calls of different sizes may follow each other and graphs may be replayed.
//
// Two parities suffice: block b leaves call e+1 only after every peer's block b sent
// its data of call e+1, hence after that peer finished reading call e. The slots of
// call e are written again in call e+2.
#pragma once
#include "parplan.cuh"

#define PARPLAN_MAX_RANKS 8

struct PeerArgs {
    u64 staging[PARPLAN_MAX_RANKS];  // device address of each rank's staging memory
    u64 epoch;                       // u32[max_blocks] of this rank, calls so far
    u32 rank;
    u32 size;
    u32 max_blocks;       // blocks that the staging memory has slots for
    u32 slots_per_block;  // slots of one block, for one source rank, phase and parity
};

struct Packet {
    u32 data0, flag0, data1, flag1;
};

#ifdef PARPLAN_SHIM
// One 8-byte atomic access for each half, as the GPU's memory system gives.
__device__ inline void send_packet(Packet* to, u32 data0, u32 data1, u32 flag) {
    __atomic_store_n((u64*)to, (u64)data0 | (u64)flag << 32, __ATOMIC_RELAXED);
    __atomic_store_n((u64*)to + 1, (u64)data1 | (u64)flag << 32, __ATOMIC_RELAXED);
}
__device__ inline Packet load_packet(const Packet* from) {
    u64 a = __atomic_load_n((const u64*)from, __ATOMIC_RELAXED);
    u64 b = __atomic_load_n((const u64*)from + 1, __ATOMIC_RELAXED);
    return {(u32)a, (u32)(a >> 32), (u32)b, (u32)(b >> 32)};
}
// Far more threads than cores.
__device__ inline void look_again() { sched_yield(); }
#else
__device__ inline void send_packet(Packet* to, u32 data0, u32 data1, u32 flag) {
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(data0), "r"(flag), "r"(data1), "r"(flag)
                 : "memory");
}
__device__ inline Packet load_packet(const Packet* from) {
    Packet p;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(p.data0), "=r"(p.flag0), "=r"(p.data1), "=r"(p.flag1)
                 : "l"(from)
                 : "memory");
    return p;
}
__device__ inline void look_again() {}
#endif

__device__ inline bool has_come(const Packet& p, u32 flag) { return p.flag0 == flag && p.flag1 == flag; }

__device__ inline bool receive_packet(const Packet* from, u32 flag, u32* data0, u32* data1) {
    const Packet p = load_packet(from);
    *data0 = p.data0;
    *data1 = p.data1;
    if (has_come(p, flag)) return true;
    look_again();
    return false;
}

// Waits for one packet of each of `count` sources, at most AT_ONCE, all looked for at once.
template <u32 AT_ONCE>
__device__ inline void receive_packets(const Packet* const (&from)[AT_ONCE], u32 count, u32 flag, uint2 (&data)[AT_ONCE]) {
    u32 missing = (1u << count) - 1;
    for (;;) {
        Packet p[AT_ONCE];
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; j++)
            if (missing >> j & 1) p[j] = load_packet(from[j]);
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; j++) {
            if ((missing >> j & 1) && has_come(p[j], flag)) {
                data[j] = make_uint2(p[j].data0, p[j].data1);
                missing &= ~(1u << j);
            }
        }
        if (missing == 0) return;
        look_again();
    }
}

__device__ inline Packet* slots_of(const PeerArgs& a, u32 owner, u32 epoch, u32 phase, u32 source) {
    const u64 region = ((u64)(epoch & 1) * 2 + phase) * a.size + source;
    const u64 first = (region * a.max_blocks + blockIdx.x) * a.slots_per_block;
    return (Packet*)a.staging[owner] + first;
}

__device__ inline u32 begin_call(const PeerArgs& a) { return ((const u32*)a.epoch)[blockIdx.x] + 1; }

// All threads of the block have read the call number before one of them changes it.
__device__ inline void end_call(const PeerArgs& a, u32 epoch) {
    __syncthreads();
    if (threadIdx.x == 0) ((u32*)a.epoch)[blockIdx.x] = epoch;
}

