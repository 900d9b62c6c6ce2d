// Sums over all (item, class, feature), of ClassDistance and LGMLoss.
//
// With features x [items, width] and centers w [classes, width], what costs are sums over all (item, class, feature). They
// are taken like matrix products, but of the differences w - x themselves: |w|^2 - 2 w x + |x|^2 would lose its digits where
// the distance is small against the vectors, which is where training brings them.

// A block of 256 threads makes a tile of SIDE x SIDE sums, DEPTH of what is summed over at a time; a thread makes EACH x EACH.
#define SIDE 64u
#define DEPTH 16u
#define EACH 4
// Keeps the four elements that a thread reads together aligned.
#define PITCH (SIDE + 4u)
#define TILE_THREADS 256u

// Read four elements at a time.
struct alignas(16) Tiles {
    float a[DEPTH][PITCH], b[DEPTH][PITCH], c[DEPTH][PITCH];
};

// tile[d][s] = element (first + s) across and (at + d) deep, zero outside; DEEP: depth is the fast axis in memory.
template <bool DEEP>
DEVICE void load_tile(float (*tile)[PITCH], const float* from, u32 across, u32 first, u32 depth, u32 at, u32 end) {
#pragma unroll
    for (u32 l = 0; l < SIDE * DEPTH / TILE_THREADS; ++l) {
        const u32 e = threadIdx.x + TILE_THREADS * l;
        const u32 d = DEEP ? e % DEPTH : e / SIDE, s = DEEP ? e / DEPTH : e % SIDE;
        const u32 position = first + s, level = at + d;
        const bool inside = position < across && level < end;
        tile[d][s] = inside ? from[DEEP ? (i64)position * depth + level : (i64)level * across + position] : 0.0f;
    }
}

// Where a rule's third operand lies: with the rows, with the columns, nowhere.
const int NOWHERE = 0, AT_ROWS = 1, AT_COLUMNS = 2;

// Operands of a tile: a goes along the rows, b along the columns, the third as the rule says; p and q are [rows, columns].
struct Operands {
    const float *a, *b, *third, *p, *q;
};

// Sums Rule::term over `depth`, whose blockIdx.y-th part this block takes; store(at, sum) gets each of them, `at` counting
// through [parts, rows, columns]. Terms of a level and those of levels are summed apart, which keeps long sums accurate.
template <typename Rule, bool A_DEEP, bool B_DEEP, typename Store>
DEVICE void tiled(Tiles& tiles, Operands in, u32 rows, u32 columns, u32 depth, Store store) {
    const u32 across = (columns + SIDE - 1) / SIDE;
    const u32 row = blockIdx.x / across * SIDE, column = blockIdx.x % across * SIDE;
    const u32 levels = (depth + DEPTH - 1) / DEPTH, share = (levels + gridDim.y - 1) / gridDim.y;
    const u32 from = blockIdx.y * share < levels ? blockIdx.y * share : levels;
    const u32 to = from + share < levels ? from + share : levels;
    const u32 end = (u64)to * DEPTH < depth ? to * DEPTH : depth;
    const u32 down = threadIdx.x / (SIDE / EACH) * EACH, right = threadIdx.x % (SIDE / EACH) * EACH;
    float sum[EACH][EACH], p[EACH][EACH], q[EACH][EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            const bool inside = row + down + i < rows && column + right + j < columns;
            const i64 at = (i64)(row + down + i) * columns + column + right + j;
            sum[i][j] = 0;
            p[i][j] = Rule::HELD > 0 && inside ? in.p[at] : 0.0f;
            q[i][j] = Rule::HELD > 1 && inside ? in.q[at] : 0.0f;
        }
    }
    for (u32 level = from; level < to; ++level) {
        const u32 at = level * DEPTH;
        load_tile<A_DEEP>(tiles.a, in.a, rows, row, depth, at, end);
        load_tile<B_DEEP>(tiles.b, in.b, columns, column, depth, at, end);
        if (Rule::THIRD == AT_ROWS) load_tile<A_DEEP>(tiles.c, in.third, rows, row, depth, at, end);
        if (Rule::THIRD == AT_COLUMNS) load_tile<B_DEEP>(tiles.c, in.third, columns, column, depth, at, end);
        __syncthreads();
        float part[EACH][EACH];
#pragma unroll
        for (int i = 0; i < EACH * EACH; ++i) part[i / EACH][i % EACH] = 0;
        // More at a time would take registers that a second block needs.
#pragma unroll 2
        for (u32 d = 0; d < DEPTH; ++d) {
            const float4 a4 = *(const float4*)&tiles.a[d][down], b4 = *(const float4*)&tiles.b[d][right];
            const float a[EACH] = {a4.x, a4.y, a4.z, a4.w}, b[EACH] = {b4.x, b4.y, b4.z, b4.w};
            float c[EACH] = {0, 0, 0, 0};
            if (Rule::THIRD != NOWHERE) {
                const float4 c4 = *(const float4*)&tiles.c[d][Rule::THIRD == AT_ROWS ? down : right];
                c[0] = c4.x, c[1] = c4.y, c[2] = c4.z, c[3] = c4.w;
            }
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
#pragma unroll
                for (int j = 0; j < EACH; ++j) {
                    const float third = c[Rule::THIRD == AT_ROWS ? i : j];
                    part[i][j] = Rule::term(part[i][j], a[i], b[j], third, p[i][j], q[i][j]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < EACH * EACH; ++i) sum[i / EACH][i % EACH] += part[i / EACH][i % EACH];
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            if (row + down + i < rows && column + right + j < columns) {
                store(((i64)blockIdx.y * rows + row + down + i) * columns + column + right + j, sum[i][j]);
            }
        }
    }
}

// Rules. With SKIP, differences where the feature is zero count as zero.

DEVICE float sign_of(float e) { return e > 0 ? 1.0f : e < 0 ? -1.0f : 0.0f; }
template <bool SKIP> DEVICE float difference(float x, float w) { return SKIP && x == 0 ? 0.0f : w - x; }

// a: features, b: centers, third: weights.
template <bool SKIP> struct Squares {
    static const int HELD = 0, THIRD = NOWHERE;
    DEVICE float term(float sum, float x, float w, float, float, float) {
        const float e = difference<SKIP>(x, w);
        return sum + e * e;
    }
};
template <bool SKIP> struct WeightedSquares {
    static const int HELD = 0, THIRD = AT_COLUMNS;
    DEVICE float term(float sum, float x, float w, float v, float, float) {
        const float e = difference<SKIP>(x, w);
        return sum + v * (e * e);
    }
};
template <bool SKIP> struct Absolutes {
    static const int HELD = 0, THIRD = NOWHERE;
    DEVICE float term(float sum, float x, float w, float, float, float) {
        return sum + fabsf(difference<SKIP>(x, w));
    }
};
// b: what is summed where the feature is not zero.
struct Observed {
    static const int HELD = 0, THIRD = NOWHERE;
    DEVICE float term(float sum, float x, float v, float, float, float) { return sum + (x == 0 ? 0.0f : v); }
};

// a: coefficients, b: centers, third: weights, p: features.
struct ToCenters {
    static const int HELD = 1, THIRD = NOWHERE;
    DEVICE float term(float sum, float c, float w, float, float x, float) { return sum + c * (w - x); }
};
struct WeightedToCenters {
    static const int HELD = 1, THIRD = AT_COLUMNS;
    DEVICE float term(float sum, float c, float w, float v, float x, float) { return sum + v * (c * (w - x)); }
};
struct SignsToCenters {
    static const int HELD = 1, THIRD = NOWHERE;
    DEVICE float term(float sum, float c, float w, float, float x, float) { return sum + c * sign_of(w - x); }
};

// a: coefficients, b: features, p: centers.
template <bool SKIP> struct FromItems {
    static const int HELD = 1, THIRD = NOWHERE;
    DEVICE float term(float sum, float c, float x, float, float w, float) {
        return sum + c * difference<SKIP>(x, w);
    }
};
template <bool SKIP> struct SignsFromItems {
    static const int HELD = 1, THIRD = NOWHERE;
    DEVICE float term(float sum, float c, float x, float, float w, float) {
        return sum + c * sign_of(difference<SKIP>(x, w));
    }
};
template <bool SKIP> struct SquaresFromItems {
    static const int HELD = 1, THIRD = NOWHERE;
    DEVICE float term(float sum, float c, float x, float, float w, float) {
        const float e = difference<SKIP>(x, w);
        return sum + c * (e * e);
    }
};
// a: the gradient dd of half of v e^2, third: the gradient dh of half of ln 1/v, q: v.
template <bool SKIP> struct Variances {
    static const int HELD = 2, THIRD = AT_ROWS;
    DEVICE float term(float sum, float dd, float x, float dh, float w, float v) {
        const float e = difference<SKIP>(x, w);
        return sum + ((SKIP && x == 0 ? 0.0f : dh) - dd * v * (e * e));
    }
};

// Two blocks of tiles a multiprocessor: while one waits for its tiles the other computes.
#undef BOUNDS
#define BOUNDS __launch_bounds__(TILE_THREADS, 2)

// Sums over the features, [parts, items, classes]: of v (w - x)^2, v being 1 where null; of |w - x|; of v where x is not 0.

KERNEL(lgm_squares)(float* out, const float* x, const float* w, const float* v, u32 skip, SIZES) {
    __shared__ Tiles tiles;
    const Operands in = {x, w, v, 0, 0};
    const auto store = [=](i64 at, float sum) { out[at] = sum; };
    if (v) {
        if (skip) tiled<WeightedSquares<true>, true, true>(tiles, in, items, classes, width, store);
        else tiled<WeightedSquares<false>, true, true>(tiles, in, items, classes, width, store);
    } else {
        if (skip) tiled<Squares<true>, true, true>(tiles, in, items, classes, width, store);
        else tiled<Squares<false>, true, true>(tiles, in, items, classes, width, store);
    }
}

KERNEL(lgm_absolutes)(float* out, const float* x, const float* w, u32 skip, SIZES) {
    __shared__ Tiles tiles;
    const Operands in = {x, w, 0, 0, 0};
    const auto store = [=](i64 at, float sum) { out[at] = sum; };
    if (skip) tiled<Absolutes<true>, true, true>(tiles, in, items, classes, width, store);
    else tiled<Absolutes<false>, true, true>(tiles, in, items, classes, width, store);
}

KERNEL(lgm_observed)(float* out, const float* x, const float* v, SIZES) {
    __shared__ Tiles tiles;
    const Operands in = {x, v, 0, 0, 0};
    tiled<Observed, true, true>(tiles, in, items, classes, width, [=](i64 at, float sum) { out[at] = sum; });
}

// Sums over the classes, [parts, items, width]: scale c v (w - x), or with `signs` scale c sign(w - x); none of a feature
// that is skipped.
KERNEL(lgm_sum_over_classes)(
    float* out, const float* c, const float* x, const float* w, const float* v, u32 signs, float scale, u32 skip, SIZES
) {
    __shared__ Tiles tiles;
    const Operands in = {c, w, v, x, 0};
    const i64 features = (i64)items * width;
    const auto store = [=](i64 at, float sum) {
        const bool none = skip && x[at - blockIdx.y * features] == 0;
        out[at] = none ? 0.0f : scale * sum;
    };
    if (signs) tiled<SignsToCenters, true, false>(tiles, in, items, width, classes, store);
    else if (v) tiled<WeightedToCenters, true, false>(tiles, in, items, width, classes, store);
    else tiled<ToCenters, true, false>(tiles, in, items, width, classes, store);
}

// Sums over the items, [parts, classes, width]: scale c v (w - x) or scale c sign(w - x), on top of what is there with `add`.
KERNEL(lgm_sum_over_items)(
    float* out, const float* c, const float* x, const float* w, const float* v, u32 signs, float scale, u32 skip,
    u32 add, SIZES
) {
    __shared__ Tiles tiles;
    const Operands in = {c, x, 0, w, 0};
    const i64 centers = (i64)classes * width;
    const auto store = [=](i64 at, float sum) {
        const float d = scale * (v ? v[at - blockIdx.y * centers] * sum : sum);
        out[at] = add ? out[at] + d : d;
    };
    if (signs) {
        if (skip) tiled<SignsFromItems<true>, false, false>(tiles, in, classes, width, items, store);
        else tiled<SignsFromItems<false>, false, false>(tiles, in, classes, width, items, store);
    } else {
        if (skip) tiled<FromItems<true>, false, false>(tiles, in, classes, width, items, store);
        else tiled<FromItems<false>, false, false>(tiles, in, classes, width, items, store);
    }
}

// Sums over the items, [parts, classes, width]: c (w - x)^2, or where dh is given dh - c v (w - x)^2.
KERNEL(lgm_squares_over_items)(
    float* out, const float* c, const float* dh, const float* x, const float* w, const float* v, u32 skip, SIZES
) {
    __shared__ Tiles tiles;
    const Operands in = {c, x, dh, w, v};
    const auto store = [=](i64 at, float sum) { out[at] = sum; };
    if (dh) {
        if (skip) tiled<Variances<true>, false, false>(tiles, in, classes, width, items, store);
        else tiled<Variances<false>, false, false>(tiles, in, classes, width, items, store);
    } else {
        if (skip) tiled<SquaresFromItems<true>, false, false>(tiles, in, classes, width, items, store);
        else tiled<SquaresFromItems<false>, false, false>(tiles, in, classes, width, items, store);
    }
}

#undef BOUNDS
#define BOUNDS

// y = what the parts give together, on top of what y holds with `add`.
KERNEL(lgm_add_parts)(float* y, const float* partial, u32 parts, u32 add, i64 n) {
    FOR_ELEMENTS(i, n) {
        const float sum = sum_of_parts(partial, parts, n, i);
        y[i] = add ? y[i] + sum : sum;
    }
}
