// What losses and scores share. Put before their sources as text.

// Which labels count: all classes from 0, or with `ranged` those from `start` on alone, and never `ignored` if `ignores`.
const int NOT_COUNTED = -1, NOT_A_CLASS = -2;

DEVICE int class_of(float label, u32 classes, u32 ignores, int ignored, u32 ranged, int start) {
    const float whole = truncf(label);
    if (ignores && whole == (float)ignored) return NOT_COUNTED;
    const float from = whole - (ranged ? (float)start : 0.0f);
    if (from >= 0 && from < (float)classes) return (int)from;
    return ranged ? NOT_COUNTED : NOT_A_CLASS;
}

#define LABELS u32 channels, u32 ignores, int ignored, u32 ranged, int start
#define CLASS(label) class_of(label, channels, ignores, ignored, ranged, start)

// What a loss adds up: its terms, how many positions count, and the first position whose label is no class.
struct Tally {
    float loss, counts;
    u32 fault;
};

// What a kernel that tallies begins with, and ends with: the sums of its block, three words to a block.
#define TALLYING                                                                                                       \
    __shared__ float exchange[32];                                                                                     \
    __shared__ u32 bits[32];                                                                                           \
    Tally tally = {0, 0, NO_FAULT}
#define PUT_TALLY(partial) put_tally(partial, tally, exchange, bits)

DEVICE void put_tally(float* partial, Tally tally, float* exchange, u32* bits) {
    const float loss = block_reduce<Sum>(tally.loss, exchange);
    const float counts = block_reduce<Sum>(tally.counts, exchange);
    const u32 fault = block_reduce<Least>(tally.fault, bits);
    if (threadIdx.x == 0) {
        partial[3 * (i64)blockIdx.x] = loss;
        partial[3 * (i64)blockIdx.x + 1] = counts;
        partial[3 * (i64)blockIdx.x + 2] = __uint_as_float(fault);
    }
}

// The class of position i, which is `fault` where it is none: so that each is found once, `first` says whether to look.
#define OWN_CLASS(i, first)                                                                                            \
    const int own = CLASS(labels[i]);                                                                                  \
    if ((first) && own == NOT_A_CLASS) tally.fault = Least::of(tally.fault, (u32)(i))
