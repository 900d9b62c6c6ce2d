// RegionLoss, of YOLO's second version: what the numbers of each box of a grid are off by, delta, and the sum of its squares.

const u32 UNKNOWN_CLASS = 1, NO_PLACE = 2;
const u32 BEFORE = 5, OBJECT = 5, THERE = 4;

#define REGION_GRID u32 images, u32 boxes, u32 classes, u32 rows, u32 columns, u32 objects

DEVICE bool is_share(float v) { return v >= 0 && v <= 1; }

// How many objects each image has, and what of their labels is wrong. In one block.
KERNEL(region_read)(u32* counts, const float* labels, u32* fault, REGION_GRID) {
    __shared__ u32 exchange[32];
    u32 wrong = NO_FAULT;
    const auto kind_of = [=](const float* row) {
        const float c = truncf(row[0]);
        if (!(c >= 0 && c < (float)classes)) return UNKNOWN_CLASS;
        const bool lies = is_share(row[1]) && is_share(row[2]) && is_share(row[3]) && is_share(row[4]) && row[4] > 0;
        return lies ? 0u : NO_PLACE;
    };
    for (u32 image = threadIdx.x; image < images; image += blockDim.x) {
        const u32 first = image * objects;
        u32 count = 0;
        while (count < objects && labels[(u64)OBJECT * (first + count) + 3] != 0) {
            if (kind_of(labels + (u64)OBJECT * (first + count)) != 0) wrong = Least::of(wrong, first + count);
            ++count;
        }
        counts[image] = count;
    }
    wrong = block_reduce<Least>(wrong, exchange);
    if (threadIdx.x == 0 && wrong != NO_FAULT) {
        const float* row = labels + (u64)OBJECT * wrong;
        report_fault(fault, kind_of(row), wrong, __float_as_uint(row[0]));
    }
}

// The corners of a box of a centre and sides.
DEVICE Box corners_of(float x, float y, float w, float h) {
    const Box box = {{x - 0.5f * w, y - 0.5f * h, x + 0.5f * w, y + 0.5f * h}};
    return box;
}

// A box of the grid: its numbers, those of an area apart, its cell and its anchor.
struct Predicted {
    const float* x;
    u32 area, rows, columns, at;
    const float* anchor;

    __device__ __forceinline__ float number(u32 c) const { return x[(u64)c * area]; }
    __device__ __forceinline__ float width() const { return expf(number(2)) * anchor[0]; }
    __device__ __forceinline__ float height() const { return expf(number(3)) * anchor[1]; }
    __device__ __forceinline__ Box corners() const {
        const float cx = ((float)(at % columns) + sure(number(0))) / (float)columns;
        const float cy = ((float)(at / columns) + sure(number(1))) / (float)rows;
        return corners_of(cx, cy, width(), height());
    }
};

#define PREDICTED(x, n, at) {(x) + (u64)(n) * (BEFORE + classes) * rows * columns + (at), rows * columns, rows, columns, at, anchors + 2 * (n)}

// The derivative of a logistic function where its value is `v`.
DEVICE float slope(float v) { return v * (1.0f - v); }

// delta as it is without objects.
KERNEL(region_delta)(
    float* delta, const float* x, const float* labels, const u32* counts, const float* anchors, float thresh, float scale, REGION_GRID
) {
    const u32 area = rows * columns, channels = BEFORE + classes;
    FOR_ELEMENTS(i, (i64)images * boxes * area) {
        const u32 at = (u32)(i % area), n = (u32)(i / area % boxes), image = (u32)(i / area / boxes);
        const u64 start = (u64)image * boxes * channels * area;
        float* to = delta + start + (u64)n * channels * area + at;
        const Predicted box = PREDICTED(x + start, n, at);
        const Box mine = box.corners();
        float overlap = 0;
        for (u32 o = 0; o < counts[image]; ++o) {
            const float* row = labels + (u64)OBJECT * (image * objects + o);
            overlap = fmaxf(overlap, Continuous::of(mine, corners_of(row[1], row[2], row[3], row[4])));
        }
        for (u32 c = 0; c < channels; ++c) to[(u64)c * area] = 0;
        const float there = sure(box.number(THERE));
        if (overlap <= thresh) to[(u64)THERE * area] = scale * there * slope(there);
    }
}

// What the boxes are off by that objects belong to, object by object: what a later one says of a box holds. A block for
// each image.
KERNEL(region_objects)(
    float* delta, const float* x, const float* labels, const u32* counts, const float* anchors, u32 by_anchor, u32 rescore,
    float object_scale, float class_scale, float coord_scale, REGION_GRID
) {
    __shared__ float exchange[32];
    const u32 image = blockIdx.x, area = rows * columns, channels = BEFORE + classes;
    if (image >= images) return;
    const u64 start = (u64)image * boxes * channels * area;
    for (u32 o = 0; o < counts[image]; ++o) {
        const float* row = labels + (u64)OBJECT * (image * objects + o);
        const float* place = row + 1;
        const u32 cells[2] = {columns, rows};
        u32 cell[2];
#pragma unroll
        for (u32 k = 0; k < 2; ++k) {
            const double along = (double)place[k] * cells[k];
            cell[k] = along > 0 ? (along < cells[k] ? (u32)along : cells[k] - 1) : 0;
        }
        const u32 at = cell[1] * columns + cell[0];
        const Box wanted = corners_of(0, 0, place[2], place[3]);
        u32 best = 0;
        float most = 0;
        for (u32 n = 0; n < boxes; ++n) {
            const Predicted box = PREDICTED(x + start, n, at);
            const float w = by_anchor ? box.anchor[0] : box.width(), h = by_anchor ? box.anchor[1] : box.height();
            const float alike = Continuous::of(corners_of(0, 0, w, h), wanted);
            if (n == 0 || alike > most) best = n, most = alike;
        }
        const Predicted box = PREDICTED(x + start, best, at);
        float* to = delta + start + (u64)best * channels * area + at;
        if (threadIdx.x == 0) {
            const float overlap = Continuous::of(box.corners(), corners_of(place[0], place[1], place[2], place[3]));
            const float scale = rescore ? coord_scale : coord_scale * (2.0f - place[2] * place[3]);
#pragma unroll
            for (u32 k = 0; k < 2; ++k) {
                const float found = sure(box.number(k)), target = place[k] * (float)cells[k] - (float)cell[k];
                to[(u64)k * area] = scale * (found - target) * slope(found);
                to[(u64)(2 + k) * area] = scale * (box.number(2 + k) - logf(place[2 + k] / box.anchor[k]));
            }
            const float there = sure(box.number(THERE));
            to[(u64)THERE * area] = object_scale * (there - (rescore ? overlap : 1.0f)) * slope(there);
        }
        float largest = -INFINITE, sum = 0;
        for (u32 k = threadIdx.x; k < classes; k += blockDim.x) largest = fmaxf(largest, box.number(BEFORE + k));
        largest = block_reduce<Largest>(largest, exchange);
        for (u32 k = threadIdx.x; k < classes; k += blockDim.x) sum += expf(box.number(BEFORE + k) - largest);
        sum = block_reduce<Sum>(sum, exchange);
        const float own = truncf(row[0]);
        for (u32 k = threadIdx.x; k < classes; k += blockDim.x) {
            const float q = expf(box.number(BEFORE + k) - largest) / sum;
            to[(u64)(BEFORE + k) * area] = class_scale * (q - ((float)k == own ? 1.0f : 0.0f));
        }
        __syncthreads();
    }
}

// The sum of squares of each image's numbers, a block for each.
KERNEL(region_sums)(double* sums, const float* delta, u64 numbers) {
    __shared__ double exchange[32];
    const float* own = delta + blockIdx.x * numbers;
    double sum = 0;
    for (u64 i = threadIdx.x; i < numbers; i += blockDim.x) sum += (double)own[i] * own[i];
    sum = block_reduce<Sum>(sum, exchange);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Their mean. In one thread.
KERNEL(region_finish)(float* loss, const double* sums, u32 images) {
    if (blockIdx.x * blockDim.x + threadIdx.x > 0) return;
    double sum = 0;
    for (u32 n = 0; n < images; ++n) sum += sums[n];
    loss[0] = (float)(sum / images);
}

KERNEL(region_backward)(float* dx, const float* delta, const float* d_loss, u32 images, i64 n) {
    const float scale = d_loss[0] / (float)images;
    FOR_ELEMENTS(i, n) dx[i] = scale * delta[i];
}
