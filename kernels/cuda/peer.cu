// Collectives of small messages over memory that the ranks' GPUs map from each other.
// The protocol is in peer.cuh.
//
// Every kernel is there twice. With two ranks there is one packet to wait for; with more
// (`_many`) the packets of up to four ranks are looked for at once, since one after the
// other each costs the latency of memory anew. One kernel for both would do, but its code,
// which is read from memory when a kernel starts, takes two ranks 0.3 of 2.0 us longer.
#include "peer.cuh"

// 8-byte words are dealt to blocks in contiguous runs, so that block b of every rank
// handles the same words.
__device__ inline void my_words(u64 words, u64* begin, u64* end) {
    const u64 each = (words + gridDim.x - 1) / gridDim.x;
    *begin = each * blockIdx.x < words ? each * blockIdx.x : words;
    *end = *begin + each < words ? *begin + each : words;
}

#define MANY 4

// Takes slot `slot` of phase `phase` from all other ranks, in the order of their numbers:
// take(source, data).
template <u32 AT_ONCE, typename Take>
__device__ inline void receive_from_others(const PeerArgs& a, u32 epoch, u32 phase, u64 slot, Take take) {
    for (u32 first = 0; first + 1 < a.size; first += AT_ONCE) {
        const u32 count = a.size - 1 - first < AT_ONCE ? a.size - 1 - first : AT_ONCE;
        const Packet* from[AT_ONCE] = {};
        uint2 data[AT_ONCE] = {};
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; j++) {
            const u32 other = first + j;
            const u32 source = other < a.rank ? other : other + 1;
            if (j < count) from[j] = slots_of(a, a.rank, epoch, phase, source) + slot;
        }
        receive_packets<AT_ONCE>(from, count, epoch, data);
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; j++) {
            const u32 other = first + j;
            if (j < count) take(other < a.rank ? other : other + 1, data[j]);
        }
    }
}

// The sum of everyone's word in slot `slot`, `mine` in its place: in the order of ranks, so
// that all come to the same bits.
template <u32 AT_ONCE, typename Sum>
__device__ inline uint2 sum_of_all(const PeerArgs& a, u32 epoch, u64 slot, uint2 mine) {
    Sum sum;
    sum.clear();
    receive_from_others<AT_ONCE>(a, epoch, 0, slot, [&](u32 source, uint2 v) {
        if (source == a.rank + 1) sum.add(mine);
        sum.add(v);
    });
    if (a.rank + 1 == a.size) sum.add(mine);
    return sum.get();
}

// recv[source] = send of every rank; `words` 8-byte words from each.
template <u32 AT_ONCE>
__device__ inline void all_gather(const PeerArgs& a, const uint2* send, uint2* recv, u64 words) {
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
    for (u64 i = begin + threadIdx.x; i < end; i += blockDim.x)
        receive_from_others<AT_ONCE>(a, epoch, 0, i - begin, [&](u32 source, uint2 v) { recv[(u64)source * words + i] = v; });
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

// One shot: everyone sends everything to everyone and reduces by itself.
template <u32 AT_ONCE, typename Sum>
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
    for (u64 i = begin + threadIdx.x; i < end; i += blockDim.x) recv[i] = sum_of_all<AT_ONCE, Sum>(a, epoch, i - begin, send[i]);
    end_call(a, epoch);
}

// Two shots: rank j reduces part j and sends it to everyone: 2/size of the bytes, one
// more hop. `part` words are in a part; words = size * part.
template <u32 AT_ONCE, typename Sum>
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
        const uint2 total = sum_of_all<AT_ONCE, Sum>(a, epoch, i - begin, send[(u64)a.rank * part + i]);
        for (u32 k = 1; k < a.size; k++) {
            const u32 peer = (a.rank + k) % a.size;
            send_packet(slots_of(a, peer, epoch, 1, a.rank) + (i - begin), total.x, total.y, epoch);
        }
        recv[(u64)a.rank * part + i] = total;
    }
    for (u64 i = begin + threadIdx.x; i < end; i += blockDim.x)
        receive_from_others<AT_ONCE>(a, epoch, 1, i - begin, [&](u32 source, uint2 v) { recv[(u64)source * part + i] = v; });
    end_call(a, epoch);
}

#define ENTRY(name) \
    extern "C" __global__ void __launch_bounds__(512) name(const __grid_constant__ PeerArgs a, const uint2* send, uint2* recv, u64 words)

ENTRY(parplan_all_gather) { all_gather<1>(a, send, recv, words); }
ENTRY(parplan_all_gather_many) { all_gather<MANY>(a, send, recv, words); }
ENTRY(parplan_all_reduce_one_shot_f32) { all_reduce_one_shot<1, SumF32>(a, send, recv, words); }
ENTRY(parplan_all_reduce_one_shot_f32_many) { all_reduce_one_shot<MANY, SumF32>(a, send, recv, words); }
ENTRY(parplan_all_reduce_one_shot_bf16) { all_reduce_one_shot<1, SumBf16>(a, send, recv, words); }
ENTRY(parplan_all_reduce_one_shot_bf16_many) { all_reduce_one_shot<MANY, SumBf16>(a, send, recv, words); }
// `words`: of a part.
ENTRY(parplan_all_reduce_two_shot_f32) { all_reduce_two_shot<1, SumF32>(a, send, recv, words); }
ENTRY(parplan_all_reduce_two_shot_f32_many) { all_reduce_two_shot<MANY, SumF32>(a, send, recv, words); }
ENTRY(parplan_all_reduce_two_shot_bf16) { all_reduce_two_shot<1, SumBf16>(a, send, recv, words); }
ENTRY(parplan_all_reduce_two_shot_bf16_many) { all_reduce_two_shot<MANY, SumBf16>(a, send, recv, words); }
