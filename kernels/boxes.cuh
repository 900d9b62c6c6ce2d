// Boxes and lists of them, which layers of detection share. Put before their sources as text. A box has four numbers: x and y of
// its first and of its last corner.

const u32 NONE = 0xffffffffu;

struct Box {
    float v[4];
};

DEVICE Box box_at(const float* from, u64 i) {
    Box box;
#pragma unroll
    for (u32 k = 0; k < 4; ++k) box.v[k] = from[4 * i + k];
    return box;
}

DEVICE void put_box(float* to, u64 i, Box box) {
#pragma unroll
    for (u32 k = 0; k < 4; ++k) to[4 * i + k] = box.v[k];
}

// 0 of a box whose corners are the wrong way round.
DEVICE float area_of(Box a) {
    return a.v[2] < a.v[0] || a.v[3] < a.v[1] ? 0.0f : (a.v[2] - a.v[0]) * (a.v[3] - a.v[1]);
}

// Intersections over unions; the last pixels of the latter's boxes belong to them.
struct Continuous {
    DEVICE float of(Box a, Box b) {
        if (b.v[0] > a.v[2] || b.v[2] < a.v[0] || b.v[1] > a.v[3] || b.v[3] < a.v[1]) return 0.0f;
        const float width = fminf(a.v[2], b.v[2]) - fmaxf(a.v[0], b.v[0]);
        const float common = width * (fminf(a.v[3], b.v[3]) - fmaxf(a.v[1], b.v[1]));
        return common > 0 ? common / (area_of(a) + area_of(b) - common) : 0.0f;
    }
};
struct OfPixels {
    DEVICE float pixels(float x1, float y1, float x2, float y2) {
        return fmaxf(x2 - x1 + 1.0f, 0.0f) * fmaxf(y2 - y1 + 1.0f, 0.0f);
    }
    DEVICE float of(Box a, Box b) {
        const float common = pixels(
            fmaxf(a.v[0], b.v[0]), fmaxf(a.v[1], b.v[1]), fminf(a.v[2], b.v[2]), fminf(a.v[3], b.v[3])
        );
        const float both = pixels(a.v[0], a.v[1], a.v[2], a.v[3]) + pixels(b.v[0], b.v[1], b.v[2], b.v[3]);
        return common / (both - common);
    }
};

// How predictions are offsets from priors: `code_type`, and whether they are in units of the priors' variances.
const u32 CORNER = 1, CENTER_SIZE = 2;

DEVICE Box decode(u32 code, u32 scaled, Box prior, Box variances, Box prediction) {
    const float width = prior.v[2] - prior.v[0], height = prior.v[3] - prior.v[1];
    Box by, box;
#pragma unroll
    for (u32 k = 0; k < 4; ++k) by.v[k] = scaled ? variances.v[k] * prediction.v[k] : prediction.v[k];
    if (code == CENTER_SIZE) {
        const float x = by.v[0] * width + (prior.v[0] + prior.v[2]) * 0.5f;
        const float y = by.v[1] * height + (prior.v[1] + prior.v[3]) * 0.5f;
        const float w = expf(by.v[2]) * width * 0.5f, h = expf(by.v[3]) * height * 0.5f;
        box.v[0] = x - w, box.v[1] = y - h, box.v[2] = x + w, box.v[3] = y + h;
        return box;
    }
#pragma unroll
    for (u32 k = 0; k < 4; ++k) box.v[k] = prior.v[k] + by.v[k] * (code == CORNER ? 1.0f : k % 2 ? height : width);
    return box;
}

// The prediction that makes `box` of the prior.
DEVICE Box encode(u32 code, u32 scaled, Box prior, Box variances, Box box) {
    Box by;
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
        const u32 from = k % 2, to = from + 2;
        const float side = prior.v[to] - prior.v[from];
        if (code == CORNER) {
            by.v[k] = box.v[k] - prior.v[k];
        } else if (code != CENTER_SIZE) {
            by.v[k] = (box.v[k] - prior.v[k]) / side;
        } else if (k < 2) {
            by.v[k] = 0.5f * (box.v[from] + box.v[to] - prior.v[from] - prior.v[to]) / side;
        } else {
            by.v[k] = logf((box.v[to] - box.v[from]) / side);
        }
        if (scaled) by.v[k] /= variances.v[k];
    }
    return by;
}

// Entries of a list in descending order of scores, what is no number last, equal ones in their order: such entries ascend.
DEVICE u64 entry_of(float score, u32 i) {
    const u32 bits = __float_as_uint(score + 0.0f);
    const u32 rank = score != score ? 0xfffffffeu : bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
    return (u64)rank << 32 | i;
}

// In one block: sorts so many entries, in ascending order, where there is room for the next power of two of them.
DEVICE void block_sort(u64* entries, u32 count) {
    u32 size = 1;
    while (size < count) size *= 2;
    for (u32 i = count + threadIdx.x; i < size; i += blockDim.x) entries[i] = ~(u64)0;
    __syncthreads();
    for (u32 run = 2; run <= size; run *= 2) {
        for (u32 apart = run / 2; apart > 0; apart /= 2) {
            for (u32 pair = threadIdx.x; pair < size / 2; pair += blockDim.x) {
                const u32 low = 2 * pair - pair % apart;
                const u64 a = entries[low], b = entries[low + apart];
                if ((a > b) == ((low & run) == 0)) entries[low] = b, entries[low + apart] = a;
            }
            __syncthreads();
        }
    }
}

// In one block: non-maximum suppression. Of `count` boxes, the best first, calls `keep(i, its number among those kept)`, in one
// thread, for each whose overlap with every one kept before is at most the threshold, up to `most` of them, and gives how many
// there are. After each the threshold is multiplied by `eta`, below 1, while it is above one half. `worst` has room for a number
// of each box.
template <typename Overlap, typename Keep>
DEVICE u32 block_suppress(
    const float* boxes, float* worst, u32 count, float threshold, float eta, u32 most, Keep keep
) {
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) worst[i] = -INFINITE;
    __syncthreads();
    u32 kept = 0;
    for (u32 i = 0; i < count && kept < most; ++i) {
        if (!(worst[i] <= threshold)) continue;
        if (threadIdx.x == 0) keep(i, kept);
        ++kept;
        if (eta < 1 && threshold > 0.5f) threshold *= eta;
        const Box mine = box_at(boxes, i);
        for (u32 j = i + 1 + threadIdx.x; j < count; j += blockDim.x) {
            if (worst[j] <= threshold) worst[j] = Largest::of(worst[j], Overlap::of(box_at(boxes, j), mine));
        }
        __syncthreads();
    }
    __syncthreads();
    return kept;
}

DEVICE float sure(float x) { return 1.0f / (1.0f + expf(-x)); }
