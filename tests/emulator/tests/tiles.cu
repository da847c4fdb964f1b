// Memory movement and matrix instructions: vector and narrow accesses, constant and dynamic shared memory,
// cp.async, ldmatrix, mma of every covered shape and type, against host loops.
#include "check.h"

__constant__ float coefficients[4] = {1.5f, 2.5f, 3.5f, 4.5f};
__device__ u32 table[5] = {10, 20, 30, 40, 50};
__device__ u32 *table_pointer = table + 2;
extern __shared__ u32 dynamic[];

__global__ void accesses(const u8 *in, u8 *out, int n)
{
    __shared__ uint4 box[64];
    int t = threadIdx.x;
    box[t] = __ldg((const uint4 *)in + t);
    __syncthreads();
    ((uint4 *)out)[t] = box[63 - t];
    dynamic[t] = ((const u32 *)in)[t];
    __syncthreads();
    ((u32 *)(out + 1024))[t] = dynamic[blockDim.x - 1 - t];
    ((s32 *)(out + 1280))[t] = (s32)((const s8 *)in)[t] * 3 + ((const s16 *)in)[t];
    ((u16 *)(out + 1536))[t] = ((const u16 *)in)[t] + in[t];
    float2 f = ((const float2 *)in)[t];
    ((float *)(out + 1664))[t] = coefficients[t & 3];
    u64 v = ((const u64 *)in)[t];
    ((u64 *)(out + 1920))[t] = v ^ __float_as_uint(f.x);
    ((u32 *)(out + 2432))[t] = table[t % 5] + *table_pointer + (n == 12345);
}

static void test_accesses()
{
    std::mt19937 g(3);
    std::vector<u8> in(1024), want(2688);
    for (auto &b : in) b = (u8)g();
    for (int t = 0; t < 64; t++) {
        memcpy(&want[16 * t], &in[16 * (63 - t)], 16);
        memcpy(&want[1024 + 4 * t], &in[4 * (63 - t)], 4);
        s16 h;
        memcpy(&h, &in[2 * t], 2);
        s32 s = (s32)(s8)in[t] * 3 + h;
        memcpy(&want[1280 + 4 * t], &s, 4);
        u16 u = (u16)((u16)h + in[t]);
        memcpy(&want[1536 + 2 * t], &u, 2);
        float c = 1.5f + (float)(t & 3);
        memcpy(&want[1664 + 4 * t], &c, 4);
        u64 v;
        memcpy(&v, &in[8 * t], 8);
        v ^= (u32)v;
        memcpy(&want[1920 + 8 * t], &v, 8);
        u32 k = 10 * (t % 5 + 1) + 30;
        memcpy(&want[2432 + 4 * t], &k, 4);
    }
    Device<u8> di(in), out(2688);
    accesses<<<1, 64, 256>>>(di.p, out.p, 1);
    CHECK(out.get() == want);
}

// out[0..255]: through cp.async of 16, 8 and 4 bytes with partial sources; out[256..]: what the destination
// held before the wait
__global__ void copies(const u32 *in, u32 *out)
{
    __shared__ __align__(16) u32 s[256], early[64];
    int t = threadIdx.x;
    for (int i = t; i < 256; i += 64) s[i] = 0x11111111;
    __syncthreads();
    u32 a = (u32)__cvta_generic_to_shared(s);
    if (t < 32) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(a + t * 16), "l"(in + t * 4)
                     : "memory");
        asm volatile("cp.async.commit_group;" ::: "memory");
        int size = t & 1 ? 8 : 3; // zero fill
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(a + 512 + t * 8),
                     "l"(in + 128 + t * 2), "r"(size)
                     : "memory");
        asm volatile("cp.async.commit_group;" ::: "memory");
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(a + 768 + t * 4), "l"(in + 192 + t),
                     "r"(0)
                     : "memory");
        asm volatile("cp.async.commit_group;" ::: "memory");
        early[t] = s[t * 4];
        asm volatile("cp.async.wait_group 2;" ::: "memory");
        early[32 + t] = s[t * 4] ^ s[128 + t * 2]; // the first group has landed, the second has not
        asm volatile("cp.async.wait_all;" ::: "memory");
    }
    __syncthreads();
    for (int i = t; i < 256; i += 64) out[i] = s[i];
    out[256 + t] = early[t];
}

static void test_copies()
{
    std::mt19937 g(4);
    std::vector<u32> in(256), want(320);
    for (auto &v : in) v = g();
    for (int i = 0; i < 128; i++) want[i] = in[i];
    for (int t = 0; t < 32; t++) {
        want[128 + 2 * t] = t & 1 ? in[128 + 2 * t] : in[128 + 2 * t] & 0xffffff;
        want[129 + 2 * t] = t & 1 ? in[129 + 2 * t] : 0;
        want[192 + t] = 0;
        want[224 + t] = 0x11111111;
        want[256 + t] = 0x11111111;
        want[288 + t] = in[4 * t] ^ 0x11111111;
    }
    Device<u32> di(in), out(320);
    copies<<<1, 64>>>(di.p, out.p);
    CHECK(out.get() == want);
}

__global__ void matrices(const u32 *in, u32 *out)
{
    __shared__ __align__(16) u32 s[128];
    int t = threadIdx.x;
    for (int i = 0; i < 4; i++) s[t + 32 * i] = in[t + 32 * i];
    __syncwarp();
    u32 a = (u32)__cvta_generic_to_shared(s + t * 4), r[4];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a));
    for (int i = 0; i < 4; i++) out[32 * i + t] = r[i];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a));
    for (int i = 0; i < 4; i++) out[128 + 32 * i + t] = r[i];
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(a));
    out[256 + t] = r[0] ^ r[1];
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(a));
    out[288 + t] = r[0];
}

static void test_matrices()
{
    std::mt19937 g(5);
    std::vector<u32> in(128), want(320);
    for (auto &v : in) v = g();
    const u16 *h = (const u16 *)in.data(); // matrix m: rows of 8 halves, 64 halves each
    for (int t = 0; t < 32; t++) {
        auto plain = [&](int m) {
            return (u32)h[m * 64 + t / 4 * 8 + t % 4 * 2] | (u32)h[m * 64 + t / 4 * 8 + t % 4 * 2 + 1] << 16;
        };
        auto trans = [&](int m) {
            return (u32)h[m * 64 + t % 4 * 16 + t / 4] | (u32)h[m * 64 + t % 4 * 16 + 8 + t / 4] << 16;
        };
        for (int m = 0; m < 4; m++) {
            want[32 * m + t] = plain(m);
            want[128 + 32 * m + t] = trans(m);
        }
        want[256 + t] = plain(0) ^ plain(1);
        want[288 + t] = trans(0);
    }
    Device<u32> di(in), out(320);
    matrices<<<1, 32>>>(di.p, out.p);
    CHECK(out.get() == want);
}

// mma: each lane's registers come from in[lane*12 ..] as a (4), b (4), c (4)
#define MMA(name, text, na, nb)                                                                              \
    __global__ void name(const u32 *in, u32 *out)                                                            \
    {                                                                                                        \
        const u32 *p = in + threadIdx.x * 12;                                                                \
        u32 d0, d1, d2, d3;                                                                                  \
        asm volatile(text                                                                                    \
                     : "=r"(d0), "=r"(d1), "=r"(d2), "=r"(d3)                                                \
                     : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "r"(p[4]), "r"(p[5]), "r"(p[8]),          \
                       "r"(p[9]), "r"(p[10]), "r"(p[11]));                                                   \
        u32 *q = out + threadIdx.x * 4;                                                                      \
        q[0] = d0, q[1] = d1, q[2] = d2, q[3] = d3;                                                          \
    }
#define ABCD16 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
#define ABCD8 "{%0,%1,%2,%3}, {%4,%5}, {%8}, {%10,%11,%12,%13};"
#define ABCDT "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
#define ABH "{%0,%1}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11}; mov.b32 %2, 0; mov.b32 %3, 0;"
MMA(mma_bf16_16, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 " ABCD16, 4, 2)
MMA(mma_f16_16, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 " ABCD16, 4, 2)
MMA(mma_bf16_8, "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 " ABCD8, 2, 1)
MMA(mma_f16_8, "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 " ABCD8, 2, 1)
MMA(mma_tf32_8, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 " ABCDT, 4, 2)
MMA(mma_half_acc, "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 " ABH, 4, 2)
MMA(mma_s8, "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 " ABCD16, 4, 2)

enum Format { BF16, F16, TF32, S8 };
static double half_value(u16 h) // small normal values only
{
    int e = h >> 10 & 31, m = h & 1023;
    double v = e ? std::ldexp(1024 + m, e - 25) : std::ldexp(m, -24);
    return h & 0x8000 ? -v : v;
}
// Element (row or k index, k or column) of an operand fragment, as the PTX manual's figures place it.
static double element(const std::vector<u32> &in, Format f, int base, int outer, int k)
{
    int group = outer % 8, high = outer / 8; // lane group and, for A, rows 8..15
    bool is_a = base == 0;
    int per = f == TF32 ? 1 : f == S8 ? 4 : 2, lane = group * 4 + k % (4 * per) / per, block = k / (4 * per);
    u32 w = in[lane * 12 + base + (is_a ? high + 2 * block : block)];
    int at = k % per;
    if (f == BF16) return as<float>((u64)(w >> 16 * at << 16));
    if (f == F16) return half_value((u16)(w >> 16 * at));
    if (f == TF32) return as<float>(w & ~0x1fffu);
    return (s8)(w >> 8 * at);
}

template <class Kernel> void test_mma(const char *name, Kernel kernel, Format f, int k_total, bool half_acc)
{
    std::mt19937 g(6);
    std::vector<u32> in(32 * 12);
    for (auto &v : in) {
        if (f == S8) v = g();
        else if (f == TF32) v = (u32)raw((float)((int)(g() % 2001) - 1000) / 256.0f);
        else if (f == F16) v = (g() & 0x83ff83ff) | 0x38003800;
        else v = (g() & 0x80ff80ff) | 0x3f003f00;
    }
    for (int l = 0; l < 32; l++)
        for (int i = 8; i < 12; i++) // accumulators
            in[l * 12 + i] = f == S8    ? g()
                             : half_acc ? (g() & 0x83ff83ff) | 0x38003800
                                        : (u32)raw((float)(g() % 100) / 7.0f);
    Device<u32> di(in), out(128);
    kernel<<<1, 32>>>(di.p, out.p);
    auto o = out.get();
    int bad = 0;
    for (int row = 0; row < 16; row++)
        for (int col = 0; col < 8; col++) {
            double sum = 0;
            for (int k = 0; k < k_total; k++) sum += element(in, f, 0, row, k) * element(in, f, 4, col, k);
            int lane = row % 8 * 4 + col / 2, reg = row / 8 * 2 + (col & 1);
            if (f == S8) {
                bad += o[lane * 4 + reg] != (u32)(s64)sum + in[lane * 12 + 8 + reg];
            } else if (half_acc) {
                double c = half_value((u16)(in[lane * 12 + 8 + row / 8] >> 16 * (col & 1)));
                double got = half_value((u16)(o[lane * 4 + row / 8] >> 16 * (col & 1)));
                bad += !(std::fabs(got - (sum + c)) <= 2e-3 * (1 + std::fabs(sum + c)));
            } else {
                double want = sum + as<float>(in[lane * 12 + 8 + reg]);
                bad += !(std::fabs(as<float>(o[lane * 4 + reg]) - want) <= 1e-5 * (1 + std::fabs(want)));
            }
        }
    if (bad) printf("%s: %d elements differ\n", name, bad);
    CHECK(bad == 0);
}

int main()
{
    test_accesses();
    test_copies();
    test_matrices();
    test_mma("m16n8k16 bf16", mma_bf16_16, BF16, 16, false);
    test_mma("m16n8k16 f16", mma_f16_16, F16, 16, false);
    test_mma("m16n8k8 bf16", mma_bf16_8, BF16, 8, false);
    test_mma("m16n8k8 f16", mma_f16_8, F16, 8, false);
    test_mma("m16n8k8 tf32", mma_tf32_8, TF32, 8, false);
    test_mma("m16n8k16 f16 accumulators", mma_half_acc, F16, 16, true);
    test_mma("m16n8k32 s8", mma_s8, S8, 32, false);
    return finish("tiles");
}
