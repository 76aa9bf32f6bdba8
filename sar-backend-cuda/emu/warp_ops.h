// Warp operations: lanes post what they bring, the last to come completes the operation for all.
#pragma once
#include "schedule.h"
#include <cstring>

namespace emu {

// The lanes of `mask` that take part: CUDA asks it of those that have not returned.
inline u32 live_lanes(const Warp& warp, u32 mask) { return mask & ~warp.gone; }

// Faults unless all `lanes` posted the same operation with the same mask.
inline void check_agreement(const Warp& warp, u32 lanes, const Post& expected) {
    for (u32 lane = 0; lane < WARP; lane++) {
        const Post& post = warp.post[lane];
        if (!(lanes & lane_bit(lane)) || (post.op == expected.op && post.mask == expected.mask)) {
            continue;
        }
        fault(expected.site, "%s with mask %08x meets %s with mask %08x in lane %u (line %d)",
              expected.op->name, expected.mask, post.op->name, post.mask, lane, post.site.line);
    }
    if (expected.op->whole_warp && lanes != ALL_LANES) {
        fault(expected.site, "%s needs all 32 lanes; only %08x take part", expected.op->name,
              lanes);
    }
}

// Completes the operation that `post` belongs to if no lane is missing; its lanes become ready.
inline bool try_complete(Warp& warp, const Post& post) {
    const u32 lanes = live_lanes(warp, post.mask);
    if ((warp.at_operation & lanes) != lanes) return false;
    check_agreement(warp, lanes, post);
    post.op->complete(warp, lanes);
    warp.at_operation &= ~lanes;
    warp.ready |= lanes;
    return true;
}

// The running lane takes part in an operation; returns when it is complete.
inline void take_part(const WarpOp& op, u32 mask, Site site) {
    Fiber& self = *current;
    Warp& warp = *self.warp;
    const u32 own = lane_bit(self.lane);
    if (!(mask & own)) {
        fault(site, "%s: calling lane %u is not in mask %08x", op.name, self.lane, mask);
    }
    Post& post = warp.post[self.lane];
    post.op = &op;
    post.mask = mask;
    post.site = site;
    warp.at_operation |= own;
    if (try_complete(warp, post)) {
        warp.ready &= ~own;
    } else {
        wait_for_turn();
    }
}

// A thread returned: operations that waited for it may be complete now.
inline void complete_without(Warp& warp, u32 lane) {
    for (u32 other = 0; other < WARP; other++) {
        const bool waits = warp.at_operation & lane_bit(other);
        if (waits && warp.post[other].mask & lane_bit(lane)) try_complete(warp, warp.post[other]);
    }
}

// ---- shuffles: each lane posts its value and the lane that it reads from

inline void complete_shuffle(Warp& warp, u32 lanes) {
    u64 taken[WARP];
    for (u32 lane = 0; lane < WARP; lane++) {
        if (!(lanes & lane_bit(lane))) continue;
        const u32 source = warp.post[lane].argument;
        // The value of a lane that takes no part is undefined: a NaN, so that it does not pass.
        taken[lane] = lanes & lane_bit(source) ? warp.post[source].value : ~0ull;
    }
    for (u32 lane = 0; lane < WARP; lane++) {
        if (lanes & lane_bit(lane)) warp.post[lane].value = taken[lane];
    }
}

inline constexpr WarpOp SHUFFLE = {"__shfl_sync", false, complete_shuffle};

template <class T> inline T shuffle(u32 mask, T value, u32 source, Site site) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    // The post stays this lane's own until it takes part in its next operation.
    Post& post = current->warp->post[current->lane];
    post.argument = source;
    std::memcpy(&post.value, &value, sizeof value);
    take_part(SHUFFLE, mask, site);
    std::memcpy(&value, &post.value, sizeof value);
    return value;
}

// The first lane of the calling lane's segment of `width` lanes.
inline u32 segment_start(int width) { return current->lane & ~(static_cast<u32>(width) - 1); }

// ---- votes

inline void complete_ballot(Warp& warp, u32 lanes) {
    u32 votes = 0;
    for (u32 lane = 0; lane < WARP; lane++) {
        if (lanes & lane_bit(lane) && warp.post[lane].argument) votes |= lane_bit(lane);
    }
    for (u32 lane = 0; lane < WARP; lane++) {
        if (lanes & lane_bit(lane)) warp.post[lane].argument = votes;
    }
}

inline constexpr WarpOp BALLOT = {"__ballot_sync", false, complete_ballot};

inline void complete_sync(Warp&, u32) {}

inline constexpr WarpOp SYNC = {"__syncwarp", false, complete_sync};

} // namespace emu

template <class T> inline T __shfl_sync(u32 mask, T value, int source, int width = 32,
                                        emu::Site site = emu::Site::here()) {
    const u32 within = static_cast<u32>(source) & (static_cast<u32>(width) - 1);
    return emu::shuffle(mask, value, emu::segment_start(width) + within, site);
}

// A lane whose source lies in a later segment keeps its own value.
template <class T> inline T __shfl_xor_sync(u32 mask, T value, int lanes, int width = 32,
                                            emu::Site site = emu::Site::here()) {
    const u32 lane = emu::current->lane, source = lane ^ (static_cast<u32>(lanes) & 31);
    const u32 end = emu::segment_start(width) + static_cast<u32>(width);
    return emu::shuffle(mask, value, source < end ? source : lane, site);
}

// The first `delta` lanes of a segment keep their own values.
template <class T> inline T __shfl_up_sync(u32 mask, T value, u32 delta, int width = 32,
                                           emu::Site site = emu::Site::here()) {
    const u32 lane = emu::current->lane, from_start = lane - emu::segment_start(width);
    return emu::shuffle(mask, value, from_start >= delta ? lane - delta : lane, site);
}

// The last `delta` lanes of a segment keep their own values.
template <class T> inline T __shfl_down_sync(u32 mask, T value, u32 delta, int width = 32,
                                             emu::Site site = emu::Site::here()) {
    const u32 lane = emu::current->lane;
    const u32 from_start = lane - emu::segment_start(width);
    const bool inside = delta < static_cast<u32>(width) - from_start;
    return emu::shuffle(mask, value, inside ? lane + delta : lane, site);
}

// The lanes whose predicate is not zero, as a mask.
inline u32 __ballot_sync(u32 mask, int predicate, emu::Site site = emu::Site::here()) {
    emu::Post& post = emu::current->warp->post[emu::current->lane];
    post.argument = predicate != 0;
    emu::take_part(emu::BALLOT, mask, site);
    return post.argument;
}

inline int __any_sync(u32 mask, int predicate, emu::Site site = emu::Site::here()) {
    return __ballot_sync(mask, predicate, site) != 0;
}

inline int __all_sync(u32 mask, int predicate, emu::Site site = emu::Site::here()) {
    return __ballot_sync(mask, predicate == 0, site) == 0;
}

inline void __syncwarp(u32 mask = emu::ALL_LANES, emu::Site site = emu::Site::here()) {
    emu::take_part(emu::SYNC, mask, site);
}
