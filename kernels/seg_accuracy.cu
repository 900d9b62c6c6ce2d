// SegAccuracy: how often positions of each class are taken for each, and the shares that this makes.

// Counts, by label and by the class of the highest score, the last of equals. After them, the highest number less the first
// position whose label is no class; all 0 before.
KERNEL(seg_count)(
    u32* counts, const float* scores, const float* labels, const float* ignored, u32 ignored_count, u32 outer, u32 channels,
    u32 inner
) {
    FOR_ELEMENTS(i, (i64)outer * inner) {
        const float label = truncf(labels[i]);
        bool counted = true;
        for (u32 k = 0; k < ignored_count; ++k) counted = counted && label != ignored[k];
        if (!counted) continue;
        if (!(label >= 0 && label < (float)channels)) {
            atomicMax(counts + (u64)channels * channels, NO_FAULT - (u32)i);
            continue;
        }
        const float* at = scores + (u64)(i / inner) * channels * inner + i % inner;
        float most = -INFINITE;
        u32 found = 0;
        for (u32 c = 0; c < channels; ++c) {
            const float score = at[(u64)c * inner];
            if (score >= most) most = score, found = c;
        }
        atomicAdd(counts + (u64)(u32)label * channels + found, 1u);
    }
}

// Adds the counts to those before, or takes their place, and computes the shares. In one block.
KERNEL(seg_shares)(float* y, float* all, const u32* counts, const float* labels, u32 goes_on, u32 channels, u32* fault) {
    __shared__ double exchange[32];
    for (u32 i = threadIdx.x; i < channels * channels; i += blockDim.x) {
        all[i] = (goes_on ? all[i] : 0.0f) + (float)counts[i];
    }
    __syncthreads();
    double right = 0, total = 0, recall = 0, named = 0, overlap = 0;
    for (u32 a = threadIdx.x; a < channels; a += blockDim.x) {
        const double own = all[(u64)a * channels + a];
        double row = 0, column = 0;
        for (u32 b = 0; b < channels; ++b) row += all[(u64)a * channels + b], column += all[(u64)b * channels + a];
        right += own, total += row;
        if (row > 0) recall += own / row, named += 1;
        const double both = row + column - own;
        overlap += both > 0 ? own / both : 1.0;
    }
    right = block_reduce<Sum>(right, exchange);
    total = block_reduce<Sum>(total, exchange);
    recall = block_reduce<Sum>(recall, exchange);
    named = block_reduce<Sum>(named, exchange);
    overlap = block_reduce<Sum>(overlap, exchange);
    if (threadIdx.x != 0) return;
    y[0] = (float)(right / (total > 1 ? total : 1));
    y[1] = (float)(recall / (named > 1 ? named : 1));
    y[2] = (float)(overlap / (channels > 1 ? channels : 1));
    const u32 wrong = counts[(u64)channels * channels];
    if (wrong != 0) report_fault(fault, 1, NO_FAULT - wrong, __float_as_uint(labels[NO_FAULT - wrong]));
}
