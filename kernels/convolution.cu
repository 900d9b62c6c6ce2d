// Convolution where no library does it: patches for a matrix multiplication, in two dimensions and in three.

// Rows of patches: row (image, channel, tap) holds what that tap of a kernel sees at each output position.
template <typename T>
DEVICE void conv_patches_of(T* patches, const T* x, u32 rows, GEOMETRY) {
    const u32 area = down * across, taps = kernel_h * kernel_w;
    FOR_ROWS(row, rows) {
        const u32 plane = row / taps, tap = row % taps;
        const int top = (int)(tap / kernel_w * dilation_h) - (int)pad_h;
        const int left = (int)(tap % kernel_w * dilation_w) - (int)pad_w;
        const T* from = x + (i64)plane * height * width;
        FOR_POSITIONS(at, area) {
            const int i = top + (int)(at / across * stride_h), j = left + (int)(at % across * stride_w);
            const bool inside = i >= 0 && i < (int)height && j >= 0 && j < (int)width;
            patches[(i64)row * area + at] = inside ? (float)from[(i64)i * width + j] : 0.0f;
        }
    }
}
KERNELS(conv_patches,
    (T* patches, const T* x, u32 rows, GEOMETRY),
    (patches, x, rows, GEOMETRY_NAMES))

// The sum of all patches' elements that are this input element: the way back, gathered, in the order of taps.
template <typename T>
DEVICE void conv_unpatch_of(T* dx, const T* patches, u32 planes, GEOMETRY) {
    const u32 area = height * width, outputs = down * across;
    FOR_ROWS(plane, planes) {
        const T* from = patches + (i64)plane * kernel_h * kernel_w * outputs;
        FOR_POSITIONS(at, area) {
            const u32 i = at / width, j = at % width;
            float sum = 0;
            for (u32 kh = 0; kh < kernel_h; ++kh) {
                u32 row, column;
                if (!seen_from(i, kh, stride_h, pad_h, dilation_h, down, &row)) continue;
                for (u32 kw = 0; kw < kernel_w; ++kw) {
                    if (!seen_from(j, kw, stride_w, pad_w, dilation_w, across, &column)) continue;
                    sum += from[(i64)(kh * kernel_w + kw) * outputs + row * across + column];
                }
            }
            dx[(i64)plane * area + at] = sum;
        }
    }
}
KERNELS(conv_unpatch,
    (T* dx, const T* patches, u32 planes, GEOMETRY),
    (dx, patches, planes, GEOMETRY_NAMES))

// Channels last. Rows of patches: row (image, output position) holds, group after group, the `members` channels of every
// tap, tap after tap, so that a filter stored alike meets them in its own order. A launch's rows are those, and its width
// taps x channels.
template <typename T>
DEVICE void conv_patches_last_of(T* patches, const T* x, u32 rows, u32 channels, u32 members, GEOMETRY) {
    const u32 area = down * across, taps = kernel_h * kernel_w, wide = taps * channels;
    FOR_ROWS(row, rows) {
        const u32 image = row / area, at = row % area;
        const int top = (int)(at / across * stride_h) - (int)pad_h;
        const int left = (int)(at % across * stride_w) - (int)pad_w;
        const T* from = x + (i64)image * height * width * channels;
        FOR_POSITIONS(k, wide) {
            const u32 place = k / members, group = place / taps, tap = place % taps;
            const u32 c = group * members + k % members;
            const int i = top + (int)(tap / kernel_w * dilation_h), j = left + (int)(tap % kernel_w * dilation_w);
            const bool inside = i >= 0 && i < (int)height && j >= 0 && j < (int)width;
            patches[(i64)row * wide + k] = inside ? (float)from[((i64)i * width + j) * channels + c] : 0.0f;
        }
    }
}
KERNELS(conv_patches_last,
    (T* patches, const T* x, u32 rows, u32 channels, u32 members, GEOMETRY),
    (patches, x, rows, channels, members, GEOMETRY_NAMES))

// The way back, gathered in the order of taps. A launch's rows are positions of dx, and its width the channels.
template <typename T>
DEVICE void conv_unpatch_last_of(T* dx, const T* patches, u32 rows, u32 channels, u32 members, GEOMETRY) {
    const u32 area = height * width, outputs = down * across, taps = kernel_h * kernel_w, wide = taps * channels;
    FOR_ROWS(row, rows) {
        const u32 image = row / area, i = row % area / width, j = row % width;
        const T* from = patches + (i64)image * outputs * wide;
        FOR_POSITIONS(c, channels) {
            const u32 first = c / members * taps * members + c % members;
            float sum = 0;
            for (u32 kh = 0; kh < kernel_h; ++kh) {
                u32 y, x;
                if (!seen_from(i, kh, stride_h, pad_h, dilation_h, down, &y)) continue;
                for (u32 kw = 0; kw < kernel_w; ++kw) {
                    if (!seen_from(j, kw, stride_w, pad_w, dilation_w, across, &x)) continue;
                    sum += from[(i64)(y * across + x) * wide + (kh * kernel_w + kw) * members + first];
                }
            }
            dx[(i64)row * channels + c] = sum;
        }
    }
}
KERNELS(conv_unpatch_last,
    (T* dx, const T* patches, u32 rows, u32 channels, u32 members, GEOMETRY),
    (dx, patches, rows, channels, members, GEOMETRY_NAMES))

// Filters of up to 49 taps with their channels last, and back. A block of 64 x 4 threads takes 64 channels of a filter (x;
// filters in y): they lie together in the parameter and, tap by tap, with channels last, so that neighbours read and write
// neighbouring elements.
#define FILTER_CHANNELS 64u
#define FILTER_PART (64 * 49)

// The channels of a filter that a block takes: the first, and how many.
#define FILTER_CHANNELS_OF_BLOCK                                                                                       \
    const u32 first = blockIdx.x * FILTER_CHANNELS;                                                                    \
    const u32 n = channels - first < FILTER_CHANNELS ? channels - first : FILTER_CHANNELS;                             \
    const u32 at = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y

// y = w.
template <typename T>
DEVICE void filters_last(T* y, const float* w, u32 filters, u32 channels, u32 taps, float* part) {
    FILTER_CHANNELS_OF_BLOCK;
    for (u32 filter = blockIdx.y; filter < filters; filter += gridDim.y) {
        const float* from = w + ((i64)filter * channels + first) * taps;
        T* to = y + (i64)filter * channels * taps + first;
        for (u32 i = at; i < n * taps; i += threads) part[i] = from[i];
        __syncthreads();
        for (u32 tap = threadIdx.y; tap < taps; tap += blockDim.y) {
            if (threadIdx.x < n) to[(i64)tap * channels + threadIdx.x] = part[threadIdx.x * taps + tap];
        }
        __syncthreads();
    }
}

// dw += dy.
template <typename T>
DEVICE void filters_add(float* dw, const T* dy, u32 filters, u32 channels, u32 taps, float* part) {
    FILTER_CHANNELS_OF_BLOCK;
    for (u32 filter = blockIdx.y; filter < filters; filter += gridDim.y) {
        const T* from = dy + (i64)filter * channels * taps + first;
        float* to = dw + ((i64)filter * channels + first) * taps;
        for (u32 tap = threadIdx.y; tap < taps; tap += blockDim.y) {
            if (threadIdx.x < n) part[threadIdx.x * taps + tap] = from[(i64)tap * channels + threadIdx.x];
        }
        __syncthreads();
        for (u32 i = at; i < n * taps; i += threads) to[i] += part[i];
        __syncthreads();
    }
}

KERNEL(conv_filters_last)(float* y, const float* w, u32 filters, u32 channels, u32 taps) {
    __shared__ float part[FILTER_PART];
    filters_last(y, w, filters, channels, taps, part);
}
KERNEL(conv_filters_last_bf16)(bf16* y, const float* w, u32 filters, u32 channels, u32 taps) {
    __shared__ float part[FILTER_PART];
    filters_last(y, w, filters, channels, taps, part);
}
KERNEL(conv_filters_add)(float* dw, const float* dy, u32 filters, u32 channels, u32 taps) {
    __shared__ float part[FILTER_PART];
    filters_add(dw, dy, filters, channels, taps, part);
}
KERNEL(conv_filters_add_bf16)(float* dw, const bf16* dy, u32 filters, u32 channels, u32 taps) {
    __shared__ float part[FILTER_PART];
    filters_add(dw, dy, filters, channels, taps, part);
}

#define GEOMETRY_3D                                                                                                    \
    u32 depth, u32 height, u32 width, u32 deep, u32 down, u32 across, u32 kernel_d, u32 kernel_h, u32 kernel_w,        \
        u32 stride_d, u32 stride_h, u32 stride_w, u32 pad_d, u32 pad_h, u32 pad_w, u32 dilation_d, u32 dilation_h,     \
        u32 dilation_w

// As conv_patches.
KERNEL(conv_patches_3d)(float* patches, const float* x, u32 rows, GEOMETRY_3D) {
    const u32 area = down * across, volume = deep * area, square = kernel_h * kernel_w, taps = kernel_d * square;
    FOR_ROWS(row, rows) {
        const u32 plane = row / taps, tap = row % taps;
        const int front = (int)(tap / square * dilation_d) - (int)pad_d;
        const int top = (int)(tap % square / kernel_w * dilation_h) - (int)pad_h;
        const int left = (int)(tap % kernel_w * dilation_w) - (int)pad_w;
        const float* from = x + (i64)plane * depth * height * width;
        FOR_POSITIONS(at, volume) {
            const u32 layer = at / area, rest = at % area;
            const int k = front + (int)(layer * stride_d), i = top + (int)(rest / across * stride_h);
            const int j = left + (int)(rest % across * stride_w);
            const bool inside =
                k >= 0 && k < (int)depth && i >= 0 && i < (int)height && j >= 0 && j < (int)width;
            patches[(i64)row * volume + at] = inside ? from[((i64)k * height + i) * width + j] : 0.0f;
        }
    }
}

// As conv_unpatch.
KERNEL(conv_unpatch_3d)(float* dx, const float* patches, u32 planes, GEOMETRY_3D) {
    const u32 area = height * width, volume = depth * area, outputs = deep * down * across;
    FOR_ROWS(plane, planes) {
        const float* from = patches + (i64)plane * kernel_d * kernel_h * kernel_w * outputs;
        FOR_POSITIONS(at, volume) {
            const u32 k = at / area, i = at % area / width, j = at % width;
            float sum = 0;
            for (u32 kd = 0; kd < kernel_d; ++kd) {
                u32 layer, row, column;
                if (!seen_from(k, kd, stride_d, pad_d, dilation_d, deep, &layer)) continue;
                for (u32 kh = 0; kh < kernel_h; ++kh) {
                    if (!seen_from(i, kh, stride_h, pad_h, dilation_h, down, &row)) continue;
                    for (u32 kw = 0; kw < kernel_w; ++kw) {
                        if (!seen_from(j, kw, stride_w, pad_w, dilation_w, across, &column)) continue;
                        const i64 tap = (i64)(kd * kernel_h + kh) * kernel_w + kw;
                        sum += from[tap * outputs + (layer * down + row) * across + column];
                    }
                }
            }
            dx[(i64)plane * volume + at] = sum;
        }
    }
}
