// Embed: rows of a table by index, and the table's gradient.
//
// An index is a float; one that is no whole number below `table`, the table's number of rows, names no row. Positions
// of the same index are brought together by sorting, and added up in their order: no row is written by two threads at
// once, and rows that do not occur are not touched.

#define NO_ROW 0xffffffffu

DEVICE u32 embed_row(float index, u32 table) {
    if (!(index >= 0 && index < 4294967296.0f)) return NO_ROW;
    const u32 row = (u32)index;
    return row < table && (float)row == index ? row : NO_ROW;
}

// y = W[x] + b, for `rows` positions of `width` elements; b may be null.
template <typename T>
DEVICE void embed_forward_of(
    T* y, const float* x, const float* w, const float* b, u32 table, u32 rows, u32 width
) {
    FOR_ROWS(row, rows) {
        const u32 from = embed_row(x[row], table);
        FOR_POSITIONS(i, width) {
            float v = from == NO_ROW ? 0.0f : w[(i64)from * width + i];
            if (b) v += b[i];
            y[(i64)row * width + i] = v;
        }
    }
}
KERNELS(embed_forward,
    (T* y, const float* x, const float* w, const float* b, u32 table, u32 rows, u32 width),
    (y, x, w, b, table, rows, width))

#undef BOUNDS
#define BOUNDS __launch_bounds__(1024)

// In one block: the first position whose index names no row.
KERNEL(embed_check)(const float* x, u32 table, u32 positions, u32* fault) {
    __shared__ u32 exchange[32];
    report_first(x, positions, 1, fault, exchange, [&](float index) { return embed_row(index, table) == NO_ROW; });
}

#undef BOUNDS
#define BOUNDS

// Keys: the row in the upper half, the position in the lower, so that no two are equal. NO_ROW comes last.

DEVICE u32 row_of(u64 key) { return (u32)(key >> 32); }

// As many keys as a block sorts.
#define RUN 1024u

// Runs of RUN keys in order, a block for each, by a bitonic network.
KERNEL(embed_sort)(u64* keys, const float* x, u32 table, u32 positions) {
    __shared__ u64 run[RUN];
    const u64 first = (u64)blockIdx.x * RUN;
    for (u32 k = threadIdx.x; k < RUN; k += blockDim.x) {
        const u64 i = first + k;
        run[k] = i < positions ? (u64)embed_row(x[i], table) << 32 | i : ~0ull;
    }
    __syncthreads();
    for (u32 size = 2; size <= RUN; size *= 2) {
        for (u32 apart = size / 2; apart > 0; apart /= 2) {
            for (u32 pair = threadIdx.x; pair < RUN / 2; pair += blockDim.x) {
                const u32 low = 2 * pair - pair % apart, high = low + apart;
                const u64 a = run[low], b = run[high];
                if ((a > b) == ((low & size) == 0)) run[low] = b, run[high] = a;
            }
            __syncthreads();
        }
    }
    for (u32 k = threadIdx.x; k < RUN; k += blockDim.x) {
        if (first + k < positions) keys[first + k] = run[k];
    }
}

// The first of keys [from, to), which are in order, that is not below `key`; `to` where all are.
DEVICE i64 lower_bound(const u64* keys, i64 from, i64 to, u64 key) {
    while (from < to) {
        const i64 middle = from + (to - from) / 2;
        if (keys[middle] < key) from = middle + 1;
        else to = middle;
    }
    return from;
}

// Of runs of `run` keys in order, a power of two, each two become one: a key's place is its place in its own run and as
// many more as keys of the other are below it.
KERNEL(embed_merge)(u64* to, const u64* from, i64 run, u32 positions) {
    FOR_ELEMENTS(i, positions) {
        const u64 key = from[i];
        const i64 own = i & -run, pair = i & -(2 * run);
        const i64 other = own == pair ? pair + run : pair;
        const i64 start = other < positions ? other : positions;
        const i64 end = other + run < positions ? other + run : positions;
        to[pair + (i - own) + (lower_bound(from, start, end, key) - start)] = key;
    }
}

// As many keys as are added up together.
#define CHUNK 16u

DEVICE u32 chunks_of(u32 positions) { return positions / CHUNK + (positions % CHUNK != 0); }

// dW += dy of the sorted keys, chunk by chunk. What a chunk gives a row that an earlier chunk began goes to
// heads[chunk]: a chunk has one such row at most.
template <typename T>
DEVICE void embed_add_of(float* dw, float* heads, const u64* keys, const T* dy, u32 positions, u32 width) {
    const u32 chunks = chunks_of(positions);
    FOR_ROWS(chunk, chunks) {
        const u64* own = keys + (i64)chunk * CHUNK;
        const u32 left = positions - chunk * CHUNK, before = chunk > 0 ? row_of(own[-1]) : NO_ROW;
        FOR_POSITIONS(i, width) {
            // All are read before the first is written, so that reading waits once.
            u32 rows[CHUNK + 1];
            float d[CHUNK];
#pragma unroll
            for (u32 k = 0; k < CHUNK; ++k) {
                const u64 key = k < left ? own[k] : ~0ull;
                rows[k] = row_of(key);
                d[k] = rows[k] != NO_ROW ? (float)dy[(i64)(u32)key * width + i] : 0.0f;
            }
            rows[CHUNK] = NO_ROW;
            float sum = 0;
#pragma unroll
            for (u32 k = 0; k < CHUNK; ++k) {
                sum += d[k];
                const u32 row = rows[k];
                if (row == NO_ROW || row == rows[k + 1]) continue;
                if (row == before) heads[(i64)chunk * width + i] = sum;
                else dw[(i64)row * width + i] += sum;
                sum = 0;
            }
        }
    }
}
KERNELS(embed_add,
    (float* dw, float* heads, const u64* keys, const T* dy, u32 positions, u32 width),
    (dw, heads, keys, dy, positions, width))

// dW += the heads of each row that goes over more than one chunk, in order, by the chunk that begins it.
KERNEL(embed_add_heads)(float* dw, const float* heads, const u64* keys, u32 positions, u32 width) {
    const u32 chunks = chunks_of(positions);
    FOR_ROWS(chunk, chunks - 1) {
        const u64* own = keys + (i64)chunk * CHUNK;
        const u32 row = row_of(own[CHUNK - 1]);
        if (row == NO_ROW || row != row_of(own[CHUNK])) continue;
        if (chunk > 0 && row == row_of(own[-1])) continue;
        const i64 last = lower_bound(keys, (i64)(chunk + 1) * CHUNK, positions, (u64)(row + 1) << 32) - 1;
        const u32 end = (u32)(last / CHUNK);
        FOR_POSITIONS(i, width) {
            float sum = 0;
#pragma unroll 8
            for (u32 c = chunk + 1; c <= end; ++c) sum += heads[(i64)c * width + i];
            dw[(i64)row * width + i] += sum;
        }
    }
}
