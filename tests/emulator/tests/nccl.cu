// The NCCL stand-in under mpirun: communicators over the world and over subsets at the same time, every
// collective against host arithmetic, graphs, groups, deadlines, abort, refusals. Argument 1 picks the
// scenario.
#include "check.h"
#include <chrono>
#include <cuda_bf16.h>
#include <mpi.h>
#include <nccl.h>
#include <string>
#include <unistd.h>

#define NCCL(x) CHECK((x) == ncclSuccess)

static int rank, size;
static cudaStream_t stream;

static double now()
{
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Starts a non-blocking communicator over the world ranks in 'members' and waits for it, at most 'deadline'
// seconds.
static ncclComm_t open(const std::vector<int> &members, ncclResult_t *state, double deadline = 20)
{
    int me = -1;
    for (size_t i = 0; i < members.size(); i++)
        if (members[i] == rank) me = (int)i;
    ncclUniqueId id;
    if (rank == members[0]) {
        NCCL(ncclGetUniqueId(&id));
        for (size_t i = 1; i < members.size(); i++)
            MPI_Send(&id, sizeof id, MPI_BYTE, members[i], 5, MPI_COMM_WORLD);
    } else {
        MPI_Recv(&id, sizeof id, MPI_BYTE, members[0], 5, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    }
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclComm_t c;
    *state = ncclCommInitRankConfig(&c, (int)members.size(), id, me, &config);
    double end = now() + deadline;
    while (*state == ncclInProgress && now() < end) {
        NCCL(ncclCommGetAsyncError(c, state));
        usleep(500);
    }
    return c;
}

static float value(int r, size_t i) { return (float)((int)((i * 7 + r * 13) % 41) - 20) / 4.0f; }
static float bf16_round(float f)
{
    u32 u = (u32)raw(f);
    return as<float>((u64)((u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u));
}

static void all_ops(ncclComm_t c)
{
    int n, me;
    NCCL(ncclCommCount(c, &n));
    NCCL(ncclCommUserRank(c, &me));
    for (size_t count : {1, 3, 31, 4099}) {
        std::vector<float> x(count), sum(count, 0.0f);
        std::vector<u16> b(count);
        std::vector<int> k(count);
        for (size_t i = 0; i < count; i++) {
            x[i] = value(me, i);
            b[i] = (u16)(raw(bf16_round(x[i])) >> 16);
            k[i] = (int)(i * 3) - me;
            for (int r = 0; r < n; r++) sum[i] += value(r, i);
        }
        Device<float> dx(x), dy(count), all(count * n);
        Device<u16> db(b);
        Device<int> dk(k);
        NCCL(ncclAllReduce(dx.p, dy.p, count, ncclFloat, ncclSum, c, stream));
        NCCL(ncclAllReduce(db.p, db.p, count, ncclBfloat16, ncclSum, c, stream)); // in place
        NCCL(ncclAllReduce(dk.p, dk.p, count, ncclInt, ncclMax, c, stream));
        NCCL(ncclAllGather(dx.p, all.p, count, ncclFloat, c, stream));
        CUDA(cudaStreamSynchronize(stream));
        auto y = dy.get(), g = all.get();
        auto bb = db.get();
        auto kk = dk.get();
        int bad = 0;
        for (size_t i = 0; i < count; i++) {
            bad += y[i] != sum[i]; // quarters: exact in any order
            bad += as<float>((u64)bb[i] << 16) != bf16_round(sum[i]);
            bad += kk[i] != (int)(i * 3);
            for (int r = 0; r < n; r++) bad += g[r * count + i] != value(r, i);
        }
        CHECK(bad == 0);
        int root = n - 1;
        NCCL(ncclBroadcast(dx.p, dy.p, count, ncclFloat, root, c, stream));
        NCCL(ncclReduceScatter(all.p, dx.p, count, ncclFloat, ncclSum, c, stream));
        CUDA(cudaStreamSynchronize(stream));
        y = dy.get();
        x = dx.get();
        bad = 0;
        for (size_t i = 0; i < count; i++) bad += y[i] != value(root, i) || x[i] != (float)n * value(me, i);
        CHECK(bad == 0);
        // a ring in one group: every rank sends before it receives
        Device<float> from(count);
        NCCL(ncclGroupStart());
        NCCL(ncclSend(dy.p, count, ncclFloat, (me + 1) % n, c, stream));
        NCCL(ncclRecv(from.p, count, ncclFloat, (me + n - 1) % n, c, stream));
        NCCL(ncclGroupEnd());
        CUDA(cudaStreamSynchronize(stream));
        CHECK(from.get() == y);
    }
}

__global__ void scale(float *x, float f) { x[threadIdx.x] *= f; }

static void in_graph(ncclComm_t c)
{
    int n;
    NCCL(ncclCommCount(c, &n));
    Device<float> x(32);
    cudaGraph_t g;
    cudaGraphExec_t e;
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    scale<<<1, 32, 0, stream>>>(x.p, 2.0f);
    NCCL(ncclAllReduce(x.p, x.p, 32, ncclFloat, ncclSum, c, stream));
    scale<<<1, 32, 0, stream>>>(x.p, 0.5f);
    CUDA(cudaStreamEndCapture(stream, &g));
    CUDA(cudaGraphInstantiate(&e, g, 0));
    float want = 1;
    x.put(std::vector<float>(32, 1.0f));
    for (int i = 0; i < 5; i++) {
        CUDA(cudaGraphLaunch(e, stream));
        NCCL(ncclAllReduce(x.p, x.p, 32, ncclFloat, ncclMax, c, stream)); // eager work behind a replay
        want *= (float)n;
    }
    CUDA(cudaStreamSynchronize(stream));
    CHECK(x.get()[31] == want);
    CUDA(cudaGraphExecDestroy(e));
    CUDA(cudaGraphDestroy(g));
}

int main(int argc, char **argv)
{
    std::string scenario = argc > 1 ? argv[1] : "ops";
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    int devices;
    CUDA(cudaGetDeviceCount(&devices));
    CUDA(cudaSetDevice(rank % devices));
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    std::vector<int> world, mine;
    for (int r = 0; r < size; r++) {
        world.push_back(r);
        if (r % 2 == rank % 2) mine.push_back(r);
    }
    ncclResult_t state;
    if (scenario == "ops") {
        ncclComm_t a = open(world, &state);
        CHECK(state == ncclSuccess);
        ncclComm_t b = open(mine, &state); // even and odd ranks, two ids at the same time
        CHECK(state == ncclSuccess);
        all_ops(a);
        all_ops(b);
        in_graph(a);
        in_graph(b);
        NCCL(ncclCommFinalize(b));
        NCCL(ncclCommDestroy(b));
        NCCL(ncclCommDestroy(a));
    } else if (scenario == "duplicate") { // two ranks on one GPU
        open(world, &state);
        CHECK(state == ncclInvalidUsage);
    } else if (scenario == "late") { // rank 1 never comes: the others' deadline passes, and they can abort
        if (rank != 1) {
            ncclUniqueId id = {};
            if (rank == 0) ncclGetUniqueId(&id);
            ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
            config.blocking = 0;
            ncclComm_t c;
            state = ncclCommInitRankConfig(&c, size, id, rank == 0 ? 0 : 2, &config);
            double end = now() + 0.3;
            while (rank == 0 && now() < end) NCCL(ncclCommGetAsyncError(c, &state));
            CHECK(rank || state == ncclInProgress);
            if (rank == 0) NCCL(ncclCommAbort(c));
        } else {
            CHECK(true);
        }
        MPI_Barrier(MPI_COMM_WORLD);
    } else if (scenario == "abort") { // rank 0 waits in a collective that rank 1 leaves by aborting
        ncclComm_t c = open(world, &state);
        CHECK(state == ncclSuccess);
        Device<float> x(std::vector<float>(32, 1.0f));
        if (rank == 0) {
            NCCL(ncclAllReduce(x.p, x.p, 32, ncclFloat, ncclSum, c, stream));
            CHECK(cudaStreamQuery(stream) == cudaErrorNotReady);
            double end = now() + 20;
            while (state == ncclSuccess && now() < end) NCCL(ncclCommGetAsyncError(c, &state));
            CHECK(state == ncclRemoteError);
            NCCL(ncclCommAbort(c));
            CUDA(cudaStreamSynchronize(stream)); // the stream is usable again
            CHECK(x.get()[0] == 1.0f);
        } else {
            usleep(100000);
            NCCL(ncclCommAbort(c));
        }
        MPI_Barrier(MPI_COMM_WORLD);
    }
    int bad = n_failed, total;
    MPI_Allreduce(&bad, &total, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    int r = finish("nccl");
    MPI_Finalize();
    return r || total;
}
