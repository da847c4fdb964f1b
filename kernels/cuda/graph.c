/* graph.c - a step as one launch: the ops of a shape are captured once and replayed.
 *
 * The caller's key names everything that decides what is launched: counts, launch shapes, pointers. The first
 * step of a key runs as it comes (libraries set themselves up then, which a capture does not allow), the
 * second is captured, later ones are replayed. The least recently used graph makes room for a new one.
 *
 *   unseen --graph_launch--> seen once --graph_launch--> capturing --graph_end--> captured (replayed) */
#include "kernels/cuda/cuda.h"

static struct cuda_graph *find(struct cuda_device *c, uint64_t key)
{
    struct cuda_graph *oldest = &c->graph[0];
    for (int i = 0; i < CUDA_GRAPHS; i++) {
        struct cuda_graph *g = &c->graph[i];
        if (g->last_use > 0 && g->key == key) return g;
        if (g->last_use < oldest->last_use) oldest = g;
    }
    if (oldest->exec) {
        /* Its last replay may still run. */
        cuda_check(cudaStreamSynchronize(c->stream), "waiting before a graph is dropped");
        cuda_check(cudaGraphExecDestroy(oldest->exec), "dropping a graph");
    }
    *oldest = (struct cuda_graph){.key = key};
    return oldest;
}

bool cuda_graph_launch(struct device *d, uint64_t key)
{
    struct cuda_device *c = cuda_of(d);
    ASSERT(!c->capturing);
    struct cuda_graph *g = find(c, key);
    bool seen = g->last_use > 0;
    g->last_use = ++c->graph_uses;
    if (g->exec) {
        cuda_check(cudaGraphLaunch(g->exec, c->stream), "launching a graph");
        return true;
    }
    if (seen) {
        /* Thread-local: other threads (HTTP, heartbeat) may call the runtime meanwhile. */
        cuda_check(cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal),
                   "beginning a capture");
        c->capturing = g;
    }
    return false;
}

void cuda_graph_end(struct device *d)
{
    struct cuda_device *c = cuda_of(d);
    struct cuda_graph *g = c->capturing;
    if (!g) return;
    c->capturing = NULL;
    cudaGraph_t graph;
    cuda_check(cudaStreamEndCapture(c->stream, &graph), "ending a capture");
    cuda_check(cudaGraphInstantiate(&g->exec, graph, 0), "making a graph executable");
    cuda_check(cudaGraphDestroy(graph), "dropping a captured graph");
    cuda_check(cudaGraphLaunch(g->exec, c->stream), "launching a graph");
}

void cuda_graph_close(struct cuda_device *c)
{
    for (int i = 0; i < CUDA_GRAPHS; i++)
        if (c->graph[i].exec) cudaGraphExecDestroy(c->graph[i].exec);
}
