// The runtime API: devices, memory, streams and events, graphs, attributes, and the counters of EMU_STATS.
#include "check.h"
#include <string>
#include <thread>

__global__ void fill(float *x, float v) { x[threadIdx.x] = v; }
__global__ void add_one(float *y, const float *x) { y[threadIdx.x] = x[threadIdx.x] + 1; }
__global__ void twice(float *x) { x[threadIdx.x] *= 2; }
__global__ void __launch_bounds__(64) bounded(float *x) { x[threadIdx.x] = 1; }
__global__ void needs_shared(float *x)
{
    extern __shared__ float s[];
    s[threadIdx.x] = 1;
    x[threadIdx.x] = s[threadIdx.x];
}
__device__ int variable[4] = {1, 2, 3, 4};

static void devices()
{
    int n;
    CUDA(cudaGetDeviceCount(&n));
    CHECK(n == 2); // EMU_DEVICES in the CTest entry
    cudaDeviceProp a, b;
    CUDA(cudaGetDeviceProperties(&a, 0));
    CUDA(cudaGetDeviceProperties(&b, 1));
    CHECK(a.major == 9 && a.warpSize == 32 && a.multiProcessorCount > 0);
    CHECK(memcmp(&a.uuid, &b.uuid, sizeof a.uuid) != 0);
    CHECK(a.totalGlobalMem == 64u << 20); // EMU_DEVICE_MEMORY
    CHECK(cudaGetDeviceProperties(&a, 2) == cudaErrorInvalidDevice);
    CHECK(cudaGetLastError() == cudaErrorInvalidDevice);
    CHECK(cudaGetLastError() == cudaSuccess);
    char bus[32];
    int d = -1;
    CUDA(cudaDeviceGetPCIBusId(bus, sizeof bus, 1));
    CUDA(cudaDeviceGetByPCIBusId(&d, bus));
    CHECK(d == 1);
    int optin;
    CUDA(cudaDeviceGetAttribute(&optin, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    CHECK(optin == 232448);
    float *p;
    CUDA(cudaSetDevice(1));
    CUDA(cudaMalloc(&p, 128));
    cudaPointerAttributes pa;
    CUDA(cudaPointerGetAttributes(&pa, p));
    CHECK(pa.type == cudaMemoryTypeDevice && pa.device == 1);
    fill<<<1, 32>>>(p, 3.0f);
    float h[32];
    CUDA(cudaMemcpy(h, p, 128, cudaMemcpyDeviceToHost));
    CHECK(h[31] == 3.0f);
    int v[4] = {9, 9, 9, 9}; // every device has its own variables
    CUDA(cudaMemcpyToSymbol(variable, v, sizeof v));
    CUDA(cudaSetDevice(0));
    CUDA(cudaMemcpyFromSymbol(v, variable, sizeof v));
    CHECK(v[2] == 3);
    CUDA(cudaFree(p));
}

static void memory()
{
    size_t before, total, after;
    CUDA(cudaMemGetInfo(&before, &total));
    void *p, *q;
    CUDA(cudaMalloc(&p, 1 << 20));
    CUDA(cudaMemGetInfo(&after, &total));
    CHECK(before - after == 1 << 20 && (size_t)p % 256 == 0);
    CHECK(cudaMalloc(&q, 128u << 20) == cudaErrorMemoryAllocation);
    cudaGetLastError();
    std::vector<char> h(2 << 20);
    CHECK(cudaMemcpy(p, h.data(), (1 << 20) + 1, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(h.data(), p, 16, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(p, p, 16, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
    CHECK(cudaFree((char *)p + 256) == cudaErrorInvalidValue);
    cudaGetLastError();
    float *pinned;
    CUDA(cudaHostAlloc((void **)&pinned, 128, cudaHostAllocDefault));
    fill<<<1, 32>>>(pinned, 7.0f); // kernels may address pinned memory
    CUDA(cudaDeviceSynchronize());
    CHECK(pinned[31] == 7.0f);
    CUDA(cudaMemset(p, 0x41, 100));
    CUDA(cudaMemcpy2D(h.data(), 10, p, 20, 5, 4, cudaMemcpyDeviceToHost));
    CHECK(h[34] == 0x41 && h[35] == 0);
    cudaStream_t s;
    CUDA(cudaStreamCreate(&s));
    CUDA(cudaMallocAsync(&q, 4096, s));
    CUDA(cudaMemsetAsync(q, 0, 4096, s));
    CUDA(cudaFreeAsync(q, s));
    CUDA(cudaStreamSynchronize(s));
    CUDA(cudaStreamDestroy(s));
    CUDA(cudaFreeHost(pinned));
    CUDA(cudaFree(p));
    CUDA(cudaMemGetInfo(&after, &total));
    CHECK(after == before);
}

static void launches()
{
    Device<float> x(1024);
    bounded<<<1, 65>>>(x.p);
    CHECK(cudaGetLastError() == cudaErrorLaunchOutOfResources);
    fill<<<1, 1025>>>(x.p, 1.0f);
    CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration);
    needs_shared<<<1, 32, 100000>>>(x.p);
    CHECK(cudaGetLastError() == cudaErrorInvalidValue);
    CUDA(cudaFuncSetAttribute(needs_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, 100000));
    needs_shared<<<1, 32, 100000>>>(x.p);
    CUDA(cudaGetLastError());
    CHECK(cudaFuncSetAttribute(needs_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, 232449) ==
          cudaErrorInvalidValue);
    cudaGetLastError();
    int blocks;
    CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, needs_shared, 256, 100000));
    CHECK(blocks == 2);
    CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, fill, 256, 0));
    CHECK(blocks == 8);
    cudaFuncAttributes a;
    CUDA(cudaFuncGetAttributes(&a, bounded));
    CHECK(a.maxThreadsPerBlock == 64);
}

static void streams()
{
    cudaStream_t a, b;
    cudaEvent_t e, t0, t1;
    CUDA(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
    CUDA(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
    CUDA(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    CUDA(cudaEventCreate(&t0));
    CUDA(cudaEventCreate(&t1));
    Device<float> x(32), y(32);
    float *h;
    CUDA(cudaMallocHost(&h, 128));
    for (int i = 0; i < 20; i++) {
        CUDA(cudaEventRecord(t0, a));
        fill<<<1, 32, 0, a>>>(x.p, (float)i);
        CUDA(cudaEventRecord(e, a));
        CUDA(cudaStreamWaitEvent(b, e, 0));
        add_one<<<1, 32, 0, b>>>(y.p, x.p);
        CUDA(cudaMemcpyAsync(h, y.p, 128, cudaMemcpyDeviceToHost, b));
        CUDA(cudaEventRecord(e, b));
        CUDA(cudaStreamWaitEvent(a, e, 0)); // the next fill must not overtake
        CUDA(cudaEventRecord(t1, a));
        while (cudaEventQuery(e) == cudaErrorNotReady) {
        }
        CHECK(h[31] == (float)i + 1);
    }
    CUDA(cudaEventSynchronize(t1));
    float ms = -1;
    CUDA(cudaEventElapsedTime(&ms, t0, t1));
    CHECK(ms >= 0);
    // the legacy stream waits for blocking streams, and they for it
    cudaStream_t blocking;
    CUDA(cudaStreamCreate(&blocking));
    fill<<<1, 32, 0, blocking>>>(x.p, 5.0f);
    add_one<<<1, 32>>>(y.p, x.p);
    twice<<<1, 32, 0, blocking>>>(y.p);
    CUDA(cudaStreamSynchronize(blocking));
    CHECK(y.get()[0] == 12.0f);
    int called = 0;
    CUDA(cudaLaunchHostFunc(
        a, [](void *p) { ++*(int *)p; }, &called));
    CUDA(cudaStreamSynchronize(a));
    CHECK(called == 1);
    // a pageable source is read at the call, a pinned one in stream order
    std::vector<float> pageable(32, 1.0f);
    CUDA(cudaMemcpyAsync(x.p, pageable.data(), 128, cudaMemcpyHostToDevice, a));
    pageable.assign(32, 2.0f);
    CUDA(cudaStreamSynchronize(a));
    CHECK(x.get()[0] == 1.0f);
    std::thread([&] { CUDA(cudaStreamSynchronize(a)); }).join();
    for (auto s : {a, b, blocking}) CUDA(cudaStreamDestroy(s));
    for (auto v : {e, t0, t1}) CUDA(cudaEventDestroy(v));
    CUDA(cudaFreeHost(h));
}

static cudaGraph_t capture(cudaStream_t a, cudaStream_t b, float *x, float *y, float *h, float v)
{
    cudaEvent_t fork, join;
    CUDA(cudaEventCreate(&fork));
    CUDA(cudaEventCreate(&join));
    cudaGraph_t g;
    CUDA(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal));
    fill<<<1, 32, 0, a>>>(x, v);
    CUDA(cudaEventRecord(fork, a));
    CUDA(cudaStreamWaitEvent(b, fork, 0));
    fill<<<1, 32, 0, b>>>(y, 100.0f);
    CUDA(cudaEventRecord(join, b));
    twice<<<1, 32, 0, a>>>(x);
    CUDA(cudaStreamWaitEvent(a, join, 0));
    add_one<<<1, 32, 0, a>>>(y, x);
    CUDA(cudaMemcpyAsync(h, y, 128, cudaMemcpyDeviceToHost, a));
    CUDA(cudaStreamEndCapture(a, &g));
    CUDA(cudaEventDestroy(fork));
    CUDA(cudaEventDestroy(join));
    return g;
}

static void graphs()
{
    cudaStream_t a, b;
    CUDA(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
    CUDA(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
    Device<float> x(32), y(32);
    float *h;
    CUDA(cudaMallocHost(&h, 128));
    h[0] = -1;
    cudaGraph_t g = capture(a, b, x.p, y.p, h, 4.0f);
    CUDA(cudaStreamSynchronize(a));
    CHECK(h[0] == -1); // capturing runs nothing
    size_t nodes;
    CUDA(cudaGraphGetNodes(g, nullptr, &nodes));
    CHECK(nodes == 5);
    cudaGraphExec_t exec;
    CUDA(cudaGraphInstantiate(&exec, g, 0));
    for (int i = 0; i < 10; i++) {
        h[0] = -1;
        CUDA(cudaGraphLaunch(exec, a));
        CUDA(cudaStreamSynchronize(a));
        CHECK(h[0] == 9.0f);
    }
    cudaGraph_t g2 = capture(a, b, x.p, y.p, h, 6.0f);
    cudaGraphExecUpdateResultInfo info;
    CUDA(cudaGraphExecUpdate(exec, g2, &info));
    CUDA(cudaGraphLaunch(exec, a));
    CUDA(cudaStreamSynchronize(a));
    CHECK(h[0] == 13.0f);
    // misuse
    cudaGraph_t bad;
    CUDA(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal));
    void *p;
    CHECK(cudaMalloc(&p, 16) == cudaErrorStreamCaptureUnsupported);
    CHECK(cudaStreamEndCapture(a, &bad) == cudaErrorStreamCaptureInvalidated);
    CUDA(cudaStreamBeginCapture(a, cudaStreamCaptureModeRelaxed));
    CHECK(cudaStreamSynchronize(a) == cudaErrorStreamCaptureUnsupported);
    cudaStreamEndCapture(a, &bad);
    cudaEvent_t e;
    CUDA(cudaEventCreate(&e));
    cudaGetLastError();
    CUDA(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal));
    CUDA(cudaEventRecord(e, a));
    CUDA(cudaStreamWaitEvent(b, e, 0));
    fill<<<1, 32, 0, b>>>(y.p, 1.0f);
    CHECK(cudaStreamEndCapture(a, &bad) == cudaErrorStreamCaptureUnjoined);
    cudaGetLastError();
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(g));
    CUDA(cudaGraphDestroy(g2));
}

int main()
{
    devices();
    memory();
    launches();
    streams();
    graphs();
    return finish("runtime");
}
