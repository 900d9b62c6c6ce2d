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
