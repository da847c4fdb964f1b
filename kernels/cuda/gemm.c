/* gemm.c - weights in device memory, row-major (n,k) as in the checkpoint, and y = x W^T: of few rows of a
 * small matrix by linear_few.cu, else by cuBLAS.
 *
 * Products in the storage type, sums in f32, y in f32. cuBLAS picks its kernel by shape: results repeat for a
 * shape, but a row's bits may change with the number of rows beside it (invariant 1 of kernels.h holds within
 * one shape). */
#include <string.h>

#include "kernels/cuda/cuda.h"

size_t cuda_matrix_bytes(struct device *d, enum dtype dtype, int n, int k)
{
    (void)d;
    return (size_t)n * (size_t)k * dtype_bytes(dtype);
}

static float widen(const char *at, enum dtype t)
{
    uint16_t h;
    float f;
    if (t == DTYPE_F32) {
        memcpy(&f, at, sizeof f);
        return f;
    }
    memcpy(&h, at, sizeof h);
    return t == DTYPE_BF16 ? dtype_f32_from_bf16(h) : dtype_f32_from_f16(h);
}

/* One row of k elements, converted when the types differ. */
static void convert_row(char *to, enum dtype to_type, const char *from, enum dtype from_type, size_t k)
{
    if (to_type == from_type) {
        memcpy(to, from, k * dtype_bytes(to_type));
        return;
    }
    for (size_t i = 0; i < k; i++) {
        float f = widen(from + i * dtype_bytes(from_type), from_type);
        uint16_t h = to_type == DTYPE_BF16 ? dtype_bf16_from_f32(f) : dtype_f16_from_f32(f);
        if (to_type == DTYPE_F32) memcpy(to + i * 4, &f, sizeof f);
        else memcpy(to + i * 2, &h, sizeof h);
    }
}

/* Rows go through the two pinned buffers in turn: while one is copied to the device, the next is read from
 * the file (a mapped checkpoint: reading it is a memcpy here). Conversion is by one thread; checkpoints
 * rarely need any. */
void cuda_matrix_put(struct device *d, struct matrix *w, int row0, int n_rows, const void *src_host,
                     enum dtype src_dtype, size_t src_stride)
{
    struct cuda_device *c = cuda_of(d);
    size_t row_bytes = (size_t)w->k * dtype_bytes(w->dtype), at_once = CUDA_STAGING_BYTES / row_bytes;
    size_t from_bytes = src_stride * dtype_bytes(src_dtype);
    const char *src = src_host;
    ASSERT(at_once >= 1 && row0 >= 0 && n_rows >= 0 && row0 + n_rows <= w->n && w->data);
    for (size_t row = 0; row < (size_t)n_rows;) {
        size_t n = (size_t)n_rows - row < at_once ? (size_t)n_rows - row : at_once;
        int s = c->next_staging;
        c->next_staging ^= 1;
        cuda_check(cudaEventSynchronize(c->staged[s]), "waiting for a staging buffer");
        if (src_dtype == w->dtype && from_bytes == row_bytes)
            memcpy(c->staging[s], src + row * row_bytes, n * row_bytes);
        else
            for (size_t i = 0; i < n; i++)
                convert_row(c->staging[s] + i * row_bytes, w->dtype, src + (row + i) * from_bytes, src_dtype,
                            (size_t)w->k);
        cuda_check(cudaMemcpyAsync((char *)w->data + ((size_t)row0 + row) * row_bytes, c->staging[s],
                                   n * row_bytes, cudaMemcpyHostToDevice, c->stream),
                   "copying weights");
        cuda_check(cudaEventRecord(c->staged[s], c->stream), "recording an event");
        row += n;
    }
}

static cudaDataType_t data_type(enum dtype t)
{
    return t == DTYPE_F32 ? CUDA_R_32F : t == DTYPE_F16 ? CUDA_R_16F : CUDA_R_16BF;
}

/* cuBLAS is column-major: y (n_rows,n) row-major is its (n, n_rows), W (n,k) its transposed A, x its B. */
void cuda_linear(struct device *d, float *y, const void *x, const struct matrix *w, const float *bias,
                 int n_rows)
{
    struct cuda_device *c = cuda_of(d);
    const float one = 1, zero = 0;
    ASSERT(w->dtype == c->act && w->n > 0 && w->k > 0 && w->data);
    if (n_rows == 0 || cuda_linear_few(d, y, x, w, bias, n_rows)) return;
    cublasStatus_t s = cublasGemmEx(c->blas, CUBLAS_OP_T, CUBLAS_OP_N, w->n, n_rows, w->k, &one, w->data,
                                    data_type(w->dtype), w->k, x, data_type(c->act), w->k, &zero, y,
                                    CUDA_R_32F, w->n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    if (s != CUBLAS_STATUS_SUCCESS)
        DIE(EXIT_CODE_PEER, "see nvidia-smi and dmesg on this host",
            "cuBLAS: GEMM of %d x %d x %d failed: %s", n_rows, w->n, w->k, cublasGetStatusString(s));
    if (bias) cuda_add_bias(d, y, bias, n_rows, w->n);
}
