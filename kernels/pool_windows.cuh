// What the kernels of pooling share: windows and planes, and the two ways to go over them, a window at a time forward and a
// cell of elements at a time backward, which gathers from the windows that reach it. Put before each of them as text.

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
        u32 stride_h, u32 stride_w, u32 pad_h, u32 pad_w, u32 end_h, u32 end_w, u32 bare
#define GEOMETRY_NAMES                                                                                                 \
    rows, wide, channels, height, width, down, across, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, end_h,    \
        end_w, bare
#define WINDOW(at) window(at, across, height, width, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w)

// Elements of window `at` along one axis, the padding before and behind included unless `bare`, and at least one.
DEVICE u32 padded(u32 at, u32 extent, u32 kernel, u32 stride, u32 pad, u32 behind, u32 bare) {
    const u32 corner = at * stride, start = bare && corner < pad ? pad : corner;
    const u32 reach = corner + kernel, most = extent + pad + (bare ? 0 : behind), end = reach < most ? reach : most;
    return end > start ? end - start : 1;
}

typedef unsigned char u8;

template <typename T> DEVICE float lowest() {
    return __uint_as_float(sizeof(T) == 4 ? 0xff7fffffu : 0xff7f0000u);
}

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

// Backward, a thread has a cell: the elements from a window's corner on to those of the next windows, as many along an
// axis as the stride. Cells fill the plane and what pads it before; where no window begins the last may be without one.

DEVICE u32 cells(u32 extent, u32 stride, u32 pad) { return (extent + pad + stride - 1) / stride; }

// What window (wi, wj) passes back to N channels or planes: dy of maxima, or the part of dy of each element of a mean.
template <bool MEAN, u32 N, typename T>
DEVICE void passed(Pack<T, N>& d, const typename Pack<T, N>::Raw& dy, u32 wi, u32 wj, GEOMETRY) {
    d.set(dy);
    if (!MEAN) return;
    const u32 size = padded(wi, height, kernel_h, stride_h, pad_h, end_h, bare) *
                     padded(wj, width, kernel_w, stride_w, pad_w, end_w, bare);
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
