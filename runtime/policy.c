#include "runtime/policy.h"

#include <math.h>

#include "runtime/base/die.h"

const char *policy_kind_name(enum policy_kind k)
{
    static const char *const names[POLICY_KIND_COUNT] = {"dense", "quest", "retro", "streaming"};
    ASSERT(k < POLICY_KIND_COUNT);
    return names[k];
}

bool policy_same(const struct policy *a, const struct policy *b)
{
    if (a->kind != b->kind) return false;
    if (a->kind == POLICY_DENSE) return true; /* the rest has no meaning */
    return a->window == b->window && a->kv_budget == b->kv_budget &&
           a->kv_budget_tokens == b->kv_budget_tokens && a->dense_layers == b->dense_layers &&
           a->score_alpha == b->score_alpha && a->score_group == b->score_group &&
           a->sink_pages == b->sink_pages;
}

int policy_rows(const struct policy *p, int position, int first)
{
    ASSERT(position >= first);
    if (p->kind != POLICY_RETRO) return 1;
    int available = position - first + 1;
    return available < p->window ? available : p->window;
}

int policy_select_count(const struct policy *p, int candidates, int page_tokens)
{
    if (p->kind == POLICY_DENSE) return 0;
    double wanted = p->kv_budget_tokens > 0 ? ceil((double)p->kv_budget_tokens / page_tokens)
                                            : ceil(p->kv_budget * candidates);
    if (wanted < 3) wanted = 3;
    return wanted >= candidates ? 0 : (int)wanted;
}

/* Pages first .. last are visible. Where sink pages and the newest are all there is, nothing is left to choose. */
static int select_visible(const struct policy *p, int first, int last, int page_tokens)
{
    int sinks = p->sink_pages - first;
    return sinks >= last - first ? 0 : policy_select_count(p, last - first + 1, page_tokens);
}

struct decode_span policy_span(const struct policy *p, int slot, int row0, int position, int first,
                               int page_tokens, int sliding_window)
{
    int last_page = position / page_tokens;
    int first_slide = page_first_visible(position, sliding_window, page_tokens);
    return (struct decode_span){
        .slot = slot,
        .row0 = row0,
        .n_rows = policy_rows(p, position, first),
        .position = position,
        .dense_layers = p->dense_layers,
        .n_select = {select_visible(p, 0, last_page, page_tokens),
                     select_visible(p, first_slide, last_page, page_tokens)},
        .n_sink = p->sink_pages,
        .group = (int32_t)(p->kind == POLICY_STREAMING ? SCORE_GROUP_RECENT : p->score_group),
        .alpha = p->score_alpha,
        .keep = p->kind == POLICY_RETRO && p->window > 1,
    };
}
