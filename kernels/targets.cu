// What anchors and regions are to learn: which objects they overlap, which of them are drawn, and how these are to be moved.

const u32 NO_BOX = 1, OTHER_IMAGE = 2, UNKNOWN_CLASS = 3, OTHER_REGION = 4;
const u32 OF_OBJECT = 1, OF_BACKGROUND = 0, OF_NEITHER = 2;
const u32 PIXELS = 5;

// A row of objects: in pixels, or as AnnotatedData makes it.
struct Object {
    Box box;
    float kind;
    u32 wrong;
    bool is;

    __device__ __forceinline__ Object(const float* row, const float* image, u32 width, u32 classes) : wrong(0), is(true) {
        if (width == PIXELS) {
            box = box_at(row, 0);
            kind = truncf(row[4]);
        } else {
            wrong = row[0] == 0 || row[0] == -1 ? 0 : OTHER_IMAGE;
            is = wrong == 0 && row[0] == 0 && row[7] == 0;
            box.v[0] = row[3] * image[1], box.v[1] = row[4] * image[0];
            box.v[2] = row[5] * image[1] - 1.0f, box.v[3] = row[6] * image[0] - 1.0f;
            kind = truncf(row[1]);
        }
        is = is && !(kind < 1);
        if (!is) return;
        bool fits = (double)box.v[2] - box.v[0] > -1 && (double)box.v[3] - box.v[1] > -1;
        for (u32 k = 0; k < 4; ++k) fits = fits && fabsf(box.v[k]) <= LARGEST_FLOAT;
        const float known = classes ? (float)classes : 9e15f;
        wrong = !fits ? NO_BOX : !(kind < known) ? UNKNOWN_CLASS : 0;
        is = wrong == 0;
    }
};

// The objects, their classes and how many there are. In one block.
KERNEL(target_objects)(
    float* boxes, u32* kinds, u32* count, const float* from, const float* image, u32 rows, u32 width, u32 classes, u32* fault
) {
    __shared__ u32 exchange[32];
    const auto object = [=](u32 r) { return Object(from + (u64)r * width, image, width, classes); };
    const u32 found = block_gather(rows, exchange, [=](u32 r) { return object(r).is; }, [=](u32 r, u32 at) {
        const Object mine = object(r);
        put_box(boxes, at, mine.box);
        kinds[at] = (u32)mine.kind;
    });
    if (threadIdx.x == 0) count[0] = found;
    u32 wrong = NO_FAULT;
    for (u32 r = threadIdx.x; r < rows; r += blockDim.x) {
        if (object(r).wrong != 0) wrong = Least::of(wrong, r);
    }
    wrong = block_reduce<Least>(wrong, exchange);
    if (threadIdx.x == 0 && wrong != NO_FAULT) {
        const Object mine = object(wrong);
        const float detail = mine.wrong == OTHER_IMAGE ? from[(u64)wrong * width] : mine.kind;
        report_fault(fault, mine.wrong, wrong, __float_as_uint(detail));
    }
}

// The largest overlap, and whose it is, the first of equals; 0 and the first where there is none.
struct Most {
    float overlap;
    u32 object;

    template <typename Of> __device__ __forceinline__ Most(u32 count, Of of) : overlap(0), object(0) {
        for (u32 o = 0; o < count; ++o) {
            const float here = of(o);
            if (here > overlap) overlap = here, object = o;
        }
    }
};

// How `from` is to be moved to become `to`: its centre in units of its sides, and the logarithms of the sides' quotients.
DEVICE Box offsets_of(Box from, Box to) {
    Box by;
#pragma unroll
    for (u32 k = 0; k < 2; ++k) {
        const float side = from.v[k + 2] - from.v[k] + 1.0f, other = to.v[k + 2] - to.v[k] + 1.0f;
        by.v[k] = (to.v[k] + 0.5f * other - (from.v[k] + 0.5f * side)) / side;
        by.v[k + 2] = logf(other / side);
    }
    return by;
}

// Draws, word by word.
struct Draws {
    u64 seed, stream, counter;
    Words words;
    u32 left;

    __device__ __forceinline__ u32 word() {
        if (left == 0) words = philox(seed, stream, counter++), left = 4;
        const u32 k = 4 - left--;
        return k == 0 ? words.w[0] : k == 1 ? words.w[1] : k == 2 ? words.w[2] : words.w[3];
    }

    // From 0 to n - 1, all alike.
    __device__ __forceinline__ u32 below(u32 n) {
        for (;;) {
            const u64 m = (u64)word() * n;
            if ((u32)m >= (0u - n) % n) return (u32)(m >> 32);
        }
    }
};

DEVICE Draws draws_of(const u32* clock, u64 stream) {
    Draws draws;
    draws.seed = clock_seed(clock), draws.stream = stream, draws.counter = clock_batch(clock) << 32, draws.left = 0;
    return draws;
}

// In one block: at most `count` of a list of `all` entries, drawn without replacement, put first and in ascending order. How
// many there are then.
DEVICE u32 draw(u64* list, u32 all, u32 count, Draws& draws) {
    if (all <= count) return all;
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < count; ++i) {
            const u32 other = i + draws.below(all - i);
            const u64 mine = list[i];
            list[i] = list[other], list[other] = mine;
        }
    }
    __syncthreads();
    block_sort(list, count);
    return count;
}

#define ANCHORS                                                                                                        \
    const float *image, const float *anchors, u32 count, u32 stride, u32 height, u32 width, float border

// An anchor of a position, by their number, and whether it lies on the image.
struct Anchor {
    Box box;
    bool on;

    __device__ __forceinline__ Anchor(u32 i, ANCHORS) {
        const u32 at = i / count;
        const float x = (float)(at % width * stride), y = (float)(at / width * stride);
        box = box_at(anchors, i % count);
        box.v[0] += x, box.v[1] += y, box.v[2] += x, box.v[3] += y;
        on = box.v[0] >= -border && box.v[1] >= -border && box.v[2] < image[1] + border && box.v[3] < image[0] + border;
    }
};
#define ANCHOR(i) Anchor(i, image, anchors, count, stride, height, width, border)

// The overlap of every anchor with every object, a row for each anchor; below 0 of one that is not on the image.
KERNEL(anchor_overlaps)(float* overlaps, const float* objects, const u32* found, u32 most, ANCHORS) {
    FOR_ELEMENTS(i, (i64)height * width * count) {
        const Anchor anchor = ANCHOR((u32)i);
        for (u32 o = 0; o < found[0]; ++o) {
            overlaps[i * most + o] = anchor.on ? OfPixels::of(anchor.box, box_at(objects, o)) : -1.0f;
        }
    }
}

// The largest overlap of each object, at least 0. A block for each.
KERNEL(anchor_best)(float* best, const float* overlaps, const u32* found, u32 most, u32 all) {
    __shared__ float exchange[32];
    const u32 o = blockIdx.x;
    if (o >= found[0]) return;
    float largest = 0;
    for (u32 i = threadIdx.x; i < all; i += blockDim.x) largest = fmaxf(largest, overlaps[(u64)i * most + o]);
    largest = block_reduce<Largest>(largest, exchange);
    if (threadIdx.x == 0) best[o] = largest;
}

// What each anchor may be learned as, and the object that it overlaps most. The tops are as if none were drawn.
KERNEL(anchor_kinds)(
    u32* kinds, u32* nearest, float* labels, float* moves, float* inside, float* outside, const float* overlaps,
    const float* best, const u32* found, u32 most, float positive, float negative, u32 clobber, ANCHORS
) {
    const u32 area = height * width;
    FOR_ELEMENTS(i, (i64)area * count) {
        const float* row = overlaps + i * most;
        const Most largest(found[0], [=](u32 o) { return row[o]; });
        bool is_best = false;
        for (u32 o = 0; o < found[0]; ++o) is_best = is_best || (row[o] == best[o] && best[o] > 0);
        const bool low = largest.overlap < negative;
        u32 kind = OF_NEITHER;
        if (ANCHOR((u32)i).on) {
            const bool high = (is_best || largest.overlap >= positive) && !(low && clobber);
            kind = high ? OF_OBJECT : low ? OF_BACKGROUND : OF_NEITHER;
        }
        kinds[i] = kind;
        nearest[i] = largest.object;
        const u32 a = (u32)i % count, at = (u32)i / count;
        labels[(u64)a * area + at] = -1;
        for (u32 k = 0; k < 4; ++k) {
            const u64 to = (4 * (u64)a + k) * area + at;
            moves[to] = 0, inside[to] = 0, outside[to] = 0;
        }
    }
}

// Draws anchors, and says what they are to learn. In one block.
KERNEL(anchor_draw)(
    float* labels, float* moves, float* inside, float* outside, u64* lists, const u32* kinds, const u32* nearest,
    const float* objects, const u32* clock, u64 stream, u32 padded, u32 most_positive, u32 batch, float weight, ANCHORS
) {
    __shared__ u32 exchange[32];
    const u32 area = height * width, all = area * count;
    Draws draws = draws_of(clock, stream);
    u64* positive = lists;
    u64* negative = lists + padded;
    u32 positives = block_gather(
        all, exchange, [=](u32 i) { return kinds[i] == OF_OBJECT; }, [=](u32 i, u32 at) { positive[at] = i; }
    );
    positives = draw(positive, positives, most_positive, draws);
    u32 negatives = block_gather(
        all, exchange, [=](u32 i) { return kinds[i] == OF_BACKGROUND; }, [=](u32 i, u32 at) { negative[at] = i; }
    );
    negatives = draw(negative, negatives, batch - positives, draws);
    const bool weighted = weight > 0;
    const float of_positive = (float)(weighted ? (double)weight / positives : 1.0 / (positives + negatives));
    const float of_negative = (float)(weighted ? (1.0 - weight) / negatives : 1.0 / (positives + negatives));
    for (u32 j = threadIdx.x; j < positives + negatives; j += blockDim.x) {
        const bool is = j < positives;
        const u32 i = (u32)(is ? positive[j] : negative[j - positives]), a = i % count, at = i / count;
        labels[(u64)a * area + at] = is ? 1.0f : 0.0f;
        Box by = {{0, 0, 0, 0}};
        if (is) by = offsets_of(ANCHOR(i).box, box_at(objects, nearest[i]));
        for (u32 k = 0; k < 4; ++k) {
            const u64 to = (4 * (u64)a + k) * area + at;
            outside[to] = is ? of_positive : of_negative;
            moves[to] = by.v[k];
            inside[to] = is ? 1.0f : 0.0f;
        }
    }
}

// The regions that there are, and with `append` the objects after them. In one block.
KERNEL(region_candidates)(
    float* boxes, u32* count, const float* regions, const float* objects, const u32* found, u32 rows, u32 append, u32* fault
) {
    __shared__ u32 exchange[32];
    u32 all = block_gather(
        rows, exchange,
        [=](u32 r) {
            const float* row = regions + 5 * (u64)r;
            return row[0] == 0 && (row[1] != 0 || row[2] != 0 || row[3] != 0 || row[4] != 0);
        },
        [=](u32 r, u32 at) { put_box(boxes, at, box_at(regions + 5 * (u64)r + 1, 0)); }
    );
    if (append) {
        for (u32 o = threadIdx.x; o < found[0]; o += blockDim.x) put_box(boxes, all + o, box_at(objects, o));
        all += found[0];
    }
    if (threadIdx.x == 0) count[0] = all;
    u32 wrong = NO_FAULT;
    for (u32 r = threadIdx.x; r < rows; r += blockDim.x) {
        if (regions[5 * (u64)r] != 0) wrong = Least::of(wrong, r);
    }
    wrong = block_reduce<Least>(wrong, exchange);
    if (threadIdx.x == 0 && wrong != NO_FAULT) {
        report_fault(fault, OTHER_REGION, wrong, __float_as_uint(regions[5 * (u64)wrong]));
    }
}

// What each region may be learned as, and the object that it overlaps most.
KERNEL(region_kinds)(
    u32* kinds, u32* nearest, const float* boxes, const u32* count, const float* objects, const u32* found, float foreground,
    float high, float low
) {
    FOR_ELEMENTS(i, count[0]) {
        const Box mine = box_at(boxes, i);
        const Most most(found[0], [=](u32 o) { return OfPixels::of(mine, box_at(objects, o)); });
        const bool is = most.overlap >= foreground && found[0] > 0;
        kinds[i] = is ? OF_OBJECT : most.overlap < high && most.overlap >= low ? OF_BACKGROUND : OF_NEITHER;
        nearest[i] = most.object;
    }
}

// Draws the regions of each row, and how many of the rows are objects'. In one block.
KERNEL(region_draw)(
    u32* chosen, u32* of_objects, u64* lists, const u32* kinds, const u32* count, const u32* clock, u64 stream, u32 padded,
    u32 most_found, u32 batch
) {
    __shared__ u32 exchange[32];
    Draws draws = draws_of(clock, stream);
    u64* first = lists;
    u64* second = lists + padded;
    u32 found = block_gather(
        count[0], exchange, [=](u32 i) { return kinds[i] == OF_OBJECT; }, [=](u32 i, u32 at) { first[at] = i; }
    );
    found = draw(first, found, most_found, draws);
    u32 others = block_gather(
        count[0], exchange, [=](u32 i) { return kinds[i] == OF_BACKGROUND; }, [=](u32 i, u32 at) { second[at] = i; }
    );
    others = draw(second, others, batch - found, draws);
    for (u32 row = threadIdx.x; row < found + others; row += blockDim.x) {
        chosen[row] = (u32)(row < found ? first[row] : second[row - found]);
    }
    if (threadIdx.x != 0) return;
    const u64* some = others > 0 ? second : first;
    const u32 among = others > 0 ? others : found;
    for (u32 row = found + others; row < batch; ++row) chosen[row] = among > 0 ? (u32)some[draws.below(among)] : NONE;
    of_objects[0] = others == 0 && found > 0 ? batch : found;
}

// The rows of the regions drawn, what they are and how they are to be moved, in units of deviations from means.
KERNEL(region_rows)(
    float* regions, float* labels, float* moves, float* inside, float* outside, const u32* chosen, const u32* of_objects,
    const u32* nearest, const float* boxes, const float* objects, const u32* kinds, const float* scaling, u32 batch,
    u32 numbers, u32 by_class
) {
    FOR_ROWS(row, batch) {
        const u32 i = chosen[row];
        const bool is = i != NONE && row < of_objects[0];
        const u32 object = is ? nearest[i] : 0, c = is ? kinds[object] : 0, first = 4 * (by_class ? c : 1);
        FOR_POSITIONS(p, numbers) {
            const u64 to = (u64)row * numbers + p;
            const bool here = is && p >= first && p - first < 4;
            float by = 0;
            if (here) {
                const Box all = offsets_of(box_at(boxes, i), box_at(objects, object));
                const u32 k = p - first;
                by = k == 0 ? all.v[0] : k == 1 ? all.v[1] : k == 2 ? all.v[2] : all.v[3];
                by = (by - scaling[k]) / scaling[4 + k];
            }
            moves[to] = by;
            inside[to] = outside[to] = here ? 1.0f : 0.0f;
            if (p == 0) {
                labels[row] = is ? (float)c : 0.0f;
                regions[5 * (u64)row] = 0;
                for (u32 k = 0; k < 4; ++k) regions[5 * (u64)row + 1 + k] = i == NONE ? 0.0f : boxes[4 * (u64)i + k];
            }
        }
    }
}
