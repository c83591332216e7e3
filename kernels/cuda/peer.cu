// Collectives of small messages over memory that the ranks' GPUs map from each other.
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
// One 8-byte atomic store for each half, as the GPU's memory system gives.
__device__ inline void send_packet(Packet* to, u32 data0, u32 data1, u32 flag) {
    __atomic_store_n((u64*)to, (u64)data0 | (u64)flag << 32, __ATOMIC_RELAXED);
    __atomic_store_n((u64*)to + 1, (u64)data1 | (u64)flag << 32, __ATOMIC_RELAXED);
}
__device__ inline bool receive_packet(const Packet* from, u32 flag, u32* data0, u32* data1) {
    u64 a = __atomic_load_n((const u64*)from, __ATOMIC_RELAXED);
    u64 b = __atomic_load_n((const u64*)from + 1, __ATOMIC_RELAXED);
    *data0 = (u32)a;
    *data1 = (u32)b;
    if ((u32)(a >> 32) == flag && (u32)(b >> 32) == flag) return true;
    sched_yield();  // far more threads than cores
    return false;
}
#else
__device__ inline void send_packet(Packet* to, u32 data0, u32 data1, u32 flag) {
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(data0), "r"(flag), "r"(data1), "r"(flag)
                 : "memory");
}
__device__ inline bool receive_packet(const Packet* from, u32 flag, u32* data0, u32* data1) {
    u32 flag0, flag1;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(*data0), "=r"(flag0), "=r"(*data1), "=r"(flag1)
                 : "l"(from)
                 : "memory");
    return flag0 == flag && flag1 == flag;
}
#endif

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

// 8-byte words are dealt to blocks in contiguous runs, so that block b of every rank
// handles the same words.
__device__ inline void my_words(u64 words, u64* begin, u64* end) {
    const u64 each = (words + gridDim.x - 1) / gridDim.x;
    *begin = each * blockIdx.x < words ? each * blockIdx.x : words;
    *end = *begin + each < words ? *begin + each : words;
}

// recv[source] = send of every rank; `words` 8-byte words from each.
extern "C" __global__ void __launch_bounds__(512) parplan_all_gather(const __grid_constant__ PeerArgs a, const uint2* send, uint2* recv, u64 words) {
    const u32 epoch = begin_call(a);
    u64 begin, end;
    my_words(words, &begin, &end);
    for (u64 i = begin + threadIdx.x; i < end; i += blockDim.x) {
        const uint2 v = send[i];
        for (u32 k = 1; k < a.size; k++) {
            const u32 peer = (a.rank + k) % a.size;
            send_packet(slots_of(a, peer, epoch, 0, a.rank) + (i - begin), v.x, v.y, epoch);
        }
        recv[(u64)a.rank * words + i] = v;
    }
    for (u64 i = begin + threadIdx.x; i < end; i += blockDim.x) {
        for (u32 k = 1; k < a.size; k++) {
            const u32 peer = (a.rank + k) % a.size;
            const Packet* from = slots_of(a, a.rank, epoch, 0, peer) + (i - begin);
            uint2 v;
            while (!receive_packet(from, epoch, &v.x, &v.y)) {
            }
            recv[(u64)peer * words + i] = v;
        }
    }
    end_call(a, epoch);
}

// How a word is reduced: two f32, or four bf16 that are summed in f32.
struct SumF32 {
    float acc[2];
    __device__ inline void add(uint2 v) {
        acc[0] += bits_to_f32(v.x);
        acc[1] += bits_to_f32(v.y);
    }
    __device__ inline uint2 get() const { return make_uint2(f32_to_bits(acc[0]), f32_to_bits(acc[1])); }
    __device__ inline void clear() { acc[0] = acc[1] = 0.0f; }
};

struct SumBf16 {
    float acc[4];
    __device__ inline void add(uint2 v) {
        acc[0] += bf16_to_f32((u16)v.x);
        acc[1] += bf16_to_f32((u16)(v.x >> 16));
        acc[2] += bf16_to_f32((u16)v.y);
        acc[3] += bf16_to_f32((u16)(v.y >> 16));
    }
    __device__ inline uint2 get() const {
        return make_uint2((u32)f32_to_bf16(acc[0]) | (u32)f32_to_bf16(acc[1]) << 16,
                          (u32)f32_to_bf16(acc[2]) | (u32)f32_to_bf16(acc[3]) << 16);
    }
    __device__ inline void clear() { acc[0] = acc[1] = acc[2] = acc[3] = 0.0f; }
};

// One shot: everyone sends everything to everyone and reduces by itself. Summed in
// rank order, so all ranks get the same bits.
template <typename Sum>
__device__ inline void all_reduce_one_shot(const PeerArgs& a, const uint2* send, uint2* recv, u64 words) {
    const u32 epoch = begin_call(a);
    u64 begin, end;
    my_words(words, &begin, &end);
    for (u64 i = begin + threadIdx.x; i < end; i += blockDim.x) {
        const uint2 v = send[i];
        for (u32 k = 1; k < a.size; k++) {
            const u32 peer = (a.rank + k) % a.size;
            send_packet(slots_of(a, peer, epoch, 0, a.rank) + (i - begin), v.x, v.y, epoch);
        }
    }
    for (u64 i = begin + threadIdx.x; i < end; i += blockDim.x) {
        const uint2 mine = send[i];
        Sum sum;
        sum.clear();
        for (u32 source = 0; source < a.size; source++) {
            uint2 v = mine;
            if (source != a.rank) {
                const Packet* from = slots_of(a, a.rank, epoch, 0, source) + (i - begin);
                while (!receive_packet(from, epoch, &v.x, &v.y)) {
                }
            }
            sum.add(v);
        }
        recv[i] = sum.get();
    }
    end_call(a, epoch);
}

// Two shots: rank j reduces part j and sends it to everyone: 2/size of the bytes, one
// more hop. `part` words are in a part; words = size * part.
template <typename Sum>
__device__ inline void all_reduce_two_shot(const PeerArgs& a, const uint2* send, uint2* recv, u64 part) {
    const u32 epoch = begin_call(a);
    u64 begin, end;
    my_words(part, &begin, &end);
    for (u64 i = begin + threadIdx.x; i < end; i += blockDim.x) {
        for (u32 k = 1; k < a.size; k++) {
            const u32 peer = (a.rank + k) % a.size;
            const uint2 v = send[(u64)peer * part + i];
            send_packet(slots_of(a, peer, epoch, 0, a.rank) + (i - begin), v.x, v.y, epoch);
        }
    }
    for (u64 i = begin + threadIdx.x; i < end; i += blockDim.x) {
        const uint2 mine = send[(u64)a.rank * part + i];
        Sum sum;
        sum.clear();
        for (u32 source = 0; source < a.size; source++) {
            uint2 v = mine;
            if (source != a.rank) {
                const Packet* from = slots_of(a, a.rank, epoch, 0, source) + (i - begin);
                while (!receive_packet(from, epoch, &v.x, &v.y)) {
                }
            }
            sum.add(v);
        }
        const uint2 total = sum.get();
        for (u32 k = 1; k < a.size; k++) {
            const u32 peer = (a.rank + k) % a.size;
            send_packet(slots_of(a, peer, epoch, 1, a.rank) + (i - begin), total.x, total.y, epoch);
        }
        recv[(u64)a.rank * part + i] = total;
    }
    for (u64 i = begin + threadIdx.x; i < end; i += blockDim.x) {
        for (u32 k = 1; k < a.size; k++) {
            const u32 peer = (a.rank + k) % a.size;
            const Packet* from = slots_of(a, a.rank, epoch, 1, peer) + (i - begin);
            uint2 v;
            while (!receive_packet(from, epoch, &v.x, &v.y)) {
            }
            recv[(u64)peer * part + i] = v;
        }
    }
    end_call(a, epoch);
}

extern "C" __global__ void __launch_bounds__(512)
    parplan_all_reduce_one_shot_f32(const __grid_constant__ PeerArgs a, const uint2* send, uint2* recv, u64 words) {
    all_reduce_one_shot<SumF32>(a, send, recv, words);
}
extern "C" __global__ void __launch_bounds__(512)
    parplan_all_reduce_one_shot_bf16(const __grid_constant__ PeerArgs a, const uint2* send, uint2* recv, u64 words) {
    all_reduce_one_shot<SumBf16>(a, send, recv, words);
}
extern "C" __global__ void __launch_bounds__(512)
    parplan_all_reduce_two_shot_f32(const __grid_constant__ PeerArgs a, const uint2* send, uint2* recv, u64 part) {
    all_reduce_two_shot<SumF32>(a, send, recv, part);
}
extern "C" __global__ void __launch_bounds__(512)
    parplan_all_reduce_two_shot_bf16(const __grid_constant__ PeerArgs a, const uint2* send, uint2* recv, u64 part) {
    all_reduce_two_shot<SumBf16>(a, send, recv, part);
}
