// Warpgroup products (wgmma), barriers in shared memory and register shares of sm_90a.
#pragma once
#include "parplan.cuh"

// A number that a template takes from a function's argument.
template <u32 number>
struct Constant {
    static constexpr u32 value = number;
};

#if __CUDA_ARCH__ >= 900

// A tile of 16-bit elements in shared memory with rows of 128 bytes, 16-byte chunks
// swizzled by (row & 7), 1024-byte aligned. Offsets in bytes: `leading` to the next 64
// elements along a transposed operand's rows (not used otherwise), `stride` to the next
// eight rows.
__device__ inline u64 tile_descriptor(u32 address, u32 leading, u32 stride) {
    return (u64)((address & 0x3ffff) >> 4) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 | (u64)1 << 62;
}

__device__ inline void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most `pending` of the groups committed last are under way.
template <int pending>
__device__ inline void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
// The compiler takes a product's results to be there at once; behind this they are read
// after the wait that stands before it.
template <int count>
__device__ inline void results_are_here(float (&d)[count]) {
#pragma unroll
    for (int i = 0; i < count; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// d[64x64] (+)= a[64x16] * b[64x16]^T, both in shared memory; `add` false: d starts from 0.
__device__ inline void multiply_64x64(float (&d)[32], u64 a, u64 b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "%32, %33, p, 1, 1, 0, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "l"(a), "l"(b), "r"((int)add));
}
// The same with a in registers, as mma.m16n8k16 has it.
__device__ inline void multiply_64x64_registers(float (&d)[32], const u32 (&a)[4], u64 b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}
// d[64x128], columns 64 * part on of the 128 registers (+)= a[64x16] * b[16x128]; the rows
// of b are its 16.
template <int part>
__device__ inline void multiply_64x128(float (&d)[128], u64 a, u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, "
        "%56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, 1, 1, 1, 0, 1;\n"
        : "+f"(d[64 * part + 0]), "+f"(d[64 * part + 1]), "+f"(d[64 * part + 2]), "+f"(d[64 * part + 3]),
          "+f"(d[64 * part + 4]), "+f"(d[64 * part + 5]), "+f"(d[64 * part + 6]), "+f"(d[64 * part + 7]),
          "+f"(d[64 * part + 8]), "+f"(d[64 * part + 9]), "+f"(d[64 * part + 10]), "+f"(d[64 * part + 11]),
          "+f"(d[64 * part + 12]), "+f"(d[64 * part + 13]), "+f"(d[64 * part + 14]), "+f"(d[64 * part + 15]),
          "+f"(d[64 * part + 16]), "+f"(d[64 * part + 17]), "+f"(d[64 * part + 18]), "+f"(d[64 * part + 19]),
          "+f"(d[64 * part + 20]), "+f"(d[64 * part + 21]), "+f"(d[64 * part + 22]), "+f"(d[64 * part + 23]),
          "+f"(d[64 * part + 24]), "+f"(d[64 * part + 25]), "+f"(d[64 * part + 26]), "+f"(d[64 * part + 27]),
          "+f"(d[64 * part + 28]), "+f"(d[64 * part + 29]), "+f"(d[64 * part + 30]), "+f"(d[64 * part + 31]),
          "+f"(d[64 * part + 32]), "+f"(d[64 * part + 33]), "+f"(d[64 * part + 34]), "+f"(d[64 * part + 35]),
          "+f"(d[64 * part + 36]), "+f"(d[64 * part + 37]), "+f"(d[64 * part + 38]), "+f"(d[64 * part + 39]),
          "+f"(d[64 * part + 40]), "+f"(d[64 * part + 41]), "+f"(d[64 * part + 42]), "+f"(d[64 * part + 43]),
          "+f"(d[64 * part + 44]), "+f"(d[64 * part + 45]), "+f"(d[64 * part + 46]), "+f"(d[64 * part + 47]),
          "+f"(d[64 * part + 48]), "+f"(d[64 * part + 49]), "+f"(d[64 * part + 50]), "+f"(d[64 * part + 51]),
          "+f"(d[64 * part + 52]), "+f"(d[64 * part + 53]), "+f"(d[64 * part + 54]), "+f"(d[64 * part + 55]),
          "+f"(d[64 * part + 56]), "+f"(d[64 * part + 57]), "+f"(d[64 * part + 58]), "+f"(d[64 * part + 59]),
          "+f"(d[64 * part + 60]), "+f"(d[64 * part + 61]), "+f"(d[64 * part + 62]), "+f"(d[64 * part + 63])
        : "l"(a), "l"(b));
}
// The same with a in registers, as mma.m16n8k16 has it.
template <int part>
__device__ inline void multiply_64x128_registers(float (&d)[128], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, "
        "%56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
        : "+f"(d[64 * part + 0]), "+f"(d[64 * part + 1]), "+f"(d[64 * part + 2]), "+f"(d[64 * part + 3]),
          "+f"(d[64 * part + 4]), "+f"(d[64 * part + 5]), "+f"(d[64 * part + 6]), "+f"(d[64 * part + 7]),
          "+f"(d[64 * part + 8]), "+f"(d[64 * part + 9]), "+f"(d[64 * part + 10]), "+f"(d[64 * part + 11]),
          "+f"(d[64 * part + 12]), "+f"(d[64 * part + 13]), "+f"(d[64 * part + 14]), "+f"(d[64 * part + 15]),
          "+f"(d[64 * part + 16]), "+f"(d[64 * part + 17]), "+f"(d[64 * part + 18]), "+f"(d[64 * part + 19]),
          "+f"(d[64 * part + 20]), "+f"(d[64 * part + 21]), "+f"(d[64 * part + 22]), "+f"(d[64 * part + 23]),
          "+f"(d[64 * part + 24]), "+f"(d[64 * part + 25]), "+f"(d[64 * part + 26]), "+f"(d[64 * part + 27]),
          "+f"(d[64 * part + 28]), "+f"(d[64 * part + 29]), "+f"(d[64 * part + 30]), "+f"(d[64 * part + 31]),
          "+f"(d[64 * part + 32]), "+f"(d[64 * part + 33]), "+f"(d[64 * part + 34]), "+f"(d[64 * part + 35]),
          "+f"(d[64 * part + 36]), "+f"(d[64 * part + 37]), "+f"(d[64 * part + 38]), "+f"(d[64 * part + 39]),
          "+f"(d[64 * part + 40]), "+f"(d[64 * part + 41]), "+f"(d[64 * part + 42]), "+f"(d[64 * part + 43]),
          "+f"(d[64 * part + 44]), "+f"(d[64 * part + 45]), "+f"(d[64 * part + 46]), "+f"(d[64 * part + 47]),
          "+f"(d[64 * part + 48]), "+f"(d[64 * part + 49]), "+f"(d[64 * part + 50]), "+f"(d[64 * part + 51]),
          "+f"(d[64 * part + 52]), "+f"(d[64 * part + 53]), "+f"(d[64 * part + 54]), "+f"(d[64 * part + 55]),
          "+f"(d[64 * part + 56]), "+f"(d[64 * part + 57]), "+f"(d[64 * part + 58]), "+f"(d[64 * part + 59]),
          "+f"(d[64 * part + 60]), "+f"(d[64 * part + 61]), "+f"(d[64 * part + 62]), "+f"(d[64 * part + 63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ inline void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ inline void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives once this thread's asynchronous copies so far are done; does not wait.
__device__ inline void barrier_arrive_after_copies(u32 barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
// Waits for the end of the phase of that parity.
__device__ inline void barrier_wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}\n" ::"r"(barrier),
        "r"(parity)
        : "memory");
}
// What was written by ordinary stores or copies is seen by products that follow.
__device__ inline void fence_for_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <u32 id, u32 threads>
__device__ inline void sync_warpgroups() {
    asm volatile("bar.sync %0, %1;" ::"n"(id), "n"(threads) : "memory");
}
template <int registers>
__device__ inline void registers_up() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ inline void registers_down() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}
#endif
