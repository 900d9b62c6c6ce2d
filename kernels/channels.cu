// Layers that treat a channel's elements alike: Scale, Bias, PReLU, and the bias of products. See CHANNEL for `channels`.

template <u32 V> struct Affine {
    Pack<float, V> s, b;
};

// y = x s + b; without b where it is null, without s where that is; max with 0 where `relu`. y may be x.
template <typename T>
DEVICE void channels_affine_of(
    T* y, const T* x, const float* s, const float* b, u32 relu, u32 rows, u32 width, u32 channels
) {
    const T* const in[] = {x};
    channel_map(y, in, rows, width, channels,
        [=](u32 c, auto width) {
            const u32 V = width.value;
            return Affine<V>{numbers<V>(s, c, 1.0f), numbers<V>(b, c)};
        },
        [=](const auto& of, u32 k, const float* e) {
            float v = e[0];
            if (s) v *= of.s.v[k];
            if (b) v += of.b.v[k];
            return relu && v < 0 ? 0.0f : v;
        });
}
KERNELS(channels_affine,
    (T* y, const T* x, const float* s, const float* b, u32 relu, u32 rows, u32 width, u32 channels),
    (y, x, s, b, relu, rows, width, channels))

// Sums of dy x (where x is not null) and of dy.
template <typename T>
DEVICE void channels_partials_of(float* partial, const T* dy, const T* x, u32 outer, u32 channels, u32 inner, float*
    exchange) {
    const auto none = [](u32, auto, const Chunk&) { return 0; };
    if (x) {
        const T* const in[] = {dy, x};
        channel_partials<2>(partial, (T*)0, in, outer, channels, inner, exchange, none,
            [](int, u32, const float* e, float* sums) {
                sums[0] += e[0] * e[1];
                sums[1] += e[0];
                return 0.0f;
            });
    } else {
        const T* const in[] = {dy};
        channel_partials<2>(partial, (T*)0, in, outer, channels, inner, exchange, none,
            [](int, u32, const float* e, float* sums) {
                sums[1] += e[0];
                return 0.0f;
            });
    }
}
KERNELS_ADDING(channels_partials,
    (float* partial, const T* dy, const T* x, u32 outer, u32 channels, u32 inner),
    (partial, dy, x, outer, channels, inner, exchange))

// The slopes of V channels from c on.
template <u32 V> DEVICE Pack<float, V> slopes_of(const float* slopes, u32 shared, u32 c) {
    return shared ? numbers<V>((const float*)0, c, slopes[0]) : numbers<V>(slopes, c);
}

// `shared`: one slope for all channels. y may be x.
template <typename T>
DEVICE void prelu_forward_of(T* y, const T* x, const float* slopes, u32 shared, u32 rows, u32 width, u32 channels) {
    const T* const in[] = {x};
    channel_map(y, in, rows, width, channels,
        [=](u32 c, auto width) { return slopes_of<width.value>(slopes, shared, c); },
        [](const auto& of, u32 k, const float* e) { return e[0] > 0 ? e[0] : e[0] * of.v[k]; });
}
KERNELS(prelu_forward,
    (T* y, const T* x, const float* slopes, u32 shared, u32 rows, u32 width, u32 channels),
    (y, x, slopes, shared, rows, width, channels))

// dx may be dy.
template <typename T>
DEVICE void prelu_backward_of(
    T* dx, const T* dy, const T* x, const float* slopes, u32 shared, u32 rows, u32 width, u32 channels
) {
    const T* const in[] = {dy, x};
    channel_map(dx, in, rows, width, channels,
        [=](u32 c, auto width) { return slopes_of<width.value>(slopes, shared, c); },
        [](const auto& of, u32 k, const float* e) { return e[1] > 0 ? e[0] : e[0] * of.v[k]; });
}
KERNELS(prelu_backward,
    (T* dx, const T* dy, const T* x, const float* slopes, u32 shared, u32 rows, u32 width, u32 channels),
    (dx, dy, x, slopes, shared, rows, width, channels))

template <typename T>
DEVICE void prelu_partials_of(float* partial, const T* dy, const T* x, u32 outer, u32 channels, u32 inner, float*
    exchange) {
    const T* const in[] = {dy, x};
    channel_partials<1>(partial, (T*)0, in, outer, channels, inner, exchange, [](u32, auto, const Chunk&) { return 0; },
        [](int, u32, const float* e, float* sums) {
            sums[0] += e[1] > 0 ? 0.0f : e[0] * e[1];
            return 0.0f;
        });
}
KERNELS_ADDING(prelu_partials,
    (float* partial, const T* dy, const T* x, u32 outer, u32 channels, u32 inner),
    (partial, dy, x, outer, channels, inner, exchange))

// What the sums give. Blocks as for channel_sums.
#undef BOUNDS
#define BOUNDS __launch_bounds__(1024)

// ds and db (where not null) take up the sums: added to with `add`, else overwritten.
KERNEL(channels_finish)(float* ds, float* db, const float* partial, u32 chunks, u32 channels, u32 add) {
    __shared__ float exchange[2048];
    float sums[2];
    if (!channel_sums(sums, partial, chunks, channels, exchange)) return;
    const u32 c = blockIdx.x * 32 + threadIdx.x;
    if (ds) ds[c] = (add ? ds[c] : 0.0f) + sums[0];
    if (db) db[c] = (add ? db[c] : 0.0f) + sums[1];
}

KERNEL(prelu_finish)(float* da, const float* partial, u32 chunks, u32 channels) {
    __shared__ float exchange[1024];
    float sums[1];
    if (channel_sums(sums, partial, chunks, channels, exchange)) da[blockIdx.x * 32 + threadIdx.x] += sums[0];
}

// The same where all channels add to one slope, in one block.
KERNEL(prelu_finish_shared)(float* da, const float* partial, u32 chunks, u32 channels) {
    __shared__ float exchange[32];
    float sum = 0;
    for (i64 i = threadIdx.x; i < (i64)chunks * channels; i += blockDim.x) sum += partial[i];
    sum = block_reduce<Sum>(sum, exchange);
    if (threadIdx.x == 0) da[0] += sum;
}
#undef BOUNDS
#define BOUNDS

// Rows of `width` elements, from one distance apart to another: parts of a concatenation.
template <typename T>
DEVICE void channels_copy_of(T* to, const T* from, u32 rows, u32 width, i64 to_pitch, i64 from_pitch) {
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(i, width) to[row * to_pitch + i] = from[row * from_pitch + i];
    }
}
KERNELS(channels_copy,
    (T* to, const T* from, u32 rows, u32 width, i64 to_pitch, i64 from_pitch),
    (to, from, rows, width, to_pitch, from_pitch))
