// N numbers, read from and written to elements that lie together, up to 16 bytes at a time. Their address is a multiple
// of what they take, or of 16 bytes if that is more.
template <typename T, u32 N = 16 / sizeof(T)> struct Pack {
    static const u32 size = N;
    static const u32 bytes = N * sizeof(T);
    float v[N];

    struct alignas(bytes < 16 ? bytes : 16) Raw {
        u32 w[bytes < 4 ? 1 : bytes / 4];
    };

    // Numbers as they are stored, so that several packs can be on their way before the first is looked at.
    static __device__ __forceinline__ Raw raw(const T* p) { return *(const Raw*)p; }

    __device__ __forceinline__ void set(const Raw& raw) {
#pragma unroll
        for (u32 k = 0; k < bytes / 4; ++k) {
            if constexpr (sizeof(T) == 4) {
                v[k] = __uint_as_float(raw.w[k]);
            } else {
                v[2 * k] = __uint_as_float(raw.w[k] << 16);
                v[2 * k + 1] = __uint_as_float(raw.w[k] & 0xffff0000u);
            }
        }
    }

    __device__ __forceinline__ void read(const T* p) { set(raw(p)); }

    __device__ __forceinline__ void write(T* p) const {
        Raw raw;
#pragma unroll
        for (u32 k = 0; k < bytes / 4; ++k) {
            if constexpr (sizeof(T) == 4) {
                raw.w[k] = __float_as_uint(v[k]);
            } else {
                raw.w[k] = bf16_pair(v[2 * k], v[2 * k + 1]);
            }
        }
        *(Raw*)p = raw;
    }
};

// One element, whatever its address.
template <typename T> struct Pack<T, 1> {
    static const u32 size = 1;
    float v[1];
    typedef T Raw;

    static __device__ __forceinline__ Raw raw(const T* p) { return *p; }
    __device__ __forceinline__ void set(const Raw& raw) { v[0] = raw; }
    __device__ __forceinline__ void read(const T* p) { v[0] = *p; }
    __device__ __forceinline__ void write(T* p) const { *p = v[0]; }
};

// y[i] = f(x[i]) and y[i] = f(a[i], b[i]); y may be an input. 16 bytes of y at a time where addresses allow.

template <typename T, typename F> DEVICE void map1(T* y, const T* x, i64 n, F f) {
    const u32 size = Pack<T>::size;
    const i64 packs = aligned(y) && aligned(x) ? n / size : 0;
    FOR_ELEMENTS(q, packs) {
        Pack<T> v;
        v.read(x + size * q);
#pragma unroll
        for (u32 k = 0; k < size; ++k) v.v[k] = f(v.v[k]);
        v.write(y + size * q);
    }
    FOR_ELEMENTS(i, n - size * packs) y[size * packs + i] = f(x[size * packs + i]);
}

// B may be another type than T: choices beside values.
template <typename T, typename B, typename F> DEVICE void map2(T* y, const T* a, const B* b, i64 n, F f) {
    const u32 size = Pack<T>::size;
    const i64 packs = aligned(y) && aligned(a) && aligned(b) ? n / size : 0;
    FOR_ELEMENTS(q, packs) {
        Pack<T> v;
        Pack<B, size> w;
        v.read(a + size * q);
        w.read(b + size * q);
#pragma unroll
        for (u32 k = 0; k < size; ++k) v.v[k] = f(v.v[k], w.v[k]);
        v.write(y + size * q);
    }
    FOR_ELEMENTS(i, n - size * packs) y[size * packs + i] = f(a[size * packs + i], b[size * packs + i]);
}
