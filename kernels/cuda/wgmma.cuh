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

// Products of 16-bit operands, bf16 or f16, added in f32: shape, first operand and flags as
// text, so that each is written once for both types. Operands: the results, then `a`, then b.
#define RESULTS_32 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
#define RESULTS_64 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
#define RESULTS_96 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
#define IN_OUT_32(d, at) \
    "+f"(d[(at) + 0]), "+f"(d[(at) + 1]), "+f"(d[(at) + 2]), "+f"(d[(at) + 3]), \
    "+f"(d[(at) + 4]), "+f"(d[(at) + 5]), "+f"(d[(at) + 6]), "+f"(d[(at) + 7]), \
    "+f"(d[(at) + 8]), "+f"(d[(at) + 9]), "+f"(d[(at) + 10]), "+f"(d[(at) + 11]), \
    "+f"(d[(at) + 12]), "+f"(d[(at) + 13]), "+f"(d[(at) + 14]), "+f"(d[(at) + 15]), \
    "+f"(d[(at) + 16]), "+f"(d[(at) + 17]), "+f"(d[(at) + 18]), "+f"(d[(at) + 19]), \
    "+f"(d[(at) + 20]), "+f"(d[(at) + 21]), "+f"(d[(at) + 22]), "+f"(d[(at) + 23]), \
    "+f"(d[(at) + 24]), "+f"(d[(at) + 25]), "+f"(d[(at) + 26]), "+f"(d[(at) + 27]), \
    "+f"(d[(at) + 28]), "+f"(d[(at) + 29]), "+f"(d[(at) + 30]), "+f"(d[(at) + 31])
#define IN_OUT_64(d, at) IN_OUT_32(d, at), IN_OUT_32(d, (at) + 32)
#define PRODUCT(shape, type, rest) "wgmma.mma_async.sync.aligned." shape "k16.f32." type "." type " " rest ";\n"
#define ADD_IF(flag, product) "{\n.reg .pred p;\nsetp.ne.b32 p, " flag ", 0;\n" product "}\n"

// d[64x64] (+)= a[64x16] * b[64x16]^T, both in shared memory; `add` false: d starts from 0.
template <bool f16>
__device__ inline void multiply_64x64(float (&d)[32], u64 a, u64 b, bool add) {
#define TEXT(type) ADD_IF("%34", PRODUCT("m64n64", type, RESULTS_32 "%32, %33, p, 1, 1, 0, 0"))
    if (f16)
        asm volatile(TEXT("f16") : IN_OUT_32(d, 0) : "l"(a), "l"(b), "r"((int)add));
    else
        asm volatile(TEXT("bf16") : IN_OUT_32(d, 0) : "l"(a), "l"(b), "r"((int)add));
#undef TEXT
}
// The same with a in registers, as mma.m16n8k16 has it.
template <bool f16>
__device__ inline void multiply_64x64_registers(float (&d)[32], const u32 (&a)[4], u64 b, bool add) {
#define TEXT(type) ADD_IF("%37", PRODUCT("m64n64", type, RESULTS_32 "{%32, %33, %34, %35}, %36, p, 1, 1, 0"))
    if (f16)
        asm volatile(TEXT("f16") : IN_OUT_32(d, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
    else
        asm volatile(TEXT("bf16") : IN_OUT_32(d, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
#undef TEXT
}
// The same with b[columns x 16], columns 64, 128 or 192, bf16, registers `at` on; d is always added to.
template <int columns, int at, int count>
__device__ inline void multiply_rows(float (&d)[count], u64 a, u64 b) {
    if constexpr (columns == 64)
        asm volatile(PRODUCT("m64n64", "bf16", RESULTS_32 "%32, %33, 1, 1, 1, 0, 0") : IN_OUT_32(d, at) : "l"(a), "l"(b));
    else if constexpr (columns == 128)
        asm volatile(PRODUCT("m64n128", "bf16", RESULTS_64 "%64, %65, 1, 1, 1, 0, 0") : IN_OUT_64(d, at) : "l"(a), "l"(b));
    else
        asm volatile(PRODUCT("m64n192", "bf16", RESULTS_96 "%96, %97, 1, 1, 1, 0, 0") : IN_OUT_64(d, at), IN_OUT_32(d, (at) + 64) : "l"(a), "l"(b));
}
// The same with a in registers, as mma.m16n8k16 has it, and 64 or 128 columns.
template <int columns, int at, int count>
__device__ inline void multiply_rows_registers(float (&d)[count], const u32 (&a)[4], u64 b) {
#define LEFT "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
    if constexpr (columns == 64)
        asm volatile(PRODUCT("m64n64", "bf16", RESULTS_32 "{%32, %33, %34, %35}, %36, 1, 1, 1, 0") : IN_OUT_32(d, at) : LEFT, "l"(b));
    else
        asm volatile(PRODUCT("m64n128", "bf16", RESULTS_64 "{%64, %65, %66, %67}, %68, 1, 1, 1, 0") : IN_OUT_64(d, at) : LEFT, "l"(b));
#undef LEFT
}
// d[64x128] (+)= a[64x16] * b[128x16]^T, bf16, both in shared memory; `add` false: d starts from 0.
__device__ inline void multiply_64x128_of(float (&d)[64], u64 a, u64 b, bool add) {
    asm volatile(ADD_IF("%66", PRODUCT("m64n128", "bf16", RESULTS_64 "%64, %65, p, 1, 1, 0, 0")) : IN_OUT_64(d, 0) : "l"(a), "l"(b), "r"((int)add));
}
// d[64x128], registers 64 * part on, += a[64x16] * b[16x128]; the rows of b are its 16.
template <bool f16, int part>
__device__ inline void multiply_64x128(float (&d)[128], u64 a, u64 b) {
#define TEXT(type) PRODUCT("m64n128", type, RESULTS_64 "%64, %65, 1, 1, 1, 0, 1")
    if (f16)
        asm volatile(TEXT("f16") : IN_OUT_64(d, 64 * part) : "l"(a), "l"(b));
    else
        asm volatile(TEXT("bf16") : IN_OUT_64(d, 64 * part) : "l"(a), "l"(b));
#undef TEXT
}
// The same with a in registers, as mma.m16n8k16 has it.
template <bool f16, int part, int count>
__device__ inline void multiply_64x128_registers(float (&d)[count], const u32 (&a)[4], u64 b) {
#define TEXT(type) PRODUCT("m64n128", type, RESULTS_64 "{%64, %65, %66, %67}, %68, 1, 1, 1, 1")
    if (f16)
        asm volatile(TEXT("f16") : IN_OUT_64(d, 64 * part) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    else
        asm volatile(TEXT("bf16") : IN_OUT_64(d, 64 * part) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#undef TEXT
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
// Whether the phase of that parity has ended, for all lanes of the warp alike.
__device__ inline bool barrier_passed(u32 barrier, u32 parity) {
    u32 done;
    asm volatile(
        "{\n.reg .pred done;\n"
        "mbarrier.test_wait.parity.acquire.cta.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    return __all_sync(0xffffffffu, done != 0);
}
// Eight e4m3 as eight f16, in order.
__device__ inline uint4 e4m3_to_f16(u32 low, u32 high) {
    uint4 r;
    asm("{\n.reg .b16 a, b, c, d;\nmov.b32 {a, b}, %4;\nmov.b32 {c, d}, %5;\n"
        "cvt.rn.f16x2.e4m3x2 %0, a;\ncvt.rn.f16x2.e4m3x2 %1, b;\ncvt.rn.f16x2.e4m3x2 %2, c;\ncvt.rn.f16x2.e4m3x2 %3, d;\n}\n"
        : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
        : "r"(low), "r"(high));
    return r;
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
