// libcublas.so.13 over OpenBLAS: GemmEx, GemmStridedBatchedEx, GemmBatchedEx and Sgemm for f32, bf16 and f16
// storage with f32 accumulation.
//
// Operands are widened to f32, multiplied by cblas_sgemm and rounded once to the result type. It refuses
// other types, and stops on an operand that is not device memory of the right size. The math mode is kept,
// TF32 rounding of f32 inputs is not imitated. Sums run in OpenBLAS's order, not the hardware's.
#include "../cudart/work.h"
#pragma GCC visibility push(default)
#include <cublas_v2.h>
#pragma GCC visibility pop
#include <cblas-openblas.h>
#include "../ptx/numeric.h"
#include <cstdio>
#include <vector>

using namespace emu;

struct cublasContext {
    cudaStream_t stream = nullptr;
    cublasMath_t math = CUBLAS_DEFAULT_MATH;
    cublasPointerMode_t pointers = CUBLAS_POINTER_MODE_HOST;
    cublasAtomicsMode_t atomics = CUBLAS_ATOMICS_NOT_ALLOWED;
    void *workspace = nullptr;
    size_t workspace_bytes = 0;
};

namespace {

size_t element_bytes(cudaDataType t) { return t == CUDA_R_32F ? 4 : 2; }
bool covered(cudaDataType t) { return t == CUDA_R_32F || t == CUDA_R_16BF || t == CUDA_R_16F; }

struct Matrix { // column-major, rows x columns as stored
    const void *data;
    cudaDataType type;
    int rows, cols, ld;
    long long stride;
    const void *const *list; // batch of pointers instead of a stride
    size_t bytes() const { return rows && cols ? ((size_t)ld * (cols - 1) + rows) * element_bytes(type) : 0; }
    const void *address(int batch) const
    {
        if (list) return list[batch];
        return (const char *)data + batch * stride * (long long)element_bytes(type);
    }
};

struct Gemm {
    bool ta, tb;
    int m, n, k, batches;
    float alpha, beta;
    Matrix a, b, c;
};

float get_element(const u8 *p, cudaDataType t)
{
    if (t == CUDA_R_32F) {
        float f;
        memcpy(&f, p, 4);
        return f;
    }
    u16 h;
    memcpy(&h, p, 2);
    return t == CUDA_R_16BF ? bf16_to_float(h) : half_to_float(h);
}

void put_element(u8 *p, cudaDataType t, float v)
{
    if (t == CUDA_R_32F) {
        memcpy(p, &v, 4);
        return;
    }
    u16 h = t == CUDA_R_16BF ? float_to_bf16_nearest(v) : float_to_half_nearest(v);
    memcpy(p, &h, 2);
}

void widen(const Matrix &m, int batch, std::vector<float> &to)
{
    to.resize((size_t)m.rows * m.cols);
    const u8 *p = work_read(m.address(batch), m.bytes(), "cuBLAS");
    size_t e = element_bytes(m.type);
    for (int c = 0; c < m.cols; c++)
        for (int r = 0; r < m.rows; r++)
            to[(size_t)c * m.rows + r] = get_element(p + ((size_t)c * m.ld + r) * e, m.type);
}

void run(const Gemm &g)
{
    std::vector<float> a, b, c;
    for (int i = 0; i < g.batches; i++) {
        if (g.k) {
            widen(g.a, i, a);
            widen(g.b, i, b);
        }
        c.assign((size_t)g.m * g.n, 0.0f);
        if (g.beta != 0) widen(g.c, i, c); // beta 0 must not read C: it may hold NaN
        if (g.k)
            cblas_sgemm(CblasColMajor, g.ta ? CblasTrans : CblasNoTrans, g.tb ? CblasTrans : CblasNoTrans,
                        g.m, g.n, g.k, g.alpha, a.data(), g.a.rows, b.data(), g.b.rows, g.beta, c.data(),
                        g.m);
        else
            for (auto &v : c) v *= g.beta;
        u8 *p = work_write(g.c.address(i), g.c.bytes(), "cuBLAS");
        size_t e = element_bytes(g.c.type);
        for (int q = 0; q < g.n; q++)
            for (int r = 0; r < g.m; r++)
                put_element(p + ((size_t)q * g.c.ld + r) * e, g.c.type, c[(size_t)q * g.m + r]);
    }
}

float scalar(cublasHandle_t h, const void *p, cublasComputeType_t compute)
{
    (void)compute; // every covered compute type takes float scalars
    float f;
    const void *q =
        h->pointers == CUBLAS_POINTER_MODE_DEVICE ? (const void *)work_read(p, 4, "cuBLAS scalar") : p;
    memcpy(&f, q, 4);
    return f;
}

cublasStatus_t submit(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                      const void *alpha, Matrix a, Matrix b, const void *beta, Matrix c, int batches,
                      cublasComputeType_t compute)
{
    if (!h) return CUBLAS_STATUS_NOT_INITIALIZED;
    bool at = ta != CUBLAS_OP_N, bt = tb != CUBLAS_OP_N;
    a.rows = at ? k : m, a.cols = at ? m : k;
    b.rows = bt ? n : k, b.cols = bt ? k : n;
    c.rows = m, c.cols = n;
    if (m < 0 || n < 0 || k < 0 || batches < 0 || a.ld < std::max(1, a.rows) || b.ld < std::max(1, b.rows) ||
        c.ld < std::max(1, m) || !alpha || !beta)
        return CUBLAS_STATUS_INVALID_VALUE;
    bool single = compute == CUBLAS_COMPUTE_32F || compute == CUBLAS_COMPUTE_32F_PEDANTIC ||
                  compute == CUBLAS_COMPUTE_32F_FAST_TF32 || compute == CUBLAS_COMPUTE_32F_FAST_16BF ||
                  compute == CUBLAS_COMPUTE_32F_FAST_16F;
    // the documented combinations: equal 16-bit or f32 factors; results of that type or f32
    bool types = covered(a.type) && a.type == b.type && (c.type == a.type || c.type == CUDA_R_32F);
    if (!single || !types) {
        fprintf(stderr, "emulator: cuBLAS type combination %d x %d -> %d (compute %d) is not covered\n",
                a.type, b.type, c.type, compute);
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (!m || !n || !batches) return CUBLAS_STATUS_SUCCESS;
    Gemm g{at, bt, m, n, k, batches, scalar(h, alpha, compute), scalar(h, beta, compute), a, b, c};
    cudaError_t e = work_submit(h->stream, [g] {
        return [g] {
            run(g);
            return true;
        };
    });
    return e == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

} // namespace

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t *h)
{
    int devices;
    if (cudaGetDeviceCount(&devices) != cudaSuccess) return CUBLAS_STATUS_NOT_INITIALIZED;
    *h = new cublasContext;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy_v2(cublasHandle_t h)
{
    delete h;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream_v2(cublasHandle_t h, cudaStream_t s)
{
    h->stream = s; // as documented, this drops a workspace set by the user
    h->workspace = nullptr;
    h->workspace_bytes = 0;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetStream_v2(cublasHandle_t h, cudaStream_t *s)
{
    *s = h->stream;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t h, void *p, size_t bytes)
{
    if ((size_t)p % 256) return CUBLAS_STATUS_INVALID_VALUE;
    if (bytes && !work_is_device(p, bytes)) return CUBLAS_STATUS_INVALID_VALUE;
    h->workspace = p;
    h->workspace_bytes = bytes;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t h, cublasMath_t mode)
{
    h->math = mode;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetMathMode(cublasHandle_t h, cublasMath_t *mode)
{
    *mode = h->math;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetPointerMode_v2(cublasHandle_t h, cublasPointerMode_t mode)
{
    h->pointers = mode;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t h, cublasPointerMode_t *mode)
{
    *mode = h->pointers;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetAtomicsMode(cublasHandle_t h, cublasAtomicsMode_t mode)
{
    h->atomics = mode;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetAtomicsMode(cublasHandle_t h, cublasAtomicsMode_t *mode)
{
    *mode = h->atomics;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetVersion_v2(cublasHandle_t, int *v)
{
    *v = CUBLAS_VERSION;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetProperty(libraryPropertyType what, int *v)
{
    if (what != MAJOR_VERSION && what != MINOR_VERSION && what != PATCH_LEVEL)
        return CUBLAS_STATUS_INVALID_VALUE;
    *v = what == MAJOR_VERSION   ? CUBLAS_VER_MAJOR
         : what == MINOR_VERSION ? CUBLAS_VER_MINOR
                                 : CUBLAS_VER_PATCH;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetSmCountTarget(cublasHandle_t, int) { return CUBLAS_STATUS_SUCCESS; }
const char *cublasGetStatusString(cublasStatus_t s)
{
    switch (s) {
    case CUBLAS_STATUS_SUCCESS: return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "the library was not initialized";
    case CUBLAS_STATUS_INVALID_VALUE: return "an unsupported value or parameter was passed";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "the functionality requested is not supported";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "the GPU program failed to execute";
    default: return "cuBLAS error";
    }
}
const char *cublasGetStatusName(cublasStatus_t s)
{
    switch (s) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "CUBLAS_STATUS_EXECUTION_FAILED";
    }
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m,
                                          int n, int k, const void *alpha, const void *a, cudaDataType at,
                                          int lda, long long sa, const void *b, cudaDataType bt, int ldb,
                                          long long sb, const void *beta, void *c, cudaDataType ct, int ldc,
                                          long long sc, int batches, cublasComputeType_t compute,
                                          cublasGemmAlgo_t)
{
    return submit(h, ta, tb, m, n, k, alpha, {a, at, 0, 0, lda, sa, nullptr}, {b, bt, 0, 0, ldb, sb, nullptr},
                  beta, {c, ct, 0, 0, ldc, sc, nullptr}, batches, compute);
}
cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                            const void *alpha, const void *a, cudaDataType at, int lda, const void *b,
                            cudaDataType bt, int ldb, const void *beta, void *c, cudaDataType ct, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t algo)
{
    return cublasGemmStridedBatchedEx(h, ta, tb, m, n, k, alpha, a, at, lda, 0, b, bt, ldb, 0, beta, c, ct,
                                      ldc, 0, 1, compute, algo);
}
cublasStatus_t cublasSgemm_v2(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n,
                              int k, const float *alpha, const float *a, int lda, const float *b, int ldb,
                              const float *beta, float *c, int ldc)
{
    return cublasGemmEx(h, ta, tb, m, n, k, alpha, a, CUDA_R_32F, lda, b, CUDA_R_32F, ldb, beta, c,
                        CUDA_R_32F, ldc, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}
cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m,
                                         int n, int k, const float *alpha, const float *a, int lda,
                                         long long sa, const float *b, int ldb, long long sb,
                                         const float *beta, float *c, int ldc, long long sc, int batches)
{
    return cublasGemmStridedBatchedEx(h, ta, tb, m, n, k, alpha, a, CUDA_R_32F, lda, sa, b, CUDA_R_32F, ldb,
                                      sb, beta, c, CUDA_R_32F, ldc, sc, batches, CUBLAS_COMPUTE_32F,
                                      CUBLAS_GEMM_DEFAULT);
}

} // extern "C"
