// What a net does between layers: losses added up, gradients started, scores added up.

// cell += weight * (x[0] + ... + x[n - 1]), in one block. Nearly always n is 1.
KERNEL(net_loss_add)(double* cell, const float* x, i64 n, float weight) {
    __shared__ double exchange[32];
    double sum = 0;
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
    sum = block_reduce<Sum>(sum, exchange);
    if (threadIdx.x == 0) *cell += (double)weight * sum;
}

// d = weight, where no consumer writes a gradient.
template <typename T> DEVICE void net_seed_of(T* d, i64 n, float weight) {
    FOR_ELEMENTS(i, n) d[i] = weight;
}
KERNELS(net_seed, (T* d, i64 n, float weight), (d, n, weight))

// sums += x, in double precision.
KERNEL(net_accumulate)(double* sums, const float* x, i64 n) {
    FOR_ELEMENTS(i, n) sums[i] += x[i];
}
