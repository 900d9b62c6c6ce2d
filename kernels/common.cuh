// What every kernel source begins with. It is put before each of them as text: nothing is included, so that NVRTC needs
// no toolkit.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// Defines a kernel. Names are unique over all sources and begin with the family's.
#define KERNEL(name) extern "C" __global__ void name

#define DEVICE static __device__ __forceinline__

// Strides over elements 0 to n, whatever the number of blocks.
#define FOR_ELEMENTS(i, n)                                                                                             \
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (i64)gridDim.x * blockDim.x)

// Strides over `rows` rows in y, and over positions 0 to n of a row in x. Rows are 64-bit, positions 32-bit: an index
// within a row is divided cheaply.
#define FOR_ROWS(row, rows)                                                                                            \
    for (i64 row = (i64)blockIdx.y * blockDim.y + threadIdx.y; row < (rows); row += (i64)gridDim.y * blockDim.y)
#define FOR_POSITIONS(i, n)                                                                                            \
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < (u32)(n); i += gridDim.x * blockDim.x)

#define WARP 32u
#define ALL_LANES 0xffffffffu
#define LARGEST_FLOAT 3.402823466e+38f
#define INFINITE __int_as_float(0x7f800000)

// Reductions. The order is that of a fixed tree over the threads: the same bits each time. Every thread of the warp, or of
// the block, must call them; the block's number of threads is a multiple of 32, up to 1024, in x alone.

struct Sum {
    template <typename T> DEVICE T of(T a, T b) { return a + b; }
};
struct Largest {
    template <typename T> DEVICE T of(T a, T b) { return a > b ? a : b; }
};
struct Least {
    template <typename T> DEVICE T of(T a, T b) { return a < b ? a : b; }
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

// Random numbers: Philox4x32-10 (Salmon et al., 2011). The words are those of `lgm_core::rng::Philox`.

struct Words {
    u32 w[4];
};

DEVICE Words philox(u64 seed, u64 stream, u64 counter) {
    u32 c0 = (u32)counter, c1 = (u32)(counter >> 32), c2 = (u32)stream, c3 = (u32)(stream >> 32);
    u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u64 p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
        c0 = (u32)(p1 >> 32) ^ c1 ^ k0;
        c1 = (u32)p1;
        c2 = (u32)(p0 >> 32) ^ c3 ^ k1;
        c3 = (u32)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    Words out = {{c0, c1, c2, c3}};
    return out;
}

// When a step is, as six words tell: seed, iteration and batch, the low word of each first.
DEVICE u64 clock_seed(const u32* clock) { return clock[0] | (u64)clock[1] << 32; }
DEVICE u64 clock_iteration(const u32* clock) { return clock[2] | (u64)clock[3] << 32; }
DEVICE u64 clock_batch(const u32* clock) { return clock[4] | (u64)clock[5] << 32; }

// Records what a kernel could not take, unless something is recorded already. One thread of the grid calls it, having
// found the lowest index at fault; `kind` is not zero.
DEVICE void report_fault(u32* fault, u32 kind, u32 index, u32 detail) {
    if (fault[0] != 0) return;
    fault[1] = index;
    fault[2] = detail;
    fault[0] = kind;
}
