// Losses of the L-GM fork.

// CenterLoss: the squared distances of items to their class's center.
KERNEL(center_partials)(
    float* partial, const float* x, const float* centers, const float* labels, u32 elements, u32 width, LABELS
) {
    TALLYING;
    FOR_ELEMENTS(at, elements) {
        const u32 i = (u32)at / width, k = (u32)at % width;
        OWN_CLASS(i, k == 0);
        if (own < 0) continue;
        const float d = x[at] - centers[(i64)own * width + k];
        tally.loss += d * d;
    }
    PUT_TALLY(partial);
}

KERNEL(center_items)(
    float* dx, const float* x, const float* centers, const float* labels, const float* d_loss, float items,
    u32 elements, u32 width, LABELS
) {
    const float scale = d_loss[0] / items;
    FOR_ELEMENTS(at, elements) {
        const int own = CLASS(labels[(u32)at / width]);
        dx[at] = own < 0 ? 0.0f : scale * (x[at] - centers[(i64)own * width + (u32)at % width]);
    }
}

// A block for each class: its center's diff gets the sum of (center - x) over its items, over 1 + their number.
KERNEL(center_classes)(
    float* d, const float* x, const float* centers, const float* labels, u32 items, u32 width, LABELS
) {
    for (u32 c = blockIdx.x; c < channels; c += gridDim.x) {
        for (u32 k = threadIdx.x; k < width; k += blockDim.x) {
            const float center = centers[(i64)c * width + k];
            float sum = 0;
            u32 count = 0;
            for (u32 i = 0; i < items; ++i) {
                if (CLASS(labels[i]) != (int)c) continue;
                sum += center - x[(i64)i * width + k];
                ++count;
            }
            if (count > 0) d[(i64)c * width + k] += sum / (1.0f + (float)count);
        }
    }
}

// IoULoss. The distances of a position to the sides of a box, and of the true box: top, bottom, left, right.
struct Sides {
    float v[4];
};

DEVICE Sides sides_of(const float* x, u32 item, u32 at, u32 inner) {
    Sides s;
#pragma unroll
    for (u32 k = 0; k < 4; ++k) s.v[k] = x[((i64)item * 4 + k) * inner + at];
    return s;
}

// Heights, widths and areas of a predicted box, of the true one, and of what they share.
struct Overlap {
    float height, width, shared_height, shared_width, shared, together;
    bool apart;
};

DEVICE bool is_box(const Sides& truth) { return truth.v[0] + truth.v[1] != -1.0f; }

DEVICE Overlap overlap_of(const Sides& x, const Sides& g) {
    Overlap o;
    o.height = x.v[0] + x.v[1] + 1.0f, o.width = x.v[2] + x.v[3] + 1.0f;
    o.shared_height = fminf(x.v[0], g.v[0]) + fminf(x.v[1], g.v[1]) + 1.0f;
    o.shared_width = fminf(x.v[2], g.v[2]) + fminf(x.v[3], g.v[3]) + 1.0f;
    o.shared = o.shared_height * o.shared_width;
    o.together = o.height * o.width + (g.v[0] + g.v[1] + 1.0f) * (g.v[2] + g.v[3] + 1.0f) - o.shared;
    o.apart = o.shared_height <= 0 || o.shared <= 1e-4f;
    return o;
}

KERNEL(iou_partials)(float* partial, const float* x, const float* g, u32 positions, u32 inner) {
    TALLYING;
    FOR_ELEMENTS(i, positions) {
        const u32 item = (u32)i / inner, at = (u32)i % inner;
        const Sides own = sides_of(x, item, at, inner), truth = sides_of(g, item, at, inner);
        const Overlap o = overlap_of(own, truth);
        if (!is_box(truth)) continue;
        if (o.apart) {
#pragma unroll
            for (u32 k = 0; k < 4; ++k) tally.loss += fabsf(own.v[k] - truth.v[k]);
        } else {
            tally.loss += logf(o.together) - logf(o.shared);
        }
    }
    PUT_TALLY(partial);
}

// Of x, one of the two boxes; `g` is the other one.
KERNEL(iou_backward)(
    float* dx, const float* x, const float* g, const float* truth, const float* d_loss, float items, u32 positions,
    u32 inner
) {
    const float scale = d_loss[0] / items;
    FOR_ELEMENTS(i, positions) {
        const u32 item = (u32)i / inner, at = (u32)i % inner;
        const Sides own = sides_of(x, item, at, inner), other = sides_of(g, item, at, inner);
        const Overlap o = overlap_of(own, other);
        const bool counts = is_box(sides_of(truth, item, at, inner));
#pragma unroll
        for (u32 k = 0; k < 4; ++k) {
            const float off = own.v[k] - other.v[k];
            float d = 0;
            if (o.apart) {
                d = off > 0 ? 1.0f : off < 0 ? -1.0f : 0.0f;
            } else {
                // The sides across from the one that moves.
                const float across = k < 2 ? o.width : o.height, shared = k < 2 ? o.shared_width : o.shared_height;
                d = across / o.together - (off < 0 ? shared * (1.0f / o.together + 1.0f / o.shared) : 0.0f);
            }
            dx[((i64)item * 4 + k) * inner + at] = counts ? scale * d : 0.0f;
        }
    }
}

// Angular margins, as `lgm_layers::common::angular` tells.

struct Psi {
    float value, slope;
};

DEVICE Psi psi_of(u32 times, float c) {
    const float c2 = c * c, octant = 0.707106781f;
    float value = c, slope = 1;
    u32 k = 0;
    if (times == 2) {
        value = 2 * c2 - 1, slope = 4 * c;
        k = c < 0;
    } else if (times == 3) {
        value = c * (4 * c2 - 3), slope = 12 * c2 - 3;
        k = (c < 0.5f) + (c < -0.5f);
    } else if (times == 4) {
        value = 8 * c2 * (c2 - 1) + 1, slope = 16 * c * (2 * c2 - 1);
        k = (c < octant) + (c < 0) + (c < -octant);
    }
    const float sign = k % 2 == 0 ? 1.0f : -1.0f;
    return {sign * value - 2.0f * (float)k, sign * slope};
}

// A warp for each item: its own logit, and what is kept of it.
KERNEL(angular_own)(
    float* z, float* kept, const float* x, const float* w, const float* labels, const float* lambda, u32 times,
    u32 items, u32 width, LABELS
) {
    const u32 warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    for (u32 i = blockIdx.x * warps + threadIdx.x / WARP; i < items; i += gridDim.x * warps) {
        const int own = CLASS(labels[i]);
        float of_x = 0, of_w = 0;
        if (own >= 0) {
            for (u32 k = lane; k < width; k += WARP) {
                const float u = x[(i64)i * width + k], v = w[(i64)own * width + k];
                of_x += u * u;
                of_w += v * v;
            }
        }
        of_x = sqrtf(warp_reduce<Sum>(of_x));
        of_w = sqrtf(warp_reduce<Sum>(of_w));
        if (lane != 0 || own < 0) continue;
        float* logit = z + (i64)i * channels + own;
        float* keep = kept + 4 * (i64)i;
        const float product = of_x * of_w;
        if (product == 0) {
            keep[0] = 0, keep[1] = 1, keep[2] = 0, keep[3] = 0;
        } else {
            const float c = fminf(fmaxf(*logit / product, -1.0f), 1.0f), share = 1.0f / (1.0f + lambda[0]);
            const Psi psi = psi_of(times, c);
            const float rest = (psi.value - c * psi.slope) * share;
            keep[0] = (lambda[0] * *logit + product * psi.value) * share;
            keep[1] = (lambda[0] + psi.slope) * share;
            keep[2] = rest * of_w / of_x;
            keep[3] = rest * of_x / of_w;
        }
        *logit = keep[0];
    }
}

// The factors of x and of w in the gradients, two to an item; g of the own class becomes that of the product.
KERNEL(angular_factors)(float* g, float* factors, const float* labels, const float* kept, u32 items, LABELS) {
    FOR_ELEMENTS(i, items) {
        const int own = CLASS(labels[i]);
        factors[2 * i] = 0, factors[2 * i + 1] = 0;
        if (own < 0) continue;
        const float d = g[i * channels + own];
        factors[2 * i] = d * kept[4 * i + 2];
        factors[2 * i + 1] = d * kept[4 * i + 3];
        g[i * channels + own] = d * kept[4 * i + 1];
    }
}

KERNEL(angular_items)(float* dx, const float* factors, const float* x, u32 items, u32 width) {
    FOR_ROWS(i, items) {
        const float factor = factors[2 * (i64)i];
        FOR_POSITIONS(k, width) dx[(i64)i * width + k] += factor * x[(i64)i * width + k];
    }
}

// A warp for each class.
KERNEL(angular_classes)(
    float* dw, const float* factors, const float* w, const float* labels, u32 items, u32 width, LABELS
) {
    const u32 warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    for (u32 c = blockIdx.x * warps + threadIdx.x / WARP; c < channels; c += gridDim.x * warps) {
        float factor = 0;
        for (u32 i = lane; i < items; i += WARP) {
            if (CLASS(labels[i]) == (int)c) factor += factors[2 * (i64)i + 1];
        }
        factor = warp_reduce<Sum>(factor);
        for (u32 k = lane; k < width; k += WARP) dw[(i64)c * width + k] += factor * w[(i64)c * width + k];
    }
}
