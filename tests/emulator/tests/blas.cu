// The cuBLAS stand-in against double-precision host loops: layouts, transposes, leading dimensions, batches,
// types, alpha and beta, stream order, graph capture, and its refusals.
#include "check.h"
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define BLAS(x) CHECK((x) == CUBLAS_STATUS_SUCCESS)

static double get(const std::vector<u8> &v, cudaDataType t, size_t i)
{
    if (t == CUDA_R_32F) {
        float f;
        memcpy(&f, &v[4 * i], 4);
        return f;
    }
    if (t == CUDA_R_16BF) {
        __nv_bfloat16 b;
        memcpy(&b, &v[2 * i], 2);
        return __bfloat162float(b);
    }
    __half h;
    memcpy(&h, &v[2 * i], 2);
    return __half2float(h);
}
static std::vector<u8> random_matrix(cudaDataType t, size_t n, std::mt19937 &g)
{
    std::vector<u8> v(n * (t == CUDA_R_32F ? 4 : 2));
    for (size_t i = 0; i < n; i++) {
        float f = (float)((int)(g() % 513) - 256) / 64.0f;
        __nv_bfloat16 b = __float2bfloat16(f);
        __half h = __float2half(f);
        if (t == CUDA_R_32F) memcpy(&v[4 * i], &f, 4);
        if (t == CUDA_R_16BF) memcpy(&v[2 * i], &b, 2);
        if (t == CUDA_R_16F) memcpy(&v[2 * i], &h, 2);
    }
    return v;
}

static void one(cublasHandle_t h, cudaStream_t s, cudaDataType in, cudaDataType out, bool ta, bool tb, int m,
                int n, int k, int batch, float alpha, float beta, bool graph)
{
    std::mt19937 g(m * 1000 + n * 100 + k);
    int ar = ta ? k : m, ac = ta ? m : k, br = tb ? n : k, bc = tb ? k : n, lda = ar + 3, ldb = br + 1,
        ldc = m + 2;
    size_t sa = (size_t)lda * ac + 5, sb = (size_t)ldb * bc, sc = (size_t)ldc * n + 7;
    auto a = random_matrix(in, sa * batch, g), b = random_matrix(in, sb * batch, g),
         c = random_matrix(out, sc * batch, g);
    size_t size = out == CUDA_R_32F ? 4 : 2;
    if (beta == 0) // NaN in C must not matter, and must stay where the result does not go
        for (auto &x : c) x = 0xff;
    Device<u8> da(a), db(b), dc(c);
    cudaGraph_t gr;
    cudaGraphExec_t ge;
    if (graph) CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    BLAS(cublasGemmStridedBatchedEx(h, ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb ? CUBLAS_OP_T : CUBLAS_OP_N, m, n,
                                    k, &alpha, da.p, in, lda, sa, db.p, in, ldb, sb, &beta, dc.p, out, ldc,
                                    sc, batch, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    alpha = -77; // host scalars are read at the call
    if (graph) {
        CUDA(cudaStreamEndCapture(s, &gr));
        CUDA(cudaGraphInstantiate(&ge, gr, 0));
        CUDA(cudaGraphLaunch(ge, s));
        CUDA(cudaGraphExecDestroy(ge));
        CUDA(cudaGraphDestroy(gr));
    }
    CUDA(cudaStreamSynchronize(s));
    alpha = 0.5f;
    auto got = dc.get();
    double tolerance = out == CUDA_R_32F ? 1e-5 : out == CUDA_R_16F ? 1e-3 : 8e-3;
    int bad = 0, touched = 0;
    for (int q = 0; q < batch; q++) {
        for (int j = 0; j < n; j++)
            for (int i = 0; i < m; i++) {
                double sum = 0, mag = 1;
                for (int x = 0; x < k; x++) {
                    double p = get(a, in, q * sa + (ta ? (size_t)i * lda + x : (size_t)x * lda + i)) *
                               get(b, in, q * sb + (tb ? (size_t)x * ldb + j : (size_t)j * ldb + x));
                    sum += p;
                    mag += std::fabs(p);
                }
                sum *= alpha;
                size_t at = q * sc + (size_t)j * ldc + i;
                if (beta != 0) sum += beta * get(c, out, at);
                bad += !(std::fabs(get(got, out, at) - sum) <=
                         tolerance * (std::fabs(sum) + (out == CUDA_R_32F ? mag : 1)));
            }
        for (int j = 0; j < n; j++) // rows between m and ldc
            for (int i = m; i < ldc && q * sc + (size_t)j * ldc + i < sc * batch; i++)
                touched += memcmp(&got[(q * sc + (size_t)j * ldc + i) * size],
                                  &c[(q * sc + (size_t)j * ldc + i) * size], size) != 0;
    }
    if (bad || touched)
        printf("gemm %d,%d -> %d ta %d tb %d %dx%dx%d: %d wrong, %d touched\n", in, in, out, ta, tb, m, n, k,
               bad, touched);
    CHECK(bad == 0 && touched == 0);
}

int main(int argc, char **argv)
{
    cublasHandle_t h;
    cudaStream_t s;
    BLAS(cublasCreate(&h));
    CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    BLAS(cublasSetStream(h, s));
    Device<u8> workspace(1 << 16);
    BLAS(cublasSetWorkspace(h, workspace.p, 1 << 16));
    CHECK(cublasSetWorkspace(h, workspace.p + 1, 1 << 10) == CUBLAS_STATUS_INVALID_VALUE);
    BLAS(cublasSetMathMode(h, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION));
    cudaDataType types[][2] = {{CUDA_R_32F, CUDA_R_32F},
                               {CUDA_R_16BF, CUDA_R_16BF},
                               {CUDA_R_16BF, CUDA_R_32F},
                               {CUDA_R_16F, CUDA_R_16F},
                               {CUDA_R_16F, CUDA_R_32F}};
    int sizes[][3] = {{1, 1, 1}, {3, 7, 31}, {65, 2, 64}, {31, 65, 7}};
    int count = 0;
    for (auto &t : types)
        for (auto &z : sizes)
            for (int tr = 0; tr < 4; tr++)
                one(h, s, t[0], t[1], tr & 1, tr & 2, z[0], z[1], z[2], 1 + count++ % 3, 0.5f,
                    count % 2 ? 0.0f : 0.25f, count % 5 == 0);
    float one_ = 1, zero = 0;
    Device<u8> small(64);
    CHECK(cublasGemmEx(h, CUBLAS_OP_N, CUBLAS_OP_N, 4, 4, 4, &one_, small.p, CUDA_R_16BF, 3, small.p,
                       CUDA_R_16BF, 4, &zero, small.p, CUDA_R_16BF, 4, CUBLAS_COMPUTE_32F,
                       CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_INVALID_VALUE);
    CHECK(cublasGemmEx(h, CUBLAS_OP_N, CUBLAS_OP_N, 4, 4, 4, &one_, small.p, CUDA_R_16BF, 4, small.p,
                       CUDA_R_16F, 4, &zero, small.p, CUDA_R_16BF, 4, CUBLAS_COMPUTE_32F,
                       CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_NOT_SUPPORTED);
    if (argc > 1) { // injected bug: a result matrix larger than its allocation
        BLAS(cublasGemmEx(h, CUBLAS_OP_N, CUBLAS_OP_N, 4, 9, 2, &one_, small.p, CUDA_R_16BF, 4, small.p,
                          CUDA_R_16BF, 2, &zero, small.p, CUDA_R_16BF, 4, CUBLAS_COMPUTE_32F,
                          CUBLAS_GEMM_DEFAULT));
        CUDA(cudaStreamSynchronize(s));
    }
    BLAS(cublasDestroy(h));
    return finish("blas");
}
