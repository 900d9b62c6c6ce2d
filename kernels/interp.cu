// Interp: planes brought to another size by bilinear interpolation. Of each axis, `len` elements of `input` from `start` on
// become `output`; element i of those lies at ratio * i of these.

#define SIDES u32 height, u32 top, u32 high, u32 out_h, u32 width, u32 left, u32 wide, u32 out_w, float ratio_h, float ratio_w
#define ALL_SIDES height, top, high, out_h, width, left, wide, out_w, ratio_h, ratio_w

// The two elements, from `start` on, that element i lies between, and how near it is to the second.
struct Between {
    u32 first, second;
    float near;

    __device__ __forceinline__ Between(u32 i, u32 len, float ratio) {
        const float at = ratio * i;
        const u32 whole = (u32)at;
        first = whole < len ? whole : len - 1;
        second = first + 1 < len ? first + 1 : first;
        near = at - first;
    }

    // The weight with which it takes an element.
    __device__ __forceinline__ float weight(u32 of) const {
        return (first == of ? 1.0f - near : 0.0f) + (second == of ? near : 0.0f);
    }
};

template <typename T> DEVICE void interp_forward_of(T* y, const T* x, u32 planes, SIDES) {
    const u32 area = out_h * out_w;
    FOR_ROWS(plane, planes) {
        const T* from = x + ((i64)plane * height + top) * width + left;
        FOR_POSITIONS(at, area) {
            const u32 i = at / out_w;
            const Between down(i, high, ratio_h), across(at - i * out_w, wide, ratio_w);
            const T *above = from + (i64)down.first * width, *below = from + (i64)down.second * width;
            const float a = (1.0f - across.near) * above[across.first] + across.near * above[across.second];
            const float b = (1.0f - across.near) * below[across.first] + across.near * below[across.second];
            y[(i64)plane * area + at] = (1.0f - down.near) * a + down.near * b;
        }
    }
}
KERNELS(interp_forward, (T* y, const T* x, u32 planes, SIDES), (y, x, planes, ALL_SIDES))

// The elements that may lie beside element i, counted from `start`: those that do, and perhaps one more at each end.
DEVICE void reached(u32 i, u32 output, float ratio, u32* first, u32* end) {
    *first = 0;
    *end = output;
    if (ratio == 0) return;
    if (i > 1) {
        const u32 at = (u32)((i - 1) / ratio);
        *first = at > 0 ? at - 1 : 0;
    }
    const u32 last = (u32)((i + 1) / ratio) + 2;
    if (last < output) *end = last;
}

// dx, gathered from what lies beside it.
template <typename T> DEVICE void interp_backward_of(T* dx, const T* dy, u32 planes, SIDES) {
    const u32 area = height * width;
    FOR_ROWS(plane, planes) {
        const T* from = dy + (i64)plane * out_h * out_w;
        FOR_POSITIONS(at, area) {
            const u32 row = at / width, column = at - row * width;
            float sum = 0;
            if (row >= top && row - top < high && column >= left && column - left < wide) {
                u32 first_h, end_h, first_w, end_w;
                reached(row - top, out_h, ratio_h, &first_h, &end_h);
                reached(column - left, out_w, ratio_w, &first_w, &end_w);
                for (u32 i = first_h; i < end_h; ++i) {
                    const float weight = Between(i, high, ratio_h).weight(row - top);
                    if (weight == 0) continue;
                    float part = 0;
                    for (u32 j = first_w; j < end_w; ++j) {
                        part += Between(j, wide, ratio_w).weight(column - left) * from[(i64)i * out_w + j];
                    }
                    sum += weight * part;
                }
            }
            dx[(i64)plane * area + at] = sum;
        }
    }
}
KERNELS(interp_backward, (T* dx, const T* dy, u32 planes, SIDES), (dx, dy, planes, ALL_SIDES))
