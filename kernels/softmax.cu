// Softmax along the middle axis of [outer, channels, inner], the losses and the scores made from it.

// For inner 1: a block for each row. The largest value and the sum of exponentials take one read.
KERNEL(softmax_rows_forward)(float* y, const float* x, u32 channels) {
    __shared__ float exchange[32];
    const i64 base = (i64)blockIdx.x * channels;
    float most = -INFINITE, sum = 0;
    for (u32 c = threadIdx.x; c < channels; c += blockDim.x) {
        const float v = x[base + c];
        if (v > most) {
            sum = sum * expf(most - v) + 1.0f;
            most = v;
        } else {
            // Infinity equal to the largest so far counts as one; what is not a number stays so.
            sum += v == most ? 1.0f : expf(v - most);
        }
    }
    const float all = block_reduce<Largest>(most, exchange);
    sum = block_reduce<Sum>(sum == 0 ? 0.0f : sum * (most == all ? 1.0f : expf(most - all)), exchange);
    for (u32 c = threadIdx.x; c < channels; c += blockDim.x) y[base + c] = expf(x[base + c] - all) / sum;
}

KERNEL(softmax_rows_backward)(float* dx, const float* dy, const float* y, u32 channels) {
    __shared__ float exchange[32];
    const i64 base = (i64)blockIdx.x * channels;
    float sum = 0;
    for (u32 c = threadIdx.x; c < channels; c += blockDim.x) sum += dy[base + c] * y[base + c];
    sum = block_reduce<Sum>(sum, exchange);
    for (u32 c = threadIdx.x; c < channels; c += blockDim.x) dx[base + c] = y[base + c] * (dy[base + c] - sum);
}

// Else: a thread for each position; neighbours read neighbouring elements.
KERNEL(softmax_columns_forward)(float* y, const float* x, u32 outer, u32 channels, u32 inner) {
    FOR_ROWS(o, outer) {
        FOR_POSITIONS(i, inner) {
            const i64 base = (i64)o * channels * inner + i;
            float most = -INFINITE, sum = 0;
            for (u32 c = 0; c < channels; ++c) {
                const float v = x[base + (i64)c * inner];
                most = v > most ? v : most;
            }
            for (u32 c = 0; c < channels; ++c) {
                const float e = expf(x[base + (i64)c * inner] - most);
                y[base + (i64)c * inner] = e;
                sum += e;
            }
            for (u32 c = 0; c < channels; ++c) y[base + (i64)c * inner] /= sum;
        }
    }
}

KERNEL(softmax_columns_backward)(float* dx, const float* dy, const float* y, u32 outer, u32 channels, u32 inner) {
    FOR_ROWS(o, outer) {
        FOR_POSITIONS(i, inner) {
            const i64 base = (i64)o * channels * inner + i;
            float sum = 0;
            for (u32 c = 0; c < channels; ++c) sum += dy[base + (i64)c * inner] * y[base + (i64)c * inner];
            for (u32 c = 0; c < channels; ++c) {
                const i64 at = base + (i64)c * inner;
                dx[at] = y[at] * (dy[at] - sum);
            }
        }
    }
}

// For each block: the losses of its positions, how many count, and the first whose label is no class; to `each`, unless it
// is null, the loss of each position. Classes weigh as in `weights`, unless that is null.
KERNEL(softmax_loss_partials)(
    float* partial, float* each, const float* p, const float* labels, const float* weights, u32 positions, u32 inner,
    LABELS
) {
    TALLYING;
    FOR_ELEMENTS(i, positions) {
        OWN_CLASS(i, true);
        const u32 at = (u32)i;
        float loss = 0;
        if (own >= 0) {
            const float value = p[((i64)(at / inner) * channels + own) * inner + at % inner];
            // The least normal number bounds the loss; what is not a number must not vanish in a maximum.
            loss = -logf(value < 1.17549435e-38f ? 1.17549435e-38f : value);
            if (weights) loss *= weights[own];
            tally.counts += 1;
        }
        tally.loss += loss;
        if (each) each[i] = loss;
    }
    PUT_TALLY(partial);
}

// dx = dL / Z (p - [class = label]), times the weight of the label's class unless `weights` is null, where the position counts,
// else 0; on top of what dx holds with `add`. Rows are as for CHANNEL, with `along` channels following one another; labels lie `inner` to a position
// of outer.
KERNEL(softmax_loss_backward)(
    float* dx, const float* p, const float* labels, const float* weights, const float* d_loss, const float* share,
    u32 add, u32 rows, u32 width, u32 along, LABELS
) {
    const float scale = d_loss[0] * share[0];
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(i, width) {
            const i64 at = (i64)row * width + i;
            const u32 c = CHANNEL(row, i, along);
            const int label = CLASS(labels[along ? (i64)(row / along) * width + i : row]);
            float d = label < 0 ? 0.0f : scale * (p[at] - ((u32)label == c ? 1.0f : 0.0f));
            if (weights && label >= 0) d *= weights[label];
            dx[at] = add ? dx[at] + d : d;
        }
    }
}

// A warp for each position: 1 where its label is right, 0 where not, NOT_COUNTED or NOT_A_CLASS where there is no saying.
// Scores are sums over `crops` consecutive items.
KERNEL(accuracy_judge)(
    float* verdicts, const float* scores, const float* labels, u32 positions, u32 inner, u32 crops, u32 top_k, LABELS
) {
    const u32 warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    for (u32 i = blockIdx.x * warps + threadIdx.x / WARP; i < positions; i += gridDim.x * warps) {
        const int label = CLASS(labels[i]);
        const i64 base = (i64)(i / inner) * crops * channels * inner + i % inner, crop = (i64)channels * inner;
        float own = 0;
        u32 better = 0;
        if (label >= 0) {
            for (u32 k = 0; k < crops; ++k) own += scores[base + k * crop + (i64)label * inner];
            for (u32 c = lane; c < channels; c += WARP) {
                float other = 0;
                for (u32 k = 0; k < crops; ++k) other += scores[base + k * crop + (i64)c * inner];
                better += c != (u32)label && !(other < own);
            }
        }
        better = warp_reduce<Sum>(better);
        const bool right = better < top_k && own == own;
        if (lane == 0) verdicts[i] = label < 0 ? (float)label : right ? 1.0f : 0.0f;
    }
}

// A block for each output: the first is the share of right ones among all that count, the others those of each class.
KERNEL(accuracy_finish)(
    float* accuracy, float* by_class, const float* verdicts, const float* labels, u32 positions, u32* fault
) {
    __shared__ u32 exchange[32];
    const bool all = blockIdx.x == 0;
    u32 right = 0, seen = 0, first = NO_FAULT;
    for (u32 i = threadIdx.x; i < positions; i += blockDim.x) {
        const float verdict = verdicts[i];
        if (verdict == (float)NOT_A_CLASS && i < first) first = i;
        if (verdict < 0 || !(all || truncf(labels[i]) == (float)(blockIdx.x - 1))) continue;
        seen += 1;
        right += verdict > 0;
    }
    right = block_reduce<Sum>(right, exchange);
    seen = block_reduce<Sum>(seen, exchange);
    first = block_reduce<Least>(first, exchange);
    if (threadIdx.x != 0) return;
    const float share = seen > 0 ? (float)((double)right / seen) : 0.0f;
    if (!all) {
        by_class[blockIdx.x - 1] = share;
        return;
    }
    accuracy[0] = share;
    if (first != NO_FAULT) report_fault(fault, 1, first, __float_as_uint(labels[first]));
}
