/* planned.h - a shape of configs/shapes on a machine, for the tests of plan.c. After cmocka.h. */
#ifndef RETRO_TESTS_PLANNED_H
#define RETRO_TESTS_PLANNED_H

#include <stdio.h>

#include "runtime/plan.h"

static struct reason why;

struct world {
    struct model_files files;
    struct machine machine;
    struct plan_setup s;
};

static inline void open_world(struct world *w, const char *shape, const char *machine, int ranks, int context,
                              int slots)
{
    char dir[128];
    struct device_options one = {.n_threads = 1};
    snprintf(dir, sizeof dir, "configs/shapes/%s", shape);
    assert_int_equal(model_files_imagine(&w->files, dir, &why), STATUS_OK);
    assert_int_equal(machine_find(&w->machine, machine, NULL, &why), STATUS_OK);
    w->s = (struct plan_setup){.files = &w->files,
                               .machine = &w->machine,
                               .n_ranks = ranks,
                               .options = {.act = DTYPE_BF16,
                                           .n_slots = slots,
                                           .context = context,
                                           .prefill_chunk = 512,
                                           .page_tokens = 16,
                                           .block_tokens = 64,
                                           .window = 2,
                                           .kv = DTYPE_BF16,
                                           .summary = SUMMARY_BF16}};
    assert_int_equal(device_open(&w->s.options.device, DEVICE_CPU, &one, &why), STATUS_OK);
}

static inline void close_world(struct world *w)
{
    device_close(w->s.options.device);
    model_files_close(&w->files);
}

static inline struct policy policy_of(enum policy_kind kind, int window, double budget, int dense_layers)
{
    return (struct policy){.kind = kind,
                           .window = window,
                           .kv_budget = budget,
                           .dense_layers = dense_layers,
                           .score_alpha = 0.2f,
                           .score_group = SCORE_GROUP_SOFTMAX,
                           .sink_pages = 1};
}

#endif
