// SpatialTransformer: where each position of the top looks in the image, what it sees, and the gradients of both.

const int AFFINE = 0, TRANSLATION = 1, TRANSLATION_SCALING = 2, PROJECTIVE = 3, GRID = 4, SIMILARITY = 5;

struct Point {
    float x, y;
};

// From -1 to 1 over an extent; the middle of an extent of 1.
DEVICE float along(u32 i, u32 extent) { return extent > 1 ? 2.0f * (float)i / (float)(extent - 1) - 1.0f : 0.0f; }

// Where a target at (u, v) looks, both from -1 to 1.
DEVICE Point look(int kind, const float* t, float u, float v, float scale_x, float scale_y) {
    if (kind == AFFINE) return {t[0] * u + t[1] * v + t[2], t[3] * u + t[4] * v + t[5]};
    if (kind == TRANSLATION) return {scale_x * u + t[0], scale_y * v + t[1]};
    if (kind == TRANSLATION_SCALING) return {t[0] * u + t[1], t[2] * v + t[3]};
    if (kind == PROJECTIVE) {
        const float z = 1.0f / (t[6] * u + t[7] * v + 1.0f);
        return {(t[0] * u + t[1] * v + t[2]) * z, (t[3] * u + t[4] * v + t[5]) * z};
    }
    const float c = cosf(t[0]), s = sinf(t[0]);
    if (kind == SIMILARITY) return {t[1] * (u * c - v * s) + t[2], t[1] * (u * s + v * c) + t[3]};
    return {t[1] * u * c - t[2] * v * s + t[3], t[1] * u * s + t[2] * v * c + t[4]};
}

#define EXTENTS u32 channels, u32 height, u32 width, u32 out_height, u32 out_width

// The places in pixels, two numbers to a position, for `size` numbers of theta to an item.
KERNEL(spatial_places)(
    float* places, const float* theta, int kind, u32 size, float scale_x, float scale_y, u32 items, EXTENTS
) {
    const u32 map = out_height * out_width;
    FOR_ROWS(n, items) {
        FOR_POSITIONS(i, map) {
            const float* t = theta + (i64)n * size;
            float* to = places + 2 * ((i64)n * map + i);
            if (kind == GRID) {
                to[0] = t[2 * (i64)i], to[1] = t[2 * (i64)i + 1];
                continue;
            }
            const float u = along(i % out_width, out_width), v = along(i / out_width, out_height);
            const Point p = look(kind, t, u, v, scale_x, scale_y);
            to[0] = (p.x + 1.0f) * (0.5f * (float)(width - 1));
            to[1] = (p.y + 1.0f) * (0.5f * (float)(height - 1));
        }
    }
}

// Along one axis: the first of the two pixels that a place lies between, how far it is from there, and whether it moves on
// with its coordinate. With `bounded`, places beyond the image are brought to its border; else pixels beyond it are 0.
struct Tap {
    i64 first;
    float share;
    bool free;
};

DEVICE Tap tap_of(float at, u32 extent, bool bounded) {
    const float last = (float)(extent - 1);
    const bool within = at >= 0 && at <= last;
    // What is not a number is seen as such.
    if (at != at) return {0, at, true};
    if (bounded) at = fminf(fmaxf(at, 0.0f), last);
    // Far beyond, nothing is seen.
    if (at < -2.0f || at > (float)extent + 1.0f) return {-2, 0, false};
    float first = floorf(at);
    if (bounded && first >= last && extent > 1) first = last - 1;
    return {(i64)first, at - first, within || !bounded};
}

DEVICE float pixel(const float* image, i64 row, i64 column, u32 height, u32 width) {
    const bool there = row >= 0 && row < height && column >= 0 && column < width;
    return there ? image[row * width + column] : 0.0f;
}

KERNEL(spatial_forward)(float* y, const float* x, const float* places, u32 bounded, u32 planes, EXTENTS) {
    const u32 map = out_height * out_width;
    FOR_ROWS(plane, planes) {
        const float* image = x + (i64)plane * height * width;
        FOR_POSITIONS(i, map) {
            const float* place = places + 2 * ((i64)(plane / channels) * map + i);
            const Tap h = tap_of(place[0], width, bounded), v = tap_of(place[1], height, bounded);
            float sum = 0;
#pragma unroll
            for (u32 k = 0; k < 4; ++k) {
                const u32 right = k & 1, down = k >> 1;
                const float weight = (right ? h.share : 1.0f - h.share) * (down ? v.share : 1.0f - v.share);
                sum += weight * pixel(image, v.first + down, h.first + right, height, width);
            }
            y[(i64)plane * map + i] = sum;
        }
    }
}

// The gradient of each place.
KERNEL(spatial_slopes)(
    float* slopes, const float* dy, const float* x, const float* places, u32 bounded, u32 items, EXTENTS
) {
    const u32 map = out_height * out_width;
    FOR_ROWS(n, items) {
        FOR_POSITIONS(i, map) {
            const i64 at = (i64)n * map + i;
            const Tap h = tap_of(places[2 * at], width, bounded), v = tap_of(places[2 * at + 1], height, bounded);
            float by_x = 0, by_y = 0;
            for (u32 c = 0; c < channels; ++c) {
                const i64 plane = (i64)n * channels + c;
                const float* image = x + plane * height * width;
                const float d = dy[plane * map + i];
#pragma unroll
                for (u32 k = 0; k < 4; ++k) {
                    const u32 right = k & 1, down = k >> 1;
                    const float seen = d * pixel(image, v.first + down, h.first + right, height, width);
                    by_x += (right ? seen : -seen) * (down ? v.share : 1.0f - v.share);
                    by_y += (down ? seen : -seen) * (right ? h.share : 1.0f - h.share);
                }
            }
            slopes[2 * at] = h.free ? by_x : 0.0f;
            slopes[2 * at + 1] = v.free ? by_y : 0.0f;
        }
    }
}

// A block for each item: theta's gradient, `size` numbers.
KERNEL(spatial_theta)(
    float* d_theta, const float* theta, const float* slopes, int kind, u32 size, float scale_x, float scale_y, EXTENTS
) {
    __shared__ float exchange[32];
    const u32 n = blockIdx.x, map = out_height * out_width;
    const float* t = theta + (i64)n * size;
    float sums[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    for (u32 i = threadIdx.x; i < map; i += blockDim.x) {
        const float u = along(i % out_width, out_width), v = along(i / out_width, out_height);
        const float gx = slopes[2 * ((i64)n * map + i)] * (0.5f * (float)(width - 1));
        const float gy = slopes[2 * ((i64)n * map + i) + 1] * (0.5f * (float)(height - 1));
        const Point p = look(kind, t, u, v, scale_x, scale_y);
        if (kind == AFFINE || kind == PROJECTIVE) {
            const float z = kind == AFFINE ? 1.0f : 1.0f / (t[6] * u + t[7] * v + 1.0f);
            sums[0] += gx * u * z, sums[1] += gx * v * z, sums[2] += gx * z;
            sums[3] += gy * u * z, sums[4] += gy * v * z, sums[5] += gy * z;
            if (kind == PROJECTIVE) {
                const float pull = -z * (gx * p.x + gy * p.y);
                sums[6] += pull * u, sums[7] += pull * v;
            }
        } else if (kind == TRANSLATION) {
            sums[0] += gx, sums[1] += gy;
        } else if (kind == TRANSLATION_SCALING) {
            sums[0] += gx * u, sums[1] += gx, sums[2] += gy * v, sums[3] += gy;
        } else {
            const float c = cosf(t[0]), s = sinf(t[0]), by_u = gx * c + gy * s, by_v = gy * c - gx * s;
            const u32 shift = kind == SIMILARITY ? 2 : 3;
            sums[0] += gy * (p.x - t[shift]) - gx * (p.y - t[shift + 1]);
            if (kind == SIMILARITY) {
                sums[1] += by_u * u + by_v * v, sums[2] += gx, sums[3] += gy;
            } else {
                sums[1] += by_u * u, sums[2] += by_v * v, sums[3] += gx, sums[4] += gy;
            }
        }
    }
#pragma unroll
    for (u32 k = 0; k < 8; ++k) {
        const float sum = block_reduce<Sum>(sums[k], exchange);
        if (threadIdx.x == 0 && k < size) d_theta[(i64)n * size + k] = sum;
    }
}

// The image's gradient is summed in whole numbers, so that the order does not show: what each position gives, times a power
// of two by which no sum of `map` of them leaves 64 bits.

KERNEL(spatial_largest)(float* partial, const float* dy, i64 n) {
    __shared__ float exchange[32];
    float largest = 0;
    FOR_ELEMENTS(i, n) largest = Largest::of(largest, fabsf(dy[i]));
    largest = block_reduce<Largest>(largest, exchange);
    if (threadIdx.x == 0) partial[blockIdx.x] = largest;
}

// In one block: the largest of all.
KERNEL(spatial_largest_of)(float* largest, const float* partial, u32 blocks) {
    __shared__ float exchange[32];
    float all = 0;
    for (u32 b = threadIdx.x; b < blocks; b += blockDim.x) all = Largest::of(all, partial[b]);
    all = block_reduce<Largest>(all, exchange);
    if (threadIdx.x == 0) largest[0] = all;
}

DEVICE int fixed_point(float largest, u32 map) {
    const int exponent = (int)(__float_as_uint(largest) >> 23 & 255u) - 126;
    int bits = 0;
    while (bits < 32 && (1ull << bits) < map) ++bits;
    return 61 - exponent - bits;
}

KERNEL(spatial_scatter)(
    u64* sums, const float* dy, const float* places, const float* largest, u32 bounded, u32 planes, EXTENTS
) {
    const u32 map = out_height * out_width;
    const double scale = ldexp(1.0, fixed_point(largest[0], map));
    FOR_ROWS(plane, planes) {
        FOR_POSITIONS(i, map) {
            const float* place = places + 2 * ((i64)(plane / channels) * map + i);
            const Tap h = tap_of(place[0], width, bounded), v = tap_of(place[1], height, bounded);
            const float d = dy[(i64)plane * map + i];
#pragma unroll
            for (u32 k = 0; k < 4; ++k) {
                const u32 right = k & 1, down = k >> 1;
                const i64 row = v.first + down, column = h.first + right;
                if (row < 0 || row >= height || column < 0 || column >= width) continue;
                const float weight = (right ? h.share : 1.0f - h.share) * (down ? v.share : 1.0f - v.share);
                const i64 term = weight == weight ? llrint((double)(d * weight) * scale) : 0;
                if (term != 0) atomicAdd(sums + ((i64)plane * height + row) * width + column, (u64)term);
            }
        }
    }
}

KERNEL(spatial_gather)(float* dx, const u64* sums, const float* largest, u32 map, i64 n) {
    const bool finite = largest[0] <= LARGEST_FLOAT;
    const double scale = ldexp(1.0, -fixed_point(largest[0], map));
    FOR_ELEMENTS(i, n) dx[i] = finite ? (float)((double)(i64)sums[i] * scale) : largest[0] - largest[0];
}
