// Helpers of the emulator's own tests: run one PTX instruction on many inputs and compare with a host
// function.
//
// Inputs are corner values of each type combined with random ones, 4099 of them, so that the last block and
// the last warp are partial. Results are compared bit by bit unless a tolerance in ulps is given. Every check
// counts; a test program fails when one fails or when none ran.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime.h>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;

static int n_checks, n_failed;

#define CUDA(x)                                                                                              \
    do {                                                                                                     \
        cudaError_t e_ = (x);                                                                                \
        if (e_ != cudaSuccess) {                                                                             \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e_));                       \
            exit(2);                                                                                         \
        }                                                                                                    \
    } while (0)

#define CHECK(x)                                                                                             \
    do {                                                                                                     \
        n_checks++;                                                                                          \
        if (!(x)) {                                                                                          \
            n_failed++;                                                                                      \
            printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #x);                                           \
        }                                                                                                    \
    } while (0)

inline int finish(const char *name)
{
    printf("%s: %d checks, %d failed\n", name, n_checks, n_failed);
    return n_failed || !n_checks ? 1 : 0;
}

template <class T> struct Device {
    T *p = nullptr;
    size_t n;
    explicit Device(size_t count) : n(count) { CUDA(cudaMalloc((void **)&p, n * sizeof(T))); }
    explicit Device(const std::vector<T> &v) : Device(v.size()) { put(v); }
    Device(const Device &) = delete;
    ~Device() { cudaFree(p); }
    void put(const std::vector<T> &v)
    {
        CUDA(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    }
    std::vector<T> get() const
    {
        std::vector<T> v(n);
        CUDA(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
        return v;
    }
};

template <class T> T as(u64 v)
{
    T t;
    memcpy(&t, &v, sizeof t);
    return t;
}
template <class T> u64 raw(T t)
{
    u64 v = 0;
    memcpy(&v, &t, sizeof t);
    return v;
}
inline bool is_nan(float x) { return x != x; }
inline bool is_nan(double x) { return x != x; }
template <class T> bool is_nan(T) { return false; }

template <class T> std::vector<T> inputs(unsigned seed, size_t n = 4099)
{
    std::vector<u64> corner = {0,
                               1,
                               2,
                               31,
                               32,
                               33,
                               0x7f,
                               0x80,
                               0xff,
                               0x7fff,
                               0x8000,
                               0xffff,
                               0x7fffffff,
                               0x80000000,
                               0xffffffff,
                               0x7fffffffffffffff,
                               0x8000000000000000,
                               ~0ull};
    if (std::is_same<T, float>::value)
        for (u64 v : {0x3f800000u, 0xbf800000u, 0x00000001u, 0x007fffffu, 0x00800000u, 0x7f7fffffu,
                      0x7f800000u, 0xff800000u, 0x7fc00000u, 0x3f7fffffu, 0x40490fdbu, 0x4f000000u,
                      0xcf000000u, 0x3f808000u, 0x3f818000u, 0x477fe000u, 0x477ff000u, 0x33000000u})
            corner.push_back(v);
    if (std::is_same<T, double>::value)
        for (double v : {1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 1e300, 1e-310, 3.14159, 4294967296.0,
                         (double)INFINITY, -(double)INFINITY})
            corner.push_back(raw(v));
    std::mt19937_64 g(seed);
    std::vector<T> v(n);
    for (size_t i = 0; i < n; i++) {
        if (i % 3 == 0) v[i] = as<T>(corner[g() % corner.size()]);
        else if (std::is_floating_point<T>::value)
            v[i] = (T)std::ldexp((double)(s64)g() / 9e18, (int)(g() % 24) - 12);
        else v[i] = as<T>(g());
    }
    return v;
}

template <class R, class F, class A> __global__ void run1(F f, const A *a, R *r, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) r[i] = f(a[i]);
}
template <class R, class F, class A, class B> __global__ void run2(F f, const A *a, const B *b, R *r, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) r[i] = f(a[i], b[i]);
}
template <class R, class F, class A, class B, class C>
__global__ void run3(F f, const A *a, const B *b, const C *c, R *r, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) r[i] = f(a[i], b[i], c[i]);
}

// Distance in representable values; huge when only one is NaN.
template <class T> double ulps(T a, T b)
{
    if (is_nan(a) || is_nan(b)) return is_nan(a) && is_nan(b) ? 0 : 1e30;
    if (a == b) return 0;
    if constexpr (std::is_floating_point<T>::value) {
        if (std::isinf(a) || std::isinf(b)) return 1e30;
        double unit = std::nextafter(std::fabs((double)b), INFINITY) - std::fabs((double)b);
        if (sizeof(T) == 4)
            unit = (double)std::nextafter(std::fabs((float)b), INFINITY) - std::fabs((double)b);
        return std::fabs((double)a - (double)b) / unit;
    }
    return 1e30;
}

template <class R>
void compare(const char *name, const std::vector<R> &got, const std::vector<R> &want, double tolerance)
{
    n_checks++;
    int bad = 0;
    for (size_t i = 0; i < got.size(); i++) {
        bool same = tolerance > 0 ? ulps(got[i], want[i]) <= tolerance
                                  : raw(got[i]) == raw(want[i]) || (is_nan(got[i]) && is_nan(want[i]));
        if (same) continue;
        if (bad++ < 3)
            printf("%s: input %zu gives 0x%llx, want 0x%llx\n", name, i, (unsigned long long)raw(got[i]),
                   (unsigned long long)raw(want[i]));
    }
    n_failed += bad != 0;
    if (bad) printf("%s: %d of %zu differ\n", name, bad, got.size());
}

template <class R, class A, class F, class H> void check1(const char *name, F f, H host, double tolerance = 0)
{
    auto a = inputs<A>(1);
    int n = (int)a.size();
    Device<A> da(a);
    Device<R> dr(n);
    run1<R><<<(n + 127) / 128, 128>>>(f, da.p, dr.p, n);
    std::vector<R> want(n);
    for (int i = 0; i < n; i++) want[i] = host(a[i]);
    compare(name, dr.get(), want, tolerance);
}
template <class R, class A, class B, class F, class H>
void check2(const char *name, F f, H host, double tolerance = 0)
{
    auto a = inputs<A>(1);
    auto b = inputs<B>(2);
    int n = (int)a.size();
    Device<A> da(a);
    Device<B> db(b);
    Device<R> dr(n);
    run2<R><<<(n + 127) / 128, 128>>>(f, da.p, db.p, dr.p, n);
    std::vector<R> want(n);
    for (int i = 0; i < n; i++) want[i] = host(a[i], b[i]);
    compare(name, dr.get(), want, tolerance);
}
template <class R, class A, class B, class C, class F, class H>
void check3(const char *name, F f, H host, double tolerance = 0)
{
    auto a = inputs<A>(1);
    auto b = inputs<B>(2);
    auto c = inputs<C>(3);
    int n = (int)a.size();
    Device<A> da(a);
    Device<B> db(b);
    Device<C> dc(c);
    Device<R> dr(n);
    run3<R><<<(n + 127) / 128, 128>>>(f, da.p, db.p, dc.p, dr.p, n);
    std::vector<R> want(n);
    for (int i = 0; i < n; i++) want[i] = host(a[i], b[i], c[i]);
    compare(name, dr.get(), want, tolerance);
}

// One instruction as a device function: PTX text, result type and constraint, operand types and constraints.
#define PTX1(text, R, rc, A, ac)                                                                             \
    [] __device__(A a) {                                                                                     \
        R d;                                                                                                 \
        asm volatile(text : "=" rc(d) : ac(a));                                                              \
        return d;                                                                                            \
    }
#define PTX2(text, R, rc, A, ac, B, bc)                                                                      \
    [] __device__(A a, B b) {                                                                                \
        R d;                                                                                                 \
        asm volatile(text : "=" rc(d) : ac(a), bc(b));                                                       \
        return d;                                                                                            \
    }
#define PTX3(text, R, rc, A, ac, B, bc, C, cc)                                                               \
    [] __device__(A a, B b, C c) {                                                                           \
        R d;                                                                                                 \
        asm volatile(text : "=" rc(d) : ac(a), bc(b), cc(c));                                                \
        return d;                                                                                            \
    }
