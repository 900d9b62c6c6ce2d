// What a net does between layers: losses added up, gradients started, scores added up.

// cell += weight * (x[0] + ... + x[n - 1]), in one block and in a fixed order. Nearly always n is 1.
KERNEL(net_loss_add)(double* cell, const float* x, long long n, float weight) {
  __shared__ double part[256];
  double sum = 0;
  for (long long i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
  part[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    long long lanes = n < blockDim.x ? n : blockDim.x;
    double total = 0;
    for (long long i = 0; i < lanes; ++i) total += part[i];
    *cell += (double)weight * total;
  }
}

// d = weight, or d += weight where a consumer has already written its gradient.
KERNEL(net_seed)(float* d, long long n, float weight, int written) {
  const long long stride = (long long)gridDim.x * blockDim.x;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride)
    d[i] = written ? d[i] + weight : weight;
}

// sums += x, in double precision.
KERNEL(net_accumulate)(double* sums, const float* x, long long n) {
  const long long stride = (long long)gridDim.x * blockDim.x;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) sums[i] += x[i];
}
