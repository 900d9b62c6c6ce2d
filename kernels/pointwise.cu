// Layers that treat every element alone. The top may be the bottom's memory, and so may the diffs.

KERNEL(relu_forward)(float* y, const float* x, float slope, i64 n) {
    FOR_ELEMENTS(i, n) {
        const float v = x[i];
        y[i] = v < 0 ? slope * v : v;
    }
}

// `sign` is the top where the slope is not negative, else the bottom.
KERNEL(relu_backward)(float* dx, const float* dy, const float* sign, float slope, i64 n) {
    FOR_ELEMENTS(i, n) {
        const float d = dy[i];
        dx[i] = sign[i] > 0 ? d : slope * d;
    }
}
