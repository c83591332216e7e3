// Runs SIMT kernels under g++: one std::thread for each CUDA thread, barriers for each
// block and each warp. Enough for kernels without textures or inline PTX. Shared memory
// is static, so kernels that use it run one block after the other.
#pragma once
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <sched.h>
#include <thread>
#include <vector>

#define __device__
#define __global__
// Of one block: kernels that use it are launched by shim_launch_in_turn.
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __threadfence_system() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define __launch_bounds__(...)
#define __grid_constant__

struct uint2 {
    unsigned x, y;
};
struct uint4 {
    unsigned x, y, z, w;
};
struct float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct ShimDim {
    unsigned x = 1, y = 1, z = 1;
};
inline thread_local ShimDim threadIdx, blockIdx, blockDim, gridDim;
inline thread_local std::barrier<>* shim_block_barrier = nullptr;

inline void __syncthreads() { shim_block_barrier->arrive_and_wait(); }

// A warp's shuffles go through one slot a lane.
struct ShimWarp {
    std::barrier<> barrier{32};
    uint32_t slots[32];
};
inline thread_local ShimWarp* shim_warp = nullptr;

inline void __syncwarp() { shim_warp->barrier.arrive_and_wait(); }

template <class T>
inline T shim_shuffle(T value, unsigned from) {
    static_assert(sizeof(T) == 4, "shuffles move 4 bytes");
    const unsigned lane = threadIdx.x % 32;
    std::memcpy(&shim_warp->slots[lane], &value, 4);
    __syncwarp();
    T result = value;
    if (from < 32) std::memcpy(&result, &shim_warp->slots[from], 4);
    __syncwarp();
    return result;
}
// Whether any lane of the warp says so.
inline bool __any_sync(unsigned, bool mine) {
    shim_warp->slots[threadIdx.x % 32] = mine;
    __syncwarp();
    bool any = false;
    for (unsigned lane = 0; lane < 32; lane++) any |= shim_warp->slots[lane] != 0;
    __syncwarp();
    return any;
}
template <class T>
inline T __shfl_xor_sync(unsigned, T value, unsigned mask) {
    return shim_shuffle(value, (threadIdx.x % 32) ^ mask);
}
template <class T>
inline T __shfl_up_sync(unsigned, T value, unsigned by) {
    const unsigned lane = threadIdx.x % 32;
    return shim_shuffle(value, lane >= by ? lane - by : lane);
}

inline int atomicAdd(int* at, int value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline void atomicMax(unsigned* to, unsigned value) {
    unsigned seen = __atomic_load_n(to, __ATOMIC_RELAXED);
    while (seen < value && !__atomic_compare_exchange_n(to, &seen, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
}

// All threads of all blocks at once: kernels that wait for other blocks or ranks
// rely on being resident together. What uses a warp's functions needs whole warps. Kernels that use a warp's functions need whole warps.
inline void shim_launch(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
    std::vector<std::unique_ptr<std::barrier<>>> barriers;
    const unsigned warps_of_block = (threads + 31) / 32;
    std::vector<ShimWarp> warps(blocks * warps_of_block);
    std::vector<std::thread> all;
    for (unsigned b = 0; b < blocks; b++) barriers.push_back(std::make_unique<std::barrier<>>(threads));
    for (unsigned b = 0; b < blocks; b++) {
        for (unsigned t = 0; t < threads; t++) {
            all.emplace_back([&, b, t] {
                threadIdx = {t, 0, 0};
                blockIdx = {b, 0, 0};
                blockDim = {threads, 1, 1};
                gridDim = {blocks, 1, 1};
                shim_block_barrier = barriers[b].get();
                shim_warp = &warps[b * warps_of_block + t / 32];
                kernel();
            });
        }
    }
    for (auto& t : all) t.join();
}

// One block of a grid of two dimensions after the other, whole warps of threads: for kernels
// with shared memory or shuffles.
inline void shim_launch_in_turn(unsigned columns, unsigned rows, unsigned threads, const std::function<void()>& kernel) {
    // Static shared memory serves one launch at a time.
    static std::mutex one;
    std::lock_guard<std::mutex> hold(one);
    for (unsigned y = 0; y < rows; y++) {
        for (unsigned x = 0; x < columns; x++) {
            std::barrier<> block(threads);
            std::vector<ShimWarp> warps((threads + 31) / 32);
            std::vector<std::thread> all;
            for (unsigned t = 0; t < threads; t++) {
                all.emplace_back([&, t] {
                    threadIdx = {t, 0, 0};
                    blockIdx = {x, y, 0};
                    blockDim = {threads, 1, 1};
                    gridDim = {columns, rows, 1};
                    shim_block_barrier = &block;
                    shim_warp = &warps[t / 32];
                    kernel();
                    // A thread that returned early no longer counts at the barriers.
                    block.arrive_and_drop();
                    shim_warp->barrier.arrive_and_drop();
                });
            }
            for (auto& t : all) t.join();
        }
    }
}
inline void shim_launch_in_turn(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
    shim_launch_in_turn(blocks, 1, threads, kernel);
}
