// LGMLoss: determinants, the cross-entropy of a batch, and its gradients.

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

// A block for each item: its cross-entropy and its own d + h, or their mean over `all_classes`, go to ofs[2 i], and where they are wanted, the logits l, the
// probabilities p and the sums that the parts give together. With `variances`, isotropic ones, d is half the sum over s, and
// h is counts[i] (`width` where null) times half of ln s; else d is half the sum and h the parts of [items, classes] in
// `observed`, or that of a class in `determinants`. `partial` is written over.
KERNEL(lgm_loss_rows)(
    float* ofs, float* l, float* p, float* sums, float* partial, u32 parts, const float* variances, float floor,
    const float* counts, const float* determinants, const float* observed, const float* labels, const float* margins,
    u32 all_classes, u32 items, u32 classes, u32 width
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
    float most = -INFINITE, of_all = 0;
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
        of_all += d + h;
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
    if (all_classes) of_all = block_reduce<Sum>(of_all, exchange);
    __syncthreads();
    if (threadIdx.x == 0) {
        ofs[2 * (i64)i] = logf(sum) - (of_own[0] - most);
        ofs[2 * (i64)i + 1] = all_classes ? of_all / (float)classes : of_own[1];
    }
    if (!p) return;
    const float scale = 1.0f / sum;
    for (u32 j = threadIdx.x; j < classes; j += blockDim.x) p[base + j] = expf(partial[base + j] - most) * scale;
}

// In one block: the means over the items, and the first item whose label is no class.
KERNEL(lgm_loss_finish)(
    float* loss, float* likelihood, const float* ofs, const float* labels, const float* schedules, u32 items, u32 classes,
    u32* fault
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
        loss[0] = (float)(entropy / n + (double)schedules[2] * (own / n));
        if (likelihood) likelihood[0] = (float)(own / n);
    }
    report_strangers(labels, items, classes, fault, bits);
}

// The gradients of d, over s where `variances` are given (isotropic), and of h; dl and d_likelihood are 0 where null, the
// margin's factor is left out without `with_margin`.
KERNEL(lgm_loss_coefficients)(
    float* dd, float* dh, const float* p, const float* d_loss, const float* dl, const float* d_likelihood,
    const float* variances, float floor, const float* labels, const float* schedules, u32 with_margin, u32 all_classes,
    u32 items, u32 classes
) {
    const float per_item = d_loss[0] / (float)items;
    const float margin = with_margin ? schedules[0] : 0.0f;
    const float of_likelihood = (schedules[2] * d_loss[0] + (d_likelihood ? d_likelihood[0] : 0.0f)) / (float)items;
    const float of_label = all_classes ? 0.0f : of_likelihood, of_each = all_classes ? of_likelihood / (float)classes : 0.0f;
    FOR_ROWS(i, items) {
        const u32 own = own_class(labels[i], classes);
        FOR_POSITIONS(j, classes) {
            const i64 at = (i64)i * classes + j;
            const float probability = p[at];
            float h = of_each - per_item * probability;
            if (dl) h -= dl[at];
            float d = h;
            if (j == own) {
                const float of_own = per_item * (1.0f - probability);
                d += per_item + of_label + margin * of_own;
                h += per_item + of_label;
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
