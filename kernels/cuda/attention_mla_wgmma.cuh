// The loading side of attention_mla_wgmma.cu, and the shared memory that it fills.
#pragma once
#include "attention.cuh"
#include "mma.cuh"
#include "wgmma.cuh"

#define WG_UNIT 64
#define BLOCK 8192  // bytes of 64 rows of 64 elements
#define K_BYTES (9 * BLOCK)
#define SHARED_K (8 * BLOCK)  // behind the latent part of the queries
#define SHARED_P (SHARED_K + 2 * K_BYTES)
#define SHARED_F32 (SHARED_P + 2 * BLOCK)
#define SHARED_BARRIERS (SHARED_F32 + 4 * 64 * 4)

// Groups of columns of a unit: 128 latent ones each, and the rotary ones.
#define GROUPS 5
#define ROTARY 4
// Groups of e4m3 that are on their way while one is made f16.
#define AHEAD 3

// Barriers, by offset.
#define FULL(unit, group) (SHARED_BARRIERS + 8 * (GROUPS * (unit) + (group)))
#define EMPTY(unit, group) (SHARED_BARRIERS + 80 + 8 * (GROUPS * (unit) + (group)))
#define P_FULL(unit) (SHARED_BARRIERS + 160 + 8 * (unit))
#define Q_FULL (SHARED_BARRIERS + 176)
#define Q_EMPTY (SHARED_BARRIERS + 184)

// One segment: what a block has of one item, which with a single KV head is a tile.
struct Segment {
    TileRecord tile;
    u32 first, count, units;
};

// Walks the segments of a chunk.
struct Segments {
    u32 tile, unit, left;
    __device__ inline bool next(const AttentionArgs& a, const PlanView& p, Segment* s) {
        if (left == 0) return false;
        s->tile = p.tiles[tile];
        s->units = tile_units(a, s->tile.limit);
        s->first = unit;
        s->count = s->units - unit < left ? s->units - unit : left;
        left -= s->count;
        unit = 0;
        tile++;
        return true;
    }
};

#if __CUDA_ARCH__ >= 900

// The order in which the groups of a unit come free, which is the order in which they are
// loaded: the rotary columns, then a side's own half.
__device__ inline constexpr u32 group_at(u32 unit, u32 i) { return i == 0 ? ROTARY : unit == 0 ? i - 1 : (i + 1) % 4; }

#define NO_ROW 0xffffffffu

// The loading warpgroup. Eight threads bring 128 bytes of a row; a thread serves four rows, 16
// apart, and a warp's rows are its own.
template <bool fp8>
struct Loader {
    const AttentionArgs& a;
    unsigned char* shared;
    u32 base, half_rows, c, first_row, place;
    // The cache's row of one of the four, which this thread looks up for the eight: of the unit that is
    // being copied and of the one after it.
    u32 row, next;

    __device__ inline Loader(const AttentionArgs& a, unsigned char* shared, u32 half_rows) : a(a), shared(shared), base(shared_address(shared)), half_rows(half_rows) {
        c = threadIdx.x % 8;
        first_row = threadIdx.x % 128 / 8;
        place = first_row * 128 + ((c ^ (first_row & 7)) << 4);
    }
    __device__ inline void look_up(const Segment& s, u32 unit) {
        const u32 token = unit * WG_UNIT + first_row + 16 * (c % 4);
        next = NO_ROW;
        if (token >= s.tile.limit || unit >= s.first + s.count) return;
        u32 page, in_page;
        find_page(a, token, page, in_page);
        next = __ldg((const u32*)a.page_table + (u64)s.tile.request * a.max_pages + page) * a.page + in_page;
    }
    __device__ inline void begin_unit(const Segment& s, u32 unit_after) {
        row = next;
        look_up(s, unit_after);
    }
    // The i-th of the four.
    __device__ inline u32 row_at(u32 i) const { return __shfl_sync(0xffffffffu, row, i, 8); }
    // Brings 128 bytes of each row to a tile, `mine` of this thread; zeros where there is no row.
    __device__ inline void copy(u32 tile, u64 from, u32 row_bytes, bool mine = true) const {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 at = row_at(i);
            const bool valid = at != NO_ROW;
            if (mine) copy16(base + tile * BLOCK + place + i * 2048, (const char*)from + (valid ? (u64)at * row_bytes : 0) + c * 16, valid);
        }
    }
    __device__ inline void queries(const Segment& s) {
        const u32 in_tile = half_rows + first_row + 16 * (c % 4), in_request = s.tile.row_begin + in_tile;
        row = in_tile < s.tile.rows ? (u32)part_row(a, a.q_part_heads, s.tile.token_begin + in_request / a.group, in_request % a.group) : NO_ROW;
#pragma unroll(fp8 ? 1 : 8)
        for (u32 t = 0; t < 8; t++) {
            if constexpr (fp8) {
#pragma unroll 2
                for (int i = 0; i < 4; i++) {
                    uint4 v = make_uint4(0, 0, 0, 0);
                    const u32 at = row_at(i);
                    if (at != NO_ROW) v = *(const uint4*)((const char*)a.q + (u64)at * 1152 + t * 128 + c * 16);
                    v = make_uint4(bf16_pair_to_f16(v.x), bf16_pair_to_f16(v.y), bf16_pair_to_f16(v.z), bf16_pair_to_f16(v.w));
                    *(uint4*)(shared + t * BLOCK + place + i * 2048) = v;
                }
            } else {
                copy(t, a.q + t * 128, 1152);
            }
        }
        if (fp8) {
            fence_for_products();
            barrier_arrive(base + Q_FULL);
        } else {
            barrier_arrive_after_copies(base + Q_FULL);
        }
    }

    __device__ inline void run_bf16(Segments walk, const PlanView& p) {
        Segment segment;
        u32 n = 0;  // pairs so far
        for (u32 segments = 0; walk.next(a, p, &segment); segments++) {
            look_up(segment, segment.first);
            if (segments) barrier_wait(base + Q_EMPTY, (segments - 1) & 1);
            queries(segment);
            for (u32 u = 0; u < segment.count; u += 2, n++) {
#pragma unroll
                for (u32 unit = 0; unit < 2; unit++) {
                    begin_unit(segment, segment.first + u + unit + 1);
#pragma unroll
                    for (u32 i = 0; i < GROUPS; i++) {
                        const u32 group = group_at(unit, i);
                        if (n) barrier_wait(base + EMPTY(unit, group), (n - 1) & 1);
#pragma unroll
                        for (u32 t = 2 * group; t < 2 * group + (group == ROTARY ? 1 : 2); t++) copy(8 + 9 * unit + t, a.k + t * 128, 1152);
                        barrier_arrive_after_copies(base + FULL(unit, group));
                    }
                }
            }
        }
        asm volatile("cp.async.wait_all;" ::: "memory");
    }

    // e4m3: a group's bytes are brought to its first tile and made f16 in its place. The
    // loads of the next groups are under way meanwhile, as far as places are free.
    __device__ inline void run_fp8(Segments walk, const PlanView& p) {
        Segment segment;
        u32 n = 0, loaded = 0, made = 0;  // pairs, groups so far
        for (u32 segments = 0; walk.next(a, p, &segment); segments++) {
            look_up(segment, segment.first);
            finish(made, loaded);
            if (segments) barrier_wait(base + Q_EMPTY, (segments - 1) & 1);
            queries(segment);
            for (u32 u = 0; u < segment.count; u += 2, n++) {
#pragma unroll 1
                for (u32 unit = 0; unit < 2; unit++) {
                    begin_unit(segment, segment.first + u + unit + 1);
#pragma unroll 1
                    for (u32 i = 0; i < GROUPS; i++) {
                        const u32 group = group_at(unit, i), empty = base + EMPTY(unit, group), parity = (n - 1) & 1;
                        if (n && !barrier_passed(empty, parity)) {
                            // Readers may be waiting for what is not made yet.
                            finish(made, loaded);
                            barrier_wait(empty, parity);
                        }
                        copy(8 + 9 * unit + 2 * group, a.k + group * 128, 576, group != ROTARY || c < 4);
                        copy_commit();
                        loaded++;
                        if (loaded - made > AHEAD) make_f16<AHEAD>(made++);
                    }
                }
            }
        }
        finish(made, loaded);
    }
    __device__ inline void finish(u32& made, u32 loaded) const {
#pragma unroll 1
        for (; made < loaded; made++) make_f16<0>(made);
    }
    // The group loaded as the index-th of all, of which `pending` more are on their way.
    template <int pending>
    __device__ inline void make_f16(u32 index) const {
        const u32 unit = index / GROUPS % 2, group = group_at(unit, index % GROUPS);
        unsigned char* tile = shared + (8 + 9 * unit + 2 * group) * BLOCK;
        copy_wait<pending>();
        const bool mine = group != ROTARY || c < 4;
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            uint4 v[2] = {};
            if (mine) {
                v[0] = *(const uint4*)(tile + place + i * 2048);
                v[1] = *(const uint4*)(tile + place + i * 2048 + 2048);
            }
            // All of a row is read before it is written over.
            __syncwarp();
            if (mine) {
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    unsigned char* to = tile + c / 4 * BLOCK + (first_row + 16 * (i + j)) * 128;
                    const uint4 halves[2] = {e4m3_to_f16(v[j].x, v[j].y), e4m3_to_f16(v[j].z, v[j].w)};
                    // Threads of the second tile begin with the odd chunk, so that eight write to different banks.
                    const bool odd = c >= 4;
                    const u32 chunk = c % 4 * 2;
                    *(uint4*)(to + (((chunk + odd) ^ (first_row & 7)) << 4)) = odd ? halves[1] : halves[0];
                    *(uint4*)(to + (((chunk + !odd) ^ (first_row & 7)) << 4)) = odd ? halves[0] : halves[1];
                }
            }
        }
        fence_for_products();
        barrier_arrive(base + FULL(unit, group));
    }
};
#endif
