// C entry points for the tests: each runs one kernel of the .cu files on host memory.
#define PARPLAN_SHIM
#include "../cuda/layer.cu"
#include "../cuda/peer.cu"
#include "../cuda/rows.cu"
#include "../cuda/memory.cu"
#include "../cuda/attention_plan.cu"
#include "../cuda/attention_merge.cu"
#include "../cuda/attention_gather.cu"
#include "../cuda/stamp.cu"

extern "C" {

void shim_place_rows(void* global, const void* local, const u64* place, u64 total_rows, u64 row_words, u32 blocks, u32 threads) {
    shim_launch(blocks, threads, [&] { parplan_place_rows((uint4*)global, (const uint4*)local, place, total_rows, row_words); });
}

void shim_take_rows(void* local, const void* global, const u64* place, u64 local_rows, u64 row_words, u32 blocks, u32 threads) {
    shim_launch(blocks, threads, [&] { parplan_take_rows((uint4*)local, (const uint4*)global, place, local_rows, row_words); });
}

void shim_scale_bf16(u16* out, const u16* in, float factor, u64 count, u32 blocks, u32 threads) {
    shim_launch(blocks, threads, [&] { parplan_scale_bf16(out, in, factor, count); });
}

// One rank's kernel of a peer collective; the caller runs all ranks at once.
// op: 0 all-gather, 1 and 2 one shot f32 and bf16, 3 and 4 two shots f32 and bf16.
void shim_peer(u32 op, const PeerArgs* args, const void* send, void* recv, u64 words, u32 blocks, u32 threads) {
    const uint2* in = (const uint2*)send;
    uint2* out = (uint2*)recv;
    const bool many = args->size > 2;
    const auto kernel = op == 0   ? (many ? parplan_all_gather_many : parplan_all_gather)
                        : op == 1 ? (many ? parplan_all_reduce_one_shot_f32_many : parplan_all_reduce_one_shot_f32)
                        : op == 2 ? (many ? parplan_all_reduce_one_shot_bf16_many : parplan_all_reduce_one_shot_bf16)
                        : op == 3 ? (many ? parplan_all_reduce_two_shot_f32_many : parplan_all_reduce_two_shot_f32)
                                  : (many ? parplan_all_reduce_two_shot_bf16_many : parplan_all_reduce_two_shot_bf16);
    shim_launch(blocks, threads, [&] { kernel(*args, in, out, words); });
}

void shim_synthetic(u32 fp8, void* out, const u64* rows, u64 count, u64 columns, u64 full, u64 column, u64 seed, float scale, float offset,
                    float unit) {
    shim_launch_in_turn(2, 32, [&] {
        if (fp8)
            parplan_synthetic_e4m3(out, rows, count, columns, full, column, seed, scale, offset, unit);
        else
            parplan_synthetic_bf16(out, rows, count, columns, full, column, seed, scale, offset, unit);
    });
}

void shim_quantise(void* out, const void* in, float inverse_unit, u64 words) {
    shim_launch_in_turn(1, 32, [&] { parplan_quantise_e4m3((uint2*)out, (const Eight*)in, inverse_unit, words); });
}

void shim_pair_order(void* out, const void* in, u64 rows, u64 groups, u64 pitch, const int* limit) {
    shim_launch_in_turn(2, 32, [&] { parplan_pair_order((uint4*)out, (const u16*)in, rows, groups, pitch, limit); });
}

void shim_add_rms_norm(void* out, void* residual, const void* delta, const void* weight, float eps, u64 words, u32 rows) {
    shim_launch_in_turn(rows, 64, [&] {
        parplan_add_rms_norm((Eight*)out, (Eight*)residual, (const Eight*)delta, (const Eight*)weight, eps, words);
    });
}

void shim_add_bf16(void* to, const void* from, u64 words) {
    shim_launch_in_turn(2, 32, [&] { parplan_add_bf16((Eight*)to, (const Eight*)from, words); });
}

void shim_rope_gqa(const u16* qkv, u16* q, const u16* q_norm, const u16* k_norm, const CacheArgs* a, u32 q_heads, u32 kv_heads, u32 dim,
                   float eps, u32 rows) {
    shim_launch_in_turn(rows, 64, [&] { parplan_rope_gqa(qkv, q, q_norm, k_norm, *a, q_heads, kv_heads, dim, eps); });
}

void shim_rope_latent(const u16* in, u16* q, const u16* q_norm, const u16* kv_norm, const CacheArgs* a, u32 q_lora, u32 kv_lora, u32 rope,
                      float eps, u32 rows) {
    shim_launch_in_turn(rows, 64, [&] { parplan_rope_latent(in, q, q_norm, kv_norm, *a, q_lora, kv_lora, rope, eps); });
}

void shim_rope_queries(const u16* from, u16* to, const float* cos_sin, u32 heads, u32 nope, u32 kv_lora, u32 rope, u32 rows) {
    shim_launch_in_turn(rows, 32, [&] { parplan_rope_queries(from, to, cos_sin, heads, nope, kv_lora, rope); });
}

void shim_silu_mul(void* out, const void* gate_up, u64 rows, u64 words, const int* limit) {
    shim_launch_in_turn(2, 32, [&] { parplan_silu_mul((Eight*)out, (const Eight*)gate_up, rows, words, limit); });
}

void shim_route(const float* logits, int* ids, float* weights, u32 rows, u32 experts, u32 top_k) {
    shim_launch_in_turn((rows + ROUTE_WARPS - 1) / ROUTE_WARPS, 32 * ROUTE_WARPS,
                        [&] { parplan_route(logits, ids, weights, rows, experts, top_k); });
}

void shim_sort_pairs(const int* ids, int* order, int* offsets, void* tiles, u32 pairs, int first, u32 experts, u32 tile_rows,
                     u32 max_tiles) {
    shim_launch_in_turn(1, 1024, [&] { parplan_sort_pairs(ids, order, offsets, (uint2*)tiles, pairs, first, experts, tile_rows, max_tiles); });
}

void shim_sum_experts(void* out, const void* outputs, const int* ids, const float* weights, const void* base, u32 top_k, int first,
                      u32 experts, u64 words, u32 rows) {
    shim_launch_in_turn(rows, 32, [&] {
        parplan_sum_experts((Eight*)out, (const Eight*)outputs, ids, weights, (const Eight*)base, top_k, first, experts, words);
    });
}

void shim_pack_rows(void* packed, const void* rows, const int* ids, const float* weights, u32 count, u32 top_k, u32 experts, u64 words,
                    u64 packed_words, u32 parts) {
    shim_launch_in_turn(parts * count, 32, [&] {
        parplan_pack_rows((uint4*)packed, (const uint4*)rows, ids, weights, count, top_k, experts, words, packed_words);
    });
}

void shim_unpack_choices(int* ids, float* weights, const void* packed, u32 rows, u32 top_k, u64 words, u64 packed_words) {
    shim_launch_in_turn(2, 32, [&] { parplan_unpack_choices(ids, weights, (const uint4*)packed, rows, top_k, words, packed_words); });
}

void shim_sum_parts(void* out, const void* parts, const void* base, u64 count, u64 words) {
    shim_launch_in_turn(2, 32, [&] { parplan_sum_parts((Eight*)out, (const Eight*)parts, (const Eight*)base, count, words); });
}

void shim_fill_values(u64* out, u64 words, u64 fp8, u64 seed, u32 blocks, u32 threads) {
    shim_launch(blocks, threads, [&] { parplan_fill_values(out, words, fp8, seed); });
}

// The plan, and then the merge of the pieces that the test wrote by it.
void shim_attention_plan(const AttentionArgs* args) {
    shim_launch_in_turn(1, 1, PLAN_THREADS, [&] { parplan_attention_plan(*args); });
}
void shim_attention_combine(const AttentionArgs* args, u32 dim, u32 blocks, u32 rows, u32 warps) {
    shim_launch_in_turn(blocks, rows, 32 * warps, [&] {
        if (dim == 64) parplan_attention_combine_d64(*args);
        else if (dim == 128) parplan_attention_combine_d128(*args);
        else if (dim == 256) parplan_attention_combine_d256(*args);
        else parplan_attention_combine_d512(*args);
    });
}

void shim_dcp_correct(const MergeArgs* args, u32 blocks, u32 threads) {
    shim_launch(blocks, threads, [&] { parplan_dcp_correct(*args); });
}
void shim_dcp_merge(const MergeArgs* args, u32 blocks, u32 threads) {
    shim_launch(blocks, threads, [&] { parplan_dcp_merge(*args); });
}
// One rank's kernel; the caller runs all ranks at once.
void shim_dcp_merge_packets(const PeerArgs* peer, const MergeArgs* args, u32 blocks, u32 threads) {
    shim_launch(blocks, threads, [&] { parplan_dcp_merge_packets(*peer, *args); });
}
void shim_dcp_merge_bulk(const BulkArgs* bulk, const MergeArgs* args, u32 blocks, u32 threads) {
    shim_launch(blocks, threads, [&] { parplan_dcp_merge_bulk(*bulk, *args); });
}
void shim_all_gather_lines(const LineArgs* args, const void* send, void* recv, u64 words, u32 blocks, u32 threads) {
    shim_launch(blocks, threads, [&] { parplan_all_gather_lines(*args, (const uint4*)send, (uint4*)recv, words); });
}
void shim_stamp(u64* at) {
    shim_launch(1, 1, [&] { parplan_stamp(at); });
}
}
