// CTC: the loss of labels over all paths that read as them, a block for each sequence, and the best path. What kernels say of a
// sequence, its report, is four words: what it adds to the sum, the kind of its fault or 0, and the fault's two words.

#define EXTENTS u32 steps, u32 items, u32 classes, u32 blank, u32 most, u32 by_step
const u32 NOT_A_LABEL = 1, TOO_LONG = 2;

// The logarithm of a softmax's denominator. A warp for each row.
KERNEL(ctc_sums)(float* sums, const float* x, u32 rows, u32 classes) {
    const u32 warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    for (u32 i = blockIdx.x * warps + threadIdx.x / WARP; i < rows; i += gridDim.x * warps) {
        const float* row = x + (i64)i * classes;
        float largest = -INFINITE, sum = 0;
        for (u32 c = lane; c < classes; c += WARP) largest = fmaxf(largest, row[c]);
        largest = warp_reduce<Largest>(largest);
        for (u32 c = lane; c < classes; c += WARP) sum += expf(row[c] - largest);
        sum = warp_reduce<Sum>(sum);
        if (lane == 0) sums[i] = largest + logf(sum);
    }
}

// The steps that sequence n has.
DEVICE u32 length_of(const float* indicators, u32 n, u32 steps, u32 items) {
    u32 t = 1;
    while (t < steps && roundf(indicators[(i64)t * items + n]) != 0) ++t;
    return t;
}

DEVICE i64 label_at(u32 n, u32 k, u32 items, u32 most, u32 by_step) {
    return by_step ? (i64)k * items + n : (i64)n * most + k;
}

// The steps and labels of each sequence, a thread each: two words, then the labels.
KERNEL(ctc_read)(
    u32* targets, float* reports, const float* labels, const float* indicators, u32 time, u32 delay, u32 collapsed,
    u32 merged, EXTENTS
) {
    FOR_ELEMENTS(n, items) {
        u32* target = targets + n * (2 + 2 * (i64)most);
        float* report = reports + 4 * n;
        u32 count = 0, needed = 0, kind = 0, index = 0, detail = 0;
        float before = -1;
        for (u32 k = 0; k < most; ++k) {
            const i64 at = label_at((u32)n, k, items, most, by_step);
            const float label = truncf(labels[at]);
            const bool again = k > 0 && label == before;
            if (by_step && label < 0) break;
            before = label;
            if (label == (float)blank) continue;
            if (!(label >= 0 && label < (float)classes)) {
                kind = NOT_A_LABEL, index = (u32)at, detail = __float_as_uint(labels[at]);
                break;
            }
            if (again && collapsed) continue;
            needed += 1 + (merged && count > 0 && target[1 + count] == (u32)label);
            target[2 + count++] = (u32)label;
        }
        u32 length = indicators ? length_of(indicators, (u32)n, steps, items) : time;
        if (by_step && count == 0 && length == 1) length = 0;
        length = length > delay ? length - delay : 0;
        if (kind == 0 && needed > length) kind = TOO_LONG, index = (u32)n, detail = needed;
        target[0] = length, target[1] = count;
        report[1] = __uint_as_float(kind), report[2] = __uint_as_float(index), report[3] = __uint_as_float(detail);
    }
}

// ln (e^a + e^b + e^c), of which -infinity stands for nothing.
DEVICE float log_add(float a, float b, float c) {
    float most = b > a || b != b ? b : a;
    most = c > most || c != c ? c : most;
    return most == -INFINITE ? most : most + logf(expf(a - most) + expf(b - most) + expf(c - most));
}

// Takes the largest of logarithms from all of them, each of its thread's own, and gives it: so they stay near 0, where floats
// are finest.
DEVICE float lower(float* row, u32 count, float most) {
    if (most == -INFINITE) return 0;
    for (u32 u = threadIdx.x; u < count; u += blockDim.x) row[u] -= most;
    return most;
}

// Places of a sequence: blanks at even ones, labels between.
struct Places {
    const u32* labels;
    u32 count, blank, merged;

    __device__ __forceinline__ u32 of(u32 u) const { return u % 2 ? labels[u / 2] : blank; }
    __device__ __forceinline__ bool stays(u32 u) const { return merged || u % 2 == 0; }
    __device__ __forceinline__ bool skips(u32 u) const {
        return u > 1 && u % 2 && u < count && !(merged && labels[u / 2] == labels[u / 2 - 1]);
    }
};

// What each sequence adds to the loss, and, where it is wanted, d/dx of that, sequence by sequence. The lattice of a sequence
// is ln alpha at every step and ln of beta p at two, at each step less the largest.
KERNEL(ctc_loss)(
    float* reports, float* gradient, float* lattice, u32* targets, const float* x, const float* sums, u32 delay,
    u32 merged, EXTENTS
) {
    __shared__ float exchange[32];
    const u32 n = blockIdx.x, stride = 2 * most + 1;
    if (n >= items) return;
    u32* target = targets + n * (2 + 2 * (i64)most);
    float* report = reports + 4 * (i64)n;
    const u32 length = target[0], labels = target[1];
    const Places places = {target + 2, 2 * labels + 1, blank, merged};
    const bool ends = __float_as_uint(report[1]) != 0 || length == 0;
    float* alpha = lattice + n * ((i64)(steps + 2) * stride);
    float* dx = gradient ? gradient + n * ((i64)steps * classes) : gradient;
    if (dx) {
        for (u64 i = threadIdx.x; i < (u64)steps * classes; i += blockDim.x) {
            const u32 t = (u32)(i / classes), c = (u32)(i % classes);
            const i64 row = (i64)t * items + n;
            const bool within = !ends && t >= delay && t - delay < length;
            dx[i] = within ? expf(x[row * classes + c] - sums[row]) : 0.0f;
        }
    }
    if (ends) {
        if (threadIdx.x == 0) report[0] = 0;
        return;
    }
    double above = 0;
    for (u32 t = 0; t < length; ++t) {
        const i64 row = (i64)(delay + t) * items + n;
        float* here = alpha + (i64)t * stride;
        const float* before = here - stride;
        float most = -INFINITE;
        for (u32 u = threadIdx.x; u < places.count; u += blockDim.x) {
            float v = u < 2 ? 0.0f : -INFINITE;
            if (t > 0) {
                v = log_add(
                    places.stays(u) ? before[u] : -INFINITE, u > 0 ? before[u - 1] : -INFINITE,
                    places.skips(u) ? before[u - 2] : -INFINITE
                );
            }
            here[u] = v + x[row * classes + places.of(u)] - sums[row];
            most = Largest::of(most, here[u]);
        }
        above += lower(here, places.count, block_reduce<Largest>(most, exchange));
        __syncthreads();
    }
    const float* last = alpha + (i64)(length - 1) * stride + places.count - 1;
    const float end = log_add(last[0], labels ? last[-1] : -INFINITE, -INFINITE);
    if (threadIdx.x == 0) report[0] = (float)-(above + end);
    if (!dx || end == -INFINITE) return;

    // The next label equal to each, and whether there is none before it, in the highest bit: so that one thread adds up what
    // belongs to a class.
    u32* chain = target + 2 + most;
    for (u32 j = threadIdx.x; j < labels; j += blockDim.x) {
        u32 next = j + 1, first = 0x80000000u;
        while (next < labels && places.labels[next] != places.labels[j]) ++next;
        for (u32 k = 0; k < j; ++k) first = places.labels[k] == places.labels[j] ? 0 : first;
        chain[j] = next | first;
    }
    float* ahead = alpha + (i64)steps * stride;
    float* now = ahead + stride;
    __syncthreads();
    for (u32 t = length; t-- > 0;) {
        const i64 row = (i64)(delay + t) * items + n;
        float* here = alpha + (i64)t * stride;
        float* slope = dx + (i64)(delay + t) * classes;
        float most = -INFINITE, likeliest = -INFINITE;
        for (u32 u = threadIdx.x; u < places.count; u += blockDim.x) {
            float beta = u + 2 >= places.count ? 0.0f : -INFINITE;
            if (t + 1 < length) {
                beta = log_add(
                    places.stays(u) ? ahead[u] : -INFINITE, u + 1 < places.count ? ahead[u + 1] : -INFINITE,
                    places.skips(u + 2) ? ahead[u + 2] : -INFINITE
                );
            }
            now[u] = beta + x[row * classes + places.of(u)] - sums[row];
            here[u] += beta;
            most = Largest::of(most, now[u]), likeliest = Largest::of(likeliest, here[u]);
        }
        lower(now, places.count, block_reduce<Largest>(most, exchange));
        likeliest = block_reduce<Largest>(likeliest, exchange);
        float all = 0, blanks = 0;
        for (u32 u = threadIdx.x; u < places.count; u += blockDim.x) {
            here[u] = expf(here[u] - likeliest);
            all += here[u], blanks += u % 2 ? 0.0f : here[u];
        }
        all = block_reduce<Sum>(all, exchange);
        blanks = block_reduce<Sum>(blanks, exchange);
        if (threadIdx.x == 0) slope[blank] -= blanks / all;
        for (u32 j = threadIdx.x; j < labels; j += blockDim.x) {
            if (chain[j] < 0x80000000u) continue;
            float sum = 0;
            for (u32 k = j; k < labels; k = chain[k] & 0x7fffffffu) sum += here[2 * k + 1];
            slope[places.labels[j]] -= sum / all;
        }
        // What is ahead of the next step is written.
        __syncthreads();
        float* swap = ahead;
        ahead = now, now = swap;
    }
}

// The mean of what sequences report, in one block.
KERNEL(ctc_finish)(float* y, const float* reports, u32 items, u32* fault) {
    __shared__ double exchange[32];
    __shared__ u32 firsts[32];
    double sum = 0;
    u32 first = NO_FAULT;
    for (u32 n = threadIdx.x; n < items; n += blockDim.x) {
        sum += reports[4 * (i64)n];
        if (__float_as_uint(reports[4 * (i64)n + 1]) != 0) first = Least::of(first, n);
    }
    sum = block_reduce<Sum>(sum, exchange);
    first = block_reduce<Least>(first, firsts);
    if (threadIdx.x != 0) return;
    y[0] = (float)(sum / items);
    if (first == NO_FAULT) return;
    const float* report = reports + 4 * (i64)first;
    report_fault(fault, __float_as_uint(report[1]), __float_as_uint(report[2]), __float_as_uint(report[3]));
}

KERNEL(ctc_backward)(float* dx, const float* gradient, const float* d_loss, u32 steps, u32 items, u32 classes) {
    const float scale = d_loss[0] / (float)items;
    FOR_ROWS(row, steps * items) {
        const i64 from = ((i64)(row % items) * steps + row / items) * classes;
        FOR_POSITIONS(c, classes) dx[(i64)row * classes + c] = scale * gradient[from + c];
    }
}

// The best path of each sequence, as it reads, -1 after it; the sum of its scores, negated; and, where there are labels, whether
// it reads as they do: 1 or 0. Its classes, then their scores, are put in `best`; steps and sequences are so many rows apart.
KERNEL(ctc_decode)(
    float* sequences, float* scores, float* reports, float* best, const float* x, const float* indicators,
    const float* labels, u32 step_apart, u32 item_apart, u32 merged, EXTENTS
) {
    const u32 n = blockIdx.x, warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    if (n >= items) return;
    const u32 length = indicators ? length_of(indicators, n, steps, items) : steps;
    float* path = best + 2 * (i64)n * steps;
    for (u32 t = threadIdx.x / WARP; t < length; t += warps) {
        const float* row = x + ((i64)t * step_apart + (i64)n * item_apart) * classes;
        float largest = -INFINITE;
        u32 at = NO_FAULT;
        for (u32 c = lane; c < classes; c += WARP) {
            if (row[c] > largest || at == NO_FAULT) largest = row[c], at = c;
        }
        const float of_all = warp_reduce<Largest>(largest);
        at = warp_reduce<Least>(largest == of_all ? at : NO_FAULT);
        if (lane == 0) path[t] = at == NO_FAULT ? 0.0f : (float)at, path[steps + t] = of_all;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    float score = 0, before = -1;
    u32 found = 0, k = 0;
    bool right = labels != 0;
    for (u32 t = 0; t < length; ++t) {
        score -= path[steps + t];
        const float c = path[t];
        const bool again = merged && c == before;
        before = c;
        if (c == (float)blank || again) continue;
        if (sequences) sequences[(i64)n * steps + found] = c;
        ++found;
        if (!right) continue;
        float label = (float)blank;
        while (k < most && label == (float)blank) label = truncf(labels[label_at(n, k++, items, most, by_step)]);
        right = label == c;
    }
    for (; right && k < most; ++k) {
        const float label = truncf(labels[label_at(n, k, items, most, by_step)]);
        if (by_step && label < 0) break;
        right = label == (float)blank;
    }
    if (sequences) {
        for (u32 t = found; t < steps; ++t) sequences[(i64)n * steps + t] = -1;
    }
    if (scores) scores[n] = score;
    reports[4 * (i64)n] = right ? 1.0f : 0.0f;
    reports[4 * (i64)n + 1] = 0;
}
