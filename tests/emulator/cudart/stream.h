// Streams as queues of work, events as positions in them, captures as graphs under construction.
//
// In order (EMU_SEED unset) work runs as soon as it is submitted and its waits are done. With a seed it is
// deferred and streams are interleaved at random, within what stream order and events allow: code that lacks
// a wait then reads stale data for some seeds.
#pragma once
#include "../ptx/types.h"
#include <cuda_runtime_api.h>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

namespace emu {

// Runs a piece of work; false: not finished yet, call again (a collective waiting for other ranks).
using Step = std::function<bool()>;
// Makes a fresh Step: graphs run the same node many times.
using Make = std::function<Step()>;

enum class NodeKind { Kernel, Copy, Set, Host, Library, Empty };

struct Node {
    NodeKind kind;
    Make make;
    std::vector<int> after; // indices of earlier nodes
};

struct Progress {
    u64 done = 0;
};
struct Position {
    std::shared_ptr<Progress> progress;
    u64 number = 0;
    bool reached() const { return !progress || progress->done >= number; }
};

struct Capture;

// Adds work to a stream, or to the graph it is being captured into.
cudaError_t stream_submit(cudaStream_t s, NodeKind kind, Make make);
// The stream object behind a handle (null and the special handles included); null when it is not one.
CUstream_st *stream_of(cudaStream_t s);
// Runs work until the position is reached. Returns a sticky error if a fault occurred.
cudaError_t run_until(const std::function<bool()> &reached, CUstream_st *wanted);
cudaError_t drain_stream(CUstream_st *s);
cudaError_t drain_device(int device);
// Lets some queued work run, as time passing would.
void pump();
// cudaErrorStreamCaptureUnsupported when the calling thread must not make synchronous calls now.
cudaError_t capture_forbids();
void drop_all_work();

} // namespace emu

struct CUstream_st {
    struct Op {
        emu::Step step;
        std::vector<emu::Position> waits;
        emu::u64 number;
    };
    int device = 0, priority = 0;
    unsigned flags = 0;
    bool legacy = false;
    emu::u64 id = 0, issued = 0;
    std::deque<Op> queue;
    std::vector<emu::Position> next_waits; // cudaStreamWaitEvent before the next op
    std::shared_ptr<emu::Progress> progress = std::make_shared<emu::Progress>();
    emu::Capture *capture = nullptr;
    std::vector<int> tail; // capture: nodes the next one comes after

    emu::Position end() const { return {progress, issued}; }
};

struct CUevent_st {
    emu::Position at;
    bool recorded = false;
    unsigned flags = 0;
    std::shared_ptr<double> time_ms;
    emu::Capture *capture = nullptr; // recorded inside this capture
    std::vector<int> tail;
};

struct CUgraph_st {
    std::vector<emu::Node> nodes;
};
struct CUgraphExec_st {
    std::shared_ptr<std::vector<emu::Node>> nodes;
};

namespace emu {
struct Capture {
    cudaStreamCaptureMode mode;
    CUstream_st *origin = nullptr;
    unsigned long thread = 0;
    bool invalid = false;
    u64 id = 0;
    std::unique_ptr<CUgraph_st> graph = std::make_unique<CUgraph_st>();
    std::vector<CUstream_st *> streams;
};
} // namespace emu
