// Max pooling: a thread for one window or several side by side, forward; backward a thread gathers for one element from the
// windows that hold it, or for a cell of elements.

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
KERNELS(pool_max_forward,
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
KERNELS(pool_index_backward,
    (T* dx, const T* dy, const float* index, GEOMETRY), (dx, dy, index, GEOMETRY_NAMES))

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

// The largest of each window, as above.
template <typename T> DEVICE void pool_winner_forward_of(T* y, u8* slots, const T* x, GEOMETRY) {
    BY_WINDOW(winners, 1, y, slots, x);
}
KERNELS(pool_winner_forward,
    (T* y, u8* slots, const T* x, GEOMETRY), (y, slots, x, GEOMETRY_NAMES))

// With channels last, a multiple of a pack.
template <typename T> DEVICE void pool_winner_forward_packs_of(T* y, u8* slots, const T* x, GEOMETRY) {
    BY_WINDOW(winners, Pack<T>::size, y, slots, x);
}
KERNELS(pool_winner_forward_packs,
    (T* y, u8* slots, const T* x, GEOMETRY), (y, slots, x, GEOMETRY_NAMES))

template <typename T> DEVICE void pool_winner_backward_of(T* dx, const T* dy, const u8* slots, GEOMETRY) {
    spread<false, 1>(dx, dy, slots, GEOMETRY_NAMES);
}
KERNELS(pool_winner_backward,
    (T* dx, const T* dy, const u8* slots, GEOMETRY), (dx, dy, slots, GEOMETRY_NAMES))

template <typename T> DEVICE void pool_winner_backward_packs_of(T* dx, const T* dy, const u8* slots, GEOMETRY) {
    spread<false, Pack<T>::size>(dx, dy, slots, GEOMETRY_NAMES);
}
KERNELS(pool_winner_backward_packs,
    (T* dx, const T* dy, const u8* slots, GEOMETRY), (dx, dy, slots, GEOMETRY_NAMES))

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

template <typename T> DEVICE void pool_winner_forward_pairs_of(T* y, u8* slots, const T* x, u32 together, GEOMETRY) {
    BY_NUMBER(winner_pairs, y, slots, x);
}
KERNELS(pool_winner_forward_pairs,
    (T* y, u8* slots, const T* x, u32 together, GEOMETRY), (y, slots, x, together, GEOMETRY_NAMES))

template <u32 N, typename T> DEVICE void winner_spread_pairs(T* dx, const T* dy, const u8* slots, GEOMETRY) {
    spread_pairs<false, N>(dx, dy, slots, GEOMETRY_NAMES);
}

template <typename T>
DEVICE void pool_winner_backward_pairs_of(T* dx, const T* dy, const u8* slots, u32 together, GEOMETRY) {
    BY_NUMBER(winner_spread_pairs, dx, dy, slots);
}
KERNELS(pool_winner_backward_pairs,
    (T* dx, const T* dy, const u8* slots, u32 together, GEOMETRY), (dx, dy, slots, together, GEOMETRY_NAMES))
