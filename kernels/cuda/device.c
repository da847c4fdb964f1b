/* device.c - opens a GPU: stream, cuBLAS, pinned staging buffers, op table; and the memory ops.
 *
 * A GPU that cannot be used is a status with one line; an error after that ends the job, because what the
 * device holds is lost with it. Refuses GPUs older than sm_80. All work is issued on one stream, which does
 * not wait for the legacy default stream. Host memory of host_alloc is pinned: a transfer from it is
 * asynchronous, so it must not change before the next sync; a transfer from other host memory has read it
 * when it returns. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"

/* What a person can do about an error; the runtime's own sentence stands beside it. */
static const char *hint_of(cudaError_t error)
{
    switch (error) {
    case cudaErrorMemoryAllocation:
        return "lower --max-context or --max-seqs, or see nvidia-smi for who holds memory";
    case cudaErrorNoKernelImageForDevice:
        return "this build has no code for this GPU: see CMAKE_CUDA_ARCHITECTURES";
    case cudaErrorInsufficientDriver: return "the driver is older than the CUDA runtime: update it";
    case cudaErrorDevicesUnavailable: return "another process holds the GPU exclusively: see nvidia-smi";
    case cudaErrorECCUncorrectable:
    case cudaErrorHardwareStackError: return "the GPU is faulty: see nvidia-smi -q and dmesg";
    case cudaErrorLaunchTimeout: return "a display's watchdog ended the kernel: use a GPU without a display";
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorLaunchFailure:
        return "a bug of ours: compute-sanitizer with the same command names the kernel";
    default: return "see nvidia-smi and dmesg on this host";
    }
}

void cuda_check(cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return;
    DIE(error == cudaErrorMemoryAllocation ? EXIT_CODE_MEMORY : EXIT_CODE_PEER, hint_of(error),
        "CUDA: %s failed: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

void cuda_check_launch(const char *kernel) { cuda_check(cudaGetLastError(), kernel); }

static void *mem_alloc(struct device *d, size_t bytes)
{
    void *p = NULL;
    if (cudaMalloc(&p, bytes ? bytes : 1) != cudaSuccess) {
        cudaGetLastError(); /* forgotten: the caller decides what a refusal means */
        return NULL;
    }
    cuda_check(cudaMemsetAsync(p, 0, bytes, cuda_of(d)->stream), "clearing memory");
    return p;
}

static void mem_free(struct device *d, void *p, size_t bytes)
{
    (void)bytes;
    if (!p) return;
    cuda_check(cudaStreamSynchronize(cuda_of(d)->stream), "waiting before memory is freed");
    cuda_check(cudaFree(p), "freeing memory");
}

static void *host_alloc(struct device *d, size_t bytes)
{
    (void)d;
    void *p = NULL;
    if (cudaHostAlloc(&p, bytes ? bytes : 1, cudaHostAllocDefault) != cudaSuccess) {
        cudaGetLastError();
        return NULL;
    }
    memset(p, 0, bytes);
    return p;
}

static void host_free(struct device *d, void *p, size_t bytes)
{
    (void)d;
    (void)bytes;
    if (!p) return;
    cuda_check(cudaFreeHost(p), "freeing pinned memory");
}

static void upload(struct device *d, void *dst, const void *src_host, size_t bytes)
{
    cuda_check(cudaMemcpyAsync(dst, src_host, bytes, cudaMemcpyHostToDevice, cuda_of(d)->stream),
               "an upload");
}

static void download(struct device *d, void *dst_host, const void *src, size_t bytes)
{
    cuda_check(cudaMemcpyAsync(dst_host, src, bytes, cudaMemcpyDeviceToHost, cuda_of(d)->stream),
               "a download");
}

static void copy(struct device *d, void *dst, const void *src, size_t bytes)
{
    cuda_check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, cuda_of(d)->stream), "a copy");
}

static void fill(struct device *d, void *dst, int byte, size_t bytes)
{
    cuda_check(cudaMemsetAsync(dst, byte, bytes, cuda_of(d)->stream), "a fill");
}

static void sync(struct device *d) { cuda_check(cudaStreamSynchronize(cuda_of(d)->stream), "the step"); }

static int64_t mem_available(struct device *d)
{
    (void)d;
    size_t free_bytes = 0, total = 0;
    cuda_check(cudaMemGetInfo(&free_bytes, &total), "asking for free memory");
    return (int64_t)free_bytes;
}

static void *stream(struct device *d) { return cuda_of(d)->stream; }

static const struct ops cuda_ops = {
    .name = "cuda",
    .graphs = true,
    .mem_alloc = mem_alloc,
    .mem_free = mem_free,
    .host_alloc = host_alloc,
    .host_free = host_free,
    .upload = upload,
    .download = download,
    .copy = copy,
    .fill = fill,
    .sync = sync,
    .mem_available = mem_available,
    .stream = stream,
    .read_bytes = cuda_read_bytes,
    .mark = cuda_mark,
    .mark_us = cuda_mark_us,
    .range = cuda_range,
    .graph_launch = cuda_graph_launch,
    .graph_end = cuda_graph_end,
    .matrix_bytes = cuda_matrix_bytes,
    .matrix_put = cuda_matrix_put,
    .embed = cuda_embed,
    .rope_table = cuda_rope_table,
    .add_norm = cuda_add_norm,
    .gather = cuda_gather,
    .linear = cuda_linear,
    .rope_store = cuda_rope_store,
    .select_scratch_bytes = cuda_select_scratch_bytes,
    .select = cuda_select,
    .attend_part_bytes = cuda_attend_part_bytes,
    .attend = cuda_attend,
    .merge = cuda_merge,
    .attend_prompt = cuda_attend_prompt,
    .silu_mul = cuda_silu_mul,
    .argmax = cuda_argmax,
    .top_k = cuda_top_k,
    .convert = cuda_convert,
};

static void close_device(struct device *d)
{
    struct cuda_device *c = cuda_of(d);
    cudaStreamSynchronize(c->stream);
    cuda_marks_close(c);
    cuda_graph_close(c);
    for (int i = 0; i < 2; i++) {
        cudaEventDestroy(c->staged[i]);
        cudaFreeHost(c->staging[i]);
    }
    cublasDestroy(c->blas);
    cudaFree(c->workspace);
    cudaStreamDestroy(c->stream);
    free(c);
}

static void check_blas(cublasStatus_t s, const char *what)
{
    if (s != CUBLAS_STATUS_SUCCESS)
        DIE(EXIT_CODE_PEER, "does its version fit the CUDA runtime's?", "cuBLAS: %s failed: %s", what,
            cublasGetStatusString(s));
}

static void open_blas(struct cuda_device *c)
{
    check_blas(cublasCreate(&c->blas), "cublasCreate");
    check_blas(cublasSetStream(c->blas, c->stream), "cublasSetStream");
    /* After the stream, which would put the library's own workspace back. */
    cuda_check(cudaMalloc(&c->workspace, CUDA_WORKSPACE_BYTES), "allocating the cuBLAS workspace");
    check_blas(cublasSetWorkspace(c->blas, c->workspace, CUDA_WORKSPACE_BYTES), "cublasSetWorkspace");
    /* Sums in f32 throughout: no TF32, no sums in the storage type between splits. */
    int mode = CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    check_blas(cublasSetMathMode(c->blas, (cublasMath_t)mode), "cublasSetMathMode");
    check_blas(cublasSetAtomicsMode(c->blas, CUBLAS_ATOMICS_NOT_ALLOWED), "cublasSetAtomicsMode");
}

/* Where a launcher shows every process one GPU only (Slurm with --gpus-per-task), each sees it as number 0.
 * Ranks that share a GPU by mistake are found by comm, which knows all ranks. */
static enum status choose_gpu(int ordinal, int *chosen, struct cudaDeviceProp *p, struct reason *why)
{
    int n_gpus = 0;
    cudaError_t error = cudaGetDeviceCount(&n_gpus);
    if (error != cudaSuccess || n_gpus == 0)
        return status_fail(why, STATUS_BAD_OPTION,
                           "--device cuda: no GPU can be used here (%s): use --device cpu",
                           error == cudaSuccess ? "none found" : cudaGetErrorString(error));
    *chosen = ordinal % n_gpus;
    error = cudaSetDevice(*chosen);
    if (error == cudaSuccess) error = cudaGetDeviceProperties(p, *chosen);
    if (error == cudaSuccess)
        error = cudaFree(NULL); /* makes the context now, where its failure is a plain refusal */
    if (error != cudaSuccess)
        return status_fail(why, STATUS_BAD_OPTION,
                           "--device cuda: GPU %d cannot be used: %s: %s, or use --device cpu", *chosen,
                           cudaGetErrorString(error), hint_of(error));
    if (p->major < 8)
        return status_fail(
            why, STATUS_BAD_OPTION,
            "--device cuda: GPU %d (%.100s) is sm_%d%d, sm_80 or newer is needed: use --device cpu", *chosen,
            p->name, p->major, p->minor);
    return STATUS_OK;
}

enum status cuda_device_open(struct device **out, const struct device_options *o, struct reason *why)
{
    struct cudaDeviceProp p;
    int ordinal = 0;
    ASSERT(o->ordinal >= 0 && o->act < DTYPE_COUNT);
    enum status status = choose_gpu(o->ordinal, &ordinal, &p, why);
    if (status != STATUS_OK) return status;
    struct cuda_device *c = calloc(1, sizeof *c);
    if (!c) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the CUDA device");
    c->ordinal = ordinal;
    c->n_sms = p.multiProcessorCount;
    c->act = o->act;
    cuda_check(cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking), "creating a stream");
    open_blas(c);
    for (int i = 0; i < 2; i++) {
        cuda_check(cudaHostAlloc((void **)&c->staging[i], CUDA_STAGING_BYTES, cudaHostAllocDefault),
                   "allocating pinned memory");
        cuda_check(cudaEventCreateWithFlags(&c->staged[i], cudaEventDisableTiming), "creating an event");
    }
    c->base = (struct device){.ops = &cuda_ops, .close = close_device};
    snprintf(c->base.description, sizeof c->base.description, "%.100s, sm_%d%d, GPU %d", p.name, p.major,
             p.minor, ordinal);
    *out = &c->base;
    return STATUS_OK;
}
