// SSD's loss: the boxes of each image matched with its ground truth, those that are learned from, the losses of both.
//
// What is matched is the number of a row of ground truth. There is one set of matches for all predictions of a prior, or, where
// these have boxes of their own, one for each.

const u32 IGNORED = 0xfffffffeu;
const u32 TRUTH = 8;
const u32 NO_VARIANCE = 1, NO_IMAGE = 2, UNKNOWN_CLASS = 3, NOT_IN_BATCH = 4;

#define MULTIBOX u32 images, u32 priors, u32 locations, u32 sets, u32 rows, u32 classes, u32 background, u32 flags
#define AGNOSTIC (flags & 1)
#define LOGISTIC (flags & 2)
#define ALL_LEARNED (flags & 4)
#define HARDEST (flags & 8)

// What is wrong with a row of ground truth.
DEVICE u32 wrong_with(const float* row, u32 images, u32 classes, u32 background, u32 flags) {
    const float image = truncf(row[0]), c = truncf(row[1]);
    if (image == -1) return 0;
    if (!(image >= 0 && image < 9e15f)) return NO_IMAGE;
    if (!(c >= 0 && (AGNOSTIC || c < (float)classes)) || c == (float)background) return UNKNOWN_CLASS;
    return image < (float)images ? 0 : NOT_IN_BATCH;
}

// The rows of each image's ground truth, in their order, and how many there are, a block for each image; the first block
// reports what cannot be.
KERNEL(multibox_read)(
    u32* lists, u32* counts, const float* truths, const float* priors_at, u32 difficult, u32* fault, MULTIBOX
) {
    __shared__ u32 exchange[32];
    const u32 image = blockIdx.x;
    if (image >= images) return;
    const u32 found = block_gather(
        rows, exchange,
        [=](u32 r) {
            const float* row = truths + (u64)TRUTH * r;
            return truncf(row[0]) == (float)image && (difficult || row[7] == 0) &&
                wrong_with(row, images, classes, background, flags) == 0;
        },
        [=](u32 r, u32 at) { lists[(u64)image * rows + at] = r; }
    );
    if (threadIdx.x == 0) counts[image] = found;
    if (image > 0) return;
    u32 variance = NO_FAULT, row = NO_FAULT;
    for (u32 i = threadIdx.x; i < 4 * priors; i += blockDim.x) {
        if (!(priors_at[4 * (u64)priors + i] > 0)) variance = Least::of(variance, i);
    }
    for (u32 r = threadIdx.x; r < rows; r += blockDim.x) {
        if (wrong_with(truths + (u64)TRUTH * r, images, classes, background, flags)) row = Least::of(row, r);
    }
    variance = block_reduce<Least>(variance, exchange);
    row = block_reduce<Least>(row, exchange);
    if (threadIdx.x != 0) return;
    if (variance != NO_FAULT) {
        report_fault(fault, NO_VARIANCE, variance, __float_as_uint(priors_at[4 * (u64)priors + variance]));
    } else if (row != NO_FAULT) {
        const float* at = truths + (u64)TRUTH * row;
        const u32 kind = wrong_with(at, images, classes, background, flags);
        report_fault(fault, kind, row, __float_as_uint(truncf(at[kind == UNKNOWN_CLASS ? 1 : 0])));
    }
}

const float LEAST_OVERLAP = 1e-6f;

// Of one set of an image's boxes: how much each overlaps a ground truth, if enough to count.
struct Overlaps {
    const float* boxes;
    u64 apart;
    const float* truths;

    __device__ __forceinline__ Box box(u32 b) const { return box_at(boxes, b * apart); }
    __device__ __forceinline__ float with(Box box, u32 row) const {
        const float overlap = Continuous::of(box, box_at(truths + (u64)TRUTH * row + 3, 0));
        return overlap > LEAST_OVERLAP ? overlap : 0.0f;
    }
};

// In one block: the free box that overlaps a ground truth most, the first of equals, below its overlap's bits; 0 for none.
DEVICE u64 best_box(Overlaps of, const u32* matches, u32 priors, u32 row, u64* exchange) {
    u64 best = 0;
    for (u32 b = threadIdx.x; b < priors; b += blockDim.x) {
        if (matches[b] != NONE) continue;
        const float overlap = of.with(of.box(b), row);
        if (overlap > 0) best = Largest::of(best, (u64)__float_as_uint(overlap) << 32 | (NONE - b));
    }
    return block_reduce<Largest>(best, exchange);
}

// What each box of each set is matched with, and how much it overlaps that, else what it overlaps most. A block for each image
// and set. Boxes are the priors, or what predictions make of them.
KERNEL(multibox_match)(
    u32* matches, float* most, u32* nearest, u64* best, const u32* lists, const u32* counts, const float* truths,
    const float* priors_at, const float* decoded, u32 inside, float threshold, MULTIBOX
) {
    __shared__ u64 exchange[32];
    if (blockIdx.x >= images * sets) return;
    const u32 image = blockIdx.x / sets, set = blockIdx.x % sets, found = counts[image];
    const u64 first = (u64)blockIdx.x * priors;
    const bool by_class = decoded && locations > 1;
    u32* own = matches + first;
    u64* best_of = best + (u64)blockIdx.x * rows;
    const u32* list = lists + (u64)image * rows;
    const Overlaps of = decoded ? Overlaps{decoded + 4 * ((u64)image * priors * locations + set), locations, truths}
                                : Overlaps{priors_at, 1, truths};
    const auto counts_here = [=](u32 row) { return !by_class || (u32)truths[(u64)TRUTH * row + 1] == set; };
    const bool idle = found == 0 || (by_class && set == background);
    for (u32 b = threadIdx.x; b < priors; b += blockDim.x) {
        const Box box = of.box(b);
        bool within = true;
        for (u32 k = 0; k < 4; ++k) within = within && box.v[k] >= 0 && box.v[k] <= 1;
        float largest = 0;
        u32 at = NONE;
        if (!idle && (within || !inside)) {
            for (u32 t = 0; t < found; ++t) {
                const float overlap = counts_here(list[t]) ? of.with(box, list[t]) : 0.0f;
                if (overlap > largest) largest = overlap, at = list[t];
            }
        }
        own[b] = !idle && inside && !within ? IGNORED : NONE;
        most[first + b] = largest;
        nearest[first + b] = at;
    }
    __syncthreads();
    if (idle) return;
    for (u32 t = 0; t < found; ++t) {
        const u64 box = counts_here(list[t]) ? best_box(of, own, priors, list[t], exchange) : 0;
        if (threadIdx.x == 0) best_of[t] = box;
    }
    __syncthreads();
    for (;;) {
        // The largest overlap, of equal ones that of the first box, and then the first ground truth.
        u32 next = NONE;
        for (u32 t = 0; t < found; ++t) {
            if (best_of[t] > (next == NONE ? 0 : best_of[next])) next = t;
        }
        if (next == NONE) break;
        const u64 taken = best_of[next];
        const u32 b = NONE - (u32)taken;
        __syncthreads();
        if (threadIdx.x == 0) {
            own[b] = list[next];
            most[first + b] = __uint_as_float((u32)(taken >> 32));
            best_of[next] = 0;
        }
        __syncthreads();
        for (u32 t = 0; t < found; ++t) {
            if (best_of[t] == 0 || (u32)best_of[t] != (u32)taken) continue;
            const u64 other = best_box(of, own, priors, list[t], exchange);
            __syncthreads();
            if (threadIdx.x == 0) best_of[t] = other;
            __syncthreads();
        }
    }
    if (threshold < 0) return;
    for (u32 b = threadIdx.x; b < priors; b += blockDim.x) {
        if (own[b] == NONE && most[first + b] > 0 && most[first + b] >= threshold) own[b] = nearest[first + b];
    }
}

// What the boxes of an image are to have.
struct Targets {
    const u32* matches;
    const float* truths;
    u32 priors, locations, sets, classes, background, flags;

    // The ground truth that prediction l of box i of all is to find.
    __device__ __forceinline__ u32 of(u32 i, u32 l) const {
        const u64 image = i / priors, b = i % priors;
        const u32 row = matches[(image * sets + (sets > 1 ? l : 0)) * priors + b];
        if (row >= IGNORED) return NONE;
        return locations > sets && (u32)truths[(u64)TRUTH * row + 1] != l ? NONE : row;
    }

    // Calls f(class) for each class that box i of all is to have.
    template <typename F> __device__ __forceinline__ void each(u32 i, F f) const {
        u32 last = NONE;
        for (u32 l = 0; l < locations; ++l) {
            const u32 row = of(i, l);
            if (row == NONE) continue;
            last = AGNOSTIC ? background + 1 : (u32)truths[(u64)TRUTH * row + 1];
            if (LOGISTIC) f(last);
        }
        if (last == NONE && background < classes && !(LOGISTIC && ALL_LEARNED)) {
            f(background);
        } else if (last != NONE && !LOGISTIC) {
            f(last);
        }
    }
};

#define TARGETS                                                                                                        \
    const Targets targets = {matches, truths, priors, locations, sets, classes, background, flags}

// ln of the sum of e^s over a warp's row of scores.
DEVICE float log_sum(const float* row, u32 classes) {
    const u32 lane = threadIdx.x % WARP;
    float largest = -INFINITE, sum = 0;
    for (u32 c = lane; c < classes; c += WARP) largest = fmaxf(largest, row[c]);
    largest = warp_reduce<Largest>(largest);
    for (u32 c = lane; c < classes; c += WARP) sum += expf(row[c] - largest);
    return largest + logf(warp_reduce<Sum>(sum));
}

// conf of each box, a warp for each.
KERNEL(multibox_conf)(float* confs, const float* scores, const u32* matches, const float* truths, MULTIBOX) {
    const u32 warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    const float most = 87.33654475055310898657f;
    TARGETS;
    for (u32 i = blockIdx.x * warps + threadIdx.x / WARP; i < images * priors; i += gridDim.x * warps) {
        const float* row = scores + (u64)i * classes;
        float whole = 0, own = 0;
        if (LOGISTIC) {
            for (u32 c = lane; c < classes; c += WARP) whole += fmaxf(row[c], 0.0f) + log1pf(expf(-fabsf(row[c])));
            whole = warp_reduce<Sum>(whole);
        } else {
            whole = log_sum(row, classes);
        }
        targets.each(i, [&](u32 c) { own += row[c]; });
        const float loss = whole - own;
        if (lane == 0) confs[i] = !LOGISTIC && loss > most ? most : loss;
    }
}

#define ENCODING u32 code, u32 scaled, u32 squared, u32 bp_inside, u32 by_prior

// How far a prediction is from what would find a ground truth: 0 where that does not count.
DEVICE Box differences(
    const float* predictions, const float* priors_at, const float* truths, u64 at, u32 b, u32 row, u32 priors, ENCODING
) {
    const Box prior = box_at(priors_at, b), variances = box_at(priors_at, (u64)priors + b), p = box_at(predictions, at);
    const Box wanted = encode(code, scaled, prior, variances, box_at(truths + (u64)TRUTH * row + 3, 0));
    const Box found = by_prior || !bp_inside ? prior : decode(code, scaled, prior, variances, p);
    Box d;
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
        d.v[k] = (p.v[k] - wanted.v[k]) / (scaled ? 1.0f : variances.v[k]);
        if (bp_inside && (found.v[k] < 0 || found.v[k] > 1)) d.v[k] = 0;
    }
    return d;
}

// loc of each box.
KERNEL(multibox_loc)(
    float* locs, const float* predictions, const float* priors_at, const u32* matches, const float* truths, ENCODING, MULTIBOX
) {
    TARGETS;
    FOR_ELEMENTS(i, (i64)images * priors) {
        float sum = 0;
        for (u32 l = 0; l < locations; ++l) {
            const u32 row = targets.of((u32)i, l);
            if (row == NONE) continue;
            const u64 at = (u64)i * locations + l;
            const Box d = differences(
                predictions, priors_at, truths, at, (u32)i % priors, row, priors, code, scaled, squared, bp_inside, by_prior
            );
            for (u32 k = 0; k < 4; ++k) {
                const float far = fabsf(d.v[k]);
                sum += squared || far < 1 ? 0.5f * far * far : far - 0.5f;
            }
        }
        locs[i] = sum;
    }
}

// Which boxes of an image are learned from, and its sums: loc, conf and how many boxes are matched. A block for each image.
KERNEL(multibox_choose)(
    u32* chosen, double* sums, u32* matches, u64* entries, u32* order, float* sorted, float* worst, const u32* counts,
    const float* most, const float* locs, const float* confs, const float* apart_boxes, const float* truths, u32 each_image,
    u32 padded, float ratio, float overlap, u32 size, float threshold, u32 top, MULTIBOX
) {
    __shared__ u32 exchange[32];
    __shared__ double doubles[32];
    const u32 image = blockIdx.x;
    if (image >= images) return;
    const u64 first = (u64)image * priors;
    u32* own_chosen = chosen + first;
    u32* own = matches + first * sets;
    TARGETS;
    for (u32 b = threadIdx.x; b < priors; b += blockDim.x) own_chosen[b] = ALL_LEARNED ? 1 : 0;
    __syncthreads();
    if (!ALL_LEARNED && counts[image] > 0) {
        u64* list = entries + (u64)image * padded;
        u32 found = 0;
        for (u32 b = threadIdx.x; b < priors; b += blockDim.x) found += own[b] < IGNORED ? 1 : 0;
        found = block_reduce<Sum>(found, exchange);
        const float wanted = (float)found * ratio;
        const u32 limit = HARDEST ? size : wanted < 4294967040.0f ? (u32)wanted : NONE;
        u32 all = block_gather(
            priors, exchange,
            [=](u32 b) { return HARDEST || (own[b] == NONE && most[first + b] < overlap); },
            [=](u32 b, u32 at) {
                list[at] = entry_of(HARDEST ? confs[first + b] + locs[first + b] : confs[first + b], b);
            }
        );
        block_sort(list, all);
        const auto choose = [=](u32 b) { own_chosen[b] = 1; };
        if (threshold > 0) {
            u32* ordered = order + first;
            float* boxes = sorted + 4 * first;
            const float* from = apart_boxes + 4 * (u64)image * each_image;
            all = block_gather(
                all < top ? all : top, exchange, [=](u32 i) { return area_of(box_at(from, (u32)list[i])) >= 1e-5f; },
                [=](u32 i, u32 at) {
                    ordered[at] = (u32)list[i];
                    put_box(boxes, at, box_at(from, (u32)list[i]));
                }
            );
            block_suppress<Continuous>(boxes, worst + first, all, threshold, 1.0f, limit, [=](u32 i, u32) {
                choose(ordered[i]);
            });
        } else {
            for (u32 i = threadIdx.x; i < all && i < limit; i += blockDim.x) choose((u32)list[i]);
        }
        __syncthreads();
        for (u32 b = threadIdx.x; b < priors; b += blockDim.x) {
            if (own[b] == IGNORED) own_chosen[b] = 0;
            if (own[b] >= IGNORED) continue;
            if (HARDEST && own_chosen[b] == 0) own[b] = NONE;
            if (!HARDEST) own_chosen[b] = 1;
        }
        __syncthreads();
    }
    double loc = 0, conf = 0, matched = 0;
    for (u32 b = threadIdx.x; b < priors; b += blockDim.x) {
        u32 of_box = 0;
        for (u32 l = 0; l < locations; ++l) of_box += targets.of((u32)first + b, l) != NONE ? 1 : 0;
        matched += of_box;
        if (of_box > 0) loc += locs[first + b];
        if (own_chosen[b]) conf += confs[first + b];
    }
    loc = block_reduce<Sum>(loc, doubles);
    conf = block_reduce<Sum>(conf, doubles);
    matched = block_reduce<Sum>(matched, doubles);
    if (threadIdx.x == 0) sums[3 * image] = loc, sums[3 * image + 1] = conf, sums[3 * image + 2] = matched;
}

// The loss, and 1/Z; `fixed` is Z where that is not the number of boxes matched. In one thread.
KERNEL(multibox_finish)(
    float* loss, float* share, const double* sums, u32 images, float loc_weight, float conf_weight, float fixed
) {
    if (blockIdx.x * blockDim.x + threadIdx.x > 0) return;
    double loc = 0, conf = 0, matched = 0;
    for (u32 n = 0; n < images; ++n) loc += sums[3 * n], conf += sums[3 * n + 1], matched += sums[3 * n + 2];
    const double z = fixed > 0 ? fixed : matched > 1 ? matched : 1;
    loss[0] = (float)((loc_weight * loc + conf_weight * conf) / z);
    share[0] = (float)(1 / z);
}

KERNEL(multibox_loc_backward)(
    float* d_predictions, const float* d_loss, const float* share, const float* predictions, const float* priors_at,
    const u32* matches, const float* truths, float weight, ENCODING, MULTIBOX
) {
    const float scale = d_loss[0] * share[0] * weight;
    TARGETS;
    FOR_ELEMENTS(at, (i64)images * priors * locations) {
        const u32 i = (u32)(at / locations), row = targets.of(i, (u32)(at % locations));
        Box d = {{0, 0, 0, 0}};
        if (row != NONE) {
            d = differences(
                predictions, priors_at, truths, at, i % priors, row, priors, code, scaled, squared, bp_inside, by_prior
            );
#pragma unroll
            for (u32 k = 0; k < 4; ++k) {
                const bool near = squared || fabsf(d.v[k]) < 1;
                d.v[k] = scale * (near ? d.v[k] : d.v[k] > 0 ? 1.0f : d.v[k] < 0 ? -1.0f : d.v[k]);
            }
        }
        put_box(d_predictions, at, d);
    }
}

// A warp for each box.
KERNEL(multibox_conf_backward)(
    float* d_scores, const float* d_loss, const float* share, const float* scores, const u32* chosen, const u32* matches,
    const float* truths, float weight, MULTIBOX
) {
    const u32 warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    const float scale = d_loss[0] * share[0] * weight;
    TARGETS;
    for (u32 i = blockIdx.x * warps + threadIdx.x / WARP; i < images * priors; i += gridDim.x * warps) {
        const float* row = scores + (u64)i * classes;
        float* to = d_scores + (u64)i * classes;
        const bool learned = chosen[i] != 0;
        const float whole = LOGISTIC || !learned ? 0.0f : log_sum(row, classes);
        for (u32 c = lane; c < classes; c += WARP) {
            float d = 0;
            if (learned) {
                d = scale * (LOGISTIC ? sure(row[c]) : expf(row[c] - whole));
                targets.each(i, [&](u32 own) { d -= own == c ? scale : 0.0f; });
            }
            to[c] = d;
        }
    }
}
