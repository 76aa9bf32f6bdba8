// Guidance, filter and draw: from rows of logits to ids, as `sar_math::sampling` states it, to the
// bit. Weights are integers, so that no order of adding matters: a reduction gives what a loop gives.
// To be compiled without fusing products and sums.
#include "prelude.cuh"
#include "schedule.cuh"
#include "block.cuh"
#include "sampling.cuh"

// Bins of a pass of the selection of the k-th largest: 11, 11 and 10 bits of the order key. Wide
// digits spread even the first pass, which sees little more than exponents, over many bins.
#define BINS 2048

// Rows of logits[rows or 2 rows, vocab] for tokens first .. first + span of every sample. With
// guidance the second half is the unconditional one.
struct Rows {
    ScaleTable table;
    GuidanceRamp ramp;
    u64 seed, first_image;
    u64 unconditional;  // element where the second half starts; 0 without guidance
    double dropped;     // 1 - top_p; negative where top-p is off
    int first, span, vocab;
    int top_k;      // 0 is off
    int keys_held;  // whether the row's order keys are kept in shared memory
    int capacity;   // entries that shared memory has room for
};

static_assert(sizeof(Rows) == sizeof(ScaleTable) + sizeof(GuidanceRamp) + 4 * 8 + 6 * 4,
              "as in ops/choose_codes.rs");

struct Row {
    const act* conditional;
    const act* unconditional;
    float t, one_and_t;
    bool guided;
    int scale, token;  // token of the schedule
    u64 sample;
};

DEV Row row_of_block(const Rows& rows, const act* logits) {
    Row row;
    row.sample = blockIdx.x / rows.span;
    row.token = rows.first + blockIdx.x % rows.span;
    row.scale = scale_of(rows.table, row.token);
    row.conditional = logits + (u64)blockIdx.x * rows.vocab;
    row.unconditional = row.conditional + rows.unconditional;
    row.guided = rows.unconditional != 0;
    row.t = (float)rows.ramp.of_scale[row.scale];
    row.one_and_t = 1.f + row.t;
    return row;
}

// (1 + t) c - t u, each product and the difference rounded.
DEV float guide(const Row& row, float c, float u) { return row.one_and_t * c - row.t * u; }

DEV float logit_of(const Row& row, int i) {
    const float c = to_float(row.conditional[i]);
    return row.guided ? guide(row, c, to_float(row.unconditional[i])) : c;
}

// 16 bytes of each half.
DEV void logits_of(const Row& row, int i, float (&x)[Lanes<act>::n]) {
    load16(row.conditional + i, x);
    if (row.guided) {
        float u[Lanes<act>::n];
        load16(row.unconditional + i, u);
#pragma unroll
        for (int j = 0; j < Lanes<act>::n; j++) x[j] = guide(row, x[j], u[j]);
    }
}

DEV u64 id_of_row(const Rows& rows, const Row& row) {
    return row.sample * rows.table.first[rows.table.scales] + row.token;
}

// ids[batch, tokens] of the rows = the largest logit's index, the lowest on ties; NaN is never the
// largest, and 0 stands where nothing is above -infinity. A block has a row and reads it once.
KERNEL void __launch_bounds__(256)
argmax_codes(u32* __restrict__ ids, const act* __restrict__ logits, Rows rows) {
    SMEM(u64, shared, 32);
    const Row row = row_of_block(rows, logits);
    const int N = Lanes<act>::n;
    float largest = -INFINITY;
    u32 at = 0;
    if (rows.vocab % N == 0) {
        for (int i = threadIdx.x * N; i < rows.vocab; i += blockDim.x * N) {
            float x[N];
            logits_of(row, i, x);
#pragma unroll
            for (int j = 0; j < N; j++) {
                if (x[j] > largest) largest = x[j], at = i + j;
            }
        }
    } else {
        for (int i = threadIdx.x; i < rows.vocab; i += blockDim.x) {
            const float x = logit_of(row, i);
            if (x > largest) largest = x, at = i;
        }
    }
    const u64 best = block_largest(ranked(order_key(largest), at), shared);
    if (threadIdx.x == 0) ids[id_of_row(rows, row)] = index_of_ranked(best);
}
REGISTER_KERNEL(argmax_codes)

// ---- the k-th largest

// The order key of logit i, kept or made again.
DEV u32 key_of(const Rows& rows, const Row& row, const u32* keys, int i) {
    return rows.keys_held ? keys[i] : order_key(logit_of(row, i));
}

// A bin, and which of its members in falling order is sought.
struct Place {
    u32 bin, rank;
};

// Which bin the member of rank `rank` (from 1, in falling order) is in. `shared[0]` and a barrier
// tell all threads; the number of threads divides BINS.
DEV Place find_bin(const u32* bins, u32 rank, u64* shared) {
    const int each = BINS / blockDim.x, top = BINS - 1 - (int)threadIdx.x * each;
    u32 members = 0;
    for (int b = 0; b < each; b++) members += bins[top - b];
    u32 above = (u32)block_before(members, shared);
    if (above < rank && rank <= above + members) {
        int bin = top;
        while (above + bins[bin] < rank) above += bins[bin--];
        shared[0] = (u64)bin << 32 | (rank - above);
    }
    __syncthreads();
    const Place place = {(u32)(shared[0] >> 32), (u32)shared[0]};
    __syncthreads();
    return place;
}

DEV void clear(u32* bins) {
    for (int b = threadIdx.x; b < BINS; b += blockDim.x) bins[b] = 0;
    __syncthreads();
}

// The order key of the top_k-th largest logit. `bins` holds how many keys have each value of their
// first 11 bits.
DEV u32 top_k_bar(const Rows& rows, const Row& row, const u32* keys, u32* bins, u64* shared) {
    Place place = find_bin(bins, rows.top_k, shared);
    u32 bar = place.bin << 21;
#pragma unroll 1
    for (int shift = 10; shift >= 0; shift -= 10) {
        // Bits that are known, and those of this pass: 11, then the last 10.
        const int known = shift == 10 ? 21 : 10;
        const u32 digits = shift == 10 ? 0x7ffu : 0x3ffu;
        clear(bins);
        for (int i = threadIdx.x; i < rows.vocab; i += blockDim.x) {
            const u32 key = key_of(rows, row, keys, i);
            if (key >> known == bar >> known) atomicAdd(&bins[key >> shift & digits], 1u);
        }
        __syncthreads();
        place = find_bin(bins, place.rank, shared);
        bar |= place.bin << shift;
    }
    return bar;
}

// ---- what remains

// The logits at or above `bar` as entries in vocabulary order: kept in shared memory or, where there
// are too many, made again whenever they are asked for, with an entry of 0 for every other logit.
struct Items {
    const u64* entries;
    const u32* keys;
    u32 bar;
    float largest;
    int count;
    bool held;
};

DEV u64 item(const Rows& rows, const Row& row, const Items& items, int i) {
    if (items.held) return items.entries[i];
    const u32 key = key_of(rows, row, items.keys, i);
    return key < items.bar ? 0 : entry_of(softmax_weight(of_order_key(key), items.largest), i);
}

// The largest logit's order key; the keys, and where top-k is on their first digits, on the way.
DEV u32 read_row(const Rows& rows, const Row& row, u32* keys, u32* bins, u64* shared) {
    const int N = Lanes<act>::n;
    const bool counts = rows.top_k > 0;
    u32 largest = 0;
    if (counts) clear(bins);
    if (rows.vocab % N == 0) {
        for (int i = threadIdx.x * N; i < rows.vocab; i += blockDim.x * N) {
            float x[N];
            logits_of(row, i, x);
            u32 key[N];
#pragma unroll
            for (int j = 0; j < N; j++) {
                key[j] = order_key(x[j]);
                largest = max(largest, key[j]);
                if (counts) atomicAdd(&bins[key[j] >> 21], 1u);
            }
            if (rows.keys_held) {
#pragma unroll
                for (int j = 0; j < N; j += 4) {
                    *reinterpret_cast<uint4*>(keys + i + j) =
                        make_uint4(key[j], key[j + 1], key[j + 2], key[j + 3]);
                }
            }
        }
    } else {
        for (int i = threadIdx.x; i < rows.vocab; i += blockDim.x) {
            const u32 key = order_key(logit_of(row, i));
            largest = max(largest, key);
            if (counts) atomicAdd(&bins[key >> 21], 1u);
            if (rows.keys_held) keys[i] = key;
        }
    }
    return (u32)block_largest(largest, shared);  // after a barrier: bins and keys are complete
}

// Gathers the survivors of top-k at the start of `entries`, which may lie over the bins, in
// vocabulary order; returns how many there are, and gathers nothing where there is no room for them.
DEV int gather(const Rows& rows, const Row& row, const u32* keys, u32 bar, float largest,
               u64* entries, u64* shared) {
    // An odd number of neighbours a thread, so that the threads of a warp read from other banks.
    const int each = (rows.vocab + blockDim.x - 1) / blockDim.x | 1;
    const int first = min((int)threadIdx.x * each, rows.vocab), end = min(first + each, rows.vocab);
    u64 survivors = 0;
    for (int i = first; i < end; i++) survivors += key_of(rows, row, keys, i) >= bar;
    u64 at = block_before(survivors, shared);
    const int count = (int)block_total(survivors, shared);
    if (count > rows.capacity) return count;
    for (int i = first; i < end; i++) {
        const u32 key = key_of(rows, row, keys, i);
        if (key >= bar) entries[at++] = (u64)key << 32 | (u32)i;
    }
    __syncthreads();
    // Weights only now: few survive, and so every thread has one to compute.
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const float logit = of_order_key((u32)(entries[i] >> 32));
        entries[i] = entry_of(softmax_weight(logit, largest), (u32)entries[i]);
    }
    return count;
}

// Sums of weights and of counts over a block.
DEV void block_totals(u64& weight, u32& count, u64* shared) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    weight = warp_total(weight), count = warp_total(count);
    if (lane == 0) shared[warp] = weight, shared[32 + warp] = count;
    __syncthreads();
    weight = warp_total(lane < warps ? shared[lane] : 0ull);
    count = warp_total(lane < warps ? (u32)shared[32 + lane] : 0u);
    __syncthreads();
}

// Top-p: the entry that is first in ascending order whose cumulative weight exceeds `limit`, the last
// where none does. Bisection by bits: the bar is the largest T of which the entries below T weigh no
// more than `limit`. `total`, the weight of all, becomes that of those which stay.
DEV u64 top_p_bar(const Rows& rows, const Row& row, const Items& items, u64 limit, u64& total,
                  u64* shared) {
    if (limit >= total) {
        u64 last = 0;
        for (int i = threadIdx.x; i < items.count; i += blockDim.x) {
            const u64 entry = item(rows, row, items, i);
            last = entry > last ? entry : last;
        }
        last = block_largest(last, shared);
        total = weight_of(last);
        return last;
    }
    u64 bar = 0, below = 0;
    u32 inside = items.count;  // entries of [bar, bar + 2 · 2^bit), among them the one sought
    int bit = 63;
    for (; bit >= 0 && inside > 1; bit--) {
        u64 weight = 0;
        u32 count = 0;
        for (int i = threadIdx.x; i < items.count; i += blockDim.x) {
            const u64 entry = item(rows, row, items, i);
            if (entry - bar < 1ull << bit) weight += weight_of(entry), count++;
        }
        block_totals(weight, count, shared);
        if (below + weight <= limit) {
            below += weight, inside -= count;
            bar |= 1ull << bit;
        } else {
            inside = count;
        }
    }
    if (bit >= 0) {  // one entry is left, and only its first bits are known
        u64 only = 0;
        for (int i = threadIdx.x; i < items.count; i += blockDim.x) {
            const u64 entry = item(rows, row, items, i);
            if (bit == 63 || entry - bar < 2ull << bit) only = entry;
        }
        bar = block_largest(only, shared);
    }
    total -= below;
    return bar;
}

// The id of the first item in vocabulary order at or above `bar` whose cumulative weight exceeds
// `target`, which is below the sum of all; written by the thread that has it.
DEV void draw(const Rows& rows, const Row& row, const Items& items, u64 bar, u64 target, u32* id,
              u64* shared) {
    const int each = (items.count + blockDim.x - 1) / blockDim.x | 1;
    const int first = min((int)threadIdx.x * each, items.count);
    const int end = min(first + each, items.count);
    u64 weight = 0;
    for (int i = first; i < end; i++) {
        const u64 entry = item(rows, row, items, i);
        if (entry >= bar) weight += weight_of(entry);
    }
    u64 through = block_before(weight, shared);
    if (!(through <= target && target < through + weight)) return;
    for (int i = first; i < end; i++) {
        const u64 entry = item(rows, row, items, i);
        if (entry < bar) continue;
        through += weight_of(entry);
        if (through > target) {
            *id = index_of(entry);
            return;
        }
    }
}

// ids[batch, tokens] of the rows: a draw from the filtered softmax. A block has a row. Dynamic shared
// memory: the row's order keys where they are held, and then `capacity` entries, at least 8 KB where
// top-k is on: the bins lie there before the entries do.
//
// Memory: every logit once, and again from the cache where its key is not held.
KERNEL void __launch_bounds__(512, 2)
draw_codes(u32* __restrict__ ids, const act* __restrict__ logits, Rows rows) {
    SMEM(u64, shared, 64);
    DYN_SMEM(u32, keys);
    const int words = rows.keys_held ? (rows.vocab + 3) / 4 * 4 : 0;
    u64* entries = reinterpret_cast<u64*>(keys + words);
    u32* bins = keys + words;
    const Row row = row_of_block(rows, logits);
    Items items = {entries, keys, 0, -INFINITY, rows.vocab, true};
    items.largest = of_order_key(read_row(rows, row, keys, bins, shared));
    if (rows.top_k > 0) {
        items.bar = top_k_bar(rows, row, keys, bins, shared);
        const int count = gather(rows, row, keys, items.bar, items.largest, entries, shared);
        items.held = count <= rows.capacity;
        items.count = items.held ? count : rows.vocab;
    } else {
        items.held = rows.vocab <= rows.capacity;
        for (int i = threadIdx.x; items.held && i < rows.vocab; i += blockDim.x) {
            const u32 key = key_of(rows, row, keys, i);
            entries[i] = entry_of(softmax_weight(of_order_key(key), items.largest), i);
        }
    }
    __syncthreads();
    u64 total = 0;
    for (int i = threadIdx.x; i < items.count; i += blockDim.x) {
        total += weight_of(item(rows, row, items, i));
    }
    total = block_total(total, shared);
    u32* id = ids + id_of_row(rows, row);
    if (total == 0) {  // nothing above -infinity
        if (threadIdx.x == 0) *id = 0;
        return;
    }
    u64 bar = 0;
    if (rows.dropped >= 0.0) {
        const u64 limit = whole_part(rows.dropped * (double)total);
        bar = top_p_bar(rows, row, items, limit, total, shared);
    }
    const u32 token = row.token - rows.table.first[row.scale];
    const double uniform = token_uniform(rows.seed, rows.first_image + row.sample, row.scale, token);
    const u64 target = min((u64)(uniform * (double)total), total - 1);
    draw(rows, row, items, bar, target, id, shared);
}
REGISTER_KERNEL(draw_codes)
