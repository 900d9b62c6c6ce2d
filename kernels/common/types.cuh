// What every kernel source begins with, this file first and then the others of its folder. They are put before each source
// as text: nothing is included, so that NVRTC needs no toolkit.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// Defines a kernel. Names are unique over all sources and begin with the family's. BOUNDS may be set to the threads of a
// block and the blocks that are to fit a multiprocessor, for the kernels that follow.
#define KERNEL(name) extern "C" __global__ void BOUNDS name
#define BOUNDS

#define DEVICE static __device__ __forceinline__

// Rounds to bf16, ties to even; NaN becomes 0x7fff.
DEVICE u32 bf16_bits(float v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    return bits;
#else
    const u32 u = __float_as_uint(v);
    return (u & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
#endif
}

// Two of them, `low` in the lower half.
DEVICE u32 bf16_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    u32 bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
#else
    return bf16_bits(low) | bf16_bits(high) << 16;
#endif
}

// A stored number: the upper half of single precision, rounded to nearest, ties to even. Arithmetic is that of
// float; there is no way from a float but assignment, so that no expression rounds on its way.
struct bf16 {
    unsigned short bits;

    __device__ __forceinline__ operator float() const { return __uint_as_float((u32)bits << 16); }
    __device__ __forceinline__ bf16& operator=(float v) {
        bits = (unsigned short)bf16_bits(v);
        return *this;
    }
};

// Two kernels from a template `name_of`: `name` for blobs of floats, and `name_bf16` of bf16. In `params`, T is the type of
// elements; `args` passes them on. Those that add up over a block get `exchange`, 2048 floats that the block shares.
#define KERNELS_WITH(shared, name, params, args)                                                                       \
    inline namespace name##_of_float {                                                                                 \
    typedef float T;                                                                                                   \
    KERNEL(name) params {                                                                                              \
        shared name##_of<T> args;                                                                                      \
    }                                                                                                                  \
    }                                                                                                                  \
    inline namespace name##_of_bf16 {                                                                                  \
    typedef bf16 T;                                                                                                    \
    KERNEL(name##_bf16) params {                                                                                       \
        shared name##_of<T> args;                                                                                      \
    }                                                                                                                  \
    }
#define KERNELS(name, params, args) KERNELS_WITH(, name, params, args)
#define KERNELS_ADDING(name, params, args) KERNELS_WITH(__shared__ float exchange[2048];, name, params, args)

// Strides over elements 0 to n, whatever the number of blocks.
#define FOR_ELEMENTS(i, n)                                                                                             \
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (i64)gridDim.x * blockDim.x)

// Strides over rows in y and over positions 0 to `width` of a row in x. Both are 32-bit, so that dividing them is cheap;
// what they make together is not.
#define FOR_ROWS(row, rows)                                                                                            \
    for (u32 row = blockIdx.y * blockDim.y + threadIdx.y; row < (rows); row += gridDim.y * blockDim.y)
#define FOR_POSITIONS(i, width)                                                                                        \
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < (width); i += gridDim.x * blockDim.x)

// The channel of position i of a row: rows of one channel follow one another, or, where `channels` is 0, a row holds one
// value of each channel.
#define CHANNEL(row, i, channels) ((channels) ? (row) % (channels) : (i))

#define WARP 32u
#define ALL_LANES 0xffffffffu
#define LARGEST_FLOAT 3.402823466e+38f
#define INFINITE __int_as_float(0x7f800000)
