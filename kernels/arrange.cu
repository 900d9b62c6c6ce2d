// Layers that arrange elements: Permute and its like, Crop, Tile, Mean, Axpy, BatchReindex, Gather, Upsample, ArgMax.

// Six axes, outermost first: how many elements each has, and how far apart they lie in another blob.
#define AXES u32 n0, i64 s0, u32 n1, i64 s1, u32 n2, i64 s2, u32 n3, i64 s3, u32 n4, i64 s4, u32 n5, i64 s5
#define ALL_AXES n0, s0, n1, s1, n2, s2, n3, s3, n4, s4, n5, s5

// Where element i lies there.
DEVICE i64 place_of(u32 i, AXES) {
    i64 at = 0;
    const auto axis = [&](u32 n, i64 s) {
        if (n == 1) return;
        const u32 rest = i / n;
        at += (i - rest * n) * s;
        i = rest;
    };
    axis(n5, s5);
    axis(n4, s4);
    axis(n3, s3);
    axis(n2, s2);
    axis(n1, s1);
    return at + i * s0;
}

template <typename T> DEVICE void arrange_gather_of(T* own, const T* other, u32 n, AXES) {
    FOR_ELEMENTS(i, n) own[i] = other[place_of((u32)i, ALL_AXES)];
}
KERNELS(arrange_gather, (T* own, const T* other, u32 n, AXES), (own, other, n, ALL_AXES))

template <typename T> DEVICE void arrange_scatter_of(const T* own, T* other, u32 n, AXES) {
    FOR_ELEMENTS(i, n) other[place_of((u32)i, ALL_AXES)] = own[i];
}
KERNELS(arrange_scatter, (const T* own, T* other, u32 n, AXES), (own, other, n, ALL_AXES))

// Runs of `inner` elements, each `times` times: long = coeff * short.
template <typename T>
DEVICE void arrange_expand_of(T* to, const T* from, float coeff, u32 times, u32 inner, u32 n) {
    FOR_ELEMENTS(i, n) {
        const u32 run = (u32)i / inner;
        to[i] = coeff * from[(i64)(run / times) * inner + ((u32)i - run * inner)];
    }
}
KERNELS(arrange_expand,
    (T* to, const T* from, float coeff, u32 times, u32 inner, u32 n),
    (to, from, coeff, times, inner, n))

// short = coeff * the sum over the times; n elements of short.
template <typename T>
DEVICE void arrange_fold_of(T* to, const T* from, float coeff, u32 times, u32 inner, u32 n) {
    FOR_ELEMENTS(i, n) {
        const u32 run = (u32)i / inner;
        const T* x = from + (i64)run * times * inner + ((u32)i - run * inner);
        float sum = 0;
#pragma unroll 4
        for (u32 t = 0; t < times; ++t) sum += x[(i64)t * inner];
        to[i] = coeff * sum;
    }
}
KERNELS(arrange_fold,
    (T* to, const T* from, float coeff, u32 times, u32 inner, u32 n),
    (to, from, coeff, times, inner, n))

// y = a x + z, one a for each row.
template <typename T>
DEVICE void arrange_axpy_of(T* y, const float* a, const T* x, const T* z, u32 rows, u32 width) {
    FOR_ROWS(row, rows) {
        const float factor = a[row];
        FOR_POSITIONS(i, width) {
            const i64 at = (i64)row * width + i;
            y[at] = factor * x[at] + z[at];
        }
    }
}
KERNELS(arrange_axpy,
    (T* y, const float* a, const T* x, const T* z, u32 rows, u32 width),
    (y, a, x, z, rows, width))

// An index is a float whose fraction is cut off; one that is none of an axis of `n` elements is reported.

#define NO_INDEX 0xffffffffu

DEVICE u32 index_of(float index, u32 n) {
    // n may round up to a float, so the whole number is looked at too.
    if (!(index >= 0 && index < (float)n)) return NO_INDEX;
    const u32 whole = (u32)index;
    return whole < n ? whole : NO_INDEX;
}

#undef BOUNDS
#define BOUNDS __launch_bounds__(1024)

// In one block: the first of `count` indices that is none.
KERNEL(arrange_check)(const float* indices, u32 n, u32 count, u32* fault) {
    __shared__ u32 exchange[32];
    report_first(indices, count, 1, fault, exchange, [&](float index) { return index_of(index, n) == NO_INDEX; });
}

#undef BOUNDS
#define BOUNDS

// y[row] = x[indices[row]], for items of `len` elements.
template <typename T>
DEVICE void arrange_reindex_of(T* y, const T* x, const float* indices, u32 items, u32 picked, u32 len) {
    FOR_ROWS(row, picked) {
        const u32 item = index_of(indices[row], items);
        if (item == NO_INDEX) continue;
        FOR_POSITIONS(i, len) y[(i64)row * len + i] = x[(i64)item * len + i];
    }
}
KERNELS(arrange_reindex,
    (T* y, const T* x, const float* indices, u32 items, u32 picked, u32 len),
    (y, x, indices, items, picked, len))

// dx[item] = the sum of dy[row] over the rows whose index it is.
template <typename T>
DEVICE void arrange_reindex_backward_of(T* dx, const T* dy, const float* indices, u32 items, u32 picked, u32 len) {
    FOR_ROWS(item, items) {
        FOR_POSITIONS(i, len) {
            float sum = 0;
            for (u32 row = 0; row < picked; ++row) {
                if (index_of(indices[row], items) == item) sum += dy[(i64)row * len + i];
            }
            dx[(i64)item * len + i] = sum;
        }
    }
}
KERNELS(arrange_reindex_backward,
    (T* dx, const T* dy, const float* indices, u32 items, u32 picked, u32 len),
    (dx, dy, indices, items, picked, len))

// Of each row of `width` elements that of its index, or with `inverse` all others.
KERNEL(arrange_pick)(float* y, const float* x, const float* indices, u32 inverse, u32 rows, u32 width) {
    const u32 taken = inverse ? width - 1 : 1;
    FOR_ROWS(row, rows) {
        const u32 at = index_of(indices[row], width);
        if (at == NO_INDEX) continue;
        FOR_POSITIONS(i, taken) {
            y[(i64)row * taken + i] = x[(i64)row * width + (inverse ? i + (i >= at ? 1 : 0) : at)];
        }
    }
}

KERNEL(arrange_pick_backward)(float* dx, const float* dy, const float* indices, u32 inverse, u32 rows, u32 width) {
    const u32 taken = inverse ? width - 1 : 1;
    FOR_ROWS(row, rows) {
        const u32 at = index_of(indices[row], width);
        const float* from = dy + (i64)row * taken;
        FOR_POSITIONS(i, width) {
            float d = 0;
            if (inverse && i != at) d = from[i - (i > at ? 1 : 0)];
            if (!inverse && i == at) d = from[0];
            dx[(i64)row * width + i] = d;
        }
    }
}

// Whether value a at place i comes before b at j, largest first: what is not a number does, and of equals the last.
// NO_INDEX comes after all.
DEVICE bool comes_before(float a, u32 i, float b, u32 j) {
    if (i == NO_INDEX || j == NO_INDEX) return i != NO_INDEX;
    const bool a_nan = a != a, b_nan = b != b;
    if (a_nan || b_nan) return a_nan && (!b_nan || i > j);
    return a == b ? i > j : a > b;
}

// Of the elements first, first + step, … of `width` that are `apart`, the largest that comes after (last, from); `from` is
// NO_INDEX where all are looked at.
DEVICE void next_largest(
    const float* x, i64 apart, u32 first, u32 step, u32 width, float last, u32 from, float* value, u32* place
) {
    float best = 0;
    u32 at = NO_INDEX;
    for (u64 i = first; i < width; i += step) {
        const float v = x[i * apart];
        if (from != NO_INDEX && !comes_before(last, from, v, (u32)i)) continue;
        if (comes_before(v, (u32)i, best, at)) best = v, at = (u32)i;
    }
    *value = best;
    *place = at;
}

// The k largest along the middle of [outer, width, inner], and their places; either may be null. A thread for each of
// `rows` positions, those of an outer index `pitch` apart in the result.
KERNEL(arrange_largest)(
    float* places, float* values, const float* x, u32 k, i64 pitch, u32 width, u32 inner, u32 rows
) {
    FOR_ELEMENTS(row, rows) {
        const u32 o = (u32)row / inner, i = (u32)row - o * inner;
        float value = 0;
        u32 place = NO_INDEX;
        for (u32 j = 0; j < k; ++j) {
            const float last = value;
            const u32 from = place;
            next_largest(x + (i64)o * width * inner + i, inner, 0, 1, width, last, from, &value, &place);
            const i64 to = o * pitch + (i64)j * inner + i;
            if (places) places[to] = (float)place;
            if (values) values[to] = value;
        }
    }
}

// The same with a block for each row of elements side by side.
KERNEL(arrange_largest_of_row)(float* places, float* values, const float* x, u32 k, i64 pitch, u32 width) {
    __shared__ float best[32];
    __shared__ u32 at[32];
    float last = 0;
    u32 from = NO_INDEX;
    for (u32 j = 0; j < k; ++j) {
        float value;
        u32 place;
        next_largest(x + (i64)blockIdx.x * width, 1, threadIdx.x, blockDim.x, width, last, from, &value, &place);
        for (int apart = 16; apart > 0; apart >>= 1) {
            const float v = __shfl_xor_sync(ALL_LANES, value, apart);
            const u32 i = __shfl_xor_sync(ALL_LANES, place, apart);
            if (comes_before(v, i, value, place)) value = v, place = i;
        }
        if (threadIdx.x % WARP == 0) {
            best[threadIdx.x / WARP] = value;
            at[threadIdx.x / WARP] = place;
        }
        __syncthreads();
        for (u32 w = 0; w < blockDim.x / WARP; ++w) {
            if (comes_before(best[w], at[w], value, place)) value = best[w], place = at[w];
        }
        __syncthreads();
        last = value;
        from = place;
        if (threadIdx.x == 0) {
            const i64 to = blockIdx.x * pitch + j;
            if (places) places[to] = (float)place;
            if (values) values[to] = value;
        }
    }
}

// y[plane][at[i]] = x[plane][i], 0 elsewhere: y is zero already. A block goes along each plane, and of positions that go to
// one place the last counts; `places` is as many as the block has threads.
KERNEL(arrange_unpool)(float* y, const float* x, const float* at, u32 planes, u32 area, u32 top_area) {
    __shared__ u32 places[256];
    for (u32 plane = blockIdx.x; plane < planes; plane += gridDim.x) {
        const i64 from = (i64)plane * area;
        float* to = y + (i64)plane * top_area;
        for (u32 first = 0; first < area; first += blockDim.x) {
            const u32 left = area - first < blockDim.x ? area - first : blockDim.x;
            const u32 mine = threadIdx.x < left ? index_of(at[from + first + threadIdx.x], top_area) : NO_INDEX;
            places[threadIdx.x] = mine;
            __syncthreads();
            bool last = mine != NO_INDEX;
            for (u32 t = threadIdx.x + 1; last && t < left; ++t) last = places[t] != mine;
            if (last) to[mine] = x[from + first + threadIdx.x];
            __syncthreads();
        }
    }
}

// dx[plane][i] = dy[plane][at[i]].
KERNEL(arrange_unpool_backward)(float* dx, const float* dy, const float* at, u32 planes, u32 area, u32 top_area) {
    FOR_ROWS(plane, planes) {
        FOR_POSITIONS(i, area) {
            const u32 place = index_of(at[(i64)plane * area + i], top_area);
            dx[(i64)plane * area + i] = place == NO_INDEX ? 0.0f : dy[(i64)plane * top_area + place];
        }
    }
}
