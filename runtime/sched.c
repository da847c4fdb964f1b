#include "runtime/sched.h"

#include <stdlib.h>

#include "runtime/base/die.h"
#include "runtime/buffer.h"

enum { GROWTH_TOKENS = 256 };

/* ------------------------------------------------------------------------------------------ open and close */
void sched_open(struct sched *s, const struct step_limits *l, const struct sched_options *o)
{
    *s = (struct sched){.limits = *l, .options = *o};
    if (o->max_rows == 0) s->options.max_rows = l->max_rows;
    if (o->growth == 0) s->options.growth = GROWTH_TOKENS;
    /* Decode rows always fit, and prompts go on beside them. */
    ASSERT(s->options.max_rows > l->n_slots * l->window && s->options.max_rows <= l->max_rows);
    pages_open(&s->pages, l->n_blocks);
    prefix_open(&s->prefix, &s->pages, l->block_tokens);
    if (l->n_host_blocks) pages_open(&s->host, l->n_host_blocks);
    size_t n = (size_t)l->n_slots;
    s->running = buffer_zeroed(n, sizeof *s->running);
    s->planned = buffer_zeroed(n, sizeof *s->planned);
    s->order = buffer_zeroed(n, sizeof *s->order);
    s->host_slots = buffer_zeroed((size_t)l->n_host_slots, sizeof *s->host_slots);
    s->slots_returning = buffer_zeroed((size_t)l->n_host_slots, sizeof *s->slots_returning);
    s->returning = buffer_zeroed((size_t)l->n_host_blocks, sizeof *s->returning);
    while (s->n_host_slots < l->n_host_slots) {
        s->host_slots[s->n_host_slots] = s->n_host_slots;
        s->n_host_slots++;
    }
}

/* The records that came in with the last plan have left host memory. */
static void free_returned(struct sched *s)
{
    for (int i = 0; i < s->n_returning; i++) pages_release(&s->host, s->returning[i]);
    for (int i = 0; i < s->n_slots_returning; i++) s->host_slots[s->n_host_slots++] = s->slots_returning[i];
    s->n_returning = s->n_slots_returning = 0;
    for (int i = 0; i < s->limits.n_slots; i++)
        if (s->running[i]) s->running[i]->host_slot = -1;
}

void sched_close(struct sched *s)
{
    ASSERT(s->n_running == 0 && s->n_waiting == 0 && s->n_swapped == 0);
    free_returned(s);
    prefix_close(&s->prefix);
    pages_check(&s->pages);
    ASSERT(s->pages.n_free == s->pages.n_blocks && s->host.n_free == s->host.n_blocks);
    ASSERT(s->n_host_slots == s->limits.n_host_slots);
    pages_close(&s->pages);
    if (s->host.n_blocks) pages_close(&s->host);
    free(s->running);
    free(s->planned);
    free(s->order);
    free(s->host_slots);
    free(s->slots_returning);
    free(s->returning);
    *s = (struct sched){0};
}

int sched_blocks(const struct sched *s, int n_tokens)
{
    return (n_tokens + s->limits.block_tokens - 1) / s->limits.block_tokens;
}

/* ------------------------------------------------------------------------------------------ order */
static bool before(const struct sched_seq *a, const struct sched_seq *b)
{
    return a->key != b->key ? a->key < b->key : a->arrival < b->arrival;
}

static void enqueue(struct sched *s, struct sched_seq *q, enum sched_state state)
{
    struct sched_seq **at = &s->waiting;
    while (*at && before(*at, q)) at = &(*at)->next;
    q->next = *at;
    *at = q;
    q->state = state;
    ++*(state == SCHED_WAITING ? &s->n_waiting : &s->n_swapped);
}

static void dequeue(struct sched *s, struct sched_seq *q)
{
    struct sched_seq **at = &s->waiting;
    while (*at != q) at = &(*at)->next;
    *at = q->next;
    q->next = NULL;
    --*(q->state == SCHED_WAITING ? &s->n_waiting : &s->n_swapped);
}

/* Fills s->order. */
static void put_in_order(struct sched *s)
{
    s->n_order = 0;
    for (int i = 0; i < s->limits.n_slots; i++) {
        struct sched_seq *q = s->running[i];
        if (!q) continue;
        int at = s->n_order++;
        for (; at > 0 && before(q, s->order[at - 1]); at--) s->order[at] = s->order[at - 1];
        s->order[at] = q;
    }
}

void sched_add(struct sched *s, struct sched_seq *q, const struct policy *p, const int32_t *prompt,
               int n_prompt)
{
    ASSERT(q->limit >= n_prompt && q->limit <= s->limits.context &&
           sched_blocks(s, q->limit) <= s->limits.n_blocks);
    seq_open(&q->seq, -1, p, prompt, n_prompt, q->limit, s->limits.block_tokens);
    q->arrival = s->n_arrived++;
    q->n_cached = q->host_slot = -1;
    if (q->leader) q->leader->leads = true;
    if (s->limits.n_host_blocks)
        q->host_block = buffer_zeroed((size_t)sched_blocks(s, q->limit), sizeof *q->host_block);
    enqueue(s, q, SCHED_WAITING);
}

/* ------------------------------------------------------------------------------------------ publishing */
/* Tokens [0, n) whose keys and values nobody will write again. */
static int final_tokens(const struct sched *s, const struct sched_seq *q, bool over)
{
    const struct seq *a = &q->seq;
    if (s->options.cache != SCHED_CACHE_TURNS || a->fed <= a->n_prompt)
        return a->fed < a->n_prompt ? a->fed : a->n_prompt;
    /* The step after the one of position fed-1 revises from fed - w + 1 on. */
    int window = a->policy.kind == POLICY_RETRO && !over ? a->policy.window : 1, n = a->fed - (window - 1);
    return n > a->n_prompt ? n : a->n_prompt;
}

static void publish(struct sched *s, struct sched_seq *q, bool over)
{
    if (s->options.cache == SCHED_CACHE_OFF || !q->published) return;
    int B = s->limits.block_tokens, n = final_tokens(s, q, over) / B;
    for (; q->n_published < n && q->published; q->n_published++) {
        int i = q->n_published;
        bool decoded = (i + 1) * B > q->seq.n_prompt;
        q->published = prefix_add(&s->prefix, &q->chain, q->seq.token + (size_t)i * (size_t)B,
                                  q->seq.block[i], decoded ? &q->seq.policy : NULL);
    }
}

void sched_executed(struct sched *s, const struct step *step)
{
    for (int i = 0; i < step->n_seqs; i++) publish(s, s->planned[i], false);
}

/* ------------------------------------------------------------------------------------------ blocks */
static void release_blocks(struct sched *s, struct sched_seq *q)
{
    for (int i = 0; i < q->seq.n_blocks; i++) pages_release(&s->pages, q->seq.block[i]);
    q->seq.n_blocks = q->seq.n_announced = 0;
    q->seq.opened = false;
}

/* Blocks for n_tokens, evicting what is needed. */
static bool reserve(struct sched *s, struct sched_seq *q, int n_tokens)
{
    int lacking = sched_blocks(s, n_tokens) - q->seq.n_blocks - s->pages.n_free;
    if (lacking > 0) prefix_evict(&s->prefix, lacking);
    return seq_reserve(&q->seq, &s->pages, n_tokens, s->limits.block_tokens) == STATUS_OK;
}

static void free_slot(struct sched *s, struct sched_seq *q)
{
    s->running[q->seq.slot] = NULL;
    q->seq.slot = -1;
    s->n_running--;
}

/* ------------------------------------------------------------------------------------------ interrupting */
/* It starts again, from the prompt; the tokens that were drawn stay. */
static void drop(struct sched *s, struct sched_seq *q)
{
    release_blocks(s, q);
    q->seq.fed = 0;
    q->published = false;
    enqueue(s, q, SCHED_WAITING);
}

static void swap_out(struct sched *s, struct sched_seq *q, struct step *step, int slot)
{
    q->n_host = sched_blocks(s, q->seq.fed);
    ASSERT(pages_alloc(&s->host, q->n_host, q->host_block) == STATUS_OK);
    for (int i = 0; i < q->n_host; i++)
        step_add_move(step, STEP_MOVE_BLOCK_OUT, q->seq.block[i], q->host_block[i]);
    q->host_slot = s->host_slots[--s->n_host_slots];
    step_add_move(step, STEP_MOVE_SLOT_OUT, slot, q->host_slot);
    release_blocks(s, q);
    enqueue(s, q, SCHED_SWAPPED);
}

/* The sequence leaves its slot and blocks, and will continue as if nothing had happened. */
static void preempt(struct sched *s, struct sched_seq *q, struct step *step)
{
    int slot = q->seq.slot;
    free_slot(s, q);
    q->n_preempted++;
    s->n_preempted++;
    ASSERT(q->host_slot < 0); /* admission left room for the rows of whom it resumed */
    bool decoding = q->seq.fed > q->seq.n_prompt;
    if (decoding && s->n_host_slots > 0 && s->host.n_free >= sched_blocks(s, q->seq.fed))
        swap_out(s, q, step, slot);
    else drop(s, q);
}

/* ------------------------------------------------------------------------------------------ admission */
/* Blocks for the tokens that it has and some growth, up to its limit. */
static int wanted_blocks(const struct sched *s, const struct sched_seq *q)
{
    int n = q->seq.n_tokens > q->limit - s->options.growth ? q->limit : q->seq.n_tokens + s->options.growth;
    return sched_blocks(s, n);
}

/* Blocks that running sequences may want of the free ones. */
static int promised_blocks(const struct sched *s)
{
    int n = 0;
    for (int i = 0; i < s->limits.n_slots; i++) {
        const struct sched_seq *q = s->running[i];
        if (q && wanted_blocks(s, q) > q->seq.n_blocks) n += wanted_blocks(s, q) - q->seq.n_blocks;
    }
    return n;
}

static bool leader_in_prompt(const struct sched_seq *q)
{
    const struct sched_seq *l = q->leader;
    return l && q->seq.fed == 0 && l->state == SCHED_RUNNING && l->seq.fed < l->seq.n_prompt;
}

/* Gives a sequence that has nothing the blocks that others computed for the same prompt; all but the last token
 * at most, for that one's row gives the next token. Returns the block to be copied to its last one, or -1. */
static int take_shared(struct sched *s, struct sched_seq *q)
{
    struct seq *a = &q->seq;
    int B = s->limits.block_tokens, n = (a->n_prompt - 1) / B;
    if (q->prompt_out && q->n_told / B < n) n = q->n_told / B;
    const struct sched_seq *l = q->leader;
    bool led = l && l->state == SCHED_RUNNING && l->seq.fed >= a->n_prompt;
    q->chain = prefix_root();
    if (s->options.cache != SCHED_CACHE_OFF) {
        /* Who was interrupted must find the bits that it had, and a choice those of the others: prompt blocks. */
        bool turns = s->options.cache == SCHED_CACHE_TURNS && q->n_cached < 0 && !led;
        a->n_blocks = prefix_find(&s->prefix, a->token, n, turns ? &a->policy : NULL, a->block, &q->chain);
    }
    q->n_published = a->n_blocks;
    q->published = !led || a->n_blocks == n;
    for (; led && a->n_blocks < n; a->n_blocks++) {
        a->block[a->n_blocks] = l->seq.block[a->n_blocks];
        pages_share(&s->pages, a->block[a->n_blocks]);
    }
    a->fed = a->n_blocks * B;
    if (!led || a->fed == a->n_prompt - 1 || !reserve(s, q, a->n_prompt)) return -1;
    a->fed = a->n_prompt - 1;
    return l->seq.block[n];
}

/* Blocks and moves for a sequence whose records are in host memory; there is room. */
static void come_in(struct sched *s, struct sched_seq *q, struct step *step, int slot)
{
    ASSERT(reserve(s, q, q->seq.fed));
    for (int i = 0; i < q->n_host; i++) {
        step_add_move(step, STEP_MOVE_BLOCK_IN, q->host_block[i], q->seq.block[i]);
        s->returning[s->n_returning++] = q->host_block[i];
    }
    step_add_move(step, STEP_MOVE_SLOT_IN, q->host_slot, slot);
    s->slots_returning[s->n_slots_returning++] = q->host_slot;
}

static void start(struct sched *s, struct sched_seq *q, struct step *step, int slot)
{
    bool swapped = q->state == SCHED_SWAPPED;
    dequeue(s, q);
    q->state = SCHED_RUNNING;
    q->seq.slot = slot;
    s->running[slot] = q;
    s->n_running++;
    if (swapped) come_in(s, q, step, slot);
    if (q->n_cached >= 0) return;
    q->n_cached = q->seq.fed;
    if (s->options.cache == SCHED_CACHE_OFF || q->prompt_out) return;
    s->n_looked_up += q->seq.n_prompt;
    s->n_found += q->n_cached;
}

static int free_slot_index(const struct sched *s)
{
    for (int i = 0; i < s->limits.n_slots; i++)
        if (!s->running[i]) return i;
    return -1;
}

/* The last running sequence in order with a lower priority than q, or NULL. */
static struct sched_seq *lesser(const struct sched *s, const struct sched_seq *q)
{
    struct sched_seq *last = NULL;
    for (int i = 0; i < s->limits.n_slots; i++) {
        struct sched_seq *r = s->running[i];
        if (r && r->priority < q->priority && before(q, r) && (!last || before(last, r))) last = r;
    }
    return last;
}

/* Is there a slot, and are there blocks? Interrupts others for it where that is allowed. */
static bool make_room(struct sched *s, struct sched_seq *q, struct step *step)
{
    for (;;) {
        int lacking =
            wanted_blocks(s, q) - q->seq.n_blocks + promised_blocks(s) - s->pages.n_free - s->pages.n_idle;
        if (lacking <= 0 && free_slot_index(s) >= 0) return true;
        struct sched_seq *victim = lesser(s, q);
        if (!victim) return false;
        preempt(s, victim, step);
    }
}

static void admit(struct sched *s, struct step *step)
{
    struct sched_seq *q = s->waiting, *next;
    for (; q; q = next) {
        next = q->next;
        if (leader_in_prompt(q)) continue;
        if (free_slot_index(s) < 0 && !lesser(s, q)) return;
        int copied = q->state == SCHED_WAITING ? take_shared(s, q) : -1;
        if (!make_room(s, q, step)) {
            release_blocks(s, q);
            if (q->state == SCHED_WAITING) q->seq.fed = 0;
            return;
        }
        if (copied >= 0) step_add_move(step, STEP_MOVE_BLOCK_COPY, copied, q->seq.block[q->seq.n_blocks - 1]);
        start(s, q, step, free_slot_index(s));
        next =
            s->waiting; /* the queue may have changed: those that wait for their leader are skipped again */
    }
}

/* ------------------------------------------------------------------------------------------ the plan */
static bool in_prompt(const struct sched_seq *q) { return q->seq.fed < q->seq.n_prompt; }

/* Rows of the planned ones, from the last backwards, that give logits: of a prompt all that have not told them yet. */
static int prompt_outputs(const struct sched_seq *q)
{
    int told = q->n_told > q->seq.fed ? q->n_told - q->seq.fed : 0;
    return q->n_rows > told ? q->n_rows - told : 0;
}

/* Takes blocks for this step's rows, first in order first; whoever cannot go on leaves s->order. */
static void reserve_rows(struct sched *s, struct step *step)
{
    int room = s->options.max_rows, room_out = s->limits.max_out - s->n_order; /* beside one of each */
    for (int i = 0; i < s->n_order; i++) {
        struct seq *a = &s->order[i]->seq;
        s->order[i]->n_rows = in_prompt(s->order[i]) ? 0 : policy_rows(&a->policy, a->fed, a->n_prompt);
        room -= s->order[i]->n_rows;
    }
    for (int i = 0; i < s->n_order; i++) {
        struct sched_seq *q = s->order[i];
        int left = q->seq.n_prompt - q->seq.fed, upto = q->seq.fed + 1;
        if (in_prompt(q)) {
            q->n_rows = left < room ? left : room;
            int more = q->prompt_out ? prompt_outputs(q) - 1 : 0;
            if (more > room_out) {
                q->n_rows -= more - room_out;
                more = room_out;
            }
            if (more > 0) room_out -= more;
            room -= q->n_rows;
            upto = q->seq.fed + q->n_rows;
        }
        while (i < s->n_order && !reserve(s, q, upto)) preempt(s, s->order[--s->n_order], step);
    }
}

static void add_rows(struct sched *s, struct step *step, struct sched_seq *q)
{
    struct seq *a = &q->seq;
    s->planned[step->n_seqs] = q;
    /* A token that is known already (after an interruption) needs no prediction. */
    bool last = a->fed + (in_prompt(q) ? q->n_rows : 1) == a->n_tokens;
    int n_out = in_prompt(q) && q->prompt_out ? prompt_outputs(q) : last;
    enum step_want want = n_out > 0 ? q->want : STEP_WANT_NOTHING;
    if (in_prompt(q)) step_add_prompt(step, a, q->n_rows, want);
    else step_add_decode(step, a, want);
    if (n_out > 1) step_want_rows(step, n_out);
    if (q->prompt_out && a->fed <= a->n_prompt && a->fed > q->n_told) q->n_told = a->fed;
}

bool sched_plan(struct sched *s, struct step *step)
{
    free_returned(s);
    step_clear(step, s->n_planned);
    admit(s, step);
    put_in_order(s);
    reserve_rows(s, step);
    for (int i = 0; i < s->n_order; i++)
        if (!in_prompt(s->order[i])) add_rows(s, step, s->order[i]);
    for (int i = 0; i < s->n_order; i++) /* decode rows moved nobody back into its prompt */
        if (in_prompt(s->order[i]) && s->order[i]->n_rows > 0) add_rows(s, step, s->order[i]);
    if (step->n_rows == 0) return false;
    s->n_planned++;
    return true;
}

void sched_append(struct sched *s, struct sched_seq *q, int32_t token)
{
    ASSERT(q->state == SCHED_RUNNING && s->running[q->seq.slot] == q);
    seq_append_token(&q->seq, token);
}

/* Nobody waits for its prompt, or takes blocks from it, any more. */
static void forget_leader(struct sched *s, const struct sched_seq *q)
{
    if (!q->leads) return;
    for (struct sched_seq *i = s->waiting; i; i = i->next)
        if (i->leader == q) i->leader = NULL;
    for (int i = 0; i < s->limits.n_slots; i++)
        if (s->running[i] && s->running[i]->leader == q) s->running[i]->leader = NULL;
}

void sched_remove(struct sched *s, struct sched_seq *q)
{
    forget_leader(s, q);
    if (q->state == SCHED_RUNNING) {
        ASSERT(s->running[q->seq.slot] == q);
        publish(s, q, true);
        free_slot(s, q);
    } else {
        dequeue(s, q);
        if (q->state == SCHED_SWAPPED) {
            for (int i = 0; i < q->n_host; i++) pages_release(&s->host, q->host_block[i]);
            s->host_slots[s->n_host_slots++] = q->host_slot;
        }
    }
    free(q->host_block);
    seq_close(&q->seq, &s->pages);
}

/* ------------------------------------------------------------------------------------------ checking */
void sched_check(const struct sched *s)
{
    pages_check(&s->pages);
    prefix_check(&s->prefix);
    if (s->host.n_blocks) pages_check(&s->host);
    int n_running = 0, n[SCHED_STATE_COUNT] = {0}, n_host = s->n_returning, n_slots = s->n_slots_returning;
    int *refs = buffer_zeroed((size_t)s->pages.n_blocks, sizeof *refs);
    for (int i = 0; i < s->pages.n_blocks; i++) refs[i] = s->pages.kept[i];
    for (int i = 0; i < s->limits.n_slots; i++) {
        const struct sched_seq *q = s->running[i];
        if (!q) continue;
        ASSERT(q->state == SCHED_RUNNING && q->seq.slot == i && q->seq.n_tokens <= q->limit);
        seq_check(&q->seq, s->limits.block_tokens);
        for (int j = 0; j < q->seq.n_blocks; j++) refs[q->seq.block[j]]++;
        n_running++;
    }
    for (const struct sched_seq *q = s->waiting; q; q = q->next) {
        ASSERT(q->state != SCHED_RUNNING && q->seq.n_blocks == 0 && q->seq.slot < 0);
        ASSERT(!q->next || before(q, q->next));
        ASSERT(q->state == SCHED_SWAPPED ? q->seq.fed > q->seq.n_prompt : q->seq.fed == 0);
        n[q->state]++;
        n_host += q->state == SCHED_SWAPPED ? q->n_host : 0;
        n_slots += q->state == SCHED_SWAPPED;
    }
    ASSERT(n_running == s->n_running && n[SCHED_WAITING] == s->n_waiting && n[SCHED_SWAPPED] == s->n_swapped);
    for (int i = 0; i < s->pages.n_blocks; i++) ASSERT(refs[i] == s->pages.n_refs[i]);
    ASSERT(n_host + s->host.n_free == s->host.n_blocks &&
           n_slots + s->n_host_slots == s->limits.n_host_slots);
    free(refs);
}
