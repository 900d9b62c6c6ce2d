// What detectors found: boxes with scores, of which non-maximum suppression keeps some.

// The boxes that predictions make of priors, `locations` of each, of all images.
KERNEL(detection_decode)(
    float* boxes, const float* predictions, const float* priors, u32 code, u32 scaled, u32 count, u32 locations, u32 images
) {
    FOR_ELEMENTS(at, (i64)images * count * locations) {
        const u32 i = (u32)(at / locations % count);
        put_box(boxes, at, decode(code, scaled, box_at(priors, i), box_at(priors, (u64)count + i), box_at(predictions, at)));
    }
}

// Lists of the boxes kept, as entries, and how many each has: one for each class but the background, of each image. A block
// for each list in turn; `entries`, `sorted` and `worst` have room for a list of each block. Candidates have a score above
// `least` or, in pixels, a first corner that is a number.
KERNEL(detection_suppress)(
    u64* found, u32* counts, u64* entries, float* sorted, float* worst, const float* scores, const float* boxes, u32 lists,
    u32 classes, u32 background, u32 count, u32 each, u32 locations, u32 padded, u32 room, u32 top, u32 most, float least,
    float threshold, float eta, u32 pixels
) {
    __shared__ u32 exchange[32];
    u64* own = entries + (u64)blockIdx.x * padded;
    float* mine = sorted + 4 * (u64)blockIdx.x * padded;
    float* overlaps = worst + (u64)blockIdx.x * padded;
    for (u32 list = blockIdx.x; list < lists; list += gridDim.x) {
        const u32 image = list / classes, k = list % classes, c = k + (k >= background ? 1 : 0);
        const float* score = scores + (u64)image * count * each + c;
        const float* box = boxes + 4 * ((u64)image * count * locations + (locations > 1 ? c : 0));
        u32 all = block_gather(
            count, exchange,
            [=](u32 i) {
                return pixels ? box[4 * (u64)i * locations] == box[4 * (u64)i * locations] : score[(u64)i * each] > least;
            },
            [=](u32 i, u32 at) { own[at] = entry_of(score[(u64)i * each], i); }
        );
        block_sort(own, all);
        all = all < top ? all : top;
        for (u32 i = threadIdx.x; i < all; i += blockDim.x) put_box(mine, i, box_at(box, (u64)(u32)own[i] * locations));
        __syncthreads();
        const auto keep = [=](u32 i, u32 number) { found[(u64)list * room + number] = own[i]; };
        const u32 kept = pixels ? block_suppress<OfPixels>(mine, overlaps, all, threshold, eta, most, keep)
                                : block_suppress<Continuous>(mine, overlaps, all, threshold, eta, most, keep);
        if (threadIdx.x == 0) counts[list] = kept;
    }
}

// An entry of a list as one of all lists of its image, where those before it come first among equals.
DEVICE u64 entry_of_image(u64 entry, u32 place) { return (entry & ~(u64)NONE) | place; }

// Of all lists of an image, the entry after whose others none are taken, so that `keep` are, and how many that makes. A block
// for each image.
KERNEL(detection_best)(
    u64* last, u32* taken, u64* entries, const u64* found, const u32* counts, u32 classes, u32 room, u32 keep, u32 padded
) {
    __shared__ u32 exchange[32];
    const u32 image = blockIdx.x;
    u64* own = entries + (u64)image * padded;
    const u64* lists = found + (u64)image * classes * room;
    const u32* lengths = counts + (u64)image * classes;
    u32 all = 0;
    for (u32 k = 0; k < classes; ++k) all += lengths[k];
    u64 end = ~(u64)0;
    if (keep < all) {
        block_gather(
            classes * room, exchange, [=](u32 place) { return place % room < lengths[place / room]; },
            [=](u32 place, u32 at) { own[at] = entry_of_image(lists[place], place); }
        );
        block_sort(own, all);
        end = keep > 0 ? own[keep - 1] : 0;
        all = keep;
    }
    if (threadIdx.x == 0) last[image] = end, taken[image] = all;
}

// Rows (image, class, score, box) of what was taken, image by image and list by list; rows that are not used are -1, but the first
// has the last image's number. `kinds` has the class of each box, unless it is that of its list. A block for each image.
KERNEL(detection_rows)(
    float* y, const u64* found, const u32* counts, const u64* last, const u32* taken, const float* scores, const float* boxes,
    const float* kinds, u32 images, u32 classes, u32 background, u32 count, u32 each, u32 locations, u32 room, u32 rows
) {
    __shared__ u32 exchange[32];
    const u32 image = blockIdx.x;
    const u64* lists = found + (u64)image * classes * room;
    const u32* lengths = counts + (u64)image * classes;
    const u64 end = last[image];
    u32 first = 0, all = 0;
    for (u32 n = 0; n < images; ++n) {
        if (n < image) first += taken[n];
        all += taken[n];
    }
    if (taken[image] > 0) {
        block_gather(
            classes * room, exchange,
            [=](u32 place) {
                return place % room < lengths[place / room] && entry_of_image(lists[place], place) <= end;
            },
            [=](u32 place, u32 at) {
                const u32 k = place / room, c = k + (k >= background ? 1 : 0);
                const u64 i = (u64)image * count + (u32)lists[place];
                float* row = y + 7 * ((u64)first + at);
                row[0] = (float)image;
                row[1] = kinds ? kinds[i] : (float)c;
                row[2] = scores[i * each + c];
                const Box box = box_at(boxes, i * locations + (locations > 1 ? c : 0));
                for (u32 v = 0; v < 4; ++v) row[3 + v] = box.v[v];
            }
        );
    }
    const u64 unused = 7 * (u64)all;
    for (u64 i = unused + image * blockDim.x + threadIdx.x; i < 7 * (u64)rows; i += gridDim.x * blockDim.x) {
        y[i] = i == unused ? (float)images - 1 : -1;
    }
}

// The confidence, class (from 1 on) and box of every box of a grid of YOLO's, from `first` on of all that an image has.
KERNEL(yolo_boxes)(
    float* confidences, float* kinds, float* boxes, const float* x, const float* anchors, u32 images, u32 each, u32 rows,
    u32 columns, u32 classes, u32 first, u32 count, u32 softmax, u32 gaussian
) {
    const u32 area = rows * columns, before = gaussian ? 9 : 5, apart = gaussian ? 2 : 1;
    FOR_ELEMENTS(i, (i64)images * each * area) {
        const u32 at = (u32)(i % area), n = (u32)(i / area % each), image = (u32)(i / area / each);
        const float* numbers = x + (u64)(i / area) * (before + classes) * area + at;
        const auto number = [=](u32 c) { return numbers[(u64)c * area]; };
        u32 best = 0;
        for (u32 k = 1; k < classes; ++k) {
            if (number(before + k) > number(before + best)) best = k;
        }
        const float most = number(before + best);
        float probability = sure(most);
        if (softmax) {
            float sum = 0;
            for (u32 k = 0; k < classes; ++k) sum += expf(number(before + k) - most);
            probability = 1.0f / sum;
        }
        float confidence = sure(number(before - 1)) * probability;
        if (gaussian) {
            float certain = 0;
            for (u32 c = 0; c < 4; ++c) certain += 1.0f - sure(number(2 * c + 1));
            confidence *= certain * 0.25f;
        }
        const u64 to = (u64)image * count + first + n * area + at;
        confidences[to] = confidence;
        kinds[to] = (float)(best + 1);
        const float cx = ((float)(at % columns) + sure(number(0))) / (float)columns;
        const float cy = ((float)(at / columns) + sure(number(apart))) / (float)rows;
        const float w = 0.5f * expf(number(2 * apart)) * anchors[2 * n];
        const float h = 0.5f * expf(number(3 * apart)) * anchors[2 * n + 1];
        const Box box = {{cx - w, cy - h, cx + w, cy + h}};
        put_box(boxes, to, box);
    }
}

// What predictions make of a first or last pixel of an anchor, cut to the image.
DEVICE void proposal_along(float* first, float* last, float a, float b, float shift, float scale, float extent) {
    const float side = b - a + 1.0f, center = a + 0.5f * side + shift * side, half = 0.5f * expf(scale) * side;
    *first = fminf(fmaxf(center - half, 0.0f), extent - 1.0f);
    *last = fminf(fmaxf(center + half, 0.0f), extent - 1.0f);
}

// The box that predictions make of each anchor of each position, and its score; one that is too small is no number.
KERNEL(proposal_boxes)(
    float* listed, float* boxes, const float* scores, const float* predictions, const float* image, const float* anchors,
    u32 count, u32 stride, u32 height, u32 width, float least
) {
    const u32 area = height * width;
    FOR_ELEMENTS(i, (i64)area * count) {
        const u32 a = (u32)(i % count), at = (u32)(i / count);
        const float x = (float)(at % width * stride), y = (float)(at / width * stride), small = least * image[2];
        const Box anchor = box_at(anchors, a);
        const auto by = [=](u32 k) { return predictions[((u64)4 * a + k) * area + at]; };
        Box box;
        proposal_along(&box.v[0], &box.v[2], anchor.v[0] + x, anchor.v[2] + x, by(0), by(2), image[1]);
        proposal_along(&box.v[1], &box.v[3], anchor.v[1] + y, anchor.v[3] + y, by(1), by(3), image[0]);
        const bool fits = box.v[2] - box.v[0] + 1.0f >= small && box.v[3] - box.v[1] + 1.0f >= small;
        if (!fits) box.v[0] = __uint_as_float(0x7fffffffu);
        put_box(boxes, i, box);
        listed[i] = scores[((u64)count + a) * area + at];
    }
}

KERNEL(proposal_rows)(
    float* regions, float* top, const u64* found, const u32* counts, const float* listed, const float* boxes, u32 rows
) {
    FOR_ELEMENTS(row, rows) {
        const bool is = row < counts[0];
        const u32 i = is ? (u32)found[row] : 0;
        regions[5 * row] = 0;
        for (u32 k = 0; k < 4; ++k) regions[5 * row + 1 + k] = is ? boxes[4 * (u64)i + k] : 0.0f;
        if (top) top[row] = is ? listed[i] : 0.0f;
    }
}
