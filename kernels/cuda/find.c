/* find.c - what there is to open: versions of driver, runtime and cuBLAS, and the GPU of a rank. Makes no context, so
 * that it takes none of the memory that it reports. */
#include <stdio.h>

#include "kernels/cuda/cuda.h"

/* 13020 (13.2) as the runtime counts. */
static int version_of(int cuda) { return cuda / 1000 * 10000 + cuda % 1000 / 10 * 100 + cuda % 10; }

static int blas_version(void)
{
    int major = 0, minor = 0, patch = 0;
    if (cublasGetProperty(MAJOR_VERSION, &major) != CUBLAS_STATUS_SUCCESS ||
        cublasGetProperty(MINOR_VERSION, &minor) != CUBLAS_STATUS_SUCCESS ||
        cublasGetProperty(PATCH_LEVEL, &patch) != CUBLAS_STATUS_SUCCESS)
        return 0;
    return major * 10000 + minor * 100 + patch;
}

void cuda_find_gpu(struct device_gpu *g, int ordinal)
{
    int version = 0;
    struct cudaDeviceProp p;
    if (cudaDriverGetVersion(&version) == cudaSuccess) g->driver = version_of(version);
    if (cudaRuntimeGetVersion(&version) == cudaSuccess) g->runtime = version_of(version);
    g->blas = blas_version();
    cudaError_t error = cudaGetDeviceCount(&g->n_visible);
    if (error == cudaSuccess && g->n_visible > 0) {
        g->number = ordinal % g->n_visible;
        error = cudaGetDeviceProperties(&p, g->number);
    }
    if (error != cudaSuccess || g->n_visible == 0) {
        snprintf(g->problem, sizeof g->problem, "%s",
                 error == cudaSuccess ? "none found" : cudaGetErrorString(error));
        g->n_visible = 0;
        cudaGetLastError(); /* forgotten: it is reported */
        return;
    }
    g->capability = p.major * 10 + p.minor;
    g->memory_bytes = (int64_t)p.totalGlobalMem;
    snprintf(g->name, sizeof g->name, "%.63s", p.name);
    uuid_print(g->uuid, (const unsigned char *)p.uuid.bytes);
}
