// LRN: each value divided by a power of the mean square around it. Rows of a launch are planes, or, with channels last,
// positions.

// The channels around channel c, and how far apart elements of neighbouring channels lie. See CHANNEL for `channels`.
struct Around {
    u32 first, end;
    i64 apart;

    __device__ __forceinline__ Around(u32 c, u32 size, u32 width, u32 channels) {
        const u32 all = channels ? channels : width, before = (size - 1) / 2;
        first = c > before ? c - before : 0;
        end = c + size - before < all ? c + size - before : all;
        apart = channels ? width : 1;
    }
};

// s = k + factor * (sum of squares over `size` channels), y = x s^-beta.
template <typename T>
DEVICE void lrn_across_forward_of(
    T* y, float* s, const T* x, u32 size, float factor, float k, float beta, u32 rows, u32 width, u32 channels
) {
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(i, width) {
            const i64 at = (i64)row * width + i;
            const u32 c = CHANNEL(row, i, channels);
            const Around around(c, size, width, channels);
            float sum = 0;
            for (u32 n = around.first; n < around.end; ++n) {
                const float v = x[at + ((i64)n - c) * around.apart];
                sum += v * v;
            }
            const float scale = k + factor * sum;
            s[at] = scale;
            y[at] = x[at] * powf(scale, -beta);
        }
    }
}
KERNELS(lrn_across_forward,
    (T* y, float* s, const T* x, u32 size, float factor, float k, float beta, u32 rows, u32 width, u32 channels),
    (y, s, x, size, factor, k, beta, rows, width, channels))

// s = 1 + factor * (sum of squares over a window of its plane), y = x s^-beta.
template <typename T>
DEVICE void lrn_within_forward_of(
    T* y, float* s, const T* x, u32 size, float factor, float beta, u32 planes, u32 height, u32 width
) {
    const u32 before = (size - 1) / 2, area = height * width;
    FOR_ROWS(plane, planes) {
        const T* from = x + (i64)plane * area;
        FOR_POSITIONS(i, area) {
            const u32 row = i / width, column = i % width;
            const u32 bottom = row + size - before < height ? row + size - before : height;
            const u32 right = column + size - before < width ? column + size - before : width;
            float sum = 0;
            for (u32 r = row > before ? row - before : 0; r < bottom; ++r) {
                for (u32 c = column > before ? column - before : 0; c < right; ++c) {
                    const float v = from[r * width + c];
                    sum += v * v;
                }
            }
            const float scale = 1.0f + factor * sum;
            s[(i64)plane * area + i] = scale;
            y[(i64)plane * area + i] = from[i] * powf(scale, -beta);
        }
    }
}
KERNELS(lrn_within_forward,
    (T* y, float* s, const T* x, u32 size, float factor, float beta, u32 planes, u32 height, u32 width),
    (y, s, x, size, factor, beta, planes, height, width))

// dy y / s, which both gradients add up.
template <typename T>
DEVICE void lrn_ratio_of(float* ratio, const T* dy, const T* y, const float* s, i64 n) {
    const u32 size = Pack<T>::size;
    const i64 packs = aligned(ratio) && aligned(dy) && aligned(y) && aligned(s) ? n / size : 0;
    FOR_ELEMENTS(q, packs) {
        Pack<T> d, v;
        Pack<float, size> r;
        d.read(dy + size * q);
        v.read(y + size * q);
        r.read(s + size * q);
#pragma unroll
        for (u32 k = 0; k < size; ++k) r.v[k] = d.v[k] * v.v[k] / r.v[k];
        r.write(ratio + size * q);
    }
    FOR_ELEMENTS(r, n - size * packs) {
        const i64 i = size * packs + r;
        ratio[i] = dy[i] * y[i] / s[i];
    }
}
KERNELS(lrn_ratio, (float* ratio, const T* dy, const T* y, const float* s, i64 n), (ratio, dy, y, s, n))

// dx = dy s^-beta - factor x (sum of ratios over the channels around).
template <typename T>
DEVICE void lrn_across_backward_of(
    T* dx, const T* dy, const T* x, const float* s, const float* ratio, u32 size, float factor, float beta,
    u32 rows, u32 width, u32 channels
) {
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(i, width) {
            const i64 at = (i64)row * width + i;
            const u32 c = CHANNEL(row, i, channels);
            const Around around(c, size, width, channels);
            float sum = 0;
            for (u32 n = around.first; n < around.end; ++n) sum += ratio[at + ((i64)n - c) * around.apart];
            dx[at] = dy[at] * powf(s[at], -beta) - factor * x[at] * sum;
        }
    }
}
KERNELS(lrn_across_backward,
    (T* dx, const T* dy, const T* x, const float* s, const float* ratio, u32 size, float factor, float beta, u32
     rows, u32 width, u32 channels),
    (dx, dy, x, s, ratio, size, factor, beta, rows, width, channels))

template <typename T>
DEVICE void lrn_within_backward_of(
    T* dx, const T* dy, const T* x, const float* s, const float* ratio, u32 size, float factor, float beta,
    u32 planes, u32 height, u32 width
) {
    const u32 before = (size - 1) / 2, area = height * width;
    FOR_ROWS(plane, planes) {
        const float* from = ratio + (i64)plane * area;
        FOR_POSITIONS(i, area) {
            const u32 row = i / width, column = i % width;
            const u32 bottom = row + size - before < height ? row + size - before : height;
            const u32 right = column + size - before < width ? column + size - before : width;
            float sum = 0;
            for (u32 r = row > before ? row - before : 0; r < bottom; ++r) {
                for (u32 c = column > before ? column - before : 0; c < right; ++c) sum += from[r * width + c];
            }
            const i64 at = (i64)plane * area + i;
            dx[at] = dy[at] * powf(s[at], -beta) - factor * x[at] * sum;
        }
    }
}
KERNELS(lrn_within_backward,
    (T* dx, const T* dy, const T* x, const float* s, const float* ratio, u32 size, float factor, float beta, u32
     planes, u32 height, u32 width),
    (dx, dy, x, s, ratio, size, factor, beta, planes, height, width))
