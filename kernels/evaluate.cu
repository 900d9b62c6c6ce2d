// DetectionEvaluate: which detections find a ground truth. Each detection looks at all others: they are few.

const u32 TRUTH_OF_NO_IMAGE = 2, TRUTH_OF_NO_CLASS = 3, DETECTION_OF_NOTHING = 4;
const u32 FIT_SMALL = 1, FIT_LARGE = 2;

#define EVALUATED                                                                                                      \
    const float *detections, const float *truths, u32 rows, u32 truth_rows, u32 classes, u32 background

struct Row {
    float image, kind;
    bool is, known;

    __device__ __forceinline__ Row(const float* row, u32 classes, u32 background) {
        image = truncf(row[0]), kind = truncf(row[1]);
        is = image != -1;
        known = kind >= 0 && kind < (float)classes && kind != (float)background;
    }
    __device__ __forceinline__ bool same(Row other) const { return image == other.image && kind == other.kind; }
};
struct Found : Row {
    u64 order;

    __device__ __forceinline__ Found(EVALUATED, u32 i) : Row(detections + 7 * (u64)i, classes, background) {
        is = is && kind != -1;
        known = known && image >= 0 && image < 1e9f;
        order = entry_of(detections[7 * (u64)i + 2], i);
    }
    __device__ __forceinline__ bool counts() const { return is && known; }
    __device__ __forceinline__ bool before(Found other) const {
        if (image != other.image) return image < other.image;
        return kind != other.kind ? kind < other.kind : order < other.order;
    }
};
#define FOUND(i) Found(detections, truths, rows, truth_rows, classes, background, i)
#define TRUTH_ROW(r) Row(truths + 8 * (u64)(r), classes, background)

// Reports what cannot be, and counts images on: `carried` went before this pass, which `first` keeps. In one block.
KERNEL(evaluate_check)(float* carried, u32* first, u32 sizes, u32* fault, EVALUATED) {
    __shared__ u32 exchange[32];
    u32 wrong = NO_FAULT, wrong_truth = NO_FAULT, images = 0;
    for (u32 i = threadIdx.x; i < rows; i += blockDim.x) {
        const Found found = FOUND(i);
        if (found.is && !found.known) wrong = Least::of(wrong, i);
        // Of images without a detection the number of the last may be there.
        if (found.image >= 0 && found.image < 1e9f) images = Largest::of(images, (u32)found.image + 1);
    }
    for (u32 r = threadIdx.x; r < truth_rows; r += blockDim.x) {
        const Row truth = TRUTH_ROW(r);
        const bool of_image = truth.image >= 0 && truth.image < 9e15f;
        if (truth.is && !(of_image && truth.known)) wrong_truth = Least::of(wrong_truth, r);
        if (truth.is && truth.known && truth.image >= 0 && truth.image < 1e9f) {
            images = Largest::of(images, (u32)truth.image + 1);
        }
    }
    wrong = block_reduce<Least>(wrong, exchange);
    wrong_truth = block_reduce<Least>(wrong_truth, exchange);
    images = block_reduce<Largest>(images, exchange);
    if (threadIdx.x != 0) return;
    if (sizes > 0) {
        first[0] = (u32)carried[0];
        carried[0] = (float)((u32)(((u64)first[0] + images) % sizes));
    }
    if (wrong != NO_FAULT) {
        const Found found = FOUND(wrong);
        if (fault[0] == 0) fault[3] = __float_as_uint(found.image);
        report_fault(fault, DETECTION_OF_NOTHING, wrong, __float_as_uint(found.kind));
    } else if (wrong_truth != NO_FAULT) {
        const Row truth = TRUTH_ROW(wrong_truth);
        const bool of_image = truth.image >= 0 && truth.image < 9e15f;
        const u32 kind = of_image ? TRUTH_OF_NO_CLASS : TRUTH_OF_NO_IMAGE;
        report_fault(fault, kind, wrong_truth, __float_as_uint(of_image ? truth.kind : truth.image));
    }
}

DEVICE Box scaled_box(Box box, float height, float width) {
    for (u32 k = 0; k < 4; ++k) box.v[k] *= k % 2 ? height : width;
    return box;
}

DEVICE Box clipped_box(Box box, float height, float width) {
    for (u32 k = 0; k < 4; ++k) box.v[k] = fmaxf(fminf(box.v[k], k % 2 ? height : width), 0.0f);
    return box;
}

// A box in pixels of an image, which was resized for the net: to a height and a width, or by scales.
DEVICE Box in_pixels(Box box, float height, float width, u32 mode, float to_height, float to_width) {
    if (mode == FIT_SMALL) return clipped_box(scaled_box(box, to_height, to_width), height, width);
    if (mode == FIT_LARGE) {
        const double aspect = (double)width / height, y = to_height, x = to_width;
        // What of the padded image is the image, on each side of its middle.
        const double down = x / aspect / y, across = y * aspect / x;
        const float half_height = (float)((down < 1 ? down : 1) * 0.5), half_width = (float)((across < 1 ? across : 1) * 0.5);
        for (u32 k = 0; k < 4; ++k) {
            const float half = k % 2 ? half_height : half_width;
            box.v[k] = (box.v[k] - 0.5f + half) / (half + half);
        }
    }
    return scaled_box(clipped_box(box, 1, 1), height, width);
}

// The ground truth that each detection overlaps most, if by the threshold.
KERNEL(evaluate_best)(
    u32* best, const float* sizes, const u32* first, u32 size_count, u32 mode, float to_height, float to_width,
    float threshold, EVALUATED
) {
    FOR_ELEMENTS(i, rows) {
        const Found found = FOUND((u32)i);
        u32 nearest = NONE;
        float most = 0;
        if (found.counts()) {
            const float* size = size_count ? sizes + 2 * (((u64)first[0] + (u32)found.image) % size_count) : sizes;
            Box mine = box_at(detections + 7 * i + 3, 0);
            if (size_count) mine = in_pixels(mine, size[0], size[1], mode, to_height, to_width);
            for (u32 r = 0; r < truth_rows; ++r) {
                if (!found.same(TRUTH_ROW(r))) continue;
                const Box truth = box_at(truths + 8 * (u64)r + 3, 0);
                const float overlap = size_count
                    ? OfPixels::of(mine, in_pixels(truth, size[0], size[1], mode, to_height, to_width))
                    : Continuous::of(mine, truth);
                if (nearest == NONE || overlap > most) nearest = r, most = overlap;
            }
        }
        best[i] = nearest != NONE && most >= threshold ? nearest : NONE;
    }
}

// A row for each detection, by image, class and score, from row `to` on.
KERNEL(evaluate_rows)(float* y, const u32* best, u32 to, u32 difficult, EVALUATED) {
    FOR_ELEMENTS(i, rows) {
        const Found mine = FOUND((u32)i);
        if (!mine.counts()) continue;
        u32 place = to;
        bool taken = false;
        for (u32 j = 0; j < rows; ++j) {
            const Found other = FOUND(j);
            if (!other.counts() || !other.before(mine)) continue;
            ++place;
            taken = taken || best[j] == best[i];
        }
        const bool hit = best[i] != NONE, left_out = hit && !difficult && truths[8 * (u64)best[i] + 7] != 0;
        float* row = y + 5 * (u64)place;
        row[0] = mine.image, row[1] = mine.kind, row[2] = detections[7 * i + 2];
        row[3] = hit && !left_out && !taken ? 1.0f : 0.0f;
        row[4] = left_out || (hit && !taken) ? 0.0f : 1.0f;
    }
}

// A row for each class but the background: how many ground truths there are.
KERNEL(evaluate_classes)(float* y, u32 count, u32 difficult, EVALUATED) {
    FOR_ELEMENTS(k, count) {
        const float c = (float)(k + (k >= background ? 1 : 0));
        u32 positives = 0;
        for (u32 r = 0; r < truth_rows; ++r) {
            const Row truth = TRUTH_ROW(r);
            positives += truth.is && truth.kind == c && (difficult || truths[8 * (u64)r + 7] == 0) ? 1 : 0;
        }
        y[5 * k + 1] = c;
        y[5 * k + 2] = (float)positives;
    }
}
