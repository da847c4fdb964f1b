// Warp collectives, divergence, control flow, calls, barriers, atomics, local memory, printf: what depends on
// the order of lanes and warps. Each kernel is compared with the same computation on the host.
#include "check.h"
#include <algorithm>

static std::vector<u32> random_words(size_t n, unsigned seed = 5)
{
    std::mt19937 g(seed);
    std::vector<u32> v(n);
    for (auto &x : v) x = g();
    return v;
}

// out[lane + 32*k]: one collective per k
__global__ void collectives(const u32 *in, u32 *out)
{
    u32 l = threadIdx.x, v = in[l], k = 0;
    auto put = [&](u32 x) { out[l + 32 * k++] = x; };
    put(__shfl_xor_sync(~0u, v, 5));
    put(__shfl_down_sync(~0u, v, 3));
    put(__shfl_up_sync(~0u, v, 2));
    put(__shfl_sync(~0u, v, 7));
    put(__shfl_xor_sync(~0u, v, 1, 8));
    put(__shfl_down_sync(~0u, v, 3, 16));
    put(__shfl_sync(~0u, v, l * 3, 4));
    put(__ballot_sync(~0u, v & 1));
    put(__any_sync(~0u, v == in[3]) | __all_sync(~0u, v != in[3]) << 1);
    put(__match_any_sync(~0u, v & 3));
    int same;
    put(__match_all_sync(~0u, v & 0, &same));
    put(same);
    put(__reduce_add_sync(~0u, v));
    put(__reduce_min_sync(~0u, (int)v));
    put(__reduce_max_sync(~0u, v));
    put(__reduce_xor_sync(~0u, v));
    u32 r; // halves of the warp in different branches, each with its own member mask
    if (l & 1) r = __shfl_xor_sync(0xaaaaaaaau, v, 2);
    else r = __shfl_xor_sync(0x55555555u, v, 4) + 1;
    put(r);
    r = 0;
    if (l < 20) r = __activemask() + __reduce_or_sync(0xfffffu, v & 0xff);
    put(r);
    r = l; // bar.warp.sync met at two places
    if (l < 16) __syncwarp();
    else {
        r += 100;
        __syncwarp();
    }
    put(__shfl_sync(~0u, r, 31 - l));
}

static void test_collectives()
{
    auto in = random_words(32);
    Device<u32> di(in), out(32 * 19);
    collectives<<<1, 32>>>(di.p, out.p);
    auto o = out.get();
    u32 ballot = 0, add = 0, max = 0, x = 0, or20 = 0;
    int min = INT32_MAX;
    bool all = true;
    for (int l = 0; l < 32; l++) {
        ballot |= (in[l] & 1) << l;
        add += in[l];
        min = std::min(min, (int)in[l]);
        max = std::max(max, in[l]);
        x ^= in[l];
        all &= in[l] != in[3];
        if (l < 20) or20 |= in[l] & 0xff;
    }
    for (int l = 0; l < 32; l++) {
        u32 same = 0;
        for (int k = 0; k < 32; k++) same |= (u32)((in[k] & 3) == (in[l] & 3)) << k;
        u32 want[] = {in[l ^ 5],
                      l + 3 < 32 ? in[l + 3] : in[l],
                      l >= 2 ? in[l - 2] : in[l],
                      in[7],
                      in[l ^ 1],
                      (l & 15) + 3 < 16 ? in[l + 3] : in[l],
                      in[(l & ~3) | (l * 3 & 3)],
                      ballot,
                      1u | (u32)all << 1,
                      same,
                      ~0u,
                      1,
                      add,
                      (u32)min,
                      max,
                      x,
                      l & 1 ? in[l ^ 2] : in[l ^ 4] + 1,
                      l < 20 ? 0xfffffu + or20 : 0,
                      31 - l < 16 ? 31 - l : 131 - l};
        for (size_t k = 0; k < sizeof want / sizeof *want; k++) {
            CHECK(o[l + 32 * k] == want[k]);
            if (o[l + 32 * k] != want[k])
                printf("  collective %zu lane %d: %x, want %x\n", k, l, o[l + 32 * k], want[k]);
        }
    }
}

__device__ __noinline__ u32 fibonacci(u32 n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
struct Pair {
    u32 a;
    u64 b;
};
__device__ __noinline__ Pair swap_add(Pair p, u32 k) { return {(u32)p.b + k, p.a + (u64)k}; }

__global__ void control(const u32 *in, u32 *out, int n)
{
    __shared__ u32 steps[128];
    u32 t = threadIdx.x, v = in[t] % 1000 + 1, c = 0;
    while (v != 1 && c < 1000) { // Collatz: every lane leaves at its own time
        v = v & 1 ? 3 * v + 1 : v >> 1;
        c++;
    }
    steps[t] = c;
    __syncthreads();
    u32 s = 0;
    for (u32 i = 0; i <= t; i++) s += steps[i];
    out[t] = s;
    out[n + t] = fibonacci(t % 12);
    Pair p = swap_add({t, (u64)t << 33 | 7}, in[t]);
    out[2 * n + t] = p.a ^ (u32)(p.b >> 3);
    u32 r;
    switch (in[t] % 9) {
    case 0: r = v * 3; break;
    case 1: r = t ^ 77; break;
    case 2: r = t + 9; break;
    case 3: r = t >> 3; break;
    case 4: r = ~t; break;
    case 5: r = t * t; break;
    case 6: r = t - 1000; break;
    case 7: r = t | 0xf0; break;
    default: r = 5;
    }
    out[3 * n + t] = r;
    u32 table[16], j = t, q = 0; // dynamic indexing: local memory
    for (int i = 0; i < 16; i++) table[i] = in[(t + i) % n];
    for (int i = 0; i < 40; i++) {
        j = (j * 5 + 3 + table[j & 15]) & 15;
        q += table[j];
        table[j] ^= q;
    }
    out[4 * n + t] = q;
    if (t >= 100) return; // early exit, then a barrier of those that are left
    __syncthreads();
    out[5 * n + t] = steps[99 - t];
}

static void test_control()
{
    const int n = 128;
    auto in = random_words(n);
    Device<u32> di(in), out(6 * n);
    CUDA(cudaMemset(out.p, 0, 6 * n * 4));
    control<<<1, n>>>(di.p, out.p, n);
    auto o = out.get();
    u32 steps[n], sum = 0;
    for (int t = 0; t < n; t++) {
        u32 v = in[t] % 1000 + 1, c = 0;
        while (v != 1 && c < 1000) v = v & 1 ? 3 * v + 1 : v >> 1, c++;
        steps[t] = c;
        sum += c;
        CHECK(o[t] == sum);
        static const u32 fib[] = {0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89};
        CHECK(o[n + t] == fib[t % 12]);
        CHECK(o[2 * n + t] == ((7 + in[t]) ^ (u32)(((u64)t + in[t]) >> 3)));
        u32 cases[] = {3, t ^ 77u, t + 9u, t >> 3u, ~(u32)t, (u32)t * t, t - 1000u, t | 0xf0u, 5};
        CHECK(o[3 * n + t] == cases[in[t] % 9]);
        u32 table[16], j = t, q = 0;
        for (int i = 0; i < 16; i++) table[i] = in[(t + i) % n];
        for (int i = 0; i < 40; i++) {
            j = (j * 5 + 3 + table[j & 15]) & 15;
            q += table[j];
            table[j] ^= q;
        }
        CHECK(o[4 * n + t] == q);
    }
    for (int t = 0; t < 100; t++) CHECK(o[5 * n + t] == steps[99 - t]);
}

// Producer and consumer warps through named barriers; bar.red; a 3-d block.
__global__ void barriers(u32 *out)
{
    __shared__ volatile u32 box[64];
    u32 t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z), w = t / 32, l = t % 32;
    u32 count = __syncthreads_count(t % 3 == 0), any = __syncthreads_or(t == 77) != 0,
        all = __syncthreads_and(t < 127) != 0;
    if (t < 4) out[t] = t == 0 ? count : t == 1 ? any : t == 2 ? all : 0;
    for (u32 round = 0; round < 5; round++) {
        if (w < 2) {
            if (round) asm volatile("bar.sync 2, 128;" ::: "memory"); // consumers are done with the box
            box[w * 32 + l] = round * 1000 + t;
            asm volatile("bar.arrive 1, 128;" ::: "memory");
        } else {
            asm volatile("bar.sync 1, 128;" ::: "memory");
            out[64 + round * 64 + t - 64] = box[(t - 64) ^ 5];
            if (round < 4) asm volatile("bar.arrive 2, 128;" ::: "memory");
        }
    }
}

static void test_barriers()
{
    Device<u32> out(64 + 5 * 64);
    CUDA(cudaMemset(out.p, 0, out.n * 4));
    barriers<<<1, dim3(8, 4, 4)>>>(out.p);
    auto o = out.get();
    CHECK(o[0] == 43 && o[1] == 1 && o[2] == 0);
    for (u32 r = 0; r < 5; r++)
        for (u32 t = 0; t < 64; t++) CHECK(o[64 + r * 64 + t] == r * 1000 + (t ^ 5));
}

__device__ u32 counter;
__global__ void atomics(const u32 *in, u32 *out, u64 *wide, float *sums, u32 *halves)
{
    __shared__ u32 s_count, s_max;
    __shared__ float s_sum;
    __shared__ u64 s_wide;
    u32 t = threadIdx.x;
    if (!t) s_count = 0, s_max = 0, s_sum = 0, s_wide = 0;
    __syncthreads();
    u32 at = atomicAdd(&s_count, 1u);
    atomicMax(&s_max, in[t]);
    atomicAdd(&s_sum, 0.5f);
    atomicAdd((unsigned long long *)&s_wide, (unsigned long long)in[t]);
    atomicMax(&out[0], in[t]);
    atomicMin((int *)&out[1], (int)in[t]);
    atomicAdd(&out[2], in[t]);
    atomicAnd(&out[3], in[t] | 0xff00);
    atomicOr(&out[4], in[t] & 0x1111);
    atomicXor(&out[5], in[t]);
    atomicInc(&out[6], 40);
    atomicDec(&out[7], 10);
    atomicAdd(&counter, 1u);
    atomicMax((unsigned long long *)&wide[0], (unsigned long long)in[t] << 20);
    atomicAdd((unsigned long long *)&wide[1], (unsigned long long)in[t]);
    atomicAdd(&sums[0], 0.25f);
    asm volatile("red.global.add.noftz.bf16x2 [%0], %1;" ::"l"(halves), "r"(0x3f803f80u)
                 : "memory"); // 1.0, 1.0
    asm volatile("red.global.add.noftz.f16x2 [%0], %1;" ::"l"(halves + 1), "r"(0x3c003800u)
                 : "memory"); // 1.0, 0.5
    u32 old = out[8], seen;
    do {
        seen = old;
        old = atomicCAS(&out[8], seen, seen + t);
    } while (old != seen);
    __syncthreads();
    out[16 + at] = 1; // every slot taken once
    if (!t) {
        out[9] = s_count;
        out[10] = s_max;
        out[11] = __float_as_uint(s_sum);
        wide[2] = s_wide;
    }
    __threadfence();
    if (!t) out[12] = atomicExch(&counter, 0u);
}

static void test_atomics()
{
    const int n = 96;
    auto in = random_words(n);
    std::vector<u32> init(16 + n, 0);
    init[1] = INT32_MAX;
    init[3] = ~0u;
    Device<u32> di(in), out(init), halves(std::vector<u32>{0, 0});
    Device<u64> wide(std::vector<u64>(3, 0));
    Device<float> sums(std::vector<float>(1, 0.0f));
    atomics<<<1, n>>>(di.p, out.p, wide.p, sums.p, halves.p);
    auto o = out.get();
    u32 mx = 0, add = 0, an = ~0u, orr = 0, xo = 0, inc = 0, dec = 0;
    int mn = INT32_MAX;
    u64 total = 0;
    for (u32 v : in) {
        mx = std::max(mx, v);
        mn = std::min(mn, (int)v);
        add += v;
        an &= v | 0xff00;
        orr |= v & 0x1111;
        xo ^= v;
        inc = inc >= 40 ? 0 : inc + 1;
        dec = dec == 0 || dec > 10 ? 10 : dec - 1;
        total += v;
    }
    u32 want[] = {mx, (u32)mn, add, an, orr, xo, inc, dec, n * (n - 1) / 2, n, mx, (u32)raw(0.5f * n), n};
    for (int k = 0; k < 13; k++) CHECK(o[k] == want[k]);
    for (int k = 0; k < n; k++) CHECK(o[16 + k] == 1);
    auto w = wide.get();
    CHECK(w[0] == (u64)mx << 20 && w[1] == total && w[2] == total);
    CHECK(sums.get()[0] == 0.25f * n);
    CHECK(halves.get()[0] == 0x42c042c0u);               // 96.0 in bf16
    CHECK(halves.get()[1] == (0x5600u << 16 | 0x5200u)); // 96.0, 48.0 in f16
}

__global__ void say(int v)
{
    printf("said %d %5.2f %s %llx %c%%\n", v, 1.25, "text", 0x123456789abcull, 'z');
}

int main()
{
    test_collectives();
    test_control();
    test_barriers();
    test_atomics();
    say<<<1, 1>>>(42); // the CTest entry looks for the line
    CUDA(cudaDeviceSynchronize());
    return finish("warp");
}
