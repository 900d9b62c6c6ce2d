// Average pooling: sums of windows divided by their size, padding included or not, forward; backward a thread gathers for a cell of
// elements from the windows that reach it.

// What windows come to, element by element. `missing`, the bits of elements that are not there, changes nothing.

template <typename T, u32 N> struct Total {
    static const u32 missing = 0;
    float sum[N];

    __device__ __forceinline__ Total() {
#pragma unroll
        for (u32 k = 0; k < N; ++k) sum[k] = 0;
    }

    __device__ __forceinline__ void take(u32 k, float v, u32) { sum[k] += v; }

    __device__ __forceinline__ void take(const typename Pack<T, N>::Raw& raw, u32 at) {
        Pack<T, N> v;
        v.set(raw);
#pragma unroll
        for (u32 k = 0; k < N; ++k) take(k, v.v[k], at);
    }

    __device__ __forceinline__ void write(T* y, float size, i64 i) const {
        Pack<T, N> v;
#pragma unroll
        for (u32 k = 0; k < N; ++k) v.v[k] = sum[k] / size;
        v.write(y + i);
    }
};

template <u32 K, u32 N, typename T> DEVICE void means(T* y, const T* x, GEOMETRY) {
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(i, wide) {
            const Place p = place(row, i * N, down * across, channels);
            const u32 wi = p.at / across, wj = p.at - wi * across;
            const int top = (int)(wi * stride_h) - (int)pad_h, left = (int)(wj * stride_w) - (int)pad_w;
            Total<T, N> total;
            take_window<K, N>(
                total, x + start(p, height * width), p.apart, top, left, height, width, kernel_h, kernel_w
            );
            const u32 size = padded(wi, height, kernel_h, stride_h, pad_h, end_h, bare) *
                             padded(wj, width, kernel_w, stride_w, pad_w, end_w, bare);
            total.write(y, (float)size, ((i64)row * wide + i) * N);
        }
    }
}

template <typename T> DEVICE void pool_average_forward_of(T* y, const T* x, GEOMETRY) {
    BY_WINDOW(means, 1, y, x);
}
KERNELS(pool_average_forward, (T* y, const T* x, GEOMETRY), (y, x, GEOMETRY_NAMES))

template <typename T> DEVICE void pool_average_forward_packs_of(T* y, const T* x, GEOMETRY) {
    BY_WINDOW(means, Pack<T>::size, y, x);
}
KERNELS(pool_average_forward_packs,
    (T* y, const T* x, GEOMETRY), (y, x, GEOMETRY_NAMES))

template <typename T> DEVICE void pool_average_backward_of(T* dx, const T* dy, GEOMETRY) {
    spread<true, 1>(dx, dy, (const u8*)nullptr, GEOMETRY_NAMES);
}
KERNELS(pool_average_backward, (T* dx, const T* dy, GEOMETRY), (dx, dy, GEOMETRY_NAMES))

template <typename T> DEVICE void pool_average_backward_packs_of(T* dx, const T* dy, GEOMETRY) {
    spread<true, Pack<T>::size>(dx, dy, (const u8*)nullptr, GEOMETRY_NAMES);
}
KERNELS(pool_average_backward_packs,
    (T* dx, const T* dy, GEOMETRY), (dx, dy, GEOMETRY_NAMES))

template <u32 N, typename T> DEVICE void mean_pairs(T* y, const T* x, GEOMETRY) {
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(i, wide) {
            const u32 wi = i * N / across, wj = i * N - wi * across;
            Total<T, N> total;
            take_pairs_of<N>(total, x + (i64)row * height * width, wi, wj, height, width);
            total.write(y, 2 * wi + 1 < height ? 4.0f : 2.0f, ((i64)row * wide + i) * N);
        }
    }
}

template <typename T> DEVICE void pool_average_forward_pairs_of(T* y, const T* x, u32 together, GEOMETRY) {
    BY_NUMBER(mean_pairs, y, x);
}
KERNELS(pool_average_forward_pairs,
    (T* y, const T* x, u32 together, GEOMETRY), (y, x, together, GEOMETRY_NAMES))

template <u32 N, typename T> DEVICE void mean_spread_pairs(T* dx, const T* dy, GEOMETRY) {
    spread_pairs<true, N>(dx, dy, (const u8*)nullptr, GEOMETRY_NAMES);
}

template <typename T> DEVICE void pool_average_backward_pairs_of(T* dx, const T* dy, u32 together, GEOMETRY) {
    BY_NUMBER(mean_spread_pairs, dx, dy);
}
KERNELS(pool_average_backward_pairs,
    (T* dx, const T* dy, u32 together, GEOMETRY), (dx, dy, together, GEOMETRY_NAMES))

// Means of whole planes. With channels last, a block of 256 threads has an image in y and `lanes` packs of N channels in
// x, and 256 / lanes threads share the positions of each pack.

// As many positions as are on their way together.
#define WINDOW_AHEAD 4u

template <u32 N, typename T>
DEVICE void whole_means_last(T* y, const T* x, u32 images, u32 area, u32 channels, u32 lanes, float* exchange) {
    typedef Pack<T, N> P;
    const u32 lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = blockDim.x / lanes;
    const u32 packs = channels / N, first = blockIdx.x * lanes, pack = first + lane;
    for (u32 image = blockIdx.y; image < images; image += gridDim.y) {
        const T* from = x + ((i64)image * area * channels + (i64)pack * N);
        Total<T, N> total;
        for (u32 q = group; q < area && pack < packs; q += WINDOW_AHEAD * groups) {
            typename P::Raw raw[WINDOW_AHEAD];
#pragma unroll
            for (u32 s = 0; s < WINDOW_AHEAD; ++s) {
                raw[s] = P::raw(from + (i64)(q + s * groups < area ? q + s * groups : q) * channels);
            }
#pragma unroll
            for (u32 s = 0; s < WINDOW_AHEAD; ++s) {
                keep<T, N>(raw[s], q + s * groups < area, 0);
                total.take(raw[s], 0);
            }
        }
#pragma unroll
        for (u32 k = 0; k < N; ++k) exchange[k * 257 + threadIdx.x] = total.sum[k];
        __syncthreads();
        const u32 c = threadIdx.x, k = c % N;
        if (c < lanes * N && first * N + c < channels) {
            float sum = 0;
            for (u32 g = 0; g < groups; ++g) sum += exchange[k * 257 + g * lanes + c / N];
            y[(i64)image * channels + first * N + c] = sum / (float)area;
        }
        __syncthreads();
    }
}

template <u32 N, typename T>
DEVICE void spread_whole_last(T* dx, const T* dy, u32 images, u32 area, u32 channels, u32 lanes) {
    const u32 group = threadIdx.x / lanes, groups = blockDim.x / lanes;
    const u32 pack = blockIdx.x * lanes + threadIdx.x % lanes;
    if (pack >= channels / N) return;
    for (u32 image = blockIdx.y; image < images; image += gridDim.y) {
        Pack<T, N> d;
        d.read(dy + ((i64)image * channels + (i64)pack * N));
#pragma unroll
        for (u32 k = 0; k < N; ++k) d.v[k] = 0.0f + d.v[k] / (float)area;
        T* to = dx + ((i64)image * area * channels + (i64)pack * N);
        for (u32 q = group; q < area; q += groups) d.write(to + (i64)q * channels);
    }
}

#define WHOLE T *y, const T *x, u32 images, u32 area, u32 channels, u32 lanes
#define WHOLE_NAMES y, x, images, area, channels, lanes

template <typename T> DEVICE void pool_whole_forward_last_of(WHOLE) {
    __shared__ float exchange[257];
    whole_means_last<1>(WHOLE_NAMES, exchange);
}
KERNELS(pool_whole_forward_last, (WHOLE), (WHOLE_NAMES))

template <typename T> DEVICE void pool_whole_forward_packs_of(WHOLE) {
    __shared__ float exchange[257 * Pack<T>::size];
    whole_means_last<Pack<T>::size>(WHOLE_NAMES, exchange);
}
KERNELS(pool_whole_forward_packs, (WHOLE), (WHOLE_NAMES))

template <typename T> DEVICE void pool_whole_backward_last_of(WHOLE) { spread_whole_last<1>(WHOLE_NAMES); }
KERNELS(pool_whole_backward_last, (WHOLE), (WHOLE_NAMES))

template <typename T> DEVICE void pool_whole_backward_packs_of(WHOLE) { spread_whole_last<Pack<T>::size>(WHOLE_NAMES); }
KERNELS(pool_whole_backward_packs, (WHOLE), (WHOLE_NAMES))

// Planes that follow one another: a warp for each four.
template <typename T> DEVICE void pool_whole_forward_of(T* y, const T* x, u32 planes, u32 area) {
    const u32 lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (u32 four = blockIdx.x * warps + threadIdx.x / WARP; four < (planes + 3) / 4; four += gridDim.x * warps) {
        const u32 some = planes - 4 * four;
        const T* from[4];
        float sum[4] = {};
#pragma unroll
        for (u32 p = 0; p < 4; ++p) from[p] = x + (i64)(4 * four + (p < some ? p : 0)) * area;
        for (u32 i = lane; i < area; i += 2 * WARP) {
            const bool two = i + WARP < area;
            float v[4], w[4];
#pragma unroll
            for (u32 p = 0; p < 4; ++p) v[p] = from[p][i], w[p] = from[p][two ? i + WARP : i];
#pragma unroll
            for (u32 p = 0; p < 4; ++p) sum[p] += two ? v[p] + w[p] : v[p];
        }
#pragma unroll
        for (u32 p = 0; p < 4; ++p) {
            const float all = warp_reduce<Sum>(sum[p]);
            if (lane == 0 && p < some) y[4 * (i64)four + p] = all / (float)area;
        }
    }
}
KERNELS(pool_whole_forward, (T* y, const T* x, u32 planes, u32 area), (y, x, planes, area))

// A pack of dx may be of several planes.
template <typename T> DEVICE void pool_whole_backward_of(T* dx, const T* dy, u32 planes, u32 area) {
    const u32 size = Pack<T>::size;
    const i64 n = (i64)planes * area;
    const bool whole = aligned(dx);
    FOR_ELEMENTS(q, (n + size - 1) / size) {
        const i64 first = q * size;
        // Dividing 32 bits is cheap.
        u32 plane = first >> 32 ? (u32)(first / area) : (u32)first / area;
        u32 at = (u32)(first - (i64)plane * area);
        float d = 0.0f + dy[plane] / (float)area;
        Pack<T> v = {};
#pragma unroll
        for (u32 k = 0; k < size; ++k) {
            if (at == area && first + k < n) {
                at = 0;
                d = 0.0f + dy[++plane] / (float)area;
            }
            v.v[k] = d;
            ++at;
        }
        if (whole && first + size <= n) {
            v.write(dx + first);
            continue;
        }
        for (u32 k = 0; k < size && first + k < n; ++k) dx[first + k] = v.v[k];
    }
}
KERNELS(pool_whole_backward,
    (T* dx, const T* dy, u32 planes, u32 area), (dx, dy, planes, area))
