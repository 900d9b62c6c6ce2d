// Pooling: a thread for each window forward and for each element of the bottom backward, which gathers from the windows
// that hold it. Rows of a launch are planes or, with channels last, positions of all images.

struct Window {
    u32 top, bottom, left, right;
};

// The part of window `at` within a plane of height x width.
DEVICE Window window(
    u32 at, u32 across, u32 height, u32 width, u32 kernel_h, u32 kernel_w, u32 stride_h, u32 stride_w, u32 pad_h,
    u32 pad_w
) {
    const int top = (int)(at / across * stride_h) - (int)pad_h, left = (int)(at % across * stride_w) - (int)pad_w;
    const int bottom = top + (int)kernel_h, right = left + (int)kernel_w;
    Window w;
    w.top = top > 0 ? (u32)top : 0;
    w.left = left > 0 ? (u32)left : 0;
    w.bottom = bottom < (int)height ? (u32)(bottom > 0 ? bottom : 0) : height;
    w.right = right < (int)width ? (u32)(right > 0 ? right : 0) : width;
    return w;
}

// The windows, along one axis, that hold position `at`: from first to before end.
DEVICE u32 first_window(u32 at, u32 kernel, u32 stride, u32 pad) {
    return at + pad < kernel ? 0 : (at + pad - kernel) / stride + 1;
}
DEVICE u32 end_window(u32 at, u32 stride, u32 pad, u32 windows) {
    const u32 end = (at + pad) / stride + 1;
    return end < windows ? end : windows;
}

// Where slot i of a launch's row stands: in which plane, at which position of it, and where that plane's elements lie, so
// many apart. `channels` is 0 but where the channels are last. What is written goes to row * wide + i in both.
struct Place {
    u32 plane, at, apart;
    i64 image;
    u32 channel;
};

DEVICE Place place(u32 row, u32 i, u32 area, u32 channels) {
    Place p;
    if (channels) {
        const u32 image = row / area;
        p.plane = image * channels + i, p.at = row - image * area, p.apart = channels, p.image = image, p.channel = i;
    } else {
        p.plane = row, p.at = i, p.apart = 1, p.image = row, p.channel = 0;
    }
    return p;
}

// The first element of a place's plane among planes of `area` elements.
DEVICE i64 start(Place p, u32 area) { return p.image * area * p.apart + p.channel; }

#define GEOMETRY                                                                                                       \
    u32 rows, u32 wide, u32 channels, u32 height, u32 width, u32 down, u32 across, u32 kernel_h, u32 kernel_w,         \
        u32 stride_h, u32 stride_w, u32 pad_h, u32 pad_w
#define GEOMETRY_NAMES                                                                                                 \
    rows, wide, channels, height, width, down, across, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w
#define WINDOW(at) window(at, across, height, width, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w)

// Elements of window `at` along one axis, padding included.
DEVICE u32 padded(u32 at, u32 extent, u32 kernel, u32 stride, u32 pad) {
    const u32 start = at * stride, end = start + kernel, most = extent + 2 * pad;
    return (end < most ? end : most) - start;
}

// The largest of each window, the first if several, and where in the plane it is (unless `index` is null).
template <typename T>
DEVICE void pool_max_forward_of(T* y, float* index, const T* x, GEOMETRY) {
    const u32 area = down * across;
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(slot, wide) {
            const Place p = place(row, slot, area, channels);
            const T* from = x + start(p, height * width);
            const Window w = WINDOW(p.at);
            float best = -LARGEST_FLOAT;
            i64 where = -1;
            for (u32 i = w.top; i < w.bottom; ++i) {
                for (u32 j = w.left; j < w.right; ++j) {
                    const float v = from[((i64)i * width + j) * p.apart];
                    if (v > best) best = v, where = (i64)i * width + j;
                }
            }
            y[(i64)row * wide + slot] = best;
            if (index) index[(i64)row * wide + slot] = (float)where;
        }
    }
}
KERNELS(pool_max_forward, pool_max_forward_bf16,
    (T* y, float* index, const T* x, GEOMETRY), (y, index, x, GEOMETRY_NAMES))

// The gradient of those windows whose index is this element: of maxima and of draws.
template <typename T>
DEVICE void pool_index_backward_of(T* dx, const T* dy, const float* index, GEOMETRY) {
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(slot, wide) {
            const Place p = place(row, slot, height * width, channels);
            const i64 base = start(p, down * across);
            const u32 i = p.at / width, j = p.at % width;
            const u32 end_i = end_window(i, stride_h, pad_h, down), end_j = end_window(j, stride_w, pad_w, across);
            const float here = (float)p.at;
            float sum = 0;
            for (u32 wi = first_window(i, kernel_h, stride_h, pad_h); wi < end_i; ++wi) {
                for (u32 wj = first_window(j, kernel_w, stride_w, pad_w); wj < end_j; ++wj) {
                    const i64 o = base + ((i64)wi * across + wj) * p.apart;
                    if (index[o] == here) sum += dy[o];
                }
            }
            dx[(i64)row * wide + slot] = sum;
        }
    }
}
KERNELS(pool_index_backward, pool_index_backward_bf16,
    (T* dx, const T* dy, const float* index, GEOMETRY), (dx, dy, index, GEOMETRY_NAMES))

template <typename T>
DEVICE void pool_average_forward_of(T* y, const T* x, GEOMETRY) {
    const u32 area = down * across;
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(slot, wide) {
            const Place p = place(row, slot, area, channels);
            const T* from = x + start(p, height * width);
            const Window w = WINDOW(p.at);
            float sum = 0;
            for (u32 i = w.top; i < w.bottom; ++i) {
                for (u32 j = w.left; j < w.right; ++j) sum += from[((i64)i * width + j) * p.apart];
            }
            const u32 size = padded(p.at / across, height, kernel_h, stride_h, pad_h) *
                             padded(p.at % across, width, kernel_w, stride_w, pad_w);
            y[(i64)row * wide + slot] = sum / (float)size;
        }
    }
}
KERNELS(pool_average_forward, pool_average_forward_bf16, (T* y, const T* x, GEOMETRY), (y, x, GEOMETRY_NAMES))

template <typename T>
DEVICE void pool_average_backward_of(T* dx, const T* dy, GEOMETRY) {
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(slot, wide) {
            const Place p = place(row, slot, height * width, channels);
            const i64 base = start(p, down * across);
            const u32 i = p.at / width, j = p.at % width;
            const u32 end_i = end_window(i, stride_h, pad_h, down), end_j = end_window(j, stride_w, pad_w, across);
            float sum = 0;
            for (u32 wi = first_window(i, kernel_h, stride_h, pad_h); wi < end_i; ++wi) {
                const u32 tall = padded(wi, height, kernel_h, stride_h, pad_h);
                for (u32 wj = first_window(j, kernel_w, stride_w, pad_w); wj < end_j; ++wj) {
                    const u32 size = tall * padded(wj, width, kernel_w, stride_w, pad_w);
                    sum += dy[base + ((i64)wi * across + wj) * p.apart] / (float)size;
                }
            }
            dx[(i64)row * wide + slot] = sum;
        }
    }
}
KERNELS(pool_average_backward, pool_average_backward_bf16, (T* dx, const T* dy, GEOMETRY), (dx, dy, GEOMETRY_NAMES))

// One element of each window, drawn in proportion to its value. Window i of the blob, axis by axis, draws word i mod 4
// of counter batch * 2^32 + i / 4.
template <typename T>
DEVICE void pool_draw_forward_of(T* y, float* index, const T* x, const u32* clock, u64 stream, GEOMETRY) {
    const u32 area = down * across;
    const u64 seed = clock_seed(clock), first = clock_batch(clock) << 32;
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(slot, wide) {
            const Place p = place(row, slot, area, channels);
            const T* from = x + start(p, height * width);
            const Window w = WINDOW(p.at);
            float sum = 0;
            for (u32 i = w.top; i < w.bottom; ++i) {
                for (u32 j = w.left; j < w.right; ++j) sum += from[((i64)i * width + j) * p.apart];
            }
            const u64 number = (u64)p.plane * area + p.at;
            const Words words = philox(seed, stream, first + number / 4);
            const u32 k = (u32)(number % 4);
            const u32 word = k == 0 ? words.w[0] : k == 1 ? words.w[1] : k == 2 ? words.w[2] : words.w[3];
            const float threshold = (float)(word >> 8) * (1.0f / 16777216.0f) * sum;
            i64 where = (i64)w.top * width + w.left;
            float below = 0;
            bool found = false;
            for (u32 i = w.top; i < w.bottom && !found; ++i) {
                for (u32 j = w.left; j < w.right && !found; ++j) {
                    below += from[((i64)i * width + j) * p.apart];
                    if (below > threshold) where = (i64)i * width + j, found = true;
                }
            }
            y[(i64)row * wide + slot] = from[where * p.apart];
            if (index) index[(i64)row * wide + slot] = (float)where;
        }
    }
}
KERNELS(pool_draw_forward, pool_draw_forward_bf16,
    (T* y, float* index, const T* x, const u32* clock, u64 stream, GEOMETRY),
    (y, index, x, clock, stream, GEOMETRY_NAMES))

template <typename T> DEVICE void pool_sums(const T* from, u32 apart, Window w, u32 width, float* sum, float* squares) {
    float a = 0, b = 0;
    for (u32 i = w.top; i < w.bottom; ++i) {
        for (u32 j = w.left; j < w.right; ++j) {
            const float v = from[((i64)i * width + j) * apart];
            a += v;
            b += v * v;
        }
    }
    *sum = a;
    *squares = b;
}

// The mean of such draws.
template <typename T>
DEVICE void pool_expect_forward_of(T* y, const T* x, GEOMETRY) {
    const u32 area = down * across;
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(slot, wide) {
            const Place p = place(row, slot, area, channels);
            float sum, squares;
            pool_sums(x + start(p, height * width), p.apart, WINDOW(p.at), width, &sum, &squares);
            y[(i64)row * wide + slot] = sum > 0 ? squares / sum : 0.0f;
        }
    }
}
KERNELS(pool_expect_forward, pool_expect_forward_bf16, (T* y, const T* x, GEOMETRY), (y, x, GEOMETRY_NAMES))

template <typename T>
DEVICE void pool_expect_backward_of(T* dx, const T* dy, const T* x, GEOMETRY) {
    const u32 area = height * width;
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(slot, wide) {
            const Place p = place(row, slot, area, channels);
            const T* from = x + start(p, area);
            const i64 base = start(p, down * across);
            const u32 i = p.at / width, j = p.at % width;
            const u32 end_i = end_window(i, stride_h, pad_h, down), end_j = end_window(j, stride_w, pad_w, across);
            const float v = from[(i64)p.at * p.apart];
            float total = 0;
            for (u32 wi = first_window(i, kernel_h, stride_h, pad_h); wi < end_i; ++wi) {
                for (u32 wj = first_window(j, kernel_w, stride_w, pad_w); wj < end_j; ++wj) {
                    const u32 o = wi * across + wj;
                    float sum, squares;
                    pool_sums(from, p.apart, WINDOW(o), width, &sum, &squares);
                    if (sum > 0) total += dy[base + (i64)o * p.apart] * (v + v - squares / sum) / sum;
                }
            }
            dx[(i64)row * wide + slot] = total;
        }
    }
}
KERNELS(pool_expect_backward, pool_expect_backward_bf16,
    (T* dx, const T* dy, const T* x, GEOMETRY), (dx, dy, x, GEOMETRY_NAMES))
