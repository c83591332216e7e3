// What the attention kernels share: arguments, the plan of splits, DCP positions.
//
// Work is counted in *units*: a unit is one block-wide step over the KV of one *item*,
// and an item is one query tile (up to `rows` rows of one request: query tokens times
// the query heads of one KV head) of one KV head. Items lie one behind the other, and
// the units of all of them are cut into *chunks* of equal cost, one a block. A block walks its
// chunk; an item that one chunk holds whole is written at once, the pieces of the
// others go to `partial_*` and are merged by `parplan_attention_combine`.
#pragma once
#include "parplan.cuh"

#define MINUS_INFINITY bits_to_f32(0xff800000u)

struct AttentionArgs {
    u64 q;              // bf16 [tokens, heads, dim]
    u64 k;              // paged cache; see the kernel for its layout
    u64 v;
    u64 out;            // bf16 [tokens, heads, value dim]
    u64 lse;            // f32 [tokens, heads], natural logarithm; 0: not wanted
    u64 page_table;     // u32 [requests, max_pages]
    u64 kv_lens;        // u32 [requests], KV of all ranks, the query tokens included
    u64 query_offsets;  // u32 [requests + 1], first token of each request
    u64 plan;           // u32 [], see PlanView
    u64 partial_out;    // f32 [2 * chunks, rows, value dim], normalised
    u64 partial_lse;    // f32 [2 * chunks, rows], natural logarithm
    u32 requests;
    u32 max_pages;
    u32 page;        // tokens of a page
    u32 page_shift;  // log2(page), or 32 when page is no power of two
    u32 heads;       // query heads
    u32 kv_heads;
    u32 group;        // query heads of one KV head
    u32 rows;         // rows of a tile
    u32 unit_tokens;  // KV tokens of a unit
    u32 chunks;       // most chunks, which is the grid of the attention kernel
    u32 min_chunk;    // fewest units of a chunk, so that short work is not cut to dust
    u32 max_tiles;    // tiles that the plan has room for
    u32 shard_rank;   // decode context parallelism: this rank holds the KV positions p
    u32 shard_size;   // with (p / interleave) % shard_size == shard_rank
    u32 interleave;
    float scale_log2;  // softmax scale times log2(e), with the scale of fp8 keys
    float v_scale;     // scale of fp8 values, 1 for bf16
    // Queries and results may be cut by heads, as ranks send them to each other:
    // [parts, tokens, heads of a part, dim]. One part of all heads is the plain layout.
    u32 tokens;
    u32 q_part_heads;
    u32 out_part_heads;
    u32 item_units;  // what an item costs beside its units, in units: chunks are cut by cost
};

// The page of a token in its request's list, and its place there.
__device__ inline void find_page(const AttentionArgs& a, u32 token, u32& page, u32& in_page) {
    if (a.page_shift < 32) {
        page = token >> a.page_shift;
        in_page = token & (a.page - 1);
    } else {
        page = token / a.page;
        in_page = token - page * a.page;
    }
}

// Row of (token, head) in a layout cut into parts of `part_heads`.
__device__ inline u64 part_row(const AttentionArgs& a, u32 part_heads, u32 token, u32 head) {
    const u32 part = head / part_heads;
    return ((u64)part * a.tokens + token) * part_heads + (head - part * part_heads);
}

// One query tile, for all KV heads. 32 bytes.
struct TileRecord {
    u32 request;
    u32 token_begin;  // first query token of the request
    u32 row_begin;    // first row of the tile; row = query token * group + head of the group
    u32 rows;         // rows of the tile that exist
    u32 kv_len;       // of all ranks
    u32 query_len;
    u32 limit;  // KV tokens on this rank that the tile's last row sees
    u32 start;  // cost of the tiles before, of one KV head
};

struct ChunkBegin {
    u32 tile, head, unit, count;  // `count` units from here
};

// An item that was cut, for the merge of its pieces. Piece 0 began with the item and is the second
// of its chunk; piece i > 0 is the first of the chunk `i` further. 32 bytes.
struct CutRecord {
    u32 first_chunk, pieces;
    u32 rows, token_begin, row_begin;  // of the tile
    u32 head;                          // KV head
    u32 pad[2];
};

// Layout of the plan: 16 words of header, the tiles, the chunks, the items that were cut, the first
// tile of each request.
struct PlanView {
    u32* header;  // [0] units, [1] units of a chunk, [2] chunks in use, [3] tiles, [4] items that were cut
    TileRecord* tiles;
    ChunkBegin* chunks;
    CutRecord* cuts;  // [chunks]
    u32* first_tile;  // [requests + 1]
};

__device__ inline PlanView plan_of(const AttentionArgs& a) {
    PlanView p;
    p.header = (u32*)a.plan;
    p.tiles = (TileRecord*)(p.header + 16);
    p.chunks = (ChunkBegin*)(p.tiles + a.max_tiles);
    p.cuts = (CutRecord*)(p.chunks + a.chunks);
    p.first_tile = (u32*)(p.cuts + a.chunks);
    return p;
}

// KV positions below `len` that this rank holds; they are its first so many.
__device__ inline u32 local_len(const AttentionArgs& a, u32 len) {
    const u32 round = a.interleave * a.shard_size;
    const u32 rest = len % round;
    const u32 mine = a.shard_rank * a.interleave;
    const u32 part = rest <= mine ? 0u : rest - mine;
    return len / round * a.interleave + (part < a.interleave ? part : a.interleave);
}

// KV tokens on this rank that query token `i` of a request sees: all up to itself. None
// for a token before position 0, which is how padding requests of length 0 come out.
__device__ inline u32 row_limit(const AttentionArgs& a, const TileRecord& t, u32 i) {
    const u32 end = t.kv_len + i + 1;
    return end <= t.query_len ? 0u : local_len(a, end - t.query_len);
}

__device__ inline u32 tile_units(const AttentionArgs& a, u32 limit) {
    // At least one, fully masked where nothing is seen: it writes the zeros.
    return limit == 0 ? 1u : (limit + a.unit_tokens - 1) / a.unit_tokens;
}
