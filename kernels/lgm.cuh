// What the kernels of ClassDistance and LGMLoss share. Put before each of them as text.

#define SIZES u32 items, u32 classes, u32 width

DEVICE float sum_of_parts(const float* partial, u32 parts, i64 n, i64 at) {
    float sum = partial[at];
    for (u32 part = 1; part < parts; ++part) sum += partial[part * n + at];
    return sum;
}

// Labels.

#define NO_CLASS 0xffffffffu

DEVICE u32 own_class(float label, u32 classes) {
    const float whole = truncf(label);
    return whole >= 0 && whole < (float)classes ? (u32)whole : NO_CLASS;
}

// In one block: the first item whose label is no class.
DEVICE void report_strangers(const float* labels, u32 items, u32 classes, u32* fault, u32* exchange) {
    report_first(labels, items, 1, fault, exchange, [&](float label) { return own_class(label, classes) == NO_CLASS; });
}

// Variances. An isotropic one, of ClassDistance, has 1e-4 added; any other has a floor. `floor` 0 says isotropic.

DEVICE float inverse_of(float s, float floor) { return 1.0f / (floor > 0 ? fmaxf(s, floor) : fmaxf(s, 0.0f) + 1e-4f); }

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
