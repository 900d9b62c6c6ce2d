// Depthwise convolution where no library does it, in two dimensions.

// Depthwise: `each` outputs for every channel. Rows are planes of y.
template <typename T>
DEVICE void conv_depthwise_forward_of(
    T* y, const T* x, const float* w, const float* b, u32 planes, u32 outputs, u32 each, GEOMETRY
) {
    const u32 area = down * across, taps = kernel_h * kernel_w;
    FOR_ROWS(plane, planes) {
        const u32 o = plane % outputs, image = plane / outputs;
        const T* from = x + ((i64)image * (outputs / each) + o / each) * height * width;
        const float* filter = w + (i64)o * taps;
        const float start = b ? b[o] : 0.0f;
        FOR_POSITIONS(at, area) {
            const int top = (int)(at / across * stride_h) - (int)pad_h;
            const int left = (int)(at % across * stride_w) - (int)pad_w;
            float sum = 0;
            for (u32 kh = 0; kh < kernel_h; ++kh) {
                const int i = top + (int)(kh * dilation_h);
                if (i < 0 || i >= (int)height) continue;
                for (u32 kw = 0; kw < kernel_w; ++kw) {
                    const int j = left + (int)(kw * dilation_w);
                    if (j < 0 || j >= (int)width) continue;
                    sum += filter[kh * kernel_w + kw] * from[(i64)i * width + j];
                }
            }
            y[(i64)plane * area + at] = sum + start;
        }
    }
}
KERNELS(conv_depthwise_forward,
    (T* y, const T* x, const float* w, const float* b, u32 planes, u32 outputs, u32 each, GEOMETRY),
    (y, x, w, b, planes, outputs, each, GEOMETRY_NAMES))

// Rows are planes of x.
template <typename T>
DEVICE void conv_depthwise_data_of(T* dx, const float* w, const T* dy, u32 planes, u32 channels, u32 each, GEOMETRY) {
    const u32 area = height * width, taps = kernel_h * kernel_w, outputs = down * across;
    FOR_ROWS(plane, planes) {
        const u32 c = plane % channels;
        FOR_POSITIONS(at, area) {
            const u32 i = at / width, j = at % width;
            float sum = 0;
            for (u32 k = 0; k < each; ++k) {
                const T* from = dy + ((i64)plane * each + k) * outputs;
                const float* filter = w + ((i64)c * each + k) * taps;
                for (u32 kh = 0; kh < kernel_h; ++kh) {
                    u32 row, column;
                    if (!seen_from(i, kh, stride_h, pad_h, dilation_h, down, &row)) continue;
                    for (u32 kw = 0; kw < kernel_w; ++kw) {
                        if (!seen_from(j, kw, stride_w, pad_w, dilation_w, across, &column)) continue;
                        sum += filter[kh * kernel_w + kw] * from[row * across + column];
                    }
                }
            }
            dx[(i64)plane * area + at] = sum;
        }
    }
}
KERNELS(conv_depthwise_data,
    (T* dx, const float* w, const T* dy, u32 planes, u32 channels, u32 each, GEOMETRY),
    (dx, w, dy, planes, channels, each, GEOMETRY_NAMES))

// dw += sums over images and positions: a block for each tap of each output (x).
template <typename T>
DEVICE void conv_depthwise_filter_of(float* dw, const T* x, const T* dy, u32 batch, u32 outputs, u32 each, GEOMETRY,
    float* exchange) {
    const u32 taps = kernel_h * kernel_w, area = down * across;
    const u32 o = blockIdx.x / taps, tap = blockIdx.x % taps;
    const int top = (int)(tap / kernel_w * dilation_h) - (int)pad_h;
    const int left = (int)(tap % kernel_w * dilation_w) - (int)pad_w;
    float sum = 0;
    for (u32 n = 0; n < batch; ++n) {
        const T* from = x + ((i64)n * (outputs / each) + o / each) * height * width;
        const T* d = dy + ((i64)n * outputs + o) * area;
        for (u32 at = threadIdx.x; at < area; at += blockDim.x) {
            const int i = top + (int)(at / across * stride_h), j = left + (int)(at % across * stride_w);
            if (i >= 0 && i < (int)height && j >= 0 && j < (int)width) sum += d[at] * from[(i64)i * width + j];
        }
    }
    sum = block_reduce<Sum>(sum, exchange);
    if (threadIdx.x == 0) dw[blockIdx.x] += sum;
}
KERNELS_ADDING(conv_depthwise_filter,
    (float* dw, const T* x, const T* dy, u32 batch, u32 outputs, u32 each, GEOMETRY),
    (dw, x, dy, batch, outputs, each, GEOMETRY_NAMES, exchange))

// Depthwise with channels last: filters lie tap by tap, [taps, outputs], and a thread takes a pack of channels, where each
// has one output, at STRIP neighbouring positions of a line, so that it asks for a tap's numbers once for all of these.
// A launch's rows are strips, and its width the packs.
#define STRIP 4u

template <u32 V, typename T>
DEVICE void depthwise_forward_last_by(
    T* y, const T* x, const float* w, const float* b, u32 rows, u32 outputs, u32 each, GEOMETRY
) {
    const u32 packs = outputs / V, channels = outputs / each, strips = (across + STRIP - 1) / STRIP;
    FOR_ROWS(row, rows) {
        const u32 line = row / strips, first = row % strips * STRIP, image = line / down;
        const int top = (int)(line % down * stride_h) - (int)pad_h;
        const T* from = x + (i64)image * height * width * channels;
        FOR_POSITIONS(p, packs) {
            const u32 o = p * V, c = o / each;
            float sums[STRIP][V];
#pragma unroll
            for (u32 u = 0; u < STRIP; ++u) {
#pragma unroll
                for (u32 v = 0; v < V; ++v) sums[u][v] = 0;
            }
            for (u32 kh = 0; kh < kernel_h; ++kh) {
                const int i = top + (int)(kh * dilation_h);
                if (i < 0 || i >= (int)height) continue;
                for (u32 kw = 0; kw < kernel_w; ++kw) {
                    const Pack<float, V> tap = numbers<V>(w + (i64)(kh * kernel_w + kw) * outputs, o);
                    typename Pack<T, V>::Raw raw[STRIP];
                    bool seen[STRIP];
#pragma unroll
                    for (u32 u = 0; u < STRIP; ++u) {
                        const int j = (int)((first + u) * stride_w + kw * dilation_w) - (int)pad_w;
                        seen[u] = first + u < across && j >= 0 && j < (int)width;
                        if (seen[u]) raw[u] = Pack<T, V>::raw(from + ((i64)i * width + j) * channels + c);
                    }
#pragma unroll
                    for (u32 u = 0; u < STRIP; ++u) {
                        if (!seen[u]) continue;
                        Pack<T, V> in;
                        in.set(raw[u]);
#pragma unroll
                        for (u32 v = 0; v < V; ++v) sums[u][v] += tap.v[v] * in.v[v];
                    }
                }
            }
            const Pack<float, V> start = numbers<V>(b, o);
#pragma unroll
            for (u32 u = 0; u < STRIP; ++u) {
                if (first + u >= across) break;
                Pack<T, V> out;
#pragma unroll
                for (u32 v = 0; v < V; ++v) out.v[v] = sums[u][v] + start.v[v];
                out.write(y + ((i64)line * across + first + u) * outputs + o);
            }
        }
    }
}
template <typename T>
DEVICE void conv_depthwise_forward_last_of(
    T* y, const T* x, const float* w, const float* b, u32 rows, u32 outputs, u32 each, GEOMETRY
) {
    const u32 size = Pack<T>::size;
    if (each == 1 && outputs % size == 0 && aligned(y) && aligned(x)) {
        depthwise_forward_last_by<size>(y, x, w, b, rows, outputs, each, GEOMETRY_NAMES);
    } else {
        depthwise_forward_last_by<1>(y, x, w, b, rows, outputs, each, GEOMETRY_NAMES);
    }
}
KERNELS(conv_depthwise_forward_last,
    (T* y, const T* x, const float* w, const float* b, u32 rows, u32 outputs, u32 each, GEOMETRY),
    (y, x, w, b, rows, outputs, each, GEOMETRY_NAMES))

template <u32 V, typename T>
DEVICE void depthwise_data_last_by(T* dx, const float* w, const T* dy, u32 rows, u32 channels, u32 each, GEOMETRY) {
    const u32 packs = channels / V, outputs = channels * each, strips = (width + STRIP - 1) / STRIP;
    FOR_ROWS(row, rows) {
        const u32 line = row / strips, first = row % strips * STRIP, i = line % height;
        const T* from = dy + (i64)(line / height) * down * across * outputs;
        FOR_POSITIONS(p, packs) {
            float sums[STRIP][V];
#pragma unroll
            for (u32 u = 0; u < STRIP; ++u) {
#pragma unroll
                for (u32 v = 0; v < V; ++v) sums[u][v] = 0;
            }
            for (u32 kh = 0; kh < kernel_h; ++kh) {
                u32 above;
                if (!seen_from(i, kh, stride_h, pad_h, dilation_h, down, &above)) continue;
                for (u32 kw = 0; kw < kernel_w; ++kw) {
                    u32 column[STRIP];
                    bool seen[STRIP];
#pragma unroll
                    for (u32 u = 0; u < STRIP; ++u) {
                        const u32 j = first + u;
                        seen[u] = j < width && seen_from(j, kw, stride_w, pad_w, dilation_w, across, &column[u]);
                    }
                    // Of a pack there is one.
                    for (u32 k = 0; k < each; ++k) {
                        const u32 o = p * V * each + k;
                        const Pack<float, V> tap = numbers<V>(w + (i64)(kh * kernel_w + kw) * outputs, o);
                        typename Pack<T, V>::Raw raw[STRIP];
#pragma unroll
                        for (u32 u = 0; u < STRIP; ++u) {
                            if (!seen[u]) continue;
                            raw[u] = Pack<T, V>::raw(from + ((i64)above * across + column[u]) * outputs + o);
                        }
#pragma unroll
                        for (u32 u = 0; u < STRIP; ++u) {
                            if (!seen[u]) continue;
                            Pack<T, V> in;
                            in.set(raw[u]);
#pragma unroll
                            for (u32 v = 0; v < V; ++v) sums[u][v] += tap.v[v] * in.v[v];
                        }
                    }
                }
            }
#pragma unroll
            for (u32 u = 0; u < STRIP; ++u) {
                if (first + u >= width) break;
                Pack<T, V> out;
#pragma unroll
                for (u32 v = 0; v < V; ++v) out.v[v] = sums[u][v];
                out.write(dx + ((i64)line * width + first + u) * channels + p * V);
            }
        }
    }
}
template <typename T>
DEVICE void conv_depthwise_data_last_of(
    T* dx, const float* w, const T* dy, u32 rows, u32 channels, u32 each, GEOMETRY
) {
    const u32 size = Pack<T>::size;
    if (each == 1 && channels % size == 0 && aligned(dx) && aligned(dy)) {
        depthwise_data_last_by<size>(dx, w, dy, rows, channels, each, GEOMETRY_NAMES);
    } else {
        depthwise_data_last_by<1>(dx, w, dy, rows, channels, each, GEOMETRY_NAMES);
    }
}
KERNELS(conv_depthwise_data_last,
    (T* dx, const float* w, const T* dy, u32 rows, u32 channels, u32 each, GEOMETRY),
    (dx, w, dy, rows, channels, each, GEOMETRY_NAMES))

// The filters' gradient in two steps. The first leaves sums over chunks of images and positions, which are in y, in
// partial[chunk][tap][output]. A block has a column of threads for each pack of outputs; of the blocks in x, as many as
// there are sets of SET taps take the same outputs, and the same elements one after another, while these are near.
#define SET 3u

template <u32 V, typename T>
DEVICE void depthwise_partials_last_by(
    float* partial, const T* x, const T* dy, u32 batch, u32 outputs, u32 each, GEOMETRY, float* exchange
) {
    const u32 taps = kernel_h * kernel_w, sets = (taps + SET - 1) / SET, tap = blockIdx.x % sets * SET;
    const u32 packs = outputs / V, channels = outputs / each, area = down * across;
    const Chunk chunk(blockIdx.y, gridDim.y, batch, area);
    float* to = partial + (i64)blockIdx.y * taps * outputs;
    int top[SET], left[SET];
#pragma unroll
    for (u32 t = 0; t < SET; ++t) {
        top[t] = (int)((tap + t) / kernel_w * dilation_h) - (int)pad_h;
        left[t] = (int)((tap + t) % kernel_w * dilation_w) - (int)pad_w;
    }
    for (u32 base = blockIdx.x / sets * blockDim.x; base < packs; base += gridDim.x / sets * blockDim.x) {
        const u32 o = (base + threadIdx.x) * V, c = o / each;
        float sums[SET][V];
#pragma unroll
        for (u32 t = 0; t < SET; ++t) {
#pragma unroll
            for (u32 v = 0; v < V; ++v) sums[t][v] = 0;
        }
        for (u32 r = chunk.from + threadIdx.y; r < chunk.end && base + threadIdx.x < packs; r += blockDim.y) {
            const u32 image = r / area, at = r - image * area;
            const int down_to = (int)(at / across * stride_h), across_to = (int)(at % across * stride_w);
            const T* from = x + (i64)image * height * width * channels + c;
            const typename Pack<T, V>::Raw above = Pack<T, V>::raw(dy + (i64)r * outputs + o);
            typename Pack<T, V>::Raw raw[SET];
            bool seen[SET];
#pragma unroll
            for (u32 t = 0; t < SET; ++t) {
                const int i = down_to + top[t], j = across_to + left[t];
                seen[t] = tap + t < taps && i >= 0 && i < (int)height && j >= 0 && j < (int)width;
                if (seen[t]) raw[t] = Pack<T, V>::raw(from + ((i64)i * width + j) * channels);
            }
            Pack<T, V> d;
            d.set(above);
#pragma unroll
            for (u32 t = 0; t < SET; ++t) {
                if (!seen[t]) continue;
                Pack<T, V> in;
                in.set(raw[t]);
#pragma unroll
                for (u32 v = 0; v < V; ++v) sums[t][v] += d.v[v] * in.v[v];
            }
        }
#pragma unroll
        for (u32 t = 0; t < SET; ++t) {
            if (tap + t >= taps) break;
            add_columns<V>(
                to + (i64)(tap + t) * outputs, base, outputs, exchange, [&](u32 v) { return sums[t][v]; });
        }
    }
}
template <typename T>
DEVICE void conv_depthwise_partials_last_of(
    float* partial, const T* x, const T* dy, u32 batch, u32 outputs, u32 each, GEOMETRY, float* exchange
) {
    const u32 size = Pack<T>::size;
    if (each == 1 && outputs % size == 0 && aligned(x) && aligned(dy)) {
        depthwise_partials_last_by<size>(partial, x, dy, batch, outputs, each, GEOMETRY_NAMES, exchange);
    } else {
        depthwise_partials_last_by<1>(partial, x, dy, batch, outputs, each, GEOMETRY_NAMES, exchange);
    }
}
KERNELS_ADDING(conv_depthwise_partials_last,
    (float* partial, const T* x, const T* dy, u32 batch, u32 outputs, u32 each, GEOMETRY),
    (partial, x, dy, batch, outputs, each, GEOMETRY_NAMES, exchange))

// The second adds up what the chunks left: dw += that, axis by axis.
KERNEL(conv_depthwise_finish)(float* dw, const float* partial, u32 chunks, u32 outputs, u32 taps) {
    __shared__ float exchange[1024];
    float sums[1];
    if (!channel_sums<1>(sums, partial, chunks, taps * outputs, exchange)) return;
    const u32 at = blockIdx.x * 32 + threadIdx.x;
    dw[(i64)(at % outputs) * taps + at / outputs] += sums[0];
}
