/* mpi_nccl.c - all-reduce over NCCL on 1, 2, 3 ranks (on the emulator, or on as many GPUs), and starts and
 * steps that break on purpose (an argument names how; tests/suites/cuda_e2e looks at what they say).
 *
 * Right is: every element is the sum of the ranks' elements within the rounding of its type, the same bits on
 * every rank and in every repetition, in order with what is on the stream before and after, captured in a
 * graph too. */
#include "tests/comm/check.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/base/crc32.h"

enum { ELEMENTS_MAX = 300000, CANARIES = 16 };

static struct comm_world world;
static struct comm *group;
static cudaStream_t stream;
static void *device; /* ELEMENTS_MAX f32 and canaries */

#define CUDA(call) CHECK((call) == cudaSuccess, "%s", #call)

static float value(int rank, uint32_t round, size_t i)
{
    uint32_t h = ((uint32_t)i * 2654435761u + round * 40503u + (uint32_t)rank * 0x9e3779b9u) ^ 0x5bd1e995u;
    h = (h ^ h >> 16) * 0x7feb352du;
    h ^= h >> 15;
    return ldexpf((float)(int32_t)(h >> 8 << 8) * 0x1p-31f, (int)(h & 15) - 8);
}

static void put(char *host, size_t i, enum dtype t, float f)
{
    uint16_t h = dtype_bf16_from_f32(f);
    if (t == DTYPE_F32) memcpy(host + 4 * i, &f, 4);
    else memcpy(host + 2 * i, &h, 2);
}

static float get(const char *host, size_t i, enum dtype t)
{
    float f;
    uint16_t h;
    memcpy(&f, host + 4 * i * (t == DTYPE_F32), 4);
    memcpy(&h, host + 2 * i, 2);
    return t == DTYPE_F32 ? f : dtype_f32_from_bf16(h);
}

/* All ranks hold the same bits: least and largest sum of a checksum are one. */
static void check_same(const void *bytes, size_t n)
{
    int64_t least = crc32_of(bytes, n), most = least;
    comm_min_i64(group, &least, 1);
    comm_max_i64(group, &most, 1);
    CHECK(least == most, "ranks hold different bits");
}

static void fill(char *host, size_t n, enum dtype t, uint32_t round)
{
    for (size_t i = 0; i < n; i++) put(host, i, t, value(world.rank, round, i));
    for (size_t i = 0; i < CANARIES; i++) put(host, n + i, t, NAN);
}

static void check_sums(const char *host, size_t n, enum dtype t, uint32_t round)
{
    for (size_t i = 0; i < n; i++) {
        double sum = 0, size = 0, step = t == DTYPE_F32 ? 0x1p-23 : 0x1p-8;
        for (int r = 0; r < world.size; r++) {
            float v = value(r, round, i);
            if (t == DTYPE_BF16) v = dtype_f32_from_bf16(dtype_bf16_from_f32(v));
            sum += v;
            size += fabs((double)v);
        }
        double got = get(host, i, t);
        CHECK(fabs(got - sum) <= step * world.size * size, "element %zu of %zu: %g, expected %g", i, n, got,
              sum);
    }
    for (size_t i = 0; i < CANARIES; i++) CHECK(isnan(get(host, n + i, t)), "wrote behind %zu elements", n);
    check_same(host, n * dtype_bytes(t));
}

static void sums(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 3, 7, 31, 65, 576, 4099, 65536, 65537, ELEMENTS_MAX};
    char *host = malloc((ELEMENTS_MAX + CANARIES) * 4), *again = malloc((ELEMENTS_MAX + CANARIES) * 4);
    CHECK(host && again, "no memory");
    for (enum dtype t = DTYPE_F32; t <= DTYPE_BF16; t++)
        for (size_t s = 0; t != DTYPE_F16 && s < sizeof sizes / sizeof *sizes; s++) {
            size_t n = sizes[s], bytes = (n + CANARIES) * dtype_bytes(t);
            for (int repeat = 0; repeat < 2; repeat++) {
                fill(host, n, t, (uint32_t)s);
                CUDA(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream));
                comm_all_reduce(group, device, n, t, stream);
                CUDA(cudaMemcpyAsync(repeat ? again : host, device, bytes, cudaMemcpyDeviceToHost, stream));
                comm_wait(group, stream);
                CUDA(cudaStreamSynchronize(stream));
                check_sums(repeat ? again : host, n, t, (uint32_t)s);
                if (!repeat) memcpy(again, host, bytes);
                else {
                    /* The same call again gives the same bits. */
                    fill(host, n, t, (uint32_t)s);
                    CUDA(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream));
                    comm_all_reduce(group, device, n, t, stream);
                    CUDA(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream));
                    comm_wait(group, stream);
                    CUDA(cudaStreamSynchronize(stream));
                    CHECK(memcmp(host, again, bytes) == 0, "bits differ from one call to the next");
                }
            }
        }
    free(host);
    free(again);
}

/* Two all-reduces with a copy between them in one graph, replayed over new inputs. */
static void captured_in_a_graph(void **state)
{
    (void)state;
    enum { N = 5000 };
    size_t bytes = (N + CANARIES) * 4;
    char *input, *output;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA(cudaHostAlloc((void **)&input, bytes, cudaHostAllocDefault));
    CUDA(cudaHostAlloc((void **)&output, 2 * bytes, cudaHostAllocDefault));
    comm_all_reduce(group, device, N, DTYPE_F32, stream); /* connections are made outside of the capture */
    comm_wait(group, stream);
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    CUDA(cudaMemcpyAsync(device, input, bytes, cudaMemcpyHostToDevice, stream));
    comm_all_reduce(group, device, N, DTYPE_F32, stream);
    CUDA(cudaMemcpyAsync(output, device, bytes, cudaMemcpyDeviceToHost, stream));
    CUDA(cudaMemcpyAsync(device, input, bytes, cudaMemcpyHostToDevice, stream));
    comm_all_reduce(group, device, N, DTYPE_F32, stream);
    CUDA(cudaMemcpyAsync(output + bytes, device, bytes, cudaMemcpyDeviceToHost, stream));
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    for (uint32_t round = 0; round < 5; round++) {
        fill(input, N, DTYPE_F32, 100 + round);
        CUDA(cudaGraphLaunch(exec, stream));
        comm_wait(group, stream);
        CUDA(cudaStreamSynchronize(stream));
        check_sums(output, N, DTYPE_F32, 100 + round);
        CHECK(memcmp(output, output + bytes, bytes) == 0, "the two sums of one graph differ");
    }
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaFreeHost(input));
    CUDA(cudaFreeHost(output));
}

/* What the host needs still goes the old way. */
static void gathers_as_before(void **state)
{
    (void)state;
    size_t counts[64];
    unsigned char mine[64], all[64 * 64];
    for (int r = 0; r < world.size; r++) counts[r] = (size_t)(r % 64);
    memset(mine, world.rank, sizeof mine);
    comm_gather(group, mine, counts[world.rank], all, counts);
    size_t at = 0;
    for (int r = 0; world.rank == 0 && r < world.size; r++)
        for (size_t i = 0; i < counts[r]; i++) CHECK(all[at++] == r, "byte of rank %d", r);
}

static void says_what_it_is(void **state)
{
    (void)state;
    CHECK(world.size == 1 || strstr(comm_describe(group), "by NCCL 2."), "%s", comm_describe(group));
    comm_phase(group, "one");
    comm_phase(group, "two");
    comm_arrive(group, "three", 20);
    comm_arrive(group, "four", 20);
}

static void open_gpu(void)
{
    int n = 0;
    CUDA(cudaGetDeviceCount(&n));
    CUDA(cudaSetDevice(world.node_rank % n));
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA(cudaMalloc(&device, (ELEMENTS_MAX + CANARIES) * 4));
}

static void pause_s(int s)
{
    struct timespec t = {.tv_sec = s};
    nanosleep(&t, NULL);
}

/* Never returns in order, but for `same-gpu`. */
static int break_job(const char *how)
{
    struct reason why;
    bool last = world.rank == world.size - 1;
    if (strcmp(how, "late") == 0 && last) pause_s(60);
    if (strcmp(how, "late-leader") == 0 && world.rank == 0) pause_s(60);
    enum status status = comm_use_nccl(group, &world, strncmp(how, "late", 4) == 0 ? 2 : 30, &why);
    if (status != STATUS_OK) {
        printf("rank %d: %s\n", world.rank, why.text);
        comm_close(group);
        comm_world_close();
        return 3;
    }
    CUDA(cudaMemsetAsync(device, 0, 4000, stream));
    comm_reserve(group, 1000);
    for (int i = 0; i < 3; i++) {
        comm_all_reduce(group, device, 1000, DTYPE_F32, stream);
        comm_wait(group, stream);
    }
    if (strcmp(how, "kill") == 0 && last) raise(SIGKILL);
    comm_all_reduce(group, device, 1000, DTYPE_F32, stream);
    comm_wait(group, stream);
    fprintf(stderr, "rank %d was not ended\n", world.rank);
    pause_s(60);
    return 99;
}

int main(int argc, char **argv)
{
    struct reason why;
    comm_world_open(&world, true);
    if (world.size > 1) die_set_hook(comm_world_abort);
    open_gpu();
    group = comm_open(&world, world.size);
    comm_phase(group, "GPU is open");
    if (argc > 1) return break_job(argv[1]);
    if (comm_use_nccl(group, &world, 60, &why) != STATUS_OK) DIE(EXIT_CODE_OPTION, NULL, "%s", why.text);
    comm_reserve(group, ELEMENTS_MAX);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_what_it_is),
        cmocka_unit_test(sums),
        cmocka_unit_test(captured_in_a_graph),
        cmocka_unit_test(gathers_as_before),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    comm_close(group);
    cudaFree(device);
    cudaStreamDestroy(stream);
    comm_world_close();
    return failed;
}
