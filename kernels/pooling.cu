// Pooling: a thread for each window forward and for each element of the bottom backward, which gathers from the windows
// that hold it. Rows of a launch are planes.

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

#define GEOMETRY                                                                                                       \
    u32 planes, u32 height, u32 width, u32 down, u32 across, u32 kernel_h, u32 kernel_w, u32 stride_h, u32 stride_w,   \
        u32 pad_h, u32 pad_w
#define WINDOW(at) window(at, across, height, width, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w)

// The largest of each window, the first if several, and where in the plane it is (unless `index` is null).
KERNEL(pool_max_forward)(float* y, float* index, const float* x, GEOMETRY) {
    const u32 area = down * across;
    FOR_ROWS(plane, planes) {
        const float* from = x + (i64)plane * height * width;
        FOR_POSITIONS(at, area) {
            const Window w = WINDOW(at);
            float best = -LARGEST_FLOAT;
            i64 where = -1;
            for (u32 i = w.top; i < w.bottom; ++i) {
                for (u32 j = w.left; j < w.right; ++j) {
                    const float v = from[(i64)i * width + j];
                    if (v > best) best = v, where = (i64)i * width + j;
                }
            }
            y[(i64)plane * area + at] = best;
            if (index) index[(i64)plane * area + at] = (float)where;
        }
    }
}

// The gradient of those windows whose index is this element: of maxima and of draws.
KERNEL(pool_index_backward)(float* dx, const float* dy, const float* index, GEOMETRY) {
    const u32 area = height * width;
    FOR_ROWS(plane, planes) {
        const i64 base = (i64)plane * down * across;
        FOR_POSITIONS(at, area) {
            const u32 i = at / width, j = at % width;
            const u32 end_i = end_window(i, stride_h, pad_h, down), end_j = end_window(j, stride_w, pad_w, across);
            const float here = (float)at;
            float sum = 0;
            for (u32 wi = first_window(i, kernel_h, stride_h, pad_h); wi < end_i; ++wi) {
                for (u32 wj = first_window(j, kernel_w, stride_w, pad_w); wj < end_j; ++wj) {
                    const i64 o = base + (i64)wi * across + wj;
                    if (index[o] == here) sum += dy[o];
                }
            }
            dx[(i64)plane * area + at] = sum;
        }
    }
}

// Elements of window `at` along one axis, padding included.
DEVICE u32 padded(u32 at, u32 extent, u32 kernel, u32 stride, u32 pad) {
    const u32 start = at * stride, end = start + kernel, most = extent + 2 * pad;
    return (end < most ? end : most) - start;
}

KERNEL(pool_average_forward)(float* y, const float* x, GEOMETRY) {
    const u32 area = down * across;
    FOR_ROWS(plane, planes) {
        const float* from = x + (i64)plane * height * width;
        FOR_POSITIONS(at, area) {
            const Window w = WINDOW(at);
            float sum = 0;
            for (u32 i = w.top; i < w.bottom; ++i) {
                for (u32 j = w.left; j < w.right; ++j) sum += from[(i64)i * width + j];
            }
            const u32 size = padded(at / across, height, kernel_h, stride_h, pad_h) *
                             padded(at % across, width, kernel_w, stride_w, pad_w);
            y[(i64)plane * area + at] = sum / (float)size;
        }
    }
}

KERNEL(pool_average_backward)(float* dx, const float* dy, GEOMETRY) {
    const u32 area = height * width;
    FOR_ROWS(plane, planes) {
        const i64 base = (i64)plane * down * across;
        FOR_POSITIONS(at, area) {
            const u32 i = at / width, j = at % width;
            const u32 end_i = end_window(i, stride_h, pad_h, down), end_j = end_window(j, stride_w, pad_w, across);
            float sum = 0;
            for (u32 wi = first_window(i, kernel_h, stride_h, pad_h); wi < end_i; ++wi) {
                const u32 rows = padded(wi, height, kernel_h, stride_h, pad_h);
                for (u32 wj = first_window(j, kernel_w, stride_w, pad_w); wj < end_j; ++wj) {
                    const u32 size = rows * padded(wj, width, kernel_w, stride_w, pad_w);
                    sum += dy[base + (i64)wi * across + wj] / (float)size;
                }
            }
            dx[(i64)plane * area + at] = sum;
        }
    }
}

// One element of each window, drawn in proportion to its value. Window i of the blob draws word i mod 4 of counter
// batch * 2^32 + i / 4.
KERNEL(pool_draw_forward)(float* y, float* index, const float* x, const u32* clock, u64 stream, GEOMETRY) {
    const u32 area = down * across;
    const u64 seed = clock_seed(clock), start = clock_batch(clock) << 32;
    FOR_ROWS(plane, planes) {
        const float* from = x + (i64)plane * height * width;
        FOR_POSITIONS(at, area) {
            const Window w = WINDOW(at);
            float sum = 0;
            for (u32 i = w.top; i < w.bottom; ++i) {
                for (u32 j = w.left; j < w.right; ++j) sum += from[(i64)i * width + j];
            }
            const u64 number = (u64)plane * area + at;
            const Words words = philox(seed, stream, start + number / 4);
            const u32 k = (u32)(number % 4);
            const u32 word = k == 0 ? words.w[0] : k == 1 ? words.w[1] : k == 2 ? words.w[2] : words.w[3];
            const float threshold = (float)(word >> 8) * (1.0f / 16777216.0f) * sum;
            i64 where = (i64)w.top * width + w.left;
            float below = 0;
            bool found = false;
            for (u32 i = w.top; i < w.bottom && !found; ++i) {
                for (u32 j = w.left; j < w.right && !found; ++j) {
                    below += from[(i64)i * width + j];
                    if (below > threshold) where = (i64)i * width + j, found = true;
                }
            }
            y[number] = from[where];
            if (index) index[number] = (float)where;
        }
    }
}

DEVICE void pool_sums(const float* from, Window w, u32 width, float* sum, float* squares) {
    float a = 0, b = 0;
    for (u32 i = w.top; i < w.bottom; ++i) {
        for (u32 j = w.left; j < w.right; ++j) {
            const float v = from[(i64)i * width + j];
            a += v;
            b += v * v;
        }
    }
    *sum = a;
    *squares = b;
}

// The mean of such draws.
KERNEL(pool_expect_forward)(float* y, const float* x, GEOMETRY) {
    const u32 area = down * across;
    FOR_ROWS(plane, planes) {
        const float* from = x + (i64)plane * height * width;
        FOR_POSITIONS(at, area) {
            float sum, squares;
            pool_sums(from, WINDOW(at), width, &sum, &squares);
            y[(i64)plane * area + at] = sum > 0 ? squares / sum : 0.0f;
        }
    }
}

KERNEL(pool_expect_backward)(float* dx, const float* dy, const float* x, GEOMETRY) {
    const u32 area = height * width;
    FOR_ROWS(plane, planes) {
        const float* from = x + (i64)plane * area;
        const i64 base = (i64)plane * down * across;
        FOR_POSITIONS(at, area) {
            const u32 i = at / width, j = at % width;
            const u32 end_i = end_window(i, stride_h, pad_h, down), end_j = end_window(j, stride_w, pad_w, across);
            const float v = from[at];
            float total = 0;
            for (u32 wi = first_window(i, kernel_h, stride_h, pad_h); wi < end_i; ++wi) {
                for (u32 wj = first_window(j, kernel_w, stride_w, pad_w); wj < end_j; ++wj) {
                    const u32 o = wi * across + wj;
                    float sum, squares;
                    pool_sums(from, WINDOW(o), width, &sum, &squares);
                    if (sum > 0) total += dy[base + o] * (v + v - squares / sum) / sum;
                }
            }
            dx[(i64)plane * area + at] = total;
        }
    }
}
