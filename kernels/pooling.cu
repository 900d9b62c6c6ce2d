// Pooling: a thread for one window or several side by side, forward, and for what lies about one of them, backward, which
// gathers from the windows that hold it. Rows of a launch are planes or, with channels last, positions of all images.

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

typedef unsigned char u8;

template <typename T> DEVICE float lowest() {
    return __uint_as_float(sizeof(T) == 4 ? 0xff7fffffu : 0xff7f0000u);
}

// The largest of each window, the first if several, and where in the plane it is (unless `index` is null). A window
// without an element above the lowest float, all of what is not a number, has none: the lowest of T and index -1.
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
            y[(i64)row * wide + slot] = where < 0 ? lowest<T>() : best;
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

// Windows of fewer than 256 elements keep the winner's slot instead, a byte: its row of the window, padding included,
// times the window's width, and its column. N windows side by side are taken together: of N channels where those are
// last, else of one row.

#define NO_SLOT 255u

template <u32 N> struct Slots;
template <> struct Slots<1> { typedef u8 Raw; };
template <> struct Slots<2> { typedef unsigned short Raw; };
template <> struct Slots<4> { typedef u32 Raw; };
template <> struct Slots<8> { typedef u64 Raw; };

template <typename Raw> DEVICE u32 slot_of(Raw raw, u32 k) { return (u32)(raw >> 8 * k) & 255u; }

// What was read, or such bits in each word where `there` is false.
template <typename T, u32 N> DEVICE void keep(typename Pack<T, N>::Raw& raw, bool there, u32 bits) {
    if constexpr (N > 1) {
#pragma unroll
        for (u32 k = 0; k < Pack<T, N>::bytes / 4; ++k) raw.w[k] = there ? raw.w[k] : bits;
    } else if constexpr (sizeof(T) == 4) {
        raw = there ? raw : __uint_as_float(bits);
    } else {
        raw.bits = there ? raw.bits : (unsigned short)bits;
    }
}

// What windows come to, element by element. `missing`, the bits of elements that are not there, changes nothing.

template <typename T, u32 N> struct Winner {
    static const u32 missing = 0xffffffffu; // not a number, and nothing is less
    float best[N];
    u32 slot[N];

    __device__ __forceinline__ Winner() {
#pragma unroll
        for (u32 k = 0; k < N; ++k) best[k] = -LARGEST_FLOAT, slot[k] = NO_SLOT;
    }

    __device__ __forceinline__ void take(u32 k, float v, u32 at) {
        const bool above = v > best[k];
        best[k] = above ? v : best[k];
        slot[k] = above ? at : slot[k];
    }

    __device__ __forceinline__ void take(const typename Pack<T, N>::Raw& raw, u32 at) {
        Pack<T, N> v;
        v.set(raw);
#pragma unroll
        for (u32 k = 0; k < N; ++k) take(k, v.v[k], at);
    }

    // Writes N values and, unless `slots` is null, N slots; `i` counts from the first of the blob.
    __device__ __forceinline__ void write(T* y, u8* slots, i64 i) const {
        Pack<T, N> v;
        typename Slots<N>::Raw raw = 0;
#pragma unroll
        for (u32 k = 0; k < N; ++k) {
            v.v[k] = slot[k] == NO_SLOT ? lowest<T>() : best[k];
            raw |= (typename Slots<N>::Raw)slot[k] << 8 * k;
        }
        v.write(y + i);
        if (slots) *(typename Slots<N>::Raw*)(slots + i) = raw;
    }
};

// Of two pairs of bf16 numbers, which of a are above those of b: ones in the halves where they are.
DEVICE u32 above(u32 a, u32 b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    u32 mask;
    asm("set.gt.u32.bf16x2 %0, %1, %2;" : "=r"(mask) : "r"(a), "r"(b));
    return mask;
#else
    const bool low = __uint_as_float(a << 16) > __uint_as_float(b << 16);
    const bool high = __uint_as_float(a & 0xffff0000u) > __uint_as_float(b & 0xffff0000u);
    return (low ? 0x0000ffffu : 0) | (high ? 0xffff0000u : 0);
#endif
}

// Eight of bf16, two in each word as they are stored. What is above the lowest is above the infinity below it.
template <> struct Winner<bf16, 8> {
    static const u32 missing = 0xffffffffu;
    u32 best[4], slot[4];

    __device__ __forceinline__ Winner() {
#pragma unroll
        for (u32 k = 0; k < 4; ++k) best[k] = 0xff80ff80u, slot[k] = NO_SLOT * 0x10001u;
    }

    __device__ __forceinline__ void take(const Pack<bf16>::Raw& raw, u32 at) {
#pragma unroll
        for (u32 k = 0; k < 4; ++k) {
            const u32 mask = above(raw.w[k], best[k]);
            best[k] = (raw.w[k] & mask) | (best[k] & ~mask);
            slot[k] = (at * 0x10001u & mask) | (slot[k] & ~mask);
        }
    }

    __device__ __forceinline__ void write(bf16* y, u8* slots, i64 i) const {
        Pack<bf16>::Raw raw;
#pragma unroll
        for (u32 k = 0; k < 4; ++k) raw.w[k] = best[k] ^ (~above(best[k], 0xff80ff80u) & 0x00ff00ffu);
        *(Pack<bf16>::Raw*)(y + i) = raw;
        if (!slots) return;
        const u32 low = slot[0] & 255u | slot[0] >> 8 & 0xff00u | slot[1] << 16 & 0xff0000u | slot[1] << 8 & 0xff000000u;
        const u32 high = slot[2] & 255u | slot[2] >> 8 & 0xff00u | slot[3] << 16 & 0xff0000u | slot[3] << 8 & 0xff000000u;
        *(u64*)(slots + i) = (u64)high << 32 | low;
    }
};

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

// The position of an axis that is nearest to `at`.
DEVICE u32 within(int at, u32 extent) { return at < 0 ? 0 : (u32)at < extent ? (u32)at : extent - 1; }

// Takes the elements, row by row, of N windows whose corner, padding included, is at `top` and `left` of planes that
// begin at `from`. Of windows of K x K all are on their way before the first is looked at, else (K is 0) four; so that
// no read waits for a condition, an element that is not there is read as its neighbour, and then forgotten.
template <u32 K, u32 N, typename T, typename Into>
DEVICE void take_window(
    Into& into, const T* from, u32 apart, int top, int left, u32 height, u32 width, u32 kernel_h, u32 kernel_w
) {
    typedef Pack<T, N> P;
    const i64 line = (i64)width * apart, corner = top * line + (i64)left * apart;
    if constexpr (K > 0) {
        typename P::Raw raw[K * K];
#pragma unroll
        for (u32 a = 0; a < K; ++a) {
            const T* row = from + within(top + (int)a, height) * line;
#pragma unroll
            for (u32 b = 0; b < K; ++b) raw[a * K + b] = P::raw(row + (i64)within(left + (int)b, width) * apart);
        }
#pragma unroll
        for (u32 s = 0; s < K * K; ++s) {
            keep<T, N>(raw[s], (u32)top + s / K < height && (u32)left + s % K < width, Into::missing);
            into.take(raw[s], s);
        }
        return;
    }
    const u32 first_a = top < 0 ? (u32)-top : 0, first_b = left < 0 ? (u32)-left : 0;
    const u32 end_a = top + (int)kernel_h < (int)height ? kernel_h : height - (u32)top;
    const u32 end_b = left + (int)kernel_w < (int)width ? kernel_w : width - (u32)left;
    for (u32 a = first_a; a < end_a; ++a) {
        const i64 row = corner + a * line;
        for (u32 b = first_b; b < end_b; b += 4) {
            typename P::Raw raw[4];
#pragma unroll
            for (u32 c = 0; c < 4; ++c) {
                raw[c] = P::raw(from + (row + (i64)(b + c < end_b ? b + c : end_b - 1) * apart));
            }
#pragma unroll
            for (u32 c = 0; c < 4; ++c) {
                keep<T, N>(raw[c], b + c < end_b, Into::missing);
                into.take(raw[c], a * kernel_w + b + c);
            }
        }
    }
}

// The size of each window as kernels take it: known where it is usual.
#define BY_WINDOW(f, N, ...)                                                                                           \
    if (kernel_h == 2 && kernel_w == 2) f<2, N>(__VA_ARGS__, GEOMETRY_NAMES);                                          \
    else if (kernel_h == 3 && kernel_w == 3) f<3, N>(__VA_ARGS__, GEOMETRY_NAMES);                                     \
    else f<0, N>(__VA_ARGS__, GEOMETRY_NAMES)

template <u32 K, u32 N, typename T> DEVICE void winners(T* y, u8* slots, const T* x, GEOMETRY) {
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(i, wide) {
            const Place p = place(row, i * N, down * across, channels);
            const u32 wi = p.at / across, wj = p.at - wi * across;
            const int top = (int)(wi * stride_h) - (int)pad_h, left = (int)(wj * stride_w) - (int)pad_w;
            Winner<T, N> winner;
            take_window<K, N>(
                winner, x + start(p, height * width), p.apart, top, left, height, width, kernel_h, kernel_w
            );
            winner.write(y, slots, ((i64)row * wide + i) * N);
        }
    }
}

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
            const u32 size = padded(wi, height, kernel_h, stride_h, pad_h) *
                             padded(wj, width, kernel_w, stride_w, pad_w);
            total.write(y, (float)size, ((i64)row * wide + i) * N);
        }
    }
}

// The largest of each window, as above.
template <typename T> DEVICE void pool_winner_forward_of(T* y, u8* slots, const T* x, GEOMETRY) {
    BY_WINDOW(winners, 1, y, slots, x);
}
KERNELS(pool_winner_forward, pool_winner_forward_bf16,
    (T* y, u8* slots, const T* x, GEOMETRY), (y, slots, x, GEOMETRY_NAMES))

// With channels last, a multiple of a pack.
template <typename T> DEVICE void pool_winner_forward_packs_of(T* y, u8* slots, const T* x, GEOMETRY) {
    BY_WINDOW(winners, Pack<T>::size, y, slots, x);
}
KERNELS(pool_winner_forward_packs, pool_winner_forward_packs_bf16,
    (T* y, u8* slots, const T* x, GEOMETRY), (y, slots, x, GEOMETRY_NAMES))

template <typename T> DEVICE void pool_average_forward_of(T* y, const T* x, GEOMETRY) {
    BY_WINDOW(means, 1, y, x);
}
KERNELS(pool_average_forward, pool_average_forward_bf16, (T* y, const T* x, GEOMETRY), (y, x, GEOMETRY_NAMES))

template <typename T> DEVICE void pool_average_forward_packs_of(T* y, const T* x, GEOMETRY) {
    BY_WINDOW(means, Pack<T>::size, y, x);
}
KERNELS(pool_average_forward_packs, pool_average_forward_packs_bf16,
    (T* y, const T* x, GEOMETRY), (y, x, GEOMETRY_NAMES))

// Backward, a thread has a cell: the elements from a window's corner on to those of the next windows, as many along an
// axis as the stride. Cells fill the plane and what pads it before; where no window begins the last may be without one.

DEVICE u32 cells(u32 extent, u32 stride, u32 pad) { return (extent + pad + stride - 1) / stride; }

// What window (wi, wj) passes back to N channels or planes: dy of maxima, or the part of dy of each element of a mean.
template <bool MEAN, u32 N, typename T>
DEVICE void passed(Pack<T, N>& d, const typename Pack<T, N>::Raw& dy, u32 wi, u32 wj, GEOMETRY) {
    d.set(dy);
    if (!MEAN) return;
    const u32 size = padded(wi, height, kernel_h, stride_h, pad_h) * padded(wj, width, kernel_w, stride_w, pad_w);
    const bool there = wi < down && wj < across;
#pragma unroll
    for (u32 k = 0; k < N; ++k) d.v[k] = d.v[k] / (there ? (float)size : 1.0f);
}

template <bool MEAN, u32 N, typename T>
DEVICE void add_passed(Pack<T, N>& sum, const Pack<T, N>& d, typename Slots<N>::Raw won, u32 slot) {
#pragma unroll
    for (u32 k = 0; k < N; ++k) sum.v[k] += MEAN || slot_of(won, k) == slot ? d.v[k] : 0.0f;
}

// Windows of K x K that begin S apart: those that reach into a cell are known, and all on their way before the first is
// looked at. `slots` is not read for means.
template <bool MEAN, u32 K, u32 S, u32 N, typename T>
DEVICE void cells_of(T* dx, const T* dy, const u8* slots, GEOMETRY) {
    const u32 M = (K + S - 1) / S;
    const u32 cells_across = cells(width, S, pad_w), area = cells(height, S, pad_h) * cells_across;
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(x, wide) {
            const Place p = place(row, x * N, area, channels);
            const i64 from = start(p, down * across);
            const u32 ci = p.at / cells_across, cj = p.at - ci * cells_across;
            typename Pack<T, N>::Raw raw[M * M];
            typename Slots<N>::Raw won[M * M];
#pragma unroll
            for (u32 m = 0; m < M * M; ++m) {
                const u32 wi = within((int)(ci - (M - 1) + m / M), down);
                const u32 wj = within((int)(cj - (M - 1) + m % M), across);
                const i64 at = from + ((i64)wi * across + wj) * p.apart;
                raw[m] = Pack<T, N>::raw(dy + at);
                if (!MEAN) won[m] = *(const typename Slots<N>::Raw*)(slots + at);
            }
            Pack<T, N> d[M * M];
#pragma unroll
            for (u32 m = 0; m < M * M; ++m) {
                const u32 wi = ci - (M - 1) + m / M, wj = cj - (M - 1) + m % M;
                const bool there = wi < down && wj < across;
                if (!MEAN) won[m] = there ? won[m] : (typename Slots<N>::Raw)~0ull;
                else keep<T, N>(raw[m], there, 0);
                passed<MEAN>(d[m], raw[m], wi, wj, GEOMETRY_NAMES);
            }
            T* to = dx + start(p, height * width);
#pragma unroll
            for (u32 e = 0; e < S * S; ++e) {
                const u32 a = e / S, b = e % S, i = ci * S + a - pad_h, j = cj * S + b - pad_w;
                if (i >= height || j >= width) continue;
                Pack<T, N> sum = {};
#pragma unroll
                for (u32 m = 0; m < M * M; ++m) {
                    const u32 up = a + (M - 1 - m / M) * S, along = b + (M - 1 - m % M) * S;
                    if (up < K && along < K) add_passed<MEAN>(sum, d[m], won[m], up * K + along);
                }
                sum.write(to + ((i64)i * width + j) * p.apart);
            }
        }
    }
}

// Any windows. Those that begin in the cell are read once, others for each element that they reach.
template <bool MEAN, u32 N, typename T>
DEVICE void cells_of_any(T* dx, const T* dy, const u8* slots, GEOMETRY) {
    const u32 cells_across = cells(width, stride_w, pad_w), area = cells(height, stride_h, pad_h) * cells_across;
    const u32 most_up = (kernel_h - 1) / stride_h, most_along = (kernel_w - 1) / stride_w;
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(x, wide) {
            const Place p = place(row, x * N, area, channels);
            const i64 from = start(p, down * across);
            const u32 ci = p.at / cells_across, cj = p.at - ci * cells_across;
            const auto read = [&](Pack<T, N>& d, typename Slots<N>::Raw& won, u32 wi, u32 wj) {
                const i64 at = from + ((i64)wi * across + wj) * p.apart;
                if (!MEAN) won = *(const typename Slots<N>::Raw*)(slots + at);
                passed<MEAN>(d, Pack<T, N>::raw(dy + at), wi, wj, GEOMETRY_NAMES);
            };
            Pack<T, N> own = {};
            typename Slots<N>::Raw own_won = (typename Slots<N>::Raw)~0ull;
            if (ci < down && cj < across) read(own, own_won, ci, cj);
            // How many windows before the cell's own those are, at most and at least, that reach it.
            const u32 most_m = most_up < ci ? most_up : ci, least_m = ci < down ? 0 : ci - down + 1;
            const u32 most_n = most_along < cj ? most_along : cj, least_n = cj < across ? 0 : cj - across + 1;
            T* to = dx + start(p, height * width);
            for (u32 a = 0; a < stride_h; ++a) {
                const u32 i = ci * stride_h + a - pad_h;
                if (i >= height) continue;
                for (u32 b = 0; b < stride_w; ++b) {
                    const u32 j = cj * stride_w + b - pad_w;
                    if (j >= width) continue;
                    Pack<T, N> sum = {};
                    for (u32 m = most_m + 1; m-- > least_m;) {
                        const u32 up = a + m * stride_h;
                        if (up >= kernel_h) continue;
                        for (u32 n = most_n + 1; n-- > least_n;) {
                            const u32 along = b + n * stride_w;
                            if (along >= kernel_w) continue;
                            Pack<T, N> d = own;
                            typename Slots<N>::Raw won = own_won;
                            if (m + n > 0) read(d, won, ci - m, cj - n);
                            add_passed<MEAN>(sum, d, won, up * kernel_w + along);
                        }
                    }
                    sum.write(to + ((i64)i * width + j) * p.apart);
                }
            }
        }
    }
}

template <bool MEAN, u32 N, typename T>
DEVICE void spread(T* dx, const T* dy, const u8* slots, GEOMETRY) {
    const bool twos = stride_h == 2 && stride_w == 2, ones = stride_h == 1 && stride_w == 1;
    if (kernel_h == 2 && kernel_w == 2 && twos) cells_of<MEAN, 2, 2, N>(dx, dy, slots, GEOMETRY_NAMES);
    else if (kernel_h == 3 && kernel_w == 3 && twos) cells_of<MEAN, 3, 2, N>(dx, dy, slots, GEOMETRY_NAMES);
    else if (kernel_h == 3 && kernel_w == 3 && ones) cells_of<MEAN, 3, 1, N>(dx, dy, slots, GEOMETRY_NAMES);
    else cells_of_any<MEAN, N>(dx, dy, slots, GEOMETRY_NAMES);
}

template <typename T> DEVICE void pool_winner_backward_of(T* dx, const T* dy, const u8* slots, GEOMETRY) {
    spread<false, 1>(dx, dy, slots, GEOMETRY_NAMES);
}
KERNELS(pool_winner_backward, pool_winner_backward_bf16,
    (T* dx, const T* dy, const u8* slots, GEOMETRY), (dx, dy, slots, GEOMETRY_NAMES))

template <typename T> DEVICE void pool_winner_backward_packs_of(T* dx, const T* dy, const u8* slots, GEOMETRY) {
    spread<false, Pack<T>::size>(dx, dy, slots, GEOMETRY_NAMES);
}
KERNELS(pool_winner_backward_packs, pool_winner_backward_packs_bf16,
    (T* dx, const T* dy, const u8* slots, GEOMETRY), (dx, dy, slots, GEOMETRY_NAMES))

template <typename T> DEVICE void pool_average_backward_of(T* dx, const T* dy, GEOMETRY) {
    spread<true, 1>(dx, dy, (const u8*)nullptr, GEOMETRY_NAMES);
}
KERNELS(pool_average_backward, pool_average_backward_bf16, (T* dx, const T* dy, GEOMETRY), (dx, dy, GEOMETRY_NAMES))

template <typename T> DEVICE void pool_average_backward_packs_of(T* dx, const T* dy, GEOMETRY) {
    spread<true, Pack<T>::size>(dx, dy, (const u8*)nullptr, GEOMETRY_NAMES);
}
KERNELS(pool_average_backward_packs, pool_average_backward_packs_bf16,
    (T* dx, const T* dy, GEOMETRY), (dx, dy, GEOMETRY_NAMES))

// Windows of 2 x 2 that neither overlap nor leave gaps, in planes of an even width whose rows follow one another: N of a
// row together, 1, 2 or 4, so that their elements are read and written side by side.

#define BY_NUMBER(f, ...)                                                                                              \
    if (together == 4) f<4>(__VA_ARGS__, GEOMETRY_NAMES);                                                              \
    else if (together == 2) f<2>(__VA_ARGS__, GEOMETRY_NAMES);                                                         \
    else f<1>(__VA_ARGS__, GEOMETRY_NAMES)

// Takes 2 N elements of a row, the first of slot `at`.
template <u32 N, typename T, typename Into>
DEVICE void take_pairs(Into& into, const typename Pack<T, 2 * N>::Raw& raw, u32 at) {
    Pack<T, 2 * N> v;
    v.set(raw);
#pragma unroll
    for (u32 k = 0; k < N; ++k) {
        into.take(k, v.v[2 * k], at);
        into.take(k, v.v[2 * k + 1], at + 1);
    }
}

// Takes the windows of row wi from column wj on.
template <u32 N, typename T, typename Into>
DEVICE void take_pairs_of(Into& into, const T* from, u32 wi, u32 wj, u32 height, u32 width) {
    typedef Pack<T, 2 * N> P;
    const bool two = 2 * wi + 1 < height;
    const T* first = from + ((i64)2 * wi * width + 2 * wj);
    typename P::Raw raw[2] = {P::raw(first), P::raw(two ? first + width : first)};
    keep<T, 2 * N>(raw[1], two, Into::missing);
    take_pairs<N, T>(into, raw[0], 0);
    take_pairs<N, T>(into, raw[1], 2);
}

template <u32 N, typename T> DEVICE void winner_pairs(T* y, u8* slots, const T* x, GEOMETRY) {
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(i, wide) {
            const u32 wi = i * N / across, wj = i * N - wi * across;
            Winner<T, N> winner;
            take_pairs_of<N>(winner, x + (i64)row * height * width, wi, wj, height, width);
            winner.write(y, slots, ((i64)row * wide + i) * N);
        }
    }
}

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

template <typename T> DEVICE void pool_winner_forward_pairs_of(T* y, u8* slots, const T* x, u32 together, GEOMETRY) {
    BY_NUMBER(winner_pairs, y, slots, x);
}
KERNELS(pool_winner_forward_pairs, pool_winner_forward_pairs_bf16,
    (T* y, u8* slots, const T* x, u32 together, GEOMETRY), (y, slots, x, together, GEOMETRY_NAMES))

template <typename T> DEVICE void pool_average_forward_pairs_of(T* y, const T* x, u32 together, GEOMETRY) {
    BY_NUMBER(mean_pairs, y, x);
}
KERNELS(pool_average_forward_pairs, pool_average_forward_pairs_bf16,
    (T* y, const T* x, u32 together, GEOMETRY), (y, x, together, GEOMETRY_NAMES))

// Cells of a row whose windows may be one too few.
template <bool MEAN, u32 N, typename T> DEVICE void spread_pairs(T* dx, const T* dy, const u8* slots, GEOMETRY) {
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(x, wide) {
            const u32 ci = x * N / across, cj = x * N - ci * across;
            const bool two = 2 * ci + 1 < height;
            Pack<T, N> d = {};
            typename Slots<N>::Raw won = (typename Slots<N>::Raw)~0ull;
            if (ci < down) {
                const i64 at = ((i64)row * down + ci) * across + cj;
                if (!MEAN) won = *(const typename Slots<N>::Raw*)(slots + at);
                d.read(dy + at);
            }
            const float size = MEAN ? (two ? 4.0f : 2.0f) : 1.0f;
#pragma unroll
            for (u32 a = 0; a < 2; ++a) {
                Pack<T, 2 * N> v;
#pragma unroll
                for (u32 k = 0; k < 2 * N; ++k) {
                    const bool here = MEAN || slot_of(won, k / 2) == 2 * a + k % 2;
                    v.v[k] = 0.0f + (here ? d.v[k / 2] / size : 0.0f);
                }
                if (a == 0 || two) v.write(dx + (((i64)row * height + 2 * ci + a) * width + 2 * cj));
            }
        }
    }
}
template <u32 N, typename T> DEVICE void winner_spread_pairs(T* dx, const T* dy, const u8* slots, GEOMETRY) {
    spread_pairs<false, N>(dx, dy, slots, GEOMETRY_NAMES);
}
template <u32 N, typename T> DEVICE void mean_spread_pairs(T* dx, const T* dy, GEOMETRY) {
    spread_pairs<true, N>(dx, dy, (const u8*)nullptr, GEOMETRY_NAMES);
}

template <typename T>
DEVICE void pool_winner_backward_pairs_of(T* dx, const T* dy, const u8* slots, u32 together, GEOMETRY) {
    BY_NUMBER(winner_spread_pairs, dx, dy, slots);
}
KERNELS(pool_winner_backward_pairs, pool_winner_backward_pairs_bf16,
    (T* dx, const T* dy, const u8* slots, u32 together, GEOMETRY), (dx, dy, slots, together, GEOMETRY_NAMES))

template <typename T> DEVICE void pool_average_backward_pairs_of(T* dx, const T* dy, u32 together, GEOMETRY) {
    BY_NUMBER(mean_spread_pairs, dx, dy);
}
KERNELS(pool_average_backward_pairs, pool_average_backward_pairs_bf16,
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
KERNELS(pool_whole_forward_last, pool_whole_forward_last_bf16, (WHOLE), (WHOLE_NAMES))

template <typename T> DEVICE void pool_whole_forward_packs_of(WHOLE) {
    __shared__ float exchange[257 * Pack<T>::size];
    whole_means_last<Pack<T>::size>(WHOLE_NAMES, exchange);
}
KERNELS(pool_whole_forward_packs, pool_whole_forward_packs_bf16, (WHOLE), (WHOLE_NAMES))

template <typename T> DEVICE void pool_whole_backward_last_of(WHOLE) { spread_whole_last<1>(WHOLE_NAMES); }
KERNELS(pool_whole_backward_last, pool_whole_backward_last_bf16, (WHOLE), (WHOLE_NAMES))

template <typename T> DEVICE void pool_whole_backward_packs_of(WHOLE) { spread_whole_last<Pack<T>::size>(WHOLE_NAMES); }
KERNELS(pool_whole_backward_packs, pool_whole_backward_packs_bf16, (WHOLE), (WHOLE_NAMES))

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
KERNELS(pool_whole_forward, pool_whole_forward_bf16, (T* y, const T* x, u32 planes, u32 area), (y, x, planes, area))

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
KERNELS(pool_whole_backward, pool_whole_backward_bf16,
    (T* dx, const T* dy, u32 planes, u32 area), (dx, dy, planes, area))

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
KERNELS(pool_draw_forward, pool_draw_forward_bf16,
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
