// Arguments of the products of many experts in one launch.
#pragma once
#include "parplan.cuh"

struct GroupedArgs {
    u64 x;        // bf16 rows
    u64 w;        // [experts, n, k]
    u64 y;        // bf16 rows of n
    u64 order;    // i32, pair of each slot
    u64 offsets;  // i32 [experts + 1]
    u64 tiles;    // {expert, first slot}; at max_tiles {tiles, 0}
    u32 n;
    u32 k;        // a multiple of 8, of 16 for e4m3
    u32 x_pitch;  // elements from row to row
    u32 top_k;
    u32 max_tiles;
    u32 to_slots;  // 1: reads the row of a pair's token and writes the slot; 0: reads the slot, writes the pair
    float scale;   // of the result
    u32 pad;
};
