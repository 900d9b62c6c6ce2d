// Classes as Gaussians around centers: ClassDistance and LGMLoss.
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

#define SIZES u32 items, u32 classes, u32 width

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

DEVICE float sum_of_parts(const float* partial, u32 parts, i64 n, i64 at) {
    float sum = partial[at];
    for (u32 part = 1; part < parts; ++part) sum += partial[part * n + at];
    return sum;
}

// y = what the parts give together, on top of what y holds with `add`.
KERNEL(lgm_add_parts)(float* y, const float* partial, u32 parts, u32 add, i64 n) {
    FOR_ELEMENTS(i, n) {
        const float sum = sum_of_parts(partial, parts, n, i);
        y[i] = add ? y[i] + sum : sum;
    }
}

// Labels.

#define NO_CLASS 0xffffffffu

DEVICE u32 own_class(float label, u32 classes) {
    const float whole = truncf(label);
    return whole >= 0 && whole < (float)classes ? (u32)whole : NO_CLASS;
}

// In one block: the first item whose label is no class.
DEVICE void report_strangers(const float* labels, u32 items, u32 classes, u32* fault, u32* exchange) {
    u32 first = NO_CLASS;
    for (u32 i = threadIdx.x; i < items; i += blockDim.x) {
        if (own_class(labels[i], classes) == NO_CLASS) first = Least::of(first, i);
    }
    first = block_reduce<Least>(first, exchange);
    if (threadIdx.x == 0 && first != NO_CLASS) report_fault(fault, 1, first, __float_as_uint(labels[first]));
}

KERNEL(lgm_check_labels)(const float* labels, u32 items, u32 classes, u32* fault) {
    __shared__ u32 exchange[32];
    report_strangers(labels, items, classes, fault, exchange);
}

// Variances. An isotropic one, of ClassDistance, has 1e-4 added; any other has a floor. `floor` 0 says isotropic.

DEVICE float inverse_of(float s, float floor) { return 1.0f / (floor > 0 ? fmaxf(s, floor) : fmaxf(s, 0.0f) + 1e-4f); }

// v = 1 / s, and half of ln s where it is wanted.
KERNEL(lgm_invert)(float* v, float* half_log, const float* s, float floor, i64 n) {
    FOR_ELEMENTS(i, n) {
        v[i] = inverse_of(s[i], floor);
        if (half_log) half_log[i] = 0.5f * logf(fmaxf(s[i], floor));
    }
}

// ds += half of 1/s^2 times what the parts give together, where s is not clipped.
KERNEL(lgm_distance_variances)(float* ds, const float* partial, u32 parts, const float* s, float floor, i64 n) {
    FOR_ELEMENTS(i, n) {
        const float v = inverse_of(s[i], floor);
        ds[i] += (s[i] > floor ? 0.5f * v * v : 0.0f) * sum_of_parts(partial, parts, n, i);
    }
}

// ClassDistance.

// z = factor / s * what the parts give together, which goes to `sums` if that is wanted; s is 1 where null. A label's own
// has the margins [mul, add] where labels are given.
KERNEL(lgm_logits)(
    float* z, float* sums, const float* partial, u32 parts, const float* s, float factor, const float* labels,
    const float* margins, u32 items, u32 classes
) {
    FOR_ROWS(i, items) {
        const u32 own = labels ? own_class(labels[i], classes) : NO_CLASS;
        FOR_POSITIONS(j, classes) {
            const i64 at = (i64)i * classes + j;
            const float sum = sum_of_parts(partial, parts, (i64)items * classes, at);
            if (sums) sums[at] = sum;
            const float logit = sum * (s ? factor * inverse_of(s[j], 0.0f) : factor);
            z[at] = j == own ? logit * (1.0f + margins[0]) - margins[1] : logit;
        }
    }
}

// What reaches the logits before the margin: all of it where `margins` is null, as without labels.
DEVICE float before_margin(float dz, bool own, const float* margins) {
    return own && margins ? dz * (1.0f + margins[0]) : dz;
}

// c = that over s; less `pull` at the label's own class.
KERNEL(lgm_coefficients)(
    float* c, const float* dz, const float* s, const float* labels, const float* margins, float pull, u32 items,
    u32 classes
) {
    FOR_ROWS(i, items) {
        const u32 own = labels ? own_class(labels[i], classes) : NO_CLASS;
        FOR_POSITIONS(j, classes) {
            const i64 at = (i64)i * classes + j;
            const float d = before_margin(dz[at], j == own, margins);
            const float scaled = s ? d * inverse_of(s[j], 0.0f) : d;
            c[at] = j == own ? scaled - pull : scaled;
        }
    }
}

// Sums over the items in a block of 32 classes and 8 groups of items; term(i, at) is that of item i, `at` its place in
// [items, classes]. `exchange` is 256 floats.
template <typename F> DEVICE void class_sums(float* out, u32 items, u32 classes, float* exchange, F term) {
    const u32 j = blockIdx.x * WARP + threadIdx.x % WARP, group = threadIdx.x / WARP, groups = blockDim.x / WARP;
    float sum = 0;
    if (j < classes) {
        for (u32 i = group; i < items; i += groups) sum += term(i, j, (i64)i * classes + j);
    }
    exchange[threadIdx.x] = sum;
    __syncthreads();
    if (group != 0 || j >= classes) return;
    for (u32 g = 1; g < groups; ++g) sum += exchange[g * WARP + threadIdx.x];
    out[j] = sum;
}

KERNEL(lgm_distance_class_sums)(
    float* out, const float* dz, const float* sums, const float* labels, const float* margins, u32 items, u32 classes
) {
    __shared__ float exchange[256];
    class_sums(out, items, classes, exchange, [=](u32 i, u32 j, i64 at) {
        const bool own = labels && own_class(labels[i], classes) == j;
        return before_margin(dz[at], own, margins) * sums[at];
    });
}

// The pull between items and their own centers: dx += coef (x - w), and dw += coef (w - x) over the items of each class.

KERNEL(lgm_pull_items)(
    float* dx, const float* x, const float* w, const float* labels, float coef, u32 skip, SIZES
) {
    FOR_ROWS(i, items) {
        const u32 own = own_class(labels[i], classes);
        if (own == NO_CLASS) continue;
        FOR_POSITIONS(k, width) {
            const i64 at = (i64)i * width + k;
            const float v = x[at];
            if (!(skip && v == 0)) dx[at] += coef * (v - w[(i64)own * width + k]);
        }
    }
}

KERNEL(lgm_pull_centers)(
    float* dw, const float* x, const float* w, const float* labels, float coef, u32 skip, SIZES
) {
    FOR_ROWS(j, classes) {
        FOR_POSITIONS(k, width) {
            const i64 at = (i64)j * width + k;
            const float center = w[at];
            float sum = 0;
            for (u32 i = 0; i < items; ++i) {
                if (own_class(labels[i], classes) != j) continue;
                const float v = x[(i64)i * width + k];
                sum += skip && v == 0 ? 0.0f : coef * (center - v);
            }
            dw[at] += sum;
        }
    }
}

// LGMLoss.

// A warp for each class: the sum of its half_log.
KERNEL(lgm_log_determinants)(float* h, const float* half_log, u32 classes, u32 width) {
    const u32 warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    for (u32 j = blockIdx.x * warps + threadIdx.x / WARP; j < classes; j += gridDim.x * warps) {
        double sum = 0;
        for (u32 k = lane; k < width; k += WARP) sum += half_log[(i64)j * width + k];
        sum = warp_reduce<Sum>(sum);
        if (lane == 0) h[j] = (float)sum;
    }
}

// A warp for each item: how many of its features are not zero.
KERNEL(lgm_count_observed)(float* counts, const float* x, u32 items, u32 width) {
    const u32 warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    for (u32 i = blockIdx.x * warps + threadIdx.x / WARP; i < items; i += gridDim.x * warps) {
        u32 count = 0;
        for (u32 k = lane; k < width; k += WARP) count += x[(i64)i * width + k] != 0;
        count = warp_reduce<Sum>(count);
        if (lane == 0) counts[i] = (float)count;
    }
}

// A block for each item: its cross-entropy and its own d + h go to ofs[2 i], and where they are wanted, the logits l, the
// probabilities p and the sums that the parts give together. With `variances`, isotropic ones, d is half the sum over s, and
// h is counts[i] (`width` where null) times half of ln s; else d is half the sum and h the parts of [items, classes] in
// `observed`, or that of a class in `determinants`. `partial` is written over.
KERNEL(lgm_loss_rows)(
    float* ofs, float* l, float* p, float* sums, float* partial, u32 parts, const float* variances, float floor,
    const float* counts, const float* determinants, const float* observed, const float* labels, const float* margins,
    u32 items, u32 classes, u32 width
) {
    __shared__ float exchange[32];
    __shared__ float of_own[2];
    const u32 i = blockIdx.x;
    if (i >= items) return;
    const u32 own = own_class(labels[i], classes);
    const i64 n = (i64)items * classes, base = (i64)i * classes;
    if (threadIdx.x == 0) of_own[0] = 0, of_own[1] = 0;
    __syncthreads();
    const float count = counts ? counts[i] : (float)width;
    float most = -INFINITE;
    for (u32 j = threadIdx.x; j < classes; j += blockDim.x) {
        const float sum = sum_of_parts(partial, parts, n, base + j);
        float d, h;
        if (variances) {
            const float s = fmaxf(variances[j], floor);
            d = sum * (0.5f * (1.0f / s));
            h = count * (0.5f * logf(s));
        } else {
            d = 0.5f * sum;
            h = observed ? sum_of_parts(observed, parts, n, base + j) : determinants[j];
        }
        if (sums) sums[base + j] = sum;
        if (l) l[base + j] = -d - h;
        float logit = -d - h;
        if (j == own) {
            logit = -(d * (1.0f + margins[0]) + margins[1]) - h;
            of_own[0] = logit;
            of_own[1] = d + h;
        }
        partial[base + j] = logit;
        most = Largest::of(most, logit);
    }
    most = block_reduce<Largest>(most, exchange);
    float sum = 0;
    for (u32 j = threadIdx.x; j < classes; j += blockDim.x) sum += expf(partial[base + j] - most);
    sum = block_reduce<Sum>(sum, exchange);
    __syncthreads();
    if (threadIdx.x == 0) {
        ofs[2 * (i64)i] = logf(sum) - (of_own[0] - most);
        ofs[2 * (i64)i + 1] = of_own[1];
    }
    if (!p) return;
    const float scale = 1.0f / sum;
    for (u32 j = threadIdx.x; j < classes; j += blockDim.x) p[base + j] = expf(partial[base + j] - most) * scale;
}

// In one block: the means over the items, and the first item whose label is no class.
KERNEL(lgm_loss_finish)(
    float* loss, float* likelihood, const float* ofs, const float* labels, float coef, u32 items, u32 classes, u32* fault
) {
    __shared__ double exchange[32];
    __shared__ u32 bits[32];
    double entropy = 0, own = 0;
    for (u32 i = threadIdx.x; i < items; i += blockDim.x) {
        entropy += ofs[2 * (i64)i];
        own += ofs[2 * (i64)i + 1];
    }
    entropy = block_reduce<Sum>(entropy, exchange);
    own = block_reduce<Sum>(own, exchange);
    if (threadIdx.x == 0) {
        const double n = items > 0 ? (double)items : 1.0;
        loss[0] = (float)(entropy / n + (double)coef * (own / n));
        if (likelihood) likelihood[0] = (float)(own / n);
    }
    report_strangers(labels, items, classes, fault, bits);
}

// The gradients of d, over s where `variances` are given (isotropic), and of h; dl and d_likelihood are 0 where null, the
// margin's factor is left out where `margins` is.
KERNEL(lgm_loss_coefficients)(
    float* dd, float* dh, const float* p, const float* d_loss, const float* dl, const float* d_likelihood,
    const float* variances, float floor, const float* labels, const float* margins, float coef, u32 items, u32 classes
) {
    const float per_item = d_loss[0] / (float)items;
    const float of_likelihood = (coef * d_loss[0] + (d_likelihood ? d_likelihood[0] : 0.0f)) / (float)items;
    FOR_ROWS(i, items) {
        const u32 own = own_class(labels[i], classes);
        FOR_POSITIONS(j, classes) {
            const i64 at = (i64)i * classes + j;
            const float probability = p[at];
            float h = -per_item * probability;
            if (dl) h -= dl[at];
            float d = h;
            if (j == own) {
                const float of_own = per_item * (1.0f - probability);
                d += per_item + of_likelihood + (margins ? margins[0] : 0.0f) * of_own;
                h += per_item + of_likelihood;
            }
            dd[at] = variances ? d * inverse_of(variances[j], floor) : d;
            dh[at] = h;
        }
    }
}

// The sums over the items of dh n - dd / s (w - x)^2, dd holding its 1 / s already.
KERNEL(lgm_loss_class_sums)(
    float* out, const float* dd, const float* dh, const float* sums, const float* counts, u32 items, u32 classes,
    u32 width
) {
    __shared__ float exchange[256];
    class_sums(out, items, classes, exchange, [=](u32 i, u32, i64 at) {
        return dh[at] * (counts ? counts[i] : (float)width) - dd[at] * sums[at];
    });
}

// ds += the gradient of s, half of 1/s times what the parts give together, damped and called back near the floor as
// `lgm_layers::lgm_loss` tells.
KERNEL(lgm_loss_variances)(
    float* ds, const float* partial, u32 parts, const float* variances, const float* d_loss, float floor,
    float damped_below, float strongest_pull, i64 n
) {
    FOR_ELEMENTS(i, n) {
        const float s = variances[i], kept = fmaxf(s, floor);
        const float g = 0.5f * (1.0f / kept) * sum_of_parts(partial, parts, n, i);
        const float share = fminf(kept / damped_below, 1.0f), damped = g * share * share;
        const float pull = strongest_pull / (1.0f + strongest_pull / (floor - s));
        ds[i] += s > floor ? damped : fminf(damped, 0.0f) - fabsf(d_loss[0]) * pull;
    }
}
