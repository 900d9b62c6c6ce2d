// The six update rules over all parameters in one launch, and the gradients' common norm.
//
// Parameters, gradients and histories are blocks of memory laid out alike, cut into chunks that each lie within one
// parameter and begin at a multiple of four numbers. A block of threads does a chunk.

struct Chunks {
    const i64* first;   // its first number
    const int* count;   // its numbers
    const float* lr;    // the parameter's factor on the learning rate
    const float* decay; // the parameter's weight decay
};

// What a rule makes of a gradient: the update, to be subtracted from the weight. `eta` is the rate, `h` and `s` the
// histories, `a` the momentum (the first decay), `b` the second decay, `delta` the guard against zero.
struct Sgd {
    static const bool two = false;
    DEVICE float of(float g, float eta, float& h, float&, float a, float, float) {
        h = a * h + eta * g;
        return h;
    }
};
struct Nesterov {
    static const bool two = false;
    DEVICE float of(float g, float eta, float& h, float&, float a, float, float) {
        const float before = h;
        h = a * h + eta * g;
        return (1.f + a) * h - a * before;
    }
};
struct AdaGrad {
    static const bool two = false;
    DEVICE float of(float g, float eta, float& h, float&, float, float, float delta) {
        h += g * g;
        return eta * g / (sqrtf(h) + delta);
    }
};
struct RmsProp {
    static const bool two = false;
    DEVICE float of(float g, float eta, float& h, float&, float, float b, float delta) {
        h = b * h + (1.f - b) * g * g;
        return eta * g / (sqrtf(h) + delta);
    }
};
struct AdaDelta {
    static const bool two = true;
    DEVICE float of(float g, float eta, float& h, float& s, float a, float, float delta) {
        h = a * h + (1.f - a) * g * g;
        const float v = g * sqrtf((s + delta) / (h + delta));
        s = a * s + (1.f - a) * v * v;
        return eta * v;
    }
};
struct Adam {
    static const bool two = true;
    DEVICE float of(float g, float eta, float& h, float& s, float a, float b, float delta) {
        h = a * h + (1.f - a) * g;
        s = b * s + (1.f - b) * g * g;
        return eta * h / (sqrtf(s) + delta);
    }
};

template <typename Rule>
DEVICE void one(float& w, float& g, float& h, float& s, float scale, float eta, float decay, int l1, float a, float b,
                float delta) {
    const float pull = l1 ? (w > 0.f ? 1.f : w < 0.f ? -1.f : 0.f) : w;
    g = Rule::of(scale * g + decay * pull, eta, h, s, a, b, delta);
    w -= g;
}

struct Keeping {
    const u32* guard;
    float* kept;
    const int* keep;
};

// `numbers`: the learning rate, as a factor on it Adam's correction of its averages' start, the host's own, and the
// momentum. `clip`: the factor of
// clipping, where there is any. Once `guard[0]` tells of a fault nothing is changed any more. A chunk of statistics, which
// `keep` gives a place in `kept`, is copied there instead: with the weights, so that both are of one iteration.
template <typename Rule>
DEVICE void update(float* w, float* g, float* h, float* s, Chunks chunks, const float* numbers, const float* clip,
                   float passes, int l1, float b, float delta, Keeping keeping) {
    if (keeping.guard[0] != 0) return;
    const i64 first = chunks.first[blockIdx.x];
    const int count = chunks.count[blockIdx.x];
    const int keep = keeping.keep[blockIdx.x];
    if (keep >= 0) {
        for (int i = threadIdx.x; i < count; i += blockDim.x) keeping.kept[keep + i] = w[first + i];
        return;
    }
    const float eta = numbers[0] * chunks.lr[blockIdx.x] * numbers[1], decay = chunks.decay[blockIdx.x];
    const float scale = (clip ? clip[0] : 1.f) / passes, a = numbers[3];
    w += first, g += first, h += first;
    if (Rule::two) s += first;
    float4 *w4 = (float4*)w, *g4 = (float4*)g, *h4 = (float4*)h, *s4 = (float4*)s;
    for (int i = threadIdx.x; i < count / 4; i += blockDim.x) {
        float4 wv = w4[i], gv = g4[i], hv = h4[i], sv = Rule::two ? s4[i] : make_float4(0.f, 0.f, 0.f, 0.f);
        one<Rule>(wv.x, gv.x, hv.x, sv.x, scale, eta, decay, l1, a, b, delta);
        one<Rule>(wv.y, gv.y, hv.y, sv.y, scale, eta, decay, l1, a, b, delta);
        one<Rule>(wv.z, gv.z, hv.z, sv.z, scale, eta, decay, l1, a, b, delta);
        one<Rule>(wv.w, gv.w, hv.w, sv.w, scale, eta, decay, l1, a, b, delta);
        w4[i] = wv, g4[i] = gv, h4[i] = hv;
        if (Rule::two) s4[i] = sv;
    }
    for (int i = count / 4 * 4 + threadIdx.x; i < count; i += blockDim.x) {
        float none = 0.f;
        one<Rule>(w[i], g[i], h[i], Rule::two ? s[i] : none, scale, eta, decay, l1, a, b, delta);
    }
}

#define UPDATE(Rule)                                                                                                   \
    (float* w, float* g, float* h, float* s, const i64* first, const int* count, const float* lr, const float* decay, \
     const float* numbers, const float* clip, float passes, int l1, float b, float delta,                              \
     const u32* guard, float* kept, const int* keep) {                                                                 \
        const Chunks chunks = {first, count, lr, decay};                                                               \
        const Keeping keeping = {guard, kept, keep};                                                                   \
        update<Rule>(w, g, h, s, chunks, numbers, clip, passes, l1, b, delta, keeping);                                \
    }

KERNEL(solver_sgd) UPDATE(Sgd)
KERNEL(solver_nesterov) UPDATE(Nesterov)
KERNEL(solver_adagrad) UPDATE(AdaGrad)
KERNEL(solver_rmsprop) UPDATE(RmsProp)
KERNEL(solver_adadelta) UPDATE(AdaDelta)
KERNEL(solver_adam) UPDATE(Adam)

// The sum of squares of each chunk of the gradients, one block for each.
KERNEL(solver_sumsq)(double* parts, const float* g, const i64* first, const int* count) {
    __shared__ double exchange[32];
    g += first[blockIdx.x];
    double sum = 0;
    for (int i = threadIdx.x; i < count[blockIdx.x]; i += blockDim.x) sum += (double)g[i] * g[i];
    sum = block_reduce<Sum>(sum, exchange);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// Each parameter's factor on the learning rate from the sums of squares of its chunks' weights and gradients, one block for
// each: trust·‖w‖ / (‖g‖ + decay·‖w‖), times 1 - momentum if `damped`; with `clips` that over the rate, at most 1. A factor
// `lr` of zero stays.
KERNEL(solver_local_rates)(float* factors, const double* weights, const double* gradients, const int* begin,
                           const int* chunks, const float* lr, const float* numbers, const float* clip, float passes,
                           float trust, float decay, int damped, int clips) {
    __shared__ double exchange[32];
    const int first = begin[blockIdx.x], n = chunks[blockIdx.x];
    double w = 0, g = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) w += weights[first + i], g += gradients[first + i];
    w = block_reduce<Sum>(w, exchange);
    g = block_reduce<Sum>(g, exchange);
    const float size = (float)sqrt(w), slope = (float)sqrt(g) * (clip ? clip[0] : 1.f) / passes;
    float local = size > 0.f && slope > 0.f ? trust * size / (slope + decay * size) : 1.f;
    if (damped && size > 0.f && slope > 0.f) local *= 1.f - numbers[3];
    if (clips) local = numbers[0] > 0.f ? fminf(local / numbers[0], 1.f) : 1.f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) factors[first + i] = lr[first + i] > 0.f ? local : lr[first + i];
}

#undef BOUNDS
#define BOUNDS __launch_bounds__(1024)

// In one block: clip[0] the factor that brings the norm down to `limit`, clip[1] the norm.
KERNEL(solver_clip)(float* clip, const double* parts, int n, float limit) {
    __shared__ double exchange[32];
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += parts[i];
    sum = block_reduce<Sum>(sum, exchange);
    if (threadIdx.x == 0) {
        const float norm = (float)sqrt(sum);
        clip[0] = norm <= limit ? 1.f : limit / norm;
        clip[1] = norm;
    }
}

#undef BOUNDS
#define BOUNDS

// Keeps an iteration's loss, the mean over its passes, at the place of the ring that `slot` tells; in one warp. `faults`
// has four words for each layer, the first not zero where one was reported. guard[0] becomes 1 with the first fault, with
// `finite` also with a loss that is not finite, and guard[1] is the number of whole iterations since slot 0.
KERNEL(solver_keep_loss)(double* ring, const u32* slot, const double* loss, float passes, u32* guard, const u32* faults,
                         int layers, int finite) {
    int fault = 0;
    for (int i = threadIdx.x; i < layers; i += WARP) fault |= faults[4 * i] != 0;
    fault = warp_reduce<Largest>(fault);
    if (threadIdx.x != 0 || guard[0] != 0) return;
    double mean = *loss / passes;
    if (finite && !(mean - mean == 0)) fault = 1;
    guard[0] = fault;
    guard[1] = fault ? *slot : *slot + 1;
    ring[*slot] = mean;
}
