// Stochastic pooling (Zeiler and Fergus, 2013).

// One element of each window, drawn in proportion to its value, and its slot or where in the plane it is, unless those are
// null. Window i of the blob, axis by axis, draws word i mod 4 of counter batch * 2^32 + i / 4.
template <typename T>
DEVICE void pool_draw_forward_of(
    T* y, float* index, u8* slots, const T* x, const u32* clock, u64 stream, GEOMETRY
) {
    const u32 area = down * across;
    const u64 seed = clock_seed(clock), first = clock_batch(clock) << 32;
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(n, wide) {
            const Place p = place(row, n, area, channels);
            const i64 to = (i64)row * wide + n;
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
            u32 slot = 0;
            float below = 0;
            bool found = false;
            for (u32 i = w.top; i < w.bottom && !found; ++i) {
                for (u32 j = w.left; j < w.right && !found; ++j) {
                    below += from[((i64)i * width + j) * p.apart];
                    if (below > threshold) {
                        where = (i64)i * width + j, slot = (i - w.top) * kernel_w + (j - w.left), found = true;
                    }
                }
            }
            y[to] = from[where * p.apart];
            if (index) index[to] = (float)where;
            if (slots) slots[to] = (u8)slot;
        }
    }
}
KERNELS(pool_draw_forward,
    (T* y, float* index, u8* slots, const T* x, const u32* clock, u64 stream, GEOMETRY),
    (y, index, slots, x, clock, stream, GEOMETRY_NAMES))

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
KERNELS(pool_expect_forward, (T* y, const T* x, GEOMETRY), (y, x, GEOMETRY_NAMES))

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
KERNELS(pool_expect_backward,
    (T* dx, const T* dy, const T* x, GEOMETRY), (dx, dy, x, GEOMETRY_NAMES))
