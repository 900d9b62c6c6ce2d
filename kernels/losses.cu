// Losses: what each adds up over its positions, and its gradients.

// In one block: the loss over Z, which is `fixed` or, where that is 0, the number of positions that count; and 1/Z for
// backward.
KERNEL(loss_finish)(
    float* loss, float* share, const float* partial, const float* labels, u32 blocks, float fixed, u32* fault
) {
    __shared__ double exchange[32];
    __shared__ u32 bits[32];
    double sum = 0, counts = 0;
    u32 first = NO_FAULT;
    for (u32 b = threadIdx.x; b < blocks; b += blockDim.x) {
        sum += partial[3 * (i64)b];
        counts += partial[3 * (i64)b + 1];
        first = Least::of(first, __float_as_uint(partial[3 * (i64)b + 2]));
    }
    sum = block_reduce<Sum>(sum, exchange);
    counts = block_reduce<Sum>(counts, exchange);
    first = block_reduce<Least>(first, bits);
    if (threadIdx.x == 0) {
        const double z = fixed > 0 ? fixed : counts > 1 ? counts : 1.0;
        loss[0] = (float)(sum / z);
        if (share) share[0] = (float)(1.0 / z);
        if (first != NO_FAULT) report_fault(fault, 1, first, __float_as_uint(labels[first]));
    }
}

// What a probability counts as; what is not a number stays so.
DEVICE float bounded(float p) { return p < 1e-20f ? 1e-20f : p; }

// ContrastiveLoss. A warp for each pair: its squared distance.
KERNEL(contrastive_distances)(float* squares, const float* a, const float* b, u32 pairs, u32 width) {
    const u32 warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    for (u32 i = blockIdx.x * warps + threadIdx.x / WARP; i < pairs; i += gridDim.x * warps) {
        float sum = 0;
        for (u32 k = lane; k < width; k += WARP) {
            const float d = a[(i64)i * width + k] - b[(i64)i * width + k];
            sum += d * d;
        }
        sum = warp_reduce<Sum>(sum);
        if (lane == 0) squares[i] = sum;
    }
}

KERNEL(contrastive_partials)(float* partial, const float* squares, const float* similar, float margin, u32 legacy, u32 pairs) {
    TALLYING;
    FOR_ELEMENTS(i, pairs) {
        const float square = squares[i];
        const float lack = fmaxf(margin - (legacy ? square : sqrtf(square)), 0.0f);
        tally.loss += truncf(similar[i]) != 0 ? square : legacy ? lack : lack * lack;
    }
    PUT_TALLY(partial);
}

// d = dL scale (a - b), times what a pair that is not similar lacks of the margin.
KERNEL(contrastive_backward)(
    float* d, const float* a, const float* b, const float* squares, const float* similar, const float* d_loss,
    float scale, float margin, u32 legacy, u32 pairs, u32 width
) {
    FOR_ROWS(i, pairs) {
        float factor = d_loss[0] * scale;
        if (truncf(similar[i]) == 0) {
            const float distance = sqrtf(squares[i]), lack = margin - (legacy ? squares[i] : distance);
            const float pull = legacy ? 1.0f : lack / (distance + 1e-4f);
            factor *= lack > 0 ? -pull : 0.0f;
        }
        FOR_POSITIONS(k, width) {
            const i64 at = (i64)i * width + k;
            d[at] = factor * (a[at] - b[at]);
        }
    }
}

// HingeLoss: max(0, 1 + x), or 1 - x for the own class; its square with `squared`.
KERNEL(hinge_partials)(float* partial, const float* x, const float* labels, u32 squared, u32 elements, LABELS) {
    TALLYING;
    FOR_ELEMENTS(at, elements) {
        const u32 i = (u32)at / channels, c = (u32)at % channels;
        OWN_CLASS(i, c == 0);
        const float lack = fmaxf(1.0f + ((int)c == own ? -x[at] : x[at]), 0.0f);
        tally.loss += squared ? lack * lack : lack;
    }
    PUT_TALLY(partial);
}

KERNEL(hinge_backward)(
    float* dx, const float* x, const float* labels, const float* d_loss, float items, u32 squared, u32 elements, LABELS
) {
    const float scale = d_loss[0] / items;
    FOR_ELEMENTS(at, elements) {
        const u32 i = (u32)at / channels, c = (u32)at % channels;
        const float sign = (int)c == CLASS(labels[i]) ? -1.0f : 1.0f, lack = 1.0f + sign * x[at];
        dx[at] = lack > 0 ? scale * sign * (squared ? 2.0f * lack : 1.0f) : 0.0f;
    }
}

// MarginContrastiveLoss: max(0, margin + x_j - x_own) for each other class j.
KERNEL(margin_contrastive_partials)(
    float* partial, const float* x, const float* labels, float margin, u32 elements, LABELS
) {
    TALLYING;
    FOR_ELEMENTS(at, elements) {
        const u32 i = (u32)at / channels, c = (u32)at % channels;
        OWN_CLASS(i, c == 0);
        if (own < 0 || (u32)own == c) continue;
        tally.loss += fmaxf(margin + x[at] - x[(i64)i * channels + own], 0.0f);
    }
    PUT_TALLY(partial);
}

// A warp for each item: the own class is pushed by all that come within the margin.
KERNEL(margin_contrastive_backward)(
    float* dx, const float* x, const float* labels, const float* d_loss, float z, float margin, u32 items, LABELS
) {
    const u32 warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    const float scale = d_loss[0] / z;
    for (u32 i = blockIdx.x * warps + threadIdx.x / WARP; i < items; i += gridDim.x * warps) {
        const int own = CLASS(labels[i]);
        const i64 base = (i64)i * channels;
        u32 within = 0;
        for (u32 c = lane; c < channels; c += WARP) {
            const bool near = own >= 0 && (int)c != own && margin + x[base + c] - x[base + own] > 0;
            within += near;
            dx[base + c] = near ? scale : 0.0f;
        }
        within = warp_reduce<Sum>(within);
        if (own >= 0 && lane == (u32)own % WARP) dx[base + own] = -scale * (float)within;
    }
}

// MultinomialLogisticLoss and NewLoss read the probability of the own class alone: -ln p, or (1 - p)^2 with `squared`.
KERNEL(own_class_partials)(float* partial, const float* p, const float* labels, u32 squared, u32 items, LABELS) {
    TALLYING;
    FOR_ELEMENTS(i, items) {
        OWN_CLASS(i, true);
        if (own < 0) continue;
        const float v = p[i * channels + own];
        tally.loss += squared ? (1.0f - v) * (1.0f - v) : -logf(bounded(v));
    }
    PUT_TALLY(partial);
}

KERNEL(own_class_backward)(
    float* dp, const float* p, const float* labels, const float* d_loss, float items, u32 squared, u32 elements, LABELS
) {
    const float scale = d_loss[0] / items;
    FOR_ELEMENTS(at, elements) {
        const u32 i = (u32)at / channels, c = (u32)at % channels;
        float d = 0;
        if ((int)c == CLASS(labels[i])) d = squared ? -2.0f * scale * (1.0f - p[at]) : -scale / bounded(p[at]);
        dp[at] = d;
    }
}

// InfogainLoss: -H[label, c] ln p for every class c; [outer, channels, inner].
KERNEL(infogain_partials)(
    float* partial, const float* p, const float* labels, const float* matrix, u32 elements, u32 inner, LABELS
) {
    TALLYING;
    FOR_ELEMENTS(at, elements) {
        const u32 row = (u32)at / inner, c = row % channels, i = row / channels * inner + (u32)at % inner;
        OWN_CLASS(i, c == 0);
        if (own < 0) continue;
        tally.loss -= matrix[(i64)own * channels + c] * logf(bounded(p[at]));
        tally.counts += c == 0;
    }
    PUT_TALLY(partial);
}

// dx = dL / Z (p sum of H[label] - H[label, c]) where the position counts, else 0; on top of what dx holds with `add`.
KERNEL(infogain_backward)(
    float* dx, const float* p, const float* labels, const float* matrix, const float* sums, const float* d_loss,
    const float* share, u32 add, u32 elements, u32 inner, LABELS
) {
    const float scale = d_loss[0] * share[0];
    FOR_ELEMENTS(at, elements) {
        const u32 row = (u32)at / inner, c = row % channels;
        const int own = CLASS(labels[row / channels * inner + (u32)at % inner]);
        float d = add ? dx[at] : 0.0f;
        if (own >= 0) d += scale * (p[at] * sums[own] - matrix[(i64)own * channels + c]);
        dx[at] = d;
    }
}

// SigmoidCrossEntropyLoss, a target t of `ignored` (its fraction cut off) apart: max(x, 0) - x t + ln(1 + e^-|x|).
DEVICE bool counts_as_target(float t, u32 ignores, int ignored) { return !(ignores && truncf(t) == (float)ignored); }

KERNEL(sigmoid_loss_partials)(float* partial, const float* x, const float* t, u32 ignores, int ignored, i64 n) {
    TALLYING;
    FOR_ELEMENTS(i, n) {
        if (!counts_as_target(t[i], ignores, ignored)) continue;
        tally.loss += fmaxf(x[i], 0.0f) - x[i] * t[i] + log1pf(expf(-fabsf(x[i])));
        tally.counts += 1;
    }
    PUT_TALLY(partial);
}

KERNEL(sigmoid_loss_backward)(
    float* dx, const float* x, const float* t, const float* d_loss, const float* share, u32 ignores, int ignored, i64 n
) {
    const float scale = d_loss[0] * share[0];
    map2(dx, x, t, n, [=](float u, float v) {
        return counts_as_target(v, ignores, ignored) ? scale * (1.0f / (1.0f + expf(-u)) - v) : 0.0f;
    });
}

// SmoothL1Loss of d = inside (a - b): half of (sigma d)^2 below 1 / sigma^2, else |d| less what joins them; times outside.
// Both weights are 1 where null.
DEVICE float weighted_difference(const float* a, const float* b, const float* inside, i64 i) {
    return inside ? inside[i] * (a[i] - b[i]) : a[i] - b[i];
}

DEVICE float smooth_l1(float d, const float* outside, float sigma2, i64 i) {
    const float size = fabsf(d), loss = size < 1.0f / sigma2 ? 0.5f * d * d * sigma2 : size - 0.5f / sigma2;
    return outside ? outside[i] * loss : loss;
}

KERNEL(smooth_l1_partials)(
    float* partial, const float* a, const float* b, const float* inside, const float* outside, float sigma2, i64 n
) {
    TALLYING;
    FOR_ELEMENTS(i, n) tally.loss += smooth_l1(weighted_difference(a, b, inside, i), outside, sigma2, i);
    PUT_TALLY(partial);
}

// The loss of each position, over its channels.
KERNEL(smooth_l1_positions)(
    float* y, const float* a, const float* b, const float* inside, const float* outside, float sigma2, u32 items,
    u32 channels, u32 inner
) {
    FOR_ROWS(n, items) {
        FOR_POSITIONS(s, inner) {
            float sum = 0;
            for (u32 c = 0; c < channels; ++c) {
                const i64 i = ((i64)n * channels + c) * inner + s;
                sum += smooth_l1(weighted_difference(a, b, inside, i), outside, sigma2, i);
            }
            y[(i64)n * inner + s] = sum;
        }
    }
}

KERNEL(smooth_l1_backward)(
    float* to, const float* a, const float* b, const float* inside, const float* outside, const float* d_loss,
    float scale, float sigma2, i64 n
) {
    const float factor = d_loss[0] * scale;
    FOR_ELEMENTS(i, n) {
        const float d = weighted_difference(a, b, inside, i);
        float slope = fabsf(d) < 1.0f / sigma2 ? sigma2 * d : d > 0 ? 1.0f : d < 0 ? -1.0f : d;
        if (inside) slope *= inside[i];
        if (outside) slope *= outside[i];
        to[i] = factor * slope;
    }
}

// BoxAnnotatorOHEM. A warp for each position: it is kept where fewer than `most` of its image have a larger loss.
KERNEL(hard_examples)(
    float* labels_to, float* weights_to, const float* rois, const float* losses, const float* labels,
    const float* weights, u32 most, float ignored, u32 positions, u32 channels, u32 inner
) {
    const u32 warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    for (u32 i = blockIdx.x * warps + threadIdx.x / WARP; i < positions; i += gridDim.x * warps) {
        const u32 n = i / inner, s = i % inner;
        const float image = rois[(i64)n * 5 * inner + s], loss = losses[i];
        u32 harder = 0;
        for (u32 j = lane; j < positions; j += WARP) {
            if (rois[(i64)(j / inner) * 5 * inner + j % inner] != image) continue;
            harder += losses[j] > loss || (losses[j] == loss && j < i);
        }
        const bool kept = warp_reduce<Sum>(harder) < most;
        if (lane == 0) labels_to[i] = kept ? labels[i] : ignored;
        for (u32 c = lane; c < channels; c += WARP) {
            const i64 at = ((i64)n * channels + c) * inner + s;
            weights_to[at] = kept ? weights[at] : 0.0f;
        }
    }
}

// LabelSpecificAdd: y = x, and x + bias for the own class where that is positive; y may be x.
KERNEL(label_specific_add)(float* y, float* shown, const float* x, const float* labels, const float* bias, u32 elements, LABELS) {
    FOR_ELEMENTS(at, elements) {
        const bool own = (int)((u32)at % channels) == CLASS(labels[(u32)at / channels]);
        y[at] = own && x[at] > -bias[0] ? x[at] + bias[0] : x[at];
    }
    if (shown && blockIdx.x == 0 && threadIdx.x == 0) shown[0] = bias[0];
}
