#include "runtime/engine.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/base/progress.h"
#include "runtime/noise.h"
#include "runtime/stage.h"
#include "runtime/wire.h"

enum message {
    MESSAGE_STEP = 1,
    MESSAGE_COUNTERS = 2,
    MESSAGE_FILL = 3,
    MESSAGE_READ_RATE = 4,
    /* From a replica's leader to rank 0 of the world. */
    MESSAGE_GREETING = 5,
    MESSAGE_RESULTS = 6, /* best (n_out), then top (n_tops, TOP_K_MAX) */
    MESSAGE_LOGITS = 7,  /* one row (V), n_logits times */
};

struct greeting { /* what a remote engine tells of its model */
    struct step_limits limits;
    double token_bytes, summary_bytes;
};

struct engine {
    struct model *model; /* NULL: remote */
    struct ctl *front;   /* remote: leads to the replica ... */
    int front_rank;      /* ... whose leader is this one */
    double token_bytes, summary_bytes;
    struct comm *comm;
    struct ctl *ctl;
    struct stage stage;
    struct step_limits limits;
    struct step plan;             /* followers, and leaders that are driven: what arrived */
    struct wire wire;             /* leader: what is sent; followers: scratch to unpack */
    struct wire front_wire;       /* the same between the leaders */
    struct engine_output *output; /* (max_out) */
    /* Where the device leaves results, at the same places in every step: a replayed step copies there too. */
    struct best *best; /* (max_out) */
    struct best *top;  /* (max_out, TOP_K_MAX) */
    /* One rank's results of a step: best (n_out), top (n_tops, TOP_K_MAX), rows of logits (n_logits, Vr). */
    char *mine;
    size_t mine_capacity;
    /* Leader: the same of all ranks, one after another; the logits in vocabulary order (n_logits, V); the
     * largest of all ranks (n_tops, TOP_K_MAX). */
    char *all;
    size_t *all_bytes; /* (size) */
    float *logits;
    struct best *tops;
    struct noise noise; /* engine_fill: opened when first used */
    size_t read_at;     /* engine_read_rate: where the next sample begins */
    size_t
        read_sample; /* and its length: READ_SAMPLE, or what the device reads in READ_US, so that a launch is no part */
};

enum { TOP_BYTES = TOP_K_MAX * sizeof(struct best) };

/* How many results of each kind a step has. */
struct results {
    int n_out, n_tops, n_logits;
};

static void *need(void *p)
{
    if (!p) DIE(EXIT_CODE_MEMORY, "lower --max-seqs", "no host memory for the results of a step");
    return p;
}

struct engine *engine_open(struct model *m, struct comm *c, struct ctl *ctl)
{
    const struct dims *d = &m->dims;
    struct engine *e = need(calloc(1, sizeof *e));
    e->model = m;
    e->comm = c;
    e->ctl = ctl;
    e->token_bytes = 2.0 * d->E * (double)dtype_bytes(d->kv);
    e->summary_bytes = (double)d->summary_bytes;
    e->limits = (struct step_limits){
        .n_slots = d->n_slots,
        .max_rows = d->max_rows,
        .max_decode = d->max_spans,
        .max_out = d->max_out,
        .n_blocks = d->n_blocks,
        .context = d->C,
        .block_tokens = d->B,
        .window = d->W,
        .vocab = m->arch->vocab,
        .n_layers = d->L,
        .n_host_blocks = m->n_host_blocks,
        .n_host_slots = m->n_host_slots,
    };
    stage_open(&e->stage, m);
    step_open(&e->plan, &e->limits);
    size_t n_out = (size_t)d->max_out, vocab = (size_t)m->arch->vocab;
    e->output = need(calloc(n_out, sizeof *e->output));
    size_t pairs = sizeof(struct best) + TOP_BYTES;
    e->best = need(m->op->host_alloc(m->device, n_out * sizeof *e->best));
    e->top = need(m->op->host_alloc(m->device, n_out * TOP_BYTES));
    e->mine_capacity = n_out * (pairs + (size_t)d->Vr * sizeof(float));
    e->mine = need(m->op->host_alloc(m->device, e->mine_capacity));
    if (comm_rank(c) == 0) {
        e->all = need(malloc(n_out * ((size_t)comm_size(c) * pairs + vocab * sizeof(float))));
        e->all_bytes = need(calloc((size_t)comm_size(c), sizeof *e->all_bytes));
        e->logits = need(malloc(n_out * vocab * sizeof(float)));
        e->tops = need(malloc(n_out * TOP_BYTES));
    }
    return e;
}

void engine_close(struct engine *e)
{
    if (!e) return;
    if (e->model) stage_close(&e->stage);
    step_close(&e->plan);
    wire_close(&e->wire);
    wire_close(&e->front_wire);
    if (e->model) {
        const struct ops *op = e->model->op;
        op->host_free(e->model->device, e->mine, e->mine_capacity);
        op->host_free(e->model->device, e->best, (size_t)e->limits.max_out * sizeof *e->best);
        op->host_free(e->model->device, e->top, (size_t)e->limits.max_out * TOP_BYTES);
    }
    free(e->output);
    free(e->all);
    free(e->all_bytes);
    free(e->logits);
    free(e->tops);
    noise_close(&e->noise);
    free(e);
}

const struct step_limits *engine_limits(const struct engine *e) { return &e->limits; }

double engine_token_bytes(const struct engine *e) { return e->token_bytes; }

double engine_summary_bytes(const struct engine *e) { return e->summary_bytes; }

/* The plan to the device, the forward pass, and what every step brings back. A shape that was captured before
 * is one launch. */
static void issue(struct engine *e, const struct batch *b)
{
    struct model *m = e->model;
    progress_op("replay");
    if (b->shape && m->op->graph_launch(m->device, b->shape)) return;
    stage_upload(&e->stage);
    model_forward(m, b);
    if (b->n_out > 0) m->op->download(m->device, e->best, m->best, (size_t)b->n_out * sizeof *e->best);
    if (b->top) m->op->download(m->device, e->top, m->top, (size_t)b->n_out * TOP_BYTES);
    if (b->shape) m->op->graph_end(m->device);
}

static struct results count_results(const struct step *s)
{
    struct results r = {0};
    for (int i = 0; i < s->n_seqs; i++) {
        const struct step_seq *q = &s->seq[i];
        r.n_out += q->n_out;
        r.n_tops += q->want == STEP_WANT_CANDIDATES;
        if (q->want == STEP_WANT_LOGITS) r.n_logits += q->n_out;
    }
    return r;
}

/* Rows of logits go straight to their place behind the pairs. */
static void download_logits(struct engine *e, const struct step *s, struct results *r)
{
    struct model *m = e->model;
    size_t row_bytes = (size_t)m->dims.Vr * sizeof(float);
    *r = count_results(s);
    char *to = e->mine + (size_t)r->n_out * sizeof(struct best) + (size_t)r->n_tops * TOP_BYTES;
    for (int i = 0, out = 0; i < s->n_seqs; i++) {
        const struct step_seq *q = &s->seq[i];
        if (q->want == STEP_WANT_LOGITS) {
            size_t bytes = (size_t)q->n_out * row_bytes;
            m->op->download(m->device, to, m->logits + (size_t)out * (size_t)m->dims.Vr, bytes);
            to += bytes;
        }
        out += q->n_out;
    }
}

/* Runs a plan on this rank and brings its results to `mine`. */
static void execute(struct engine *e, const struct step *s, struct results *r)
{
    struct model *m = e->model;
    struct batch b;
    struct reason why;
    if (stage_step(&e->stage, s, &b, &why) != STATUS_OK) DIE(EXIT_CODE_BUG, NULL, "%s", why.text);
    issue(e, &b);
    progress_op("download");
    download_logits(e, s, r);
    comm_wait(e->comm, m->op->stream(m->device));
    m->op->sync(m->device);
    memcpy(e->mine, e->best, (size_t)r->n_out * sizeof *e->best);
    char *to = e->mine + (size_t)r->n_out * sizeof *e->best;
    for (int i = 0, out = 0; i < s->n_seqs; i++) {
        if (s->seq[i].want == STEP_WANT_CANDIDATES) {
            memcpy(to, e->top + (size_t)out * TOP_K_MAX, TOP_BYTES);
            to += TOP_BYTES;
        }
        out += s->seq[i].n_out;
    }
}

/* Every rank's part of the vocabulary, in rank order. */
static void shard_of(const struct engine *e, int rank, int *first, int *count)
{
    shard_deal(e->model->arch->vocab, comm_size(e->comm), rank, first, count);
}

static void gather(struct engine *e, const struct results *n)
{
    size_t pair_bytes = (size_t)n->n_out * sizeof(struct best) + (size_t)n->n_tops * TOP_BYTES;
    progress_op("gather");
    if (comm_rank(e->comm) == 0)
        for (int r = 0; r < comm_size(e->comm); r++) {
            int first, count;
            shard_of(e, r, &first, &count);
            e->all_bytes[r] = pair_bytes + (size_t)n->n_logits * (size_t)count * sizeof(float);
        }
    comm_gather(e->comm, e->mine,
                pair_bytes + (size_t)n->n_logits * (size_t)e->model->dims.Vr * sizeof(float), e->all,
                e->all_bytes);
}

/* Merges one rank's largest logits, ids made those of the whole vocabulary, into `to`; what is there comes
 * from lower ranks, with lower ids, so it stands first among equals. */
static void merge_top(struct best *to, const char *from, int first)
{
    struct best kept[TOP_K_MAX], more[TOP_K_MAX];
    memcpy(kept, to, TOP_BYTES);
    memcpy(more, from, TOP_BYTES);
    for (int i = 0, a = 0, b = 0; i < TOP_K_MAX; i++) {
        bool take = more[b].index >= 0 && (kept[a].index < 0 || more[b].value > kept[a].value);
        to[i] = take ? (struct best){more[b].value, first + more[b].index} : kept[a];
        if (take) b++;
        else a++;
    }
}

/* Merges the ranks' results: lower ranks hold lower token ids, so a strict comparison keeps the lower id on a
 * tie. */
static void assemble(struct engine *e, const struct results *n)
{
    size_t vocab = (size_t)e->model->arch->vocab;
    const char *from = e->all;
    for (int i = 0; i < n->n_out; i++) e->output[i].best = -1;
    for (int i = 0; i < n->n_tops * TOP_K_MAX; i++) e->tops[i] = (struct best){0, -1};
    for (int r = 0; r < comm_size(e->comm); r++) {
        int first, count;
        shard_of(e, r, &first, &count);
        for (int i = 0; i < n->n_out; i++, from += sizeof(struct best)) {
            struct best b;
            memcpy(&b, from, sizeof b);
            if (count == 0 || (e->output[i].best >= 0 && !(b.value > e->output[i].best_logit))) continue;
            e->output[i].best = first + b.index;
            e->output[i].best_logit = b.value;
        }
        for (int i = 0; i < n->n_tops; i++, from += TOP_BYTES)
            merge_top(e->tops + (size_t)i * TOP_K_MAX, from, first);
        for (int i = 0; i < n->n_logits; i++, from += (size_t)count * sizeof(float))
            memcpy(e->logits + (size_t)i * vocab + first, from, (size_t)count * sizeof(float));
    }
}

/* Runs a plan on this rank and its followers and brings the whole vocabulary's results. */
static void run(struct engine *e, const struct step *s, struct results *n)
{
    ASSERT(comm_rank(e->comm) == 0);
    progress_step();
    if (comm_size(e->comm) > 1) {
        wire_pack_step(&e->wire, s);
        ctl_send(e->ctl, MESSAGE_STEP, e->wire.bytes, e->wire.n_bytes);
    }
    execute(e, s, n);
    gather(e, n);
    assemble(e, n);
    progress_enter(PROGRESS_IDLE);
}

/* ------------------------------------------------------------------------------------------ replicas */
/* The next frame of the replica's leader, which must be of this kind and size. */
static const void *expect(struct engine *e, enum message kind, size_t n_bytes)
{
    uint32_t got;
    const void *bytes;
    size_t n;
    ctl_receive_from(e->front, e->front_rank, &got, &bytes, &n);
    if (got != (uint32_t)kind || n != n_bytes)
        DIE(EXIT_CODE_PEER, "do all ranks run the same program with the same options?",
            "replica %d: message %u of %zu bytes, not %d of %zu", e->front_rank, got, n, (int)kind, n_bytes);
    return bytes;
}

struct engine *engine_open_remote(struct ctl *front, int rank)
{
    struct engine *e = need(calloc(1, sizeof *e));
    struct greeting g;
    e->front = front;
    e->front_rank = rank;
    memcpy(&g, expect(e, MESSAGE_GREETING, sizeof g), sizeof g);
    e->limits = g.limits;
    e->token_bytes = g.token_bytes;
    e->summary_bytes = g.summary_bytes;
    size_t n_out = (size_t)g.limits.max_out;
    e->output = need(calloc(n_out, sizeof *e->output));
    e->logits = need(malloc(n_out * (size_t)g.limits.vocab * sizeof(float)));
    e->tops = need(malloc(n_out * TOP_BYTES));
    return e;
}

/* Sends a plan to the replica and takes what came of it. */
static void run_remote(struct engine *e, const struct step *s, struct results *n)
{
    *n = count_results(s);
    wire_pack_step(&e->front_wire, s);
    ctl_send_to(e->front, e->front_rank, MESSAGE_STEP, e->front_wire.bytes, e->front_wire.n_bytes);
    size_t pairs = (size_t)n->n_out * sizeof(struct best), tops = (size_t)n->n_tops * TOP_BYTES,
           row = (size_t)e->limits.vocab * sizeof(float);
    const char *from = expect(e, MESSAGE_RESULTS, pairs + tops);
    for (int i = 0; i < n->n_out; i++) {
        struct best b;
        memcpy(&b, from + (size_t)i * sizeof b, sizeof b);
        e->output[i].best = b.index;
        e->output[i].best_logit = b.value;
    }
    memcpy(e->tops, from + pairs, tops);
    for (int i = 0; i < n->n_logits; i++)
        memcpy(e->logits + (size_t)i * (size_t)e->limits.vocab, expect(e, MESSAGE_LOGITS, row), row);
}

/* Gives the results of a plan to rank 0 of the world. `all` is free again by now. */
static void send_results(struct engine *e, struct ctl *front, const struct results *n)
{
    size_t pairs = (size_t)n->n_out * sizeof(struct best), tops = (size_t)n->n_tops * TOP_BYTES,
           row = (size_t)e->limits.vocab * sizeof(float);
    for (int i = 0; i < n->n_out; i++) {
        struct best b = {e->output[i].best_logit, e->output[i].best};
        memcpy(e->all + (size_t)i * sizeof b, &b, sizeof b);
    }
    memcpy(e->all + pairs, e->tops, tops);
    ctl_reply(front, MESSAGE_RESULTS, e->all, pairs + tops);
    for (int i = 0; i < n->n_logits; i++)
        ctl_reply(front, MESSAGE_LOGITS, e->logits + (size_t)i * (size_t)e->limits.vocab, row);
}

/* ------------------------------------------------------------------------------------------ the leader's calls */
void engine_step(struct engine *e, const struct step *s, struct engine_result *r)
{
    struct results n;
    ASSERT(s->n_rows > 0);
    if (e->model) run(e, s, &n);
    else run_remote(e, s, &n);
    const float *logits = e->logits;
    const struct best *tops = e->tops;
    struct engine_output *out = e->output;
    for (int i = 0; i < s->n_seqs; i++) {
        const struct step_seq *q = &s->seq[i];
        for (int row = q->n_rows - q->n_out; row < q->n_rows; row++, out++) {
            out->seq = i;
            out->position = q->position + row;
            out->logits = q->want == STEP_WANT_LOGITS ? logits : NULL;
            out->top = q->want == STEP_WANT_CANDIDATES ? tops : NULL;
            if (out->logits) logits += e->limits.vocab;
            if (out->top) tops += TOP_K_MAX;
        }
    }
    *r = (struct engine_result){.n_outputs = n.n_out, .output = e->output};
}

static void sum_counters(struct engine *e, int slot, int64_t counters[COUNTER_COUNT])
{
    struct model *m = e->model;
    m->op->download(m->device, counters, m->counters + (size_t)slot * COUNTER_COUNT,
                    COUNTER_COUNT * sizeof *counters);
    m->op->sync(m->device);
    comm_sum_i64(e->comm, counters, COUNTER_COUNT);
}

void engine_counters(struct engine *e, int slot, int64_t counters[COUNTER_COUNT])
{
    int32_t message = slot;
    if (!e->model) {
        ctl_send_to(e->front, e->front_rank, MESSAGE_COUNTERS, &message, sizeof message);
        memcpy(counters, expect(e, MESSAGE_COUNTERS, COUNTER_COUNT * sizeof *counters),
               COUNTER_COUNT * sizeof *counters);
        return;
    }
    if (comm_size(e->comm) > 1) ctl_send(e->ctl, MESSAGE_COUNTERS, &message, sizeof message);
    sum_counters(e, slot, counters);
}

static void fill(struct engine *e, const struct step *s)
{
    struct model *m = e->model;
    struct batch b;
    struct reason why;
    size_t row = (size_t)(m->dims.Qr + 2 * m->dims.Kr) * (size_t)m->dims.E;
    if (!e->noise.value) noise_open(&e->noise, (size_t)m->dims.max_rows * row);
    if (stage_step(&e->stage, s, &b, &why) != STATUS_OK) DIE(EXIT_CODE_BUG, NULL, "%s", why.text);
    stage_upload(&e->stage);
    model_fill(m, &b, noise_row(&e->noise, "context", (int64_t)s->id));
}

void engine_fill(struct engine *e, const struct step *s)
{
    ASSERT(e->model);
    if (comm_size(e->comm) > 1) {
        wire_pack_step(&e->wire, s);
        ctl_send(e->ctl, MESSAGE_FILL, e->wire.bytes, e->wire.n_bytes);
    }
    fill(e, s);
}

enum { READ_SAMPLE = 64 << 20, READ_US = 2000, READ_STEP = 4096 };

/* All ranks at once, because they share memory; the next slice each time. */
static double read_rate(struct engine *e)
{
    struct model *m = e->model;
    size_t weights = (size_t)m->plan.weights_bytes, done = 0;
    size_t sample = e->read_sample ? e->read_sample : READ_SAMPLE,
           slice = weights < sample ? weights : sample;
    comm_barrier(e->comm);
    int64_t begun = clock_us();
    for (; done < sample; done += slice, e->read_at += slice) {
        if (e->read_at + slice > weights) e->read_at = 0;
        m->op->read_bytes(m->device, (const char *)m->memory + e->read_at, slice);
    }
    m->op->sync(m->device);
    int64_t took = clock_us() - begun;
    int64_t sum = (int64_t)done * 1000000 / (took > 0 ? took : 1);
    comm_sum_i64(e->comm, &sum, 1);
    size_t next = (size_t)(sum / comm_size(e->comm)) / (1000000 / READ_US) / READ_STEP * READ_STEP;
    e->read_sample = next > READ_SAMPLE ? next : READ_SAMPLE; /* the same on every rank */
    return (double)sum;
}

double engine_read_rate(struct engine *e)
{
    ASSERT(e->model);
    if (comm_size(e->comm) > 1) ctl_send(e->ctl, MESSAGE_READ_RATE, NULL, 0);
    return read_rate(e);
}

static void unpack(struct engine *e, struct wire *w, const void *bytes, size_t n)
{
    struct reason why;
    if (wire_unpack_step(w, &e->plan, bytes, n, &why) != STATUS_OK)
        DIE(EXIT_CODE_PEER, "do all ranks run the same program with the same options?", "%s", why.text);
}

static int slot_of(const struct engine *e, const void *bytes, size_t n)
{
    int32_t slot;
    ASSERT(n == sizeof slot);
    memcpy(&slot, bytes, sizeof slot);
    ASSERT(slot >= 0 && slot < e->limits.n_slots);
    return slot;
}

void engine_lead(struct engine *e, struct ctl *front)
{
    struct greeting g = {e->limits, e->token_bytes, e->summary_bytes};
    uint32_t kind;
    const void *bytes;
    size_t n;
    ctl_reply(front, MESSAGE_GREETING, &g, sizeof g);
    while (ctl_receive(front, &kind, &bytes, &n)) {
        if (kind == MESSAGE_STEP) {
            struct results r;
            unpack(e, &e->front_wire, bytes, n);
            run(e, &e->plan, &r);
            send_results(e, front, &r);
        } else if (kind == MESSAGE_COUNTERS) {
            int64_t counters[COUNTER_COUNT];
            engine_counters(e, slot_of(e, bytes, n), counters);
            ctl_reply(front, MESSAGE_COUNTERS, counters, sizeof counters);
        } else {
            DIE(EXIT_CODE_PEER, "do all ranks run the same program?",
                "message of unknown kind %u from rank 0", kind);
        }
    }
}

void engine_follow(struct engine *e)
{
    uint32_t kind;
    const void *bytes;
    size_t n;
    while (ctl_receive(e->ctl, &kind, &bytes, &n)) {
        if (kind == MESSAGE_STEP) {
            struct results r;
            unpack(e, &e->wire, bytes, n);
            progress_step();
            execute(e, &e->plan, &r);
            gather(e, &r);
            progress_enter(PROGRESS_IDLE);
        } else if (kind == MESSAGE_FILL) {
            unpack(e, &e->wire, bytes, n);
            fill(e, &e->plan);
        } else if (kind == MESSAGE_READ_RATE) {
            read_rate(e);
        } else if (kind == MESSAGE_COUNTERS) {
            int64_t counters[COUNTER_COUNT];
            sum_counters(e, slot_of(e, bytes, n), counters);
        } else {
            DIE(EXIT_CODE_PEER, "do all ranks run the same program?",
                "message of unknown kind %u from rank 0", kind);
        }
    }
}
