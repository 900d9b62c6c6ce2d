// Items that a selector picks.

// Which item each row is of those picked, in their order, and which row each item: the number of items for none. In one block.
KERNEL(filter_places)(u32* picked, u32* places, const float* selector, u32 items) {
    __shared__ u32 exchange[32];
    for (u32 i = threadIdx.x; i < items; i += blockDim.x) places[i] = items;
    const u32 count = block_gather(items, exchange, [=](u32 i) { return selector[i] != 0; }, [=](u32 i, u32 row) {
        picked[row] = i;
        places[i] = row;
    });
    for (u32 row = count + threadIdx.x; row < items; row += blockDim.x) picked[row] = items;
}

// Row by row the item that it is, of `items`; zeros where it is none. The same the other way round.
template <typename T>
DEVICE void filter_items_of(T* y, const T* x, const u32* from, u32 items, u32 rows, u32 len) {
    FOR_ROWS(row, rows) {
        const u32 item = from[row];
        FOR_POSITIONS(i, len) {
            T* to = y + (i64)row * len + i;
            if (item < items) {
                *to = x[(i64)item * len + i];
            } else {
                *to = 0.0f;
            }
        }
    }
}
KERNELS(filter_items,
    (T* y, const T* x, const u32* from, u32 items, u32 rows, u32 len),
    (y, x, from, items, rows, len))
