/* policy.h - what a sequence reads and revises, as integers: how many pages, which rows, which layers.
 *
 * Everything about RetroAttention that can be decided without looking inside a tensor is here; the rest is in
 * kernels/ (select, attend, merge). Source: Choi et al. 2508.09001, Tang et al. 2406.10774; STREAMING reads the
 * sink pages and the most recent ones, as Xiao et al. 2309.17453, but keeps every position's own rope angle. */
#ifndef RETRO_POLICY_H
#define RETRO_POLICY_H

#include <stdint.h>

#include "kernels/kernels.h"

enum policy_kind { POLICY_DENSE, POLICY_QUEST, POLICY_RETRO, POLICY_STREAMING, POLICY_KIND_COUNT };

struct policy {
    enum policy_kind kind;
    int window;           /* w: the new row and w-1 revised ones; 1 unless kind is RETRO */
    double kv_budget;     /* b: fraction of the pages, (0, 1] */
    int kv_budget_tokens; /* > 0: a fixed number of tokens instead of the fraction */
    int dense_layers;     /* first layers that read everything */
    float score_alpha;
    enum score_group score_group;
    int sink_pages;
};

const char *policy_kind_name(enum policy_kind k);
/* Do both compute the same? */
bool policy_same(const struct policy *a, const struct policy *b);

/* Rows of the step whose newest position is `position`: how many, counting the new one. `first` is the first
 * position that sparse decode computed (prompt rows are never revised). */
int policy_rows(const struct policy *p, int position, int first);

/* Pages a sparse layer reads out of `candidates` visible ones: max(3, ceil(b * candidates)), or 0 when that
 * is all. */
int policy_select_count(const struct policy *p, int candidates, int page_tokens);

/* The span of a decode step: rows row0 .. of sequence slot `slot`, newest position `position`. */
struct decode_span policy_span(const struct policy *p, int slot, int row0, int position, int first,
                               int page_tokens, int sliding_window);

#endif
