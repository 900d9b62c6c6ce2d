// What the kernels of convolutions share. Put before each of them as text.

#define GEOMETRY                                                                                                       \
    u32 height, u32 width, u32 down, u32 across, u32 kernel_h, u32 kernel_w, u32 stride_h, u32 stride_w, u32 pad_h,    \
        u32 pad_w, u32 dilation_h, u32 dilation_w
#define GEOMETRY_NAMES                                                                                                 \
    height, width, down, across, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w

// The output position that a tap sees input position `at` from, along one axis; false where there is none.
DEVICE bool seen_from(u32 at, u32 tap, u32 stride, u32 pad, u32 dilation, u32 outputs, u32* from) {
    const int start = (int)(at + pad) - (int)(tap * dilation);
    if (start < 0 || start % (int)stride != 0) return false;
    *from = (u32)start / stride;
    return *from < outputs;
}
