// Reductions. The order is that of a fixed tree over the threads: the same bits each time. Every thread of the warp, or of
// the block, must call them; the block's number of threads is a multiple of 32, up to 1024, in x alone.

struct Sum {
    template <typename T> DEVICE T of(T a, T b) { return a + b; }
};
// What is not a number wins, so that every lane comes to the same.
struct Largest {
    template <typename T> DEVICE T of(T a, T b) { return a > b || a != a ? a : b; }
};
struct Least {
    template <typename T> DEVICE T of(T a, T b) { return a < b || a != a ? a : b; }
};

template <typename Op, typename T> DEVICE T warp_reduce(T v) {
    for (int apart = 16; apart > 0; apart >>= 1) v = Op::of(v, __shfl_xor_sync(ALL_LANES, v, apart));
    return v;
}

// `exchange` is 32 elements of shared memory, free again when this returns. Every thread gets the result.
template <typename Op, typename T> DEVICE T block_reduce(T v, T* exchange) {
    v = warp_reduce<Op>(v);
    const u32 warps = blockDim.x / WARP;
    if (warps == 1) return v;
    if (threadIdx.x % WARP == 0) exchange[threadIdx.x / WARP] = v;
    __syncthreads();
    v = exchange[0];
    for (u32 w = 1; w < warps; ++w) v = Op::of(v, exchange[w]);
    __syncthreads();
    return v;
}

// In one block: calls `take(i, its number among them)` for every i below n of which `is(i)`, and gives how many there are. They
// are numbered in their order. `exchange` is 32 elements of shared memory, free again when this returns, and what was taken can
// be seen by all threads then.
template <typename Is, typename Take> DEVICE u32 block_gather(u32 n, u32* exchange, Is is, Take take) {
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    u32 found = 0;
    for (u32 base = 0; base < n; base += blockDim.x) {
        const u32 i = base + threadIdx.x;
        const bool mine = i < n && is(i);
        const u32 votes = __ballot_sync(ALL_LANES, mine);
        if (lane == 0) exchange[warp] = __popc(votes);
        __syncthreads();
        u32 at = found + __popc(votes & ((1u << lane) - 1));
        for (u32 w = 0; w < warps; ++w) {
            if (w < warp) at += exchange[w];
            found += exchange[w];
        }
        if (mine) take(i, at);
        __syncthreads();
    }
    return found;
}

DEVICE bool aligned(const void* p) { return ((u64)p & 15) == 0; }
