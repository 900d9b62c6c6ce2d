// CUDA's built-in names for a C++ compiler, by the threads of threads.h.

struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict
#define __shared__ __attribute__((section("lgm_sim_shared"))) static
#define __launch_bounds__(...)
#define threadIdx (sim::current->idx)
#define blockIdx (sim::block_index)
#define blockDim (sim::block_extent)
#define gridDim (sim::grid_extent)
#define warpSize 32

static inline void __syncthreads(int line = __builtin_LINE()) { sim::wait(sim::AtBarrier, line); }
static inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
    sim::exchange(mask, 0, sim::lane(), line);
}

template <typename T> T __shfl_sync(unsigned mask, T v, int from, int width = 32, int line = __builtin_LINE()) {
    const unsigned lane = sim::lane(), first = lane / width * width;
    return sim::unpack<T>(sim::exchange(mask, sim::pack(v), first + (unsigned)from % width, line));
}
template <typename T> T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, int line = __builtin_LINE()) {
    const unsigned lane = sim::lane(), from = lane ^ bits;
    return sim::unpack<T>(sim::exchange(mask, sim::pack(v), from / width <= lane / width ? from : lane, line));
}
template <typename T> T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, int line = __builtin_LINE()) {
    const unsigned lane = sim::lane(), from = lane + by;
    return sim::unpack<T>(sim::exchange(mask, sim::pack(v), from / width == lane / width ? from : lane, line));
}
template <typename T> T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, int line = __builtin_LINE()) {
    const unsigned lane = sim::lane();
    return sim::unpack<T>(sim::exchange(mask, sim::pack(v), lane % width >= by ? lane - by : lane, line));
}
static inline unsigned __ballot_sync(unsigned mask, int vote, int line = __builtin_LINE()) {
    return sim::votes(mask, vote != 0, line);
}
static inline int __any_sync(unsigned mask, int vote, int line = __builtin_LINE()) {
    return sim::votes(mask, vote != 0, line) != 0;
}
static inline int __all_sync(unsigned mask, int vote, int line = __builtin_LINE()) {
    return sim::votes(mask, vote == 0, line) == 0;
}

// Whole numbers only: the order of atomic additions of floating-point numbers would show in the result.
#define LGM_SIM_ATOMIC(name, next)                                                                                     \
    template <typename T> T name(T* at, std::common_type_t<T> v) {                                                     \
        static_assert(std::is_integral<T>::value, "atomic operations on whole numbers only");                          \
        const T old = *at;                                                                                             \
        *at = (next);                                                                                                  \
        return old;                                                                                                    \
    }
LGM_SIM_ATOMIC(atomicAdd, old + v)
LGM_SIM_ATOMIC(atomicMin, v < old ? v : old)
LGM_SIM_ATOMIC(atomicMax, v > old ? v : old)
LGM_SIM_ATOMIC(atomicExch, v)
LGM_SIM_ATOMIC(atomicOr, old | v)
template <typename T> T atomicCAS(T* at, std::common_type_t<T> expected, std::common_type_t<T> v) {
    const T old = *at;
    if (old == expected) *at = v;
    return old;
}
static inline void __threadfence() {}
static inline void __threadfence_block() {}

#define rsqrtf lgm_sim_rsqrtf
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
#define __expf lgm_sim_expf
static inline float __expf(float x) { return expf(x); }
#define __logf lgm_sim_logf
static inline float __logf(float x) { return logf(x); }
#define __powf lgm_sim_powf
static inline float __powf(float x, float y) { return powf(x, y); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline unsigned __float_as_uint(float x) { return sim::unpack<unsigned>(sim::pack(x)); }
static inline int __float_as_int(float x) { return sim::unpack<int>(sim::pack(x)); }
static inline float __uint_as_float(unsigned x) { return sim::unpack<float>(sim::pack(x)); }
static inline float __int_as_float(int x) { return sim::unpack<float>(sim::pack(x)); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
template <typename T> static inline T __ldg(const T* at) { return *at; }
template <typename T> static inline T min(T a, T b) { return b < a ? b : a; }
template <typename T> static inline T max(T a, T b) { return a < b ? b : a; }
