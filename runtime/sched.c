#include "runtime/sched.h"

#include <stdlib.h>

#include "runtime/base/die.h"

void sched_open(struct sched *s, const struct step_limits *limits, int max_rows)
{
    ASSERT(max_rows >= 0 && max_rows <= limits->max_rows);
    *s = (struct sched){.limits = *limits, .max_rows = max_rows ? max_rows : limits->max_rows};
    ASSERT(s->max_rows > limits->n_slots * limits->window); /* decode rows always fit, prompts go on too */
    pages_open(&s->pages, limits->n_blocks);
    s->running = calloc((size_t)limits->n_slots, sizeof(struct sched_seq *));
    s->planned = calloc((size_t)limits->n_slots, sizeof(struct sched_seq *));
    s->order = calloc((size_t)limits->n_slots, sizeof(struct sched_seq *));
    if (!s->running || !s->planned || !s->order)
        DIE(EXIT_CODE_MEMORY, "lower --max-seqs", "no memory for the scheduler");
}

void sched_close(struct sched *s)
{
    ASSERT(s->n_running == 0 && s->n_waiting == 0);
    pages_check(&s->pages);
    ASSERT(s->pages.n_free == s->pages.n_blocks);
    pages_close(&s->pages);
    free(s->running);
    free(s->planned);
    free(s->order);
    *s = (struct sched){0};
}

int sched_blocks(const struct sched *s, int n_tokens)
{
    return (n_tokens + s->limits.block_tokens - 1) / s->limits.block_tokens;
}

static bool before(const struct sched_seq *a, const struct sched_seq *b)
{
    return a->key != b->key ? a->key < b->key : a->arrival < b->arrival;
}

void sched_add(struct sched *s, struct sched_seq *q, const struct policy *p, const int32_t *prompt,
               int n_prompt)
{
    ASSERT(q->limit >= n_prompt && q->limit <= s->limits.context &&
           sched_blocks(s, q->limit) <= s->limits.n_blocks);
    seq_open(&q->seq, -1, p, prompt, n_prompt, q->limit, s->limits.block_tokens);
    q->state = SCHED_WAITING;
    q->arrival = s->n_arrived++;
    struct sched_seq **at = &s->waiting;
    while (*at && before(*at, q)) at = &(*at)->next;
    q->next = *at;
    *at = q;
    s->n_waiting++;
}

void sched_remove(struct sched *s, struct sched_seq *q)
{
    if (q->state == SCHED_WAITING) {
        struct sched_seq **at = &s->waiting;
        while (*at != q) at = &(*at)->next;
        *at = q->next;
        s->n_waiting--;
    } else {
        ASSERT(s->running[q->seq.slot] == q);
        s->running[q->seq.slot] = NULL;
        s->n_running--;
    }
    seq_close(&q->seq, &s->pages);
}

void sched_append(struct sched *s, struct sched_seq *q, int32_t token)
{
    ASSERT(q->state == SCHED_RUNNING && s->running[q->seq.slot] == q);
    seq_append_token(&q->seq, token);
}

/* Blocks that the running sequences may still take. */
static int growth(const struct sched *s)
{
    int n = 0;
    for (int i = 0; i < s->limits.n_slots; i++)
        if (s->running[i]) n += sched_blocks(s, s->running[i]->limit) - s->running[i]->seq.n_blocks;
    return n;
}

static void admit(struct sched *s)
{
    int promised = growth(s);
    for (int slot = 0; slot < s->limits.n_slots && s->waiting; slot++) {
        if (s->running[slot]) continue;
        struct sched_seq *q = s->waiting;
        int wanted = sched_blocks(s, q->limit);
        if (wanted > s->pages.n_free - promised) return;
        s->waiting = q->next;
        s->n_waiting--;
        s->running[slot] = q;
        s->n_running++;
        q->state = SCHED_RUNNING;
        q->seq.slot = slot;
        promised += wanted;
    }
}

/* Running sequences, first in order first. */
static int ordered(const struct sched *s, struct sched_seq **list)
{
    int n = 0;
    for (int i = 0; i < s->limits.n_slots; i++) {
        struct sched_seq *q = s->running[i];
        if (!q) continue;
        int at = n++;
        for (; at > 0 && before(q, list[at - 1]); at--) list[at] = list[at - 1];
        list[at] = q;
    }
    return n;
}

static void reserve(struct sched *s, struct sched_seq *q, int n_tokens)
{
    /* Admission kept these blocks free. */
    ASSERT(seq_reserve(&q->seq, &s->pages, n_tokens, s->limits.block_tokens) == STATUS_OK);
}

bool sched_plan(struct sched *s, struct step *step)
{
    admit(s);
    step_clear(step, s->n_planned);
    struct sched_seq **list = s->order;
    int n = ordered(s, list);
    for (int i = 0; i < n; i++) {
        struct sched_seq *q = list[i];
        if (q->seq.fed < q->seq.n_prompt) continue;
        reserve(s, q, q->seq.n_tokens);
        s->planned[step->n_seqs] = q;
        step_add_decode(step, &q->seq, q->want);
    }
    for (int i = 0; i < n && step->n_rows < s->max_rows; i++) {
        struct sched_seq *q = list[i];
        int left = q->seq.n_prompt - q->seq.fed, room = s->max_rows - step->n_rows;
        if (left <= 0) continue;
        int rows = left < room ? left : room;
        reserve(s, q, q->seq.fed + rows);
        s->planned[step->n_seqs] = q;
        step_add_prompt(step, &q->seq, rows, rows == left ? q->want : STEP_WANT_NOTHING);
    }
    if (step->n_rows == 0) return false;
    s->n_planned++;
    return true;
}

void sched_check(const struct sched *s)
{
    pages_check(&s->pages);
    int n = 0, used = 0;
    for (int i = 0; i < s->limits.n_slots; i++) {
        const struct sched_seq *q = s->running[i];
        if (!q) continue;
        ASSERT(q->state == SCHED_RUNNING && q->seq.slot == i && q->seq.n_tokens <= q->limit);
        seq_check(&q->seq, s->limits.block_tokens);
        used += q->seq.n_blocks;
        n++;
    }
    ASSERT(n == s->n_running && used + s->pages.n_free == s->pages.n_blocks && growth(s) <= s->pages.n_free);
    n = 0;
    for (const struct sched_seq *q = s->waiting; q; q = q->next, n++)
        ASSERT(q->state == SCHED_WAITING && q->seq.n_blocks == 0 && (!q->next || before(q, q->next)));
    ASSERT(n == s->n_waiting);
}
