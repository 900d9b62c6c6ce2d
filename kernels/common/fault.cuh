// What a kernel cannot take: values that name nothing.

#define NO_FAULT 0xffffffffu

// Records what a kernel could not take, unless something is recorded already. One thread of the grid calls it, having
// found the lowest index at fault; `kind` is not zero.
DEVICE void report_fault(u32* fault, u32 kind, u32 index, u32 detail) {
    if (fault[0] != 0) return;
    fault[1] = index;
    fault[2] = detail;
    fault[0] = kind;
}

// In one block: reports the first of `count` values, each `apart` after the one before, that is `bad`. `exchange` is as for
// block_reduce.
template <typename Bad>
DEVICE void report_first(const float* values, u32 count, u32 apart, u32* fault, u32* exchange, Bad bad) {
    u32 first = NO_FAULT;
    for (u64 i = threadIdx.x; i < count && first == NO_FAULT; i += blockDim.x) {
        if (bad(values[i * apart])) first = (u32)i;
    }
    first = block_reduce<Least>(first, exchange);
    if (threadIdx.x == 0 && first != NO_FAULT) {
        report_fault(fault, 1, first, __float_as_uint(values[(u64)first * apart]));
    }
}
