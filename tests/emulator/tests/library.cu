// Device code of the toolkit's own libraries: cooperative groups, CUB block primitives, CUDA math functions.
#include "check.h"
#include <algorithm>
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
namespace cg = cooperative_groups;

__global__ void groups(const float *in, float *out)
{
    auto block = cg::this_thread_block();
    auto warp = cg::tiled_partition<32>(block);
    auto eight = cg::tiled_partition<8>(block);
    float x = in[threadIdx.x];
    out[threadIdx.x] = cg::reduce(warp, x, cg::plus<float>());
    out[64 + threadIdx.x] = cg::reduce(eight, x, cg::greater<float>());
    out[128 + threadIdx.x] = (float)cg::reduce(warp, (int)x, cg::plus<int>());
    if (threadIdx.x % 3 == 0) out[192 + threadIdx.x] = (float)cg::coalesced_threads().size();
    block.sync();
}

__global__ void block_primitives(const u32 *in, u32 *out, u32 *sums)
{
    using Sort = cub::BlockRadixSort<u32, 128, 4, u32>;
    using Scan = cub::BlockScan<u32, 128>;
    using Reduce = cub::BlockReduce<u32, 128>;
    __shared__ union {
        typename Sort::TempStorage sort;
        typename Scan::TempStorage scan;
        typename Reduce::TempStorage reduce;
    } u;
    u32 k[4], v[4];
    for (int i = 0; i < 4; i++) k[i] = in[threadIdx.x * 4 + i], v[i] = threadIdx.x * 4 + i;
    Sort(u.sort).SortDescending(k, v);
    __syncthreads();
    u32 before;
    Scan(u.scan).ExclusiveSum(k[0] & 15, before);
    __syncthreads();
    u32 total = Reduce(u.reduce).Sum(k[1] & 7);
    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = k[i], out[512 + threadIdx.x * 4 + i] = v[i];
    sums[threadIdx.x] = before;
    if (!threadIdx.x) sums[128] = total;
}

int main()
{
    std::mt19937 g(9);
    std::vector<float> f(64);
    for (auto &x : f) x = (float)(g() % 1000) / 8;
    Device<float> df(f), out(256);
    CUDA(cudaMemset(out.p, 0, 1024));
    groups<<<1, 64>>>(df.p, out.p);
    auto o = out.get();
    for (int t = 0; t < 64; t++) {
        float sum = 0, best = 0;
        int whole = 0;
        for (int k = t / 32 * 32; k < t / 32 * 32 + 32; k++) sum += f[k], whole += (int)f[k];
        for (int k = t / 8 * 8; k < t / 8 * 8 + 8; k++) best = std::max(best, f[k]);
        CHECK(o[t] == sum && o[64 + t] == best && o[128 + t] == (float)whole); // eighths: exact in any order
        if (t % 3 == 0) CHECK(o[192 + t] == (t < 32 ? 11.0f : 11.0f));
    }
    std::vector<u32> in(512);
    for (auto &x : in) x = g() >> 3;
    in[7] = in[400] = in[3]; // ties keep their order
    Device<u32> di(in), sorted(1024), sums(129);
    block_primitives<<<1, 128>>>(di.p, sorted.p, sums.p);
    auto s = sorted.get(), q = sums.get();
    std::vector<u32> order(512);
    for (u32 i = 0; i < 512; i++) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](u32 a, u32 b) { return in[a] > in[b]; });
    u32 before = 0, total = 0;
    for (int i = 0; i < 512; i++) CHECK(s[i] == in[order[i]] && s[512 + i] == order[i]);
    for (int t = 0; t < 128; t++) {
        CHECK(q[t] == before);
        before += s[4 * t] & 15;
        total += s[4 * t + 1] & 7;
    }
    CHECK(q[128] == total);
    // math functions of the toolkit, which expand to long PTX sequences
    auto moderate = [](float a) { return std::isfinite(a) ? std::fmod(a, 50.0f) : 1.0f; };
#define MATH(call, ref, tol)                                                                                 \
    check1<float, float>(                                                                                    \
        #call,                                                                                               \
        [] __device__(float a) {                                                                             \
            a = isfinite(a) ? fmodf(a, 50.0f) : 1.0f;                                                        \
            return call;                                                                                     \
        },                                                                                                   \
        [&](float a) {                                                                                       \
            a = moderate(a);                                                                                 \
            return (float)(ref);                                                                             \
        },                                                                                                   \
        tol)
    MATH(expf(a), std::exp((double)a), 2);
    MATH(logf(fabsf(a) + 0.5f), std::log((double)(std::fabs(a) + 0.5f)), 2);
    MATH(tanhf(a), std::tanh((double)a), 2);
    MATH(erff(a), std::erf((double)a), 3);
    MATH(sinf(a), std::sin((double)a), 2);
    MATH(cosf(a), std::cos((double)a), 2);
    MATH(powf(fabsf(a) + 0.1f, 1.7f), std::pow((double)(std::fabs(a) + 0.1f), (double)1.7f), 8);
    MATH(a / 3.7f, a / 3.7f, 0);
    MATH(
        __bfloat162float(__float2bfloat16(a) * __float2bfloat16(a)),
        0 * a +
            [](float x) {
                auto r = [](float v) {
                    u32 u = (u32)raw(v);
                    return as<float>((u64)((u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u));
                };
                return r(r(x) * r(x));
            }(a),
        0);
    return finish("library");
}
