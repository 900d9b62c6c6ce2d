// ClassDistance, and what it has in common with LGMLoss: labels checked, variances inverted.

KERNEL(lgm_check_labels)(const float* labels, u32 items, u32 classes, u32* fault) {
    __shared__ u32 exchange[32];
    report_strangers(labels, items, classes, fault, exchange);
}

// v = 1 / s, and half of ln s where it is wanted.
KERNEL(lgm_invert)(float* v, float* half_log, const float* s, float floor, i64 n) {
    FOR_ELEMENTS(i, n) {
        v[i] = inverse_of(s[i], floor);
        if (half_log) half_log[i] = 0.5f * logf(fmaxf(s[i], floor));
    }
}

// ds += half of 1/s^2 times what the parts give together, where s is not clipped.
KERNEL(lgm_distance_variances)(float* ds, const float* partial, u32 parts, const float* s, float floor, i64 n) {
    FOR_ELEMENTS(i, n) {
        const float v = inverse_of(s[i], floor);
        ds[i] += (s[i] > floor ? 0.5f * v * v : 0.0f) * sum_of_parts(partial, parts, n, i);
    }
}

// z = factor / s * what the parts give together, which goes to `sums` if that is wanted; s is 1 where null. A label's own
// has the margins [mul, add] where labels are given.
KERNEL(lgm_logits)(
    float* z, float* sums, const float* partial, u32 parts, const float* s, float factor, const float* labels,
    const float* margins, u32 items, u32 classes
) {
    FOR_ROWS(i, items) {
        const u32 own = labels ? own_class(labels[i], classes) : NO_CLASS;
        FOR_POSITIONS(j, classes) {
            const i64 at = (i64)i * classes + j;
            const float sum = sum_of_parts(partial, parts, (i64)items * classes, at);
            if (sums) sums[at] = sum;
            const float logit = sum * (s ? factor * inverse_of(s[j], 0.0f) : factor);
            z[at] = j == own ? logit * (1.0f + margins[0]) - margins[1] : logit;
        }
    }
}

// What reaches the logits before the margin: all of it where `margins` is null, as without labels.
DEVICE float before_margin(float dz, bool own, const float* margins) {
    return own && margins ? dz * (1.0f + margins[0]) : dz;
}

// c = that over s; less `pull` at the label's own class.
KERNEL(lgm_coefficients)(
    float* c, const float* dz, const float* s, const float* labels, const float* margins, float pull, u32 items,
    u32 classes
) {
    FOR_ROWS(i, items) {
        const u32 own = labels ? own_class(labels[i], classes) : NO_CLASS;
        FOR_POSITIONS(j, classes) {
            const i64 at = (i64)i * classes + j;
            const float d = before_margin(dz[at], j == own, margins);
            const float scaled = s ? d * inverse_of(s[j], 0.0f) : d;
            c[at] = j == own ? scaled - pull : scaled;
        }
    }
}

KERNEL(lgm_distance_class_sums)(
    float* out, const float* dz, const float* sums, const float* labels, const float* margins, u32 items, u32 classes
) {
    __shared__ float exchange[256];
    class_sums(out, items, classes, exchange, [=](u32 i, u32 j, i64 at) {
        const bool own = labels && own_class(labels[i], classes) == j;
        return before_margin(dz[at], own, margins) * sums[at];
    });
}

// The pull between items and their own centers: dx += coef (x - w), and dw += coef (w - x) over the items of each class.

KERNEL(lgm_pull_items)(
    float* dx, const float* x, const float* w, const float* labels, float coef, u32 skip, SIZES
) {
    FOR_ROWS(i, items) {
        const u32 own = own_class(labels[i], classes);
        if (own == NO_CLASS) continue;
        FOR_POSITIONS(k, width) {
            const i64 at = (i64)i * width + k;
            const float v = x[at];
            if (!(skip && v == 0)) dx[at] += coef * (v - w[(i64)own * width + k]);
        }
    }
}

KERNEL(lgm_pull_centers)(
    float* dw, const float* x, const float* w, const float* labels, float coef, u32 skip, SIZES
) {
    FOR_ROWS(j, classes) {
        FOR_POSITIONS(k, width) {
            const i64 at = (i64)j * width + k;
            const float center = w[at];
            float sum = 0;
            for (u32 i = 0; i < items; ++i) {
                if (own_class(labels[i], classes) != j) continue;
                const float v = x[(i64)i * width + k];
                sum += skip && v == 0 ? 0.0f : coef * (center - v);
            }
            dw[at] += sum;
        }
    }
}
