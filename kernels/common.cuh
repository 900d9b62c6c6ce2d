// What every kernel source begins with. It is put before each of them as text: nothing is included, so that NVRTC needs
// no toolkit.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// Defines a kernel. Names are unique over all sources and begin with the family's. BOUNDS may be set to the threads of a
// block and the blocks that are to fit a multiprocessor, for the kernels that follow.
#define KERNEL(name) extern "C" __global__ void BOUNDS name
#define BOUNDS

#define DEVICE static __device__ __forceinline__

// Rounds to bf16, ties to even; NaN becomes 0x7fff.
DEVICE u32 bf16_bits(float v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    return bits;
#else
    const u32 u = __float_as_uint(v);
    return (u & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
#endif
}

// Two of them, `low` in the lower half.
DEVICE u32 bf16_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    u32 bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
#else
    return bf16_bits(low) | bf16_bits(high) << 16;
#endif
}

// A stored number: the upper half of single precision, rounded to the nearest, the even one of two. Arithmetic is that of
// float; there is no way from a float but assignment, so that no expression rounds on its way.
struct bf16 {
    unsigned short bits;

    __device__ __forceinline__ operator float() const { return __uint_as_float((u32)bits << 16); }
    __device__ __forceinline__ bf16& operator=(float v) {
        bits = (unsigned short)bf16_bits(v);
        return *this;
    }
};

// Two kernels from a template `name_of`: one for blobs of floats, and one of bf16. In `params`, T is the type of elements;
// `args` passes them on. Those that add up over a block get `exchange`, 2048 floats that the block shares.
#define KERNELS_WITH(shared, name, name_bf16, params, args)                                                            \
    inline namespace name##_of_float {                                                                                 \
    typedef float T;                                                                                                   \
    KERNEL(name) params {                                                                                              \
        shared name##_of<T> args;                                                                                      \
    }                                                                                                                  \
    }                                                                                                                  \
    inline namespace name##_of_bf16 {                                                                                  \
    typedef bf16 T;                                                                                                    \
    KERNEL(name_bf16) params {                                                                                         \
        shared name##_of<T> args;                                                                                      \
    }                                                                                                                  \
    }
#define KERNELS(name, name_bf16, params, args) KERNELS_WITH(, name, name_bf16, params, args)
#define KERNELS_ADDING(name, name_bf16, params, args)                                                                  \
    KERNELS_WITH(__shared__ float exchange[2048];, name, name_bf16, params, args)

// Strides over elements 0 to n, whatever the number of blocks.
#define FOR_ELEMENTS(i, n)                                                                                             \
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (i64)gridDim.x * blockDim.x)

// Strides over rows in y and over positions 0 to `width` of a row in x. Both are 32-bit, so that dividing them is cheap;
// what they make together is not.
#define FOR_ROWS(row, rows)                                                                                            \
    for (u32 row = blockIdx.y * blockDim.y + threadIdx.y; row < (rows); row += gridDim.y * blockDim.y)
#define FOR_POSITIONS(i, width)                                                                                        \
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < (width); i += gridDim.x * blockDim.x)

// The channel of position i of a row: rows of one channel follow one another, or, where `channels` is 0, a row holds one
// value of each channel.
#define CHANNEL(row, i, channels) ((channels) ? (row) % (channels) : (i))

#define WARP 32u
#define ALL_LANES 0xffffffffu
#define LARGEST_FLOAT 3.402823466e+38f
#define INFINITE __int_as_float(0x7f800000)

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

DEVICE bool aligned(const void* p) { return ((u64)p & 15) == 0; }

// N numbers, read from and written to elements that lie together, up to 16 bytes at a time. Their address is a multiple
// of what they take, or of 16 bytes if that is more.
template <typename T, u32 N = 16 / sizeof(T)> struct Pack {
    static const u32 size = N;
    static const u32 bytes = N * sizeof(T);
    float v[N];

    struct alignas(bytes < 16 ? bytes : 16) Raw {
        u32 w[bytes < 4 ? 1 : bytes / 4];
    };

    // Numbers as they are stored, so that several packs can be on their way before the first is looked at.
    static __device__ __forceinline__ Raw raw(const T* p) { return *(const Raw*)p; }

    __device__ __forceinline__ void set(const Raw& raw) {
#pragma unroll
        for (u32 k = 0; k < bytes / 4; ++k) {
            if constexpr (sizeof(T) == 4) {
                v[k] = __uint_as_float(raw.w[k]);
            } else {
                v[2 * k] = __uint_as_float(raw.w[k] << 16);
                v[2 * k + 1] = __uint_as_float(raw.w[k] & 0xffff0000u);
            }
        }
    }

    __device__ __forceinline__ void read(const T* p) { set(raw(p)); }

    __device__ __forceinline__ void write(T* p) const {
        Raw raw;
#pragma unroll
        for (u32 k = 0; k < bytes / 4; ++k) {
            if constexpr (sizeof(T) == 4) {
                raw.w[k] = __float_as_uint(v[k]);
            } else {
                raw.w[k] = bf16_pair(v[2 * k], v[2 * k + 1]);
            }
        }
        *(Raw*)p = raw;
    }
};

// One element, whatever its address.
template <typename T> struct Pack<T, 1> {
    static const u32 size = 1;
    float v[1];
    typedef T Raw;

    static __device__ __forceinline__ Raw raw(const T* p) { return *p; }
    __device__ __forceinline__ void set(const Raw& raw) { v[0] = raw; }
    __device__ __forceinline__ void read(const T* p) { v[0] = *p; }
    __device__ __forceinline__ void write(T* p) const { *p = v[0]; }
};

// y[i] = f(x[i]) and y[i] = f(a[i], b[i]); y may be an input. 16 bytes of y at a time where addresses allow.

template <typename T, typename F> DEVICE void map1(T* y, const T* x, i64 n, F f) {
    const u32 size = Pack<T>::size;
    const i64 packs = aligned(y) && aligned(x) ? n / size : 0;
    FOR_ELEMENTS(q, packs) {
        Pack<T> v;
        v.read(x + size * q);
#pragma unroll
        for (u32 k = 0; k < size; ++k) v.v[k] = f(v.v[k]);
        v.write(y + size * q);
    }
    FOR_ELEMENTS(i, n - size * packs) y[size * packs + i] = f(x[size * packs + i]);
}

// B may be another type than T: choices beside values.
template <typename T, typename B, typename F> DEVICE void map2(T* y, const T* a, const B* b, i64 n, F f) {
    const u32 size = Pack<T>::size;
    const i64 packs = aligned(y) && aligned(a) && aligned(b) ? n / size : 0;
    FOR_ELEMENTS(q, packs) {
        Pack<T> v;
        Pack<B, size> w;
        v.read(a + size * q);
        w.read(b + size * q);
#pragma unroll
        for (u32 k = 0; k < size; ++k) v.v[k] = f(v.v[k], w.v[k]);
        v.write(y + size * q);
    }
    FOR_ELEMENTS(i, n - size * packs) y[size * packs + i] = f(a[size * packs + i], b[size * packs + i]);
}

// Layers that treat the elements of a channel alike. What they need of V channels from c on, `of(c, Width<V>())`, a thread
// holds in registers while it goes along them, and gives to what treats an element with the channel's number among them.
// Packs of 16 bytes are taken where rows and addresses allow, several on their way at once.

template <u32 V> struct Width {
    enum : u32 { value = V };
};

// The numbers of V channels from c on, or `otherwise` where there are none. They begin at a multiple of 16 bytes.
template <u32 V> DEVICE Pack<float, V> numbers(const float* of_channels, u32 c, float otherwise = 0) {
    Pack<float, V> found;
    if (of_channels) {
        found.read(of_channels + c);
    } else {
#pragma unroll
        for (u32 k = 0; k < V; ++k) found.v[k] = otherwise;
    }
    return found;
}

// Packs that a thread asks for before it looks at the first.
#define AHEAD 2u

template <typename T, int IN> DEVICE bool all_aligned(const T* const (&x)[IN]) {
    bool all = true;
#pragma unroll
    for (int i = 0; i < IN; ++i) all = all && aligned(x[i]);
    return all;
}

// A pack of each of IN blobs, at the same place.
template <u32 V, typename T, int IN> struct Packs {
    typename Pack<T, V>::Raw raw[IN];

    __device__ __forceinline__ void read(const T* const (&x)[IN], i64 at) {
#pragma unroll
        for (int i = 0; i < IN; ++i) raw[i] = Pack<T, V>::raw(x[i] + at);
    }

    // What f(k, the elements in place k) gives for every place.
    template <typename F> __device__ __forceinline__ Pack<T, V> map(F f) const {
        Pack<T, V> in[IN], out;
#pragma unroll
        for (int i = 0; i < IN; ++i) in[i].set(raw[i]);
#pragma unroll
        for (u32 k = 0; k < V; ++k) {
            float e[IN];
#pragma unroll
            for (int i = 0; i < IN; ++i) e[i] = in[i].v[k];
            out.v[k] = f(k, e);
        }
        return out;
    }
};

// y = f(of, channel among them, the elements of IN blobs); y may be one of them. Rows and positions as for CHANNEL.
template <u32 V, typename T, int IN, typename Of, typename F>
DEVICE void channel_map_by(T* y, const T* const (&x)[IN], u32 rows, u32 width, u32 channels, Of of, F f) {
    const u32 packs = width / V, first = blockIdx.x * blockDim.x + threadIdx.x, across = gridDim.x * blockDim.x;
    const u32 top = blockIdx.y * blockDim.y + threadIdx.y, down = gridDim.y * blockDim.y;
    Packs<V, T, IN> packed[AHEAD];
    const auto read = [&](u32 u, u32 row, u32 p) { packed[u].read(x, (i64)row * width + p * V); };
    const auto write = [&](u32 u, u32 row, u32 p, const auto& mine, bool apart) {
        packed[u].map([&](u32 k, const float* e) { return f(mine, apart ? k : 0, e); })
            .write(y + (i64)row * width + p * V);
    };
    if (channels == 0) {
        for (u32 p = first; p < packs; p += across) {
            const auto mine = of(p * V, Width<V>());
            for (u32 row = top; row < rows; row += AHEAD * down) {
#pragma unroll
                for (u32 u = 0; u < AHEAD; ++u) {
                    if (row + u * down < rows) read(u, row + u * down, p);
                }
#pragma unroll
                for (u32 u = 0; u < AHEAD; ++u) {
                    if (row + u * down < rows) write(u, row + u * down, p, mine, true);
                }
            }
        }
        return;
    }
    for (u32 row = top; row < rows; row += down) {
        const auto mine = of(row % channels, Width<1>());
        for (u32 p = first; p < packs; p += AHEAD * across) {
#pragma unroll
            for (u32 u = 0; u < AHEAD; ++u) {
                if (p + u * across < packs) read(u, row, p + u * across);
            }
#pragma unroll
            for (u32 u = 0; u < AHEAD; ++u) {
                if (p + u * across < packs) write(u, row, p + u * across, mine, false);
            }
        }
    }
}

template <typename T, int IN, typename Of, typename F>
DEVICE void channel_map(T* y, const T* const (&x)[IN], u32 rows, u32 width, u32 channels, Of of, F f) {
    const u32 size = Pack<T>::size;
    if (width % size == 0 && aligned(y) && all_aligned(x)) {
        channel_map_by<size>(y, x, rows, width, channels, of, f);
    } else {
        channel_map_by<1>(y, x, rows, width, channels, of, f);
    }
}

// Sums over all axes of [outer, channels, inner] but the middle one, in two steps. The first leaves K sums of each channel
// and chunk in partial[k][chunk][channel]; chunks are in y. With `inner` 1 a block has a column of threads for each pack of
// channels, which are in x; else it has up to 256 threads for one channel. `term(of, channel among
// them, elements, sums)`, with `of(c, Width<V>(), chunk)`, adds to K sums and returns what goes to y, where y is not null.

// The part of a channel's elements that a chunk holds, of outer * inner in their order.
struct Chunk {
    u32 from, end;

    __device__ __forceinline__ Chunk(u32 chunk, u32 chunks, u32 outer, u32 inner) {
        const u32 total = outer * inner, len = ((total - 1) / chunks / 8 + 1) * 8;
        const u64 start = (u64)chunk * len;
        from = start < total ? (u32)start : total;
        end = total - from > len ? from + len : total;
    }

    // The median of its first element, one in the middle and its last: near the others even where one lies far away.
    template <typename T>
    __device__ __forceinline__ float typical(const T* x, u32 c, u32 channels, u32 inner) const {
        const auto value = [=](u32 j) -> float {
            const u32 o = j / inner;
            return x[((i64)o * channels + c) * inner + (j - o * inner)];
        };
        if (from >= end) return 0.0f;
        const float a = value(from), b = value(from + (end - from) / 2), z = value(end - 1);
        return a < b ? (b < z ? b : a < z ? z : a) : (a < z ? a : b < z ? z : b);
    }
};

// to[c] = the sum down a block's columns of threads of what `of(v)` gives each, for channels c from base * V on, V to a
// column, that are less than `channels`. `exchange` is 256 V floats of shared memory, free again when this returns.
template <u32 V, typename Of> DEVICE void add_columns(float* to, u32 base, u32 channels, float* exchange, Of of) {
    const u32 threads = blockDim.x * blockDim.y, me = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
    for (u32 v = 0; v < V; ++v) exchange[v * 256 + me] = of(v);
    __syncthreads();
    for (u32 j = me; j < V * blockDim.x; j += threads) {
        const u32 c = base * V + j;
        float sum = 0;
        for (u32 g = 0; g < blockDim.y; ++g) sum += exchange[j % V * 256 + g * blockDim.x + j / V];
        if (c < channels) to[c] = sum;
    }
    __syncthreads();
}

template <u32 V, int K, typename T, int IN, typename Of, typename F>
DEVICE void channel_partials_by(
    float* partial, T* y, const T* const (&x)[IN], u32 outer, u32 channels, u32 inner, float* exchange, Of of, F term
) {
    const u32 chunks = gridDim.y, threads = blockDim.x * blockDim.y, me = threadIdx.y * blockDim.x + threadIdx.x;
    const i64 step = (i64)chunks * channels;
    const Chunk chunk(blockIdx.y, chunks, outer, inner);
    float* to = partial + (i64)blockIdx.y * channels;
    Packs<V, T, IN> packed[AHEAD];
    const auto read = [&](u32 u, i64 at) { packed[u].read(x, at); };
    const auto add = [&](u32 u, i64 at, const auto& mine, bool apart, float (*sums)[K]) {
        const Pack<T, V> out = packed[u].map([&](u32 k, const float* e) {
            return term(mine, apart ? k : 0, e, sums[apart ? k : 0]);
        });
        if (y) out.write(y + at);
    };
    if (inner == 1) {
        const u32 packs = channels / V;
        for (u32 base = blockIdx.x * blockDim.x; base < packs; base += gridDim.x * blockDim.x) {
            const u32 p = base + threadIdx.x;
            float sums[V][K];
#pragma unroll
            for (u32 v = 0; v < V; ++v) {
#pragma unroll
                for (int k = 0; k < K; ++k) sums[v][k] = 0;
            }
            if (p < packs) {
                const auto mine = of(p * V, Width<V>(), chunk);
                for (u32 o = chunk.from + threadIdx.y; o < chunk.end; o += AHEAD * blockDim.y) {
#pragma unroll
                    for (u32 u = 0; u < AHEAD; ++u) {
                        if (o + u * blockDim.y < chunk.end) read(u, (i64)(o + u * blockDim.y) * channels + p * V);
                    }
#pragma unroll
                    for (u32 u = 0; u < AHEAD; ++u) {
                        if (o + u * blockDim.y < chunk.end) {
                            add(u, (i64)(o + u * blockDim.y) * channels + p * V, mine, true, sums);
                        }
                    }
                }
            }
#pragma unroll
            for (int k = 0; k < K; ++k) {
                add_columns<V>(to + k * step, base, channels, exchange, [&](u32 v) { return sums[v][k]; });
            }
        }
        return;
    }
    const u32 c = blockIdx.x;
    const auto mine = of(c, Width<1>(), chunk);
    float sums[1][K];
#pragma unroll
    for (int k = 0; k < K; ++k) sums[0][k] = 0;
    const auto place = [&](u32 q) {
        const u32 j = q * V, o = j / inner;
        return ((i64)o * channels + c) * inner + (j - o * inner);
    };
    for (u32 q = chunk.from / V + me; q < chunk.end / V; q += AHEAD * threads) {
#pragma unroll
        for (u32 u = 0; u < AHEAD; ++u) {
            if (q + u * threads < chunk.end / V) read(u, place(q + u * threads));
        }
#pragma unroll
        for (u32 u = 0; u < AHEAD; ++u) {
            if (q + u * threads < chunk.end / V) {
                add(u, place(q + u * threads), mine, false, sums);
            }
        }
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
        const float sum = block_reduce<Sum>(sums[0][k], exchange);
        if (me == 0) to[k * step + c] = sum;
    }
}

template <int K, typename T, int IN, typename Of, typename F>
DEVICE void channel_partials(
    float* partial, T* y, const T* const (&x)[IN], u32 outer, u32 channels, u32 inner, float* exchange, Of of, F term
) {
    const u32 size = Pack<T>::size;
    if ((inner == 1 ? channels : inner) % size == 0 && aligned(y) && all_aligned(x)) {
        channel_partials_by<size, K>(partial, y, x, outer, channels, inner, exchange, of, term);
    } else {
        channel_partials_by<1, K>(partial, y, x, outer, channels, inner, exchange, of, term);
    }
}

// The second: blocks of up to 1024 threads, in groups of one for each of 32 channels, add up what the chunks left. The first
// group gets the sums of channel blockIdx.x * 32 + threadIdx.x, if there is one, and true. `exchange` is K * 1024 floats of
// shared memory.
template <int K>
DEVICE bool channel_sums(float (&sums)[K], const float* partial, u32 chunks, u32 channels, float* exchange) {
    const u32 lane = threadIdx.x % 32, c = blockIdx.x * 32 + lane, groups = blockDim.x / 32;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        sums[k] = 0;
        for (u32 j = threadIdx.x / 32; c < channels && j < chunks; j += groups) {
            sums[k] += partial[((i64)k * chunks + j) * channels + c];
        }
        exchange[k * 1024 + threadIdx.x] = sums[k];
    }
    __syncthreads();
    if (threadIdx.x >= 32 || c >= channels) return false;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        for (u32 g = 1; g < groups; ++g) sums[k] += exchange[k * 1024 + g * 32 + lane];
    }
    return true;
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
