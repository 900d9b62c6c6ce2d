// Pooling of regions of interest. A region is (n, x1, y1, x2, y2): the index of its image, and its first and last pixel in the
// net's input, which the blob is `scale` times as large as. Products and sums are never contracted to multiply-adds, so that
// bins have the host's boundaries.

// A product that is rounded before anything is added to it.
#ifdef __CUDACC_RTC__
DEVICE float times(float a, float b) { return __fmul_rn(a, b); }
#else
DEVICE float times(float a, float b) {
    volatile float product = a * b;
    return product;
}
#endif

#define NUMBERS 5u

// The first region that is of no image.
KERNEL(region_check)(const float* regions, u32 count, u32 images, u32* fault) {
    __shared__ u32 exchange[32];
    report_first(regions, count, NUMBERS, fault, exchange, [&](float image) {
        return !(image >= 0 && truncf(image) < (float)images);
    });
}

// Rows or columns [from, end) of an image.
struct Bin {
    u32 from, end;
};

DEVICE u32 clipped(float v, u32 extent) { return (u32)fminf(fmaxf(v, 0.0f), (float)extent); }

DEVICE Bin between(float from, float end, u32 extent) {
    Bin bin = {clipped(floorf(from), extent), clipped(ceilf(end), extent)};
    if (bin.end < bin.from) bin.end = bin.from;
    return bin;
}

// Bin i of `bins`, of whole pixels.
DEVICE Bin whole_bin(float first, float last, u32 i, u32 bins, u32 extent, float scale, float pad_ratio) {
    const float pad = times(last - first + 1.0f, pad_ratio);
    const float start = roundf((first - pad) * scale), end = roundf((last + pad) * scale);
    const float size = fmaxf(end - start + 1.0f, 1.0f) / (float)bins;
    return between(floorf((float)i * size) + start, ceilf((float)(i + 1) * size) + start, extent);
}

// Bin i of `bins`, of parts of pixels.
DEVICE Bin part_bin(float first, float last, u32 i, u32 bins, u32 extent, float scale) {
    const float start = times(roundf(first), scale), end = times(roundf(last) + 1.0f, scale);
    const float size = fmaxf(end - start, 0.1f) / (float)bins;
    return between(times((float)i, size) + start, times((float)(i + 1), size) + start, extent);
}

#define PARAMS                                                                                                         \
    const float *regions, u32 count, u32 images, u32 outputs, u32 channels, u32 height, u32 width, u32 rows,           \
        u32 columns, float scale, float pad_ratio
#define ARGS regions, count, images, outputs, channels, height, width, rows, columns, scale, pad_ratio

// The largest of each bin, and where it is in its plane, or -1, in `kept` unless that is null.
template <typename T> DEVICE void roi_pooling_forward_of(T* y, float* kept, const T* x, PARAMS) {
    FOR_ROWS(row, count * outputs) {
        const float* region = regions + (u64)(row / outputs) * NUMBERS;
        const u32 image = (u32)region[0], c = row % outputs;
        if (image >= images) continue;
        const T* plane = x + ((u64)image * channels + c) * height * width;
        FOR_POSITIONS(at, rows * columns) {
            const Bin down = whole_bin(region[2], region[4], at / columns, rows, height, scale, pad_ratio);
            const Bin across = whole_bin(region[1], region[3], at % columns, columns, width, scale, pad_ratio);
            float most = 0, index = -1;
            for (u32 h = down.from; h < down.end; ++h) {
                for (u32 w = across.from; w < across.end; ++w) {
                    const float v = plane[h * width + w];
                    if (index < 0 || v > most) most = v, index = (float)(h * width + w);
                }
            }
            y[(u64)row * rows * columns + at] = most;
            if (kept) kept[(u64)row * rows * columns + at] = index;
        }
    }
}
KERNELS(roi_pooling_forward, (T* y, float* kept, const T* x, PARAMS), (y, kept, x, ARGS))

// The gradient of a pixel: that of every bin of which it is the largest.
template <typename T> DEVICE void roi_pooling_backward_of(T* dx, const float* kept, const T* dy, PARAMS) {
    const u32 bins = rows * columns;
    FOR_ROWS(plane, images * channels) {
        const u32 image = plane / channels, c = plane % channels;
        FOR_POSITIONS(at, height * width) {
            float sum = 0;
            for (u32 r = 0; r < count; ++r) {
                const float* region = regions + (u64)r * NUMBERS;
                if ((u32)region[0] != image) continue;
                const u64 own = ((u64)r * outputs + c) * bins;
                for (u32 b = 0; b < bins; ++b) {
                    if (kept[own + b] == (float)at) sum += (float)dy[own + b];
                }
            }
            dx[(u64)plane * height * width + at] = sum;
        }
    }
}
KERNELS(roi_pooling_backward, (T* dx, const float* kept, const T* dy, PARAMS), (dx, kept, dy, ARGS))

// The mean of each bin, of the channel that is the bin's.
template <typename T> DEVICE void psroi_pooling_forward_of(T* y, float* kept, const T* x, PARAMS) {
    const u32 bins = rows * columns;
    FOR_ROWS(row, count * outputs) {
        const float* region = regions + (u64)(row / outputs) * NUMBERS;
        const u32 image = (u32)region[0], c = row % outputs;
        if (image >= images) continue;
        FOR_POSITIONS(at, bins) {
            const Bin down = part_bin(region[2], region[4], at / columns, rows, height, scale);
            const Bin across = part_bin(region[1], region[3], at % columns, columns, width, scale);
            const T* plane = x + ((u64)image * channels + c * bins + at) * height * width;
            const u32 pixels = (down.end - down.from) * (across.end - across.from);
            float sum = 0;
            for (u32 h = down.from; h < down.end; ++h) {
                for (u32 w = across.from; w < across.end; ++w) sum += (float)plane[h * width + w];
            }
            y[(u64)row * bins + at] = pixels ? sum / (float)pixels : 0.0f;
        }
    }
}
KERNELS(psroi_pooling_forward, (T* y, float* kept, const T* x, PARAMS), (y, kept, x, ARGS))

// The gradient of a pixel: its part of that of every bin that it is in and whose channel it is of.
template <typename T> DEVICE void psroi_pooling_backward_of(T* dx, const float* kept, const T* dy, PARAMS) {
    const u32 bins = rows * columns;
    FOR_ROWS(plane, images * channels) {
        const u32 image = plane / channels, c = plane % channels, bin = c % bins;
        FOR_POSITIONS(at, height * width) {
            const u32 h = at / width, w = at % width;
            float sum = 0;
            for (u32 r = 0; r < count; ++r) {
                const float* region = regions + (u64)r * NUMBERS;
                if ((u32)region[0] != image) continue;
                const Bin down = part_bin(region[2], region[4], bin / columns, rows, height, scale);
                const Bin across = part_bin(region[1], region[3], bin % columns, columns, width, scale);
                if (h < down.from || h >= down.end || w < across.from || w >= across.end) continue;
                const u32 pixels = (down.end - down.from) * (across.end - across.from);
                sum += (float)dy[(u64)r * channels + c] / (float)pixels;
            }
            dx[(u64)plane * height * width + at] = sum;
        }
    }
}
KERNELS(psroi_pooling_backward, (T* dx, const float* kept, const T* dy, PARAMS), (dx, kept, dy, ARGS))

// The pixels around point i of a region's corners of bins along an axis, the share of the second, and whether the point counts.
struct Around {
    u32 low, high;
    float share;
    bool counts;
};

DEVICE Around around(float first, float last, u32 i, u32 bins, u32 extent, float scale, float pad_ratio) {
    const float pad = times(last - first + 1.0f, pad_ratio);
    const float start = times(first - pad, scale) - 0.5f, end = times(last + pad, scale) - 0.5f;
    const float at = start + times((float)i, (end - start) / (float)bins), most = (float)extent - 1.0f;
    const float low = fminf(fmaxf(floorf(at), 0.0f), most), high = fminf(fmaxf(floorf(at) + 1.0f, 0.0f), most);
    const bool counts = end > start && at >= -0.5f && at <= (float)extent - 0.5f;
    Around found = {(u32)low, (u32)high, fminf(fmaxf(at, 0.0f), most) - low, counts};
    return found;
}

// The weight of a pixel in a point along an axis.
DEVICE float weight_of(const Around& a, u32 pixel) {
    return (pixel == a.low ? 1.0f - a.share : 0.0f) + (pixel == a.high ? a.share : 0.0f);
}

// The value at each corner of bins; `rows` and `columns` are those of corners.
template <typename T> DEVICE void roi_align_forward_of(T* y, float* kept, const T* x, PARAMS) {
    FOR_ROWS(row, count * outputs) {
        const float* region = regions + (u64)(row / outputs) * NUMBERS;
        const u32 image = (u32)region[0], c = row % outputs;
        if (image >= images) continue;
        const T* plane = x + ((u64)image * channels + c) * height * width;
        FOR_POSITIONS(at, rows * columns) {
            const Around down = around(region[2], region[4], at / columns, rows - 1, height, scale, pad_ratio);
            const Around across = around(region[1], region[3], at % columns, columns - 1, width, scale, pad_ratio);
            float value = 0;
            if (down.counts && across.counts) {
                const T *upper = plane + down.low * width, *lower = plane + down.high * width;
                const float above = (1.0f - across.share) * (float)upper[across.low] + across.share * (float)upper[across.high];
                const float below = (1.0f - across.share) * (float)lower[across.low] + across.share * (float)lower[across.high];
                value = (1.0f - down.share) * above + down.share * below;
            }
            y[(u64)row * rows * columns + at] = value;
        }
    }
}
KERNELS(roi_align_forward, (T* y, float* kept, const T* x, PARAMS), (y, kept, x, ARGS))

// The gradient of a pixel: its weight in each point times that of the point.
template <typename T> DEVICE void roi_align_backward_of(T* dx, const float* kept, const T* dy, PARAMS) {
    FOR_ROWS(plane, images * channels) {
        const u32 image = plane / channels, c = plane % channels;
        FOR_POSITIONS(at, height * width) {
            const u32 h = at / width, w = at % width;
            float sum = 0;
            for (u32 r = 0; r < count; ++r) {
                const float* region = regions + (u64)r * NUMBERS;
                if ((u32)region[0] != image) continue;
                const T* own = dy + ((u64)r * outputs + c) * rows * columns;
                for (u32 i = 0; i < rows; ++i) {
                    const Around down = around(region[2], region[4], i, rows - 1, height, scale, pad_ratio);
                    const float share = down.counts ? weight_of(down, h) : 0.0f;
                    if (share == 0) continue;
                    for (u32 j = 0; j < columns; ++j) {
                        const Around across = around(region[1], region[3], j, columns - 1, width, scale, pad_ratio);
                        if (across.counts) sum += share * weight_of(across, w) * (float)own[i * columns + j];
                    }
                }
            }
            dx[(u64)plane * height * width + at] = sum;
        }
    }
}
KERNELS(roi_align_backward, (T* dx, const float* kept, const T* dy, PARAMS), (dx, kept, dy, ARGS))
