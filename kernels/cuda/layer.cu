// The small operations of a decoder layer: synthetic values, norms, rotary embedding with
// the KV write, activations, routing, sums. SIMT only, so that all of it runs under g++.
//
// Everything is computed in f32 and rounded to bf16 where it is stored. Rows of hidden
// states are moved as 16-byte words of 8 values: the host gives widths that are multiples
// of 8 and 16-byte aligned buffers.
#include "parplan.cuh"
#include "warp.cuh"

struct alignas(16) Eight {
    u16 v[8];
};

__device__ inline float silu(float x) { return x / (1.0f + expf(-x)); }

// Round to nearest, ties to even; beyond +-448 saturates, NaN stays NaN.
__device__ inline u32 f32_to_e4m3(float f) {
    const u32 bits = f32_to_bits(f);
    const u32 sign = bits >> 24 & 0x80u;
    u32 m = bits & 0x7fffffffu;
    if (m > 0x7f800000u) return sign | 0x7fu;
    if (m >= 0x43e80000u) return sign | 0x7eu;  // 464 and more, where 448 begins to be the nearest
    if (m < 0x3c800000u) {
        // Below 2^-6 steps stay 2^-9: adding 2^14 leaves as many bits as there are.
        const u32 shifted = f32_to_bits(bits_to_f32(m) + 16384.0f) - f32_to_bits(16384.0f);
        return sign | shifted;
    }
    m += 0x7ffffu + (m >> 20 & 1u);
    m -= 120u << 23;
    m >>= 20;
    return sign | (m > 0x7eu ? 0x7eu : m);
}

// A value of [-1, 1), uniform: 24 bits of splitmix64 of the element's number.
__device__ inline float uniform(u64 seed, u64 index) {
    u64 z = seed + (index + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    return __fadd_rn(__fmul_rn((float)(u32)(z >> 40), 1.0f / 8388608.0f), -1.0f);
}

// out[r][c] = offset + scale * uniform(rows[r] * full + column + c); fp8 after a division by
// `unit`. No product is fused: the bits are those of the host.
template <bool fp8>
__device__ inline void synthetic(void* out, const u64* rows, u64 count, u64 columns, u64 full, u64 column, u64 seed, float scale,
                                 float offset, float unit) {
    const u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count * columns; i += stride) {
        const u64 index = rows[i / columns] * full + column + i % columns;
        const float value = __fadd_rn(offset, __fmul_rn(scale, uniform(seed, index)));
        if (fp8)
            ((unsigned char*)out)[i] = (unsigned char)f32_to_e4m3(value / unit);
        else
            ((u16*)out)[i] = f32_to_bf16(value);
    }
}

extern "C" __global__ void parplan_synthetic_bf16(void* out, const u64* rows, u64 count, u64 columns, u64 full, u64 column, u64 seed,
                                                  float scale, float offset, float unit) {
    synthetic<false>(out, rows, count, columns, full, column, seed, scale, offset, unit);
}

extern "C" __global__ void parplan_synthetic_e4m3(void* out, const u64* rows, u64 count, u64 columns, u64 full, u64 column, u64 seed,
                                                  float scale, float offset, float unit) {
    synthetic<true>(out, rows, count, columns, full, column, seed, scale, offset, unit);
}

// bf16 to e4m3 after a division by `unit`; `words` of 8 values.
extern "C" __global__ void parplan_quantise_e4m3(uint2* __restrict__ out, const Eight* __restrict__ in, float inverse_unit, u64 words) {
    const u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < words; i += stride) {
        const Eight w = in[i];
        u32 packed[2];
        for (int h = 0; h < 2; h++) {
            packed[h] = 0;
            for (int j = 0; j < 4; j++) packed[h] |= f32_to_e4m3(bf16_to_f32(w.v[4 * h + j]) * inverse_unit) << (8 * j);
        }
        out[i] = make_uint2(packed[0], packed[1]);
    }
}

// Rows in the order that warpgroup products of e4m3 read them in (see grouped_wgmma.cu): of each 16
// columns the pairs 0, 2, 4, 6 and then 1, 3, 5, 7. `out` has rows of `groups` times 16 columns, `in`
// the same `pitch` elements apart; with `limit`, only that many rows count.
extern "C" __global__ void parplan_pair_order(uint4* __restrict__ out, const u16* __restrict__ in, u64 rows, u64 groups, u64 pitch,
                                              const int* __restrict__ limit) {
    if (limit) rows = *limit < 0 ? 0 : (u64)*limit;
    const u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < rows * groups; i += stride) {
        const uint4* from = (const uint4*)(in + i / groups * pitch) + 2 * (i % groups);
        const uint4 a = from[0], b = from[1];
        out[2 * i] = make_uint4(a.x, a.z, b.x, b.z);
        out[2 * i + 1] = make_uint4(a.y, a.w, b.y, b.w);
    }
}

// residual += delta (delta may be null); out = residual / rms(residual) * weight.
// One block a row of `words` words of 8 values.
extern "C" __global__ void parplan_add_rms_norm(Eight* __restrict__ out, Eight* __restrict__ residual, const Eight* __restrict__ delta,
                                                const Eight* __restrict__ weight, float eps, u64 words) {
    const u64 row = (u64)blockIdx.x * words;
    float square = 0.0f;
    for (u64 i = threadIdx.x; i < words; i += blockDim.x) {
        Eight x = residual[row + i];
        if (delta) {
            const Eight d = delta[row + i];
            for (int j = 0; j < 8; j++) x.v[j] = f32_to_bf16(bf16_to_f32(x.v[j]) + bf16_to_f32(d.v[j]));
            residual[row + i] = x;
        }
        for (int j = 0; j < 8; j++) square += bf16_to_f32(x.v[j]) * bf16_to_f32(x.v[j]);
    }
    const float mean = block_sum(square) / (float)(words * 8);
    const float inverse = 1.0f / sqrtf(mean + eps);
    for (u64 i = threadIdx.x; i < words; i += blockDim.x) {
        Eight x = residual[row + i];
        const Eight w = weight[i];
        for (int j = 0; j < 8; j++) x.v[j] = f32_to_bf16(bf16_to_f32(x.v[j]) * inverse * bf16_to_f32(w.v[j]));
        out[row + i] = x;
    }
}

extern "C" __global__ void parplan_add_bf16(Eight* __restrict__ to, const Eight* __restrict__ from, u64 words) {
    const u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < words; i += stride) {
        Eight a = to[i];
        const Eight b = from[i];
        for (int j = 0; j < 8; j++) a.v[j] = f32_to_bf16(bf16_to_f32(a.v[j]) + bf16_to_f32(b.v[j]));
        to[i] = a;
    }
}

struct CacheArgs {
    u64 slots;    // i32 [rows], page * page size + offset, -1 for none
    u64 cos_sin;  // f32 [rows, dim], half cosines and half sines
    u64 keys;     // [pages, kv_heads, page, dim]
    u64 values;
    u32 page;
    u32 fp8;
};

// Element (slot, head, column) of a cache.
__device__ inline void store_cache(const CacheArgs& a, u64 cache, u32 slot, u32 head, u32 heads, u32 dim, u32 column, float value) {
    const u64 at = (((u64)(slot / a.page) * heads + head) * a.page + slot % a.page) * dim + column;
    if (a.fp8)
        ((unsigned char*)cache)[at] = (unsigned char)f32_to_e4m3(value);
    else
        ((u16*)cache)[at] = f32_to_bf16(value);
}

// Rows [q heads | k heads | v heads] of a QKV projection: Q and K normed by head where
// norms are given, then rotated (pairs i, i + dim/2). A warp a head, a block a row.
extern "C" __global__ void parplan_rope_gqa(const u16* __restrict__ qkv, u16* __restrict__ q, const u16* __restrict__ q_norm,
                                            const u16* __restrict__ k_norm, CacheArgs a, u32 q_heads, u32 kv_heads, u32 dim, float eps) {
    const u32 row = blockIdx.x, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const int slot = ((const int*)a.slots)[row];
    const float* turn = (const float*)a.cos_sin + (u64)row * dim;
    const u32 all = q_heads + 2 * kv_heads, half = dim / 2;
    const u16* from = qkv + (u64)row * all * dim;
    for (u32 head = threadIdx.x / 32; head < all; head += warps) {
        const u16* x = from + (u64)head * dim;
        const bool is_q = head < q_heads, is_v = head >= q_heads + kv_heads;
        if (is_v) {
            if (slot >= 0)
                for (u32 i = lane; i < dim; i += 32)
                    store_cache(a, a.values, (u32)slot, head - q_heads - kv_heads, kv_heads, dim, i, bf16_to_f32(x[i]));
            continue;
        }
        const u16* weight = is_q ? q_norm : k_norm;
        float inverse = 1.0f;
        if (weight) {
            float square = 0.0f;
            for (u32 i = lane; i < dim; i += 32) square += bf16_to_f32(x[i]) * bf16_to_f32(x[i]);
            inverse = 1.0f / sqrtf(warp_sum(square) / (float)dim + eps);
        }
        for (u32 i = lane; i < half; i += 32) {
            float u = bf16_to_f32(x[i]), v = bf16_to_f32(x[i + half]);
            if (weight) {
                u = u * inverse * bf16_to_f32(weight[i]);
                v = v * inverse * bf16_to_f32(weight[i + half]);
            }
            const float cos = turn[i], sin = turn[half + i];
            const float first = u * cos - v * sin, second = v * cos + u * sin;
            if (is_q) {
                u16* to = q + ((u64)row * q_heads + head) * dim;
                to[i] = f32_to_bf16(first);
                to[i + half] = f32_to_bf16(second);
            } else if (slot >= 0) {
                store_cache(a, a.keys, (u32)slot, head - q_heads, kv_heads, dim, i, first);
                store_cache(a, a.keys, (u32)slot, head - q_heads, kv_heads, dim, i + half, second);
            }
        }
    }
}

// Rows of MLA's fused compression [q_lora | kv_lora | rope]: both compressions normed,
// the rest rotated; the query compression to `q`, the others into the cache. A block a row.
extern "C" __global__ void parplan_rope_latent(const u16* __restrict__ rows, u16* __restrict__ q, const u16* __restrict__ q_norm,
                                               const u16* __restrict__ kv_norm, CacheArgs a, u32 q_lora, u32 kv_lora, u32 rope, float eps) {
    const u32 row = blockIdx.x, half = rope / 2;
    const u16* x = rows + (u64)row * (q_lora + kv_lora + rope);
    const int slot = ((const int*)a.slots)[row];
    float square = 0.0f;
    for (u32 i = threadIdx.x; i < q_lora; i += blockDim.x) square += bf16_to_f32(x[i]) * bf16_to_f32(x[i]);
    const float q_inverse = 1.0f / sqrtf(block_sum(square) / (float)(q_lora ? q_lora : 1u) + eps);
    for (u32 i = threadIdx.x; i < q_lora; i += blockDim.x)
        q[(u64)row * q_lora + i] = f32_to_bf16(bf16_to_f32(x[i]) * q_inverse * bf16_to_f32(q_norm[i]));
    x += q_lora;
    square = 0.0f;
    for (u32 i = threadIdx.x; i < kv_lora; i += blockDim.x) square += bf16_to_f32(x[i]) * bf16_to_f32(x[i]);
    const float inverse = 1.0f / sqrtf(block_sum(square) / (float)kv_lora + eps);
    if (slot < 0) return;
    const u32 dim = kv_lora + rope;
    for (u32 i = threadIdx.x; i < kv_lora; i += blockDim.x)
        // Rounded to bf16 first, as the reference stores it.
        store_cache(a, a.keys, (u32)slot, 0, 1, dim, i, bf16_to_f32(f32_to_bf16(bf16_to_f32(x[i]) * inverse * bf16_to_f32(kv_norm[i]))));
    x += kv_lora;
    const float* turn = (const float*)a.cos_sin + (u64)row * rope;
    for (u32 i = threadIdx.x; i < half; i += blockDim.x) {
        const float u = bf16_to_f32(x[i]), v = bf16_to_f32(x[i + half]), cos = turn[i], sin = turn[half + i];
        store_cache(a, a.keys, (u32)slot, 0, 1, dim, kv_lora + i, bf16_to_f32(f32_to_bf16(u * cos - v * sin)));
        store_cache(a, a.keys, (u32)slot, 0, 1, dim, kv_lora + half + i, bf16_to_f32(f32_to_bf16(v * cos + u * sin)));
    }
}

// Columns [nope, nope + rope) of [rows, heads, nope + rope], rotated, become columns
// [kv_lora, kv_lora + rope) of [rows, heads, kv_lora + rope]. A block a row.
extern "C" __global__ void parplan_rope_queries(const u16* __restrict__ from, u16* __restrict__ to, const float* __restrict__ cos_sin,
                                                u32 heads, u32 nope, u32 kv_lora, u32 rope) {
    const u32 row = blockIdx.x, half = rope / 2;
    const float* turn = cos_sin + (u64)row * rope;
    for (u32 i = threadIdx.x; i < heads * half; i += blockDim.x) {
        const u32 head = i / half, pair = i % half;
        const u16* x = from + ((u64)row * heads + head) * (nope + rope) + nope;
        u16* y = to + ((u64)row * heads + head) * (kv_lora + rope) + kv_lora;
        const float u = bf16_to_f32(x[pair]), v = bf16_to_f32(x[pair + half]), cos = turn[pair], sin = turn[half + pair];
        y[pair] = f32_to_bf16(u * cos - v * sin);
        y[pair + half] = f32_to_bf16(v * cos + u * sin);
    }
}

// out = silu(gate) * up of rows [gate | up] of `words` words each; with `limit`, only that
// many rows count.
extern "C" __global__ void parplan_silu_mul(Eight* __restrict__ out, const Eight* __restrict__ gate_up, u64 rows, u64 words,
                                            const int* __restrict__ limit) {
    if (limit) rows = *limit < 0 ? 0 : (u64)*limit;
    const u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < rows * words; i += stride) {
        const u64 row = i / words, at = row * 2 * words + i % words;
        const Eight g = gate_up[at], u = gate_up[at + words];
        Eight y;
        for (int j = 0; j < 8; j++) y.v[j] = f32_to_bf16(silu(bf16_to_f32(g.v[j])) * bf16_to_f32(u.v[j]));
        out[i] = y;
    }
}

#define ROUTE_WARPS 4
#define MAX_EXPERTS 1024
#define MAX_TOP_K 32

// The top_k largest of each row of logits, of equal ones the lower expert, and their
// softmax among themselves; NaN counts as minus infinity. A warp a row.
extern "C" __global__ void parplan_route(const float* __restrict__ logits, int* __restrict__ ids, float* __restrict__ weights, u32 rows,
                                         u32 experts, u32 top_k) {
    __shared__ float scores[ROUTE_WARPS][MAX_EXPERTS];
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.x * ROUTE_WARPS + warp;
    const float least = bits_to_f32(0xff800000u);
    float largest = least, sum = 0.0f, mine = 0.0f;
    int id = 0;
    if (row < rows)
        for (u32 e = lane; e < experts; e += 32) {
            const float x = logits[(u64)row * experts + e];
            scores[warp][e] = x == x ? x : least;
        }
    __syncwarp();
    u32 taken = 0;  // of this lane's experts lane, lane + 32, ...
    for (u32 j = 0; j < top_k; j++) {
        float best = least;
        u32 at = experts;
        if (row < rows)
            for (u32 i = 0, e = lane; e < experts; i++, e += 32)
                if (!(taken >> i & 1u) && (at == experts || scores[warp][e] > best)) best = scores[warp][e], at = e;
        for (u32 other = 16; other; other /= 2) {
            const float theirs = __shfl_xor_sync(0xffffffffu, best, other);
            const u32 their_at = __shfl_xor_sync(0xffffffffu, at, other);
            if (theirs > best || (theirs == best && their_at < at)) best = theirs, at = their_at;
        }
        if (at % 32 == lane && at < experts) taken |= 1u << (at / 32);
        if (j == 0) largest = best;
        const float share = largest == least ? 1.0f : expf(best - largest);
        sum += share;
        if (j == lane) mine = share, id = (int)at;
    }
    if (row < rows && lane < top_k) {
        ids[(u64)row * top_k + lane] = id;
        weights[(u64)row * top_k + lane] = mine / sum;
    }
}

// Sorts the pairs whose expert is one of [first, first + experts): `order` gets them expert
// by expert, `offsets` the first slot of each and the end. `tiles` gets a record
// {expert, first slot} for every `tile_rows` rows of an expert, and at `max_tiles`
// {tiles, 0}. One block of 1024 threads; experts <= 1024.
extern "C" __global__ void parplan_sort_pairs(const int* __restrict__ ids, int* __restrict__ order, int* __restrict__ offsets,
                                              uint2* __restrict__ tiles, u32 pairs, int first, u32 experts, u32 tile_rows, u32 max_tiles) {
    __shared__ int count[MAX_EXPERTS], begin[MAX_EXPERTS], tile_begin[MAX_EXPERTS];
    __shared__ int sum_slots[32], sum_tiles[32];
    for (u32 e = threadIdx.x; e < experts; e += blockDim.x) count[e] = 0;
    __syncthreads();
    for (u32 p = threadIdx.x; p < pairs; p += blockDim.x) {
        const int e = ids[p] - first;
        if (e >= 0 && e < (int)experts) atomicAdd(&count[e], 1);
    }
    __syncthreads();
    // Exclusive sums of rows and of tiles over the experts: warps of 32, then their totals.
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 e = threadIdx.x;  // blockDim.x == MAX_EXPERTS
    const int own = e < experts ? count[e] : 0, own_tiles = (own + (int)tile_rows - 1) / (int)tile_rows;
    int slots = own, tile = own_tiles;
    for (u32 d = 1; d < 32; d *= 2) {
        const int a = __shfl_up_sync(0xffffffffu, slots, d), b = __shfl_up_sync(0xffffffffu, tile, d);
        if (lane >= d) slots += a, tile += b;
    }
    if (lane == 31) sum_slots[warp] = slots, sum_tiles[warp] = tile;
    __syncthreads();
    for (u32 w = 0; w < warp; w++) slots += sum_slots[w], tile += sum_tiles[w];
    if (e < experts) {
        begin[e] = slots - own;
        tile_begin[e] = tile - own_tiles;
        offsets[e] = slots - own;
        if (e + 1 == experts) {
            offsets[experts] = slots;
            tiles[max_tiles] = make_uint2((u32)tile, 0);
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.x / 32; i < experts; i += blockDim.x / 32)
        for (u32 t = lane; t * tile_rows < (u32)count[i]; t += 32)
            tiles[tile_begin[i] + t] = make_uint2(i, (u32)begin[i] + t * tile_rows);
    __syncthreads();
    for (u32 p = threadIdx.x; p < pairs; p += blockDim.x) {
        const int expert = ids[p] - first;
        if (expert >= 0 && expert < (int)experts) order[atomicAdd(&begin[expert], 1)] = (int)p;
    }
}

// out = base + sum over the local choices of weight * output. A block a row.
extern "C" __global__ void parplan_sum_experts(Eight* __restrict__ out, const Eight* __restrict__ outputs, const int* __restrict__ ids,
                                               const float* __restrict__ weights, const Eight* __restrict__ base, u32 top_k, int first,
                                               u32 experts, u64 words) {
    const u64 row = blockIdx.x;
    for (u64 i = threadIdx.x; i < words; i += blockDim.x) {
        float sum[8];
        for (int j = 0; j < 8; j++) sum[j] = base ? bf16_to_f32(base[row * words + i].v[j]) : 0.0f;
        for (u32 k = 0; k < top_k; k++) {
            const u64 pair = row * top_k + k;
            const int e = ids[pair] - first;
            if (e < 0 || e >= (int)experts) continue;
            const Eight x = outputs[pair * words + i];
            const float weight = weights[pair];
            for (int j = 0; j < 8; j++) sum[j] += weight * bf16_to_f32(x.v[j]);
        }
        Eight y;
        for (int j = 0; j < 8; j++) y.v[j] = f32_to_bf16(sum[j]);
        out[row * words + i] = y;
    }
}

// Rows with their choices behind them, once for each of `parts` ranks of `experts` experts:
// packed [parts, rows, packed_words] of 16 bytes. A block a packed row.
extern "C" __global__ void parplan_pack_rows(uint4* __restrict__ packed, const uint4* __restrict__ rows, const int* __restrict__ ids,
                                             const float* __restrict__ weights, u32 count, u32 top_k, u32 experts, u64 words,
                                             u64 packed_words) {
    const u32 part = blockIdx.x / count, row = blockIdx.x % count;
    uint4* to = packed + (u64)blockIdx.x * packed_words;
    for (u64 i = threadIdx.x; i < words; i += blockDim.x) to[i] = rows[(u64)row * words + i];
    u32* tail = (u32*)(to + words);
    for (u32 i = threadIdx.x; i < (packed_words - words) * 4; i += blockDim.x) {
        u32 value = 0;
        if (i < top_k) {
            const int id = ids[(u64)row * top_k + i];
            value = id >= 0 && (u32)id / experts == part ? (u32)id : 0xffffffffu;
        } else if (i < 2 * top_k) {
            value = f32_to_bits(weights[(u64)row * top_k + i - top_k]);
        }
        tail[i] = value;
    }
}

extern "C" __global__ void parplan_unpack_choices(int* __restrict__ ids, float* __restrict__ weights, const uint4* __restrict__ packed,
                                                  u32 rows, u32 top_k, u64 words, u64 packed_words) {
    const u32 stride = gridDim.x * blockDim.x;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < rows * top_k; i += stride) {
        const u32* tail = (const u32*)(packed + (u64)(i / top_k) * packed_words + words);
        ids[i] = (int)tail[i % top_k];
        weights[i] = bits_to_f32(tail[top_k + i % top_k]);
    }
}

// out = base + sum of `count` parts of `words` words.
extern "C" __global__ void parplan_sum_parts(Eight* __restrict__ out, const Eight* __restrict__ parts, const Eight* __restrict__ base,
                                             u64 count, u64 words) {
    const u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < words; i += stride) {
        float sum[8];
        for (int j = 0; j < 8; j++) sum[j] = base ? bf16_to_f32(base[i].v[j]) : 0.0f;
        for (u64 p = 0; p < count; p++) {
            const Eight x = parts[p * words + i];
            for (int j = 0; j < 8; j++) sum[j] += bf16_to_f32(x.v[j]);
        }
        Eight y;
        for (int j = 0; j < 8; j++) y.v[j] = f32_to_bf16(sum[j]);
        out[i] = y;
    }
}
