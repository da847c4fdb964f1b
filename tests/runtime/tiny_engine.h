/* tiny_engine.h - an engine on one rank with a tiny model of random weights, for tests that need steps and no folder. */
#ifndef RETRO_TESTS_RUNTIME_TINY_ENGINE_H
#define RETRO_TESTS_RUNTIME_TINY_ENGINE_H

#include <string.h>

#include "runtime/base/die.h"
#include "runtime/engine.h"

enum { TINY_VOCAB = 260, TINY_CONTEXT = 400, TINY_SLOTS = 2, TINY_BLOCK = 16 };

struct tiny_engine {
    struct model_files files;
    struct comm *comm;
    struct ctl *ctl;
    struct model *model;
    struct engine *engine;
};

/* The same weights in every process. The group is this rank alone. */
static inline void tiny_engine_open(struct tiny_engine *t, const struct comm_world *w)
{
    static const char shape[] =
        "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 48, \"intermediate_size\": 80, "
        "\"num_hidden_layers\": 3, \"num_attention_heads\": 6, \"num_key_value_heads\": 2, \"head_dim\": 16, "
        "\"vocab_size\": 260, \"max_position_embeddings\": 400, \"rms_norm_eps\": 1e-05, \"rope_theta\": "
        "10000.0, \"hidden_act\": \"silu\", \"torch_dtype\": \"float32\"}";
    struct reason why = {{0}};
    struct model_options o = {.n_slots = TINY_SLOTS,
                              .context = TINY_CONTEXT,
                              .prefill_chunk = 37,
                              .page_tokens = 4,
                              .block_tokens = TINY_BLOCK,
                              .window = 3,
                              .swap_bytes = 1 << 20,
                              .kv = DTYPE_BF16,
                              .summary = SUMMARY_BF16,
                              .node_ranks = w->node_size};
    struct device_options d = {.n_threads = 1};
    *t = (struct tiny_engine){0};
    ASSERT(arch_parse(&t->files.arch, shape, strlen(shape), "shape", &why) == STATUS_OK);
    t->comm = comm_open(w, 1);
    ASSERT(device_open(&o.device, DEVICE_CPU, &d, &why) == STATUS_OK);
    ASSERT(model_open(&t->model, &t->files, t->comm, &o, &why) == STATUS_OK);
    comm_reserve(t->comm, (size_t)t->model->dims.max_rows * (size_t)t->model->dims.D);
    t->ctl = ctl_open(t->comm, 10);
    t->engine = engine_open(t->model, t->comm, t->ctl);
}

static inline void tiny_engine_close(struct tiny_engine *t)
{
    ctl_close(t->ctl);
    engine_close(t->engine);
    model_close(t->model);
    comm_close(t->comm);
}

#endif
