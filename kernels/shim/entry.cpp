// C entry points for the tests: each runs one kernel of the .cu files on host memory.
#define PARPLAN_SHIM
#include "../cuda/peer.cu"
#include "../cuda/rows.cu"
#include "../cuda/memory.cu"
#include "../cuda/attention_plan.cu"
#include "../cuda/attention_merge.cu"

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
    shim_launch(blocks, threads, [&] {
        switch (op) {
            case 0: parplan_all_gather(*args, in, out, words); break;
            case 1: parplan_all_reduce_one_shot_f32(*args, in, out, words); break;
            case 2: parplan_all_reduce_one_shot_bf16(*args, in, out, words); break;
            case 3: parplan_all_reduce_two_shot_f32(*args, in, out, words); break;
            case 4: parplan_all_reduce_two_shot_bf16(*args, in, out, words); break;
        }
    });
}

void shim_fill_values(u64* out, u64 words, u64 fp8, u64 seed, u32 blocks, u32 threads) {
    shim_launch(blocks, threads, [&] { parplan_fill_values(out, words, fp8, seed); });
}

// The plan, and then the merge of the pieces that the test wrote by it.
void shim_attention_plan(const AttentionArgs* args) {
    shim_launch_in_turn(1, 1, PLAN_THREADS, [&] { parplan_attention_plan(*args); });
}
void shim_attention_combine(const AttentionArgs* args, u32 dim, u32 rows) {
    shim_launch_in_turn(args->chunks, rows, 32 * COMBINE_WARPS, [&] {
        if (dim == 64) parplan_attention_combine_d64(*args);
        else if (dim == 128) parplan_attention_combine_d128(*args);
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
void shim_all_gather_bulk(const BulkArgs* bulk, const void* send, void* recv, u64 words, u32 blocks, u32 threads) {
    shim_launch(blocks, threads, [&] { parplan_all_gather_bulk(*bulk, (const uint4*)send, (uint4*)recv, words); });
}
}
