// CUDA graphs from stream capture: instantiate, launch, update in place, query.
//
// A launch is one piece of stream work that runs its nodes in an order their edges allow: capture order, or a
// random one with a seed (so an edge missing inside the graph shows).
#include "runtime.h"
#include <algorithm>

using namespace emu;

namespace {

struct Run {
    std::shared_ptr<std::vector<Node>> nodes;
    std::vector<Step> steps;
    std::vector<char> done;
    size_t left;
    Random random;

    Run(std::shared_ptr<std::vector<Node>> n, u64 serial)
        : nodes(std::move(n)), left(nodes->size()), random(serial)
    {
        steps.resize(left);
        done.resize(left);
    }
    bool step()
    {
        std::vector<int> ready;
        bool moved = true;
        while (left && moved) {
            moved = false;
            ready.clear();
            for (size_t k = 0; k < nodes->size(); k++) {
                auto &after = (*nodes)[k].after;
                if (!done[k] && std::all_of(after.begin(), after.end(), [&](int a) { return done[a]; }))
                    ready.push_back((int)k);
            }
            if (options().seed)
                for (size_t i = ready.size(); i > 1; i--) std::swap(ready[i - 1], ready[random.below(i)]);
            for (int k : ready) {
                if (!steps[k]) steps[k] = (*nodes)[k].make();
                if (!steps[k]()) continue;
                done[k] = 1;
                left--;
                moved = true;
                if (options().seed) break; // choose anew
            }
        }
        return !left;
    }
};

u64 launches;

} // namespace

EMU_API cudaError_t cudaGraphCreate(cudaGraph_t *g, unsigned)
{
    *g = new CUgraph_st;
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    delete g;
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long)
{
    Lock hold(runtime_lock());
    if (!g) return result(cudaErrorInvalidValue);
    *e = new CUgraphExec_st{std::make_shared<std::vector<Node>>(g->nodes)};
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long flags)
{
    return cudaGraphInstantiate(e, g, flags);
}
EMU_API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e)
{
    Lock hold(runtime_lock());
    delete e; // launches in flight share the nodes
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return result(cudaSuccess); }

EMU_API cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s)
{
    Lock hold(runtime_lock());
    if (!e) return result(cudaErrorInvalidValue);
    auto nodes = e->nodes;
    u64 serial = ++launches;
    return result(stream_submit(s, NodeKind::Library, [nodes, serial]() -> Step {
        auto run = std::make_shared<Run>(nodes, serial);
        return [run] { return run->step(); };
    }));
}

EMU_API cudaError_t cudaGraphExecUpdate(cudaGraphExec_t e, cudaGraph_t g, cudaGraphExecUpdateResultInfo *info)
{
    Lock hold(runtime_lock());
    if (!e || !g) return result(cudaErrorInvalidValue);
    auto &old = *e->nodes;
    bool same = old.size() == g->nodes.size();
    for (size_t k = 0; same && k < old.size(); k++)
        same = old[k].kind == g->nodes[k].kind && old[k].after == g->nodes[k].after;
    if (info) {
        memset(info, 0, sizeof *info);
        info->result = same ? cudaGraphExecUpdateSuccess : cudaGraphExecUpdateErrorTopologyChanged;
    }
    if (!same) return result(cudaErrorGraphExecUpdateFailure);
    e->nodes = std::make_shared<std::vector<Node>>(g->nodes);
    return result(cudaSuccess);
}

EMU_API cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *n)
{
    Lock hold(runtime_lock());
    if (!g || !n) return result(cudaErrorInvalidValue);
    if (nodes)
        for (size_t k = 0; k < std::min(*n, g->nodes.size()); k++) nodes[k] = (cudaGraphNode_t)&g->nodes[k];
    *n = g->nodes.size();
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType *type)
{
    switch (((Node *)node)->kind) {
    case NodeKind::Copy: *type = cudaGraphNodeTypeMemcpy; break;
    case NodeKind::Set: *type = cudaGraphNodeTypeMemset; break;
    case NodeKind::Host: *type = cudaGraphNodeTypeHost; break;
    case NodeKind::Empty: *type = cudaGraphNodeTypeEmpty; break;
    default: *type = cudaGraphNodeTypeKernel; break;
    }
    return result(cudaSuccess);
}
