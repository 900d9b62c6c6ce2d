// Boxes around every position of a blob, and the variances of offsets from them: rows of positions, corners first, then the same
// of variances. `sizes` are width and height of the boxes around a position.

KERNEL(prior_box)(
    float* y, const float* sizes, const float* variances, u32 height, u32 width, u32 boxes, float offset, float step_h,
    float step_w, float image_h, float image_w, u32 clip
) {
    FOR_ROWS(row, 2 * height) {
        FOR_POSITIONS(i, width * boxes) {
            float* to = y + 4 * ((u64)row * width * boxes + i);
            const float x = ((float)(i / boxes) + offset) * step_w, half_w = sizes[2 * (i % boxes)] / 2.0f;
            const float down = ((float)row + offset) * step_h, half_h = sizes[2 * (i % boxes) + 1] / 2.0f;
            const float corners[4] = {
                (x - half_w) / image_w, (down - half_h) / image_h, (x + half_w) / image_w, (down + half_h) / image_h
            };
#pragma unroll
            for (u32 k = 0; k < 4; ++k) {
                const float corner = clip ? fminf(fmaxf(corners[k], 0.0f), 1.0f) : corners[k];
                to[k] = row < height ? corner : variances[k];
            }
        }
    }
}
