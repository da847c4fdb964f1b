#include "runtime/cost.h"

#include "runtime/base/die.h"

const char *cost_op_name(enum cost_op op)
{
    static const char *const names[COST_OP_COUNT] = {
        "embed", "norm", "qkv", "rope_store", "select", "attend", "o", "gate_up", "silu", "down", "head"};
    ASSERT(op < COST_OP_COUNT);
    return names[op];
}

/* y (rows, n) = x (rows, k) W^T */
static void add_linear(struct cost_item *i, double rows, double n, double k, const struct dims *m,
                       enum dtype weights)
{
    double bytes = n * k * (double)dtype_bytes(weights);
    i->n_calls++;
    i->bytes += bytes;
    i->traffic += bytes + rows * k * (double)dtype_bytes(m->act) + rows * n * 4;
    i->flops += 2 * rows * n * k;
}

/* What one sequence reads in one layer and kv head. */
struct reads {
    double keys;      /* with their values */
    double summaries; /* pages scored */
    bool sparse;
};

static struct reads reads_of(const struct decode_span *span, int layer, bool slides, int sliding_window,
                             const struct dims *m)
{
    int first = page_first_visible(span->position, slides ? sliding_window : 0, m->P);
    int candidates = span->position / m->P - first + 1, n = span->n_select[slides];
    bool sparse = layer >= span->dense_layers && n > 0 && n < candidates;
    /* The newest page is always read, and so are the sink pages, if need be beyond the budget. */
    int sinks = span->n_sink - first < 0 ? 0 : span->n_sink - first;
    if (sinks > candidates - 1) sinks = candidates - 1;
    if (n < sinks + 1) n = sinks + 1;
    /* Where a sliding window cuts the oldest page, a sparse layer may or may not have chosen that one, unless it is a sink
     * page: counted as not. */
    int oldest = slides && span->position >= sliding_window ? span->position - sliding_window + 1 : 0;
    int cut = sinks > 0 ? oldest - first * m->P : 0;
    double keys =
        sparse ? (double)(n - 1) * m->P + span->position % m->P + 1 - cut : span->position - oldest + 1;
    return (struct reads){.keys = keys,
                          .summaries = sparse && span->group != SCORE_GROUP_RECENT ? candidates : 0,
                          .sparse = sparse};
}

static void add_attention(struct cost *c, const struct arch *a, const struct dims *m,
                          const struct cost_step *s)
{
    int first = s->n_prompt < s->position ? s->n_prompt : s->position;
    struct decode_span span = policy_span(s->policy, 0, 0, s->position, first, m->P, a->sliding_window);
    double token = 2.0 * m->E * (double)dtype_bytes(m->kv), heads = (double)s->n_seqs * m->Kr;
    double q_bytes = (double)s->n_seqs * span.n_rows * m->Qr * m->E * 4;
    struct cost_item *select = &c->op[COST_SELECT], *attend = &c->op[COST_ATTEND];
    for (int l = 0; l < m->L; l++) {
        struct reads r = reads_of(&span, l, a->slides[l], a->sliding_window, m);
        double summaries = heads * r.summaries * (double)m->summary_bytes, kv = heads * r.keys * token;
        select->n_calls++;
        select->bytes += summaries;
        select->traffic += summaries + (r.sparse ? q_bytes / span.n_rows : 0);
        select->flops += heads * r.summaries * m->G * 4.0 * m->E; /* q.c and |q|.u */
        attend->n_calls += 2;
        attend->bytes += kv;
        attend->traffic += kv + 2 * q_bytes + (span.keep ? 2 * q_bytes : 0); /* q, out; the output cache */
        double share = r.sparse ? s->exposure - 1 : 0;
        attend->flops += (double)s->n_seqs * m->Hr * r.keys * (1 + share) * 4.0 * m->E;
        c->kv_bytes += kv;
        c->summaries_bytes += summaries;
    }
}

/* `out` of the rows finish the last layer. */
static void add_activations(struct cost *c, const struct dims *m, double rows, double out)
{
    double L = m->L, normed = (2 * L - 1) * rows + out, gated = (L - 1) * rows + out;
    c->op[COST_EMBED] =
        (struct cost_item){.n_calls = 2, .traffic = 2 * rows * m->D * 4, .flops = rows * m->E};
    c->op[COST_NORM] = (struct cost_item){.n_calls = 2 * m->L,
                                          .traffic = normed * m->D * (12 + (double)dtype_bytes(m->act)),
                                          .flops = normed * 4 * m->D};
    double width = (m->Qr + 2.0 * m->Kr) * m->E * rows;
    double stored = 2.0 * m->Kr * m->E * rows * (double)dtype_bytes(m->kv);
    c->op[COST_ROPE_STORE] =
        (struct cost_item){.n_calls = m->L,
                           .traffic = L * (4 * width + 4 * rows * m->Qr * m->E + stored * (1 + m->P / 2.0)),
                           .flops = L * 3 * width};
    c->op[COST_SILU] = (struct cost_item){.n_calls = m->L,
                                          .traffic = gated * m->Fr * (8 + (double)dtype_bytes(m->act)),
                                          .flops = gated * m->Fr * 10};
}

/* Each query head multiplies with every key that a row sees. Rows of a chunk share what they read, and a chunk is
 * longer than the ridge of any machine: only the operations count, and keys and values are written. */
static void add_prompts(struct cost *c, const struct dims *m, const struct cost_step *s)
{
    c->op[COST_ATTEND].flops += m->L * s->prompt_rows * s->prompt_keys * m->Hr * 4.0 * m->E;
}

void cost_decode(struct cost *c, const struct arch *a, const struct dims *m, const struct cost_step *s)
{
    *c = (struct cost){0};
    int first = s->n_prompt < s->position ? s->n_prompt : s->position;
    double rows = (double)s->n_seqs * policy_rows(s->policy, s->position, first) + s->prompt_rows;
    double out = s->n_seqs; /* and the last row of a prompt, of which there are few */
    add_activations(c, m, rows, out);
    if (s->n_seqs > 0) add_attention(c, a, m, s);
    add_prompts(c, m, s);
    for (int l = 0; l < m->L; l++) {
        add_linear(&c->op[COST_QKV], rows, (m->Qr + 2.0 * m->Kr) * m->E, m->D, m, s->weights);
        double left = l < m->L - 1 ? rows : out;
        add_linear(&c->op[COST_O], left, m->D, (double)m->Hr * m->E, m, s->weights);
        add_linear(&c->op[COST_GATE_UP], left, 2.0 * m->Fr, m->D, m, s->weights);
        add_linear(&c->op[COST_DOWN], left, m->D, m->Fr, m, s->weights);
    }
    struct cost_item *head = &c->op[COST_HEAD];
    add_linear(head, out, m->Vr, m->D, m, s->weights);
    head->n_calls += 4;
    c->logits_bytes = out * m->Vr * 4;
    head->bytes += c->logits_bytes;
    head->traffic += 2 * c->logits_bytes;
    for (int i = 0; i < COST_OP_COUNT; i++) {
        c->bytes += c->op[i].bytes;
        c->traffic += c->op[i].traffic;
        c->flops += c->op[i].flops;
    }
    c->weights_bytes = c->bytes - c->kv_bytes - c->summaries_bytes - c->logits_bytes;
    c->n_all_reduces = 2 * m->L + 1;
    c->all_reduce_bytes = rows * m->D * 4;
}

double cost_weights_bytes(const struct dims *m, enum dtype weights)
{
    double layer = ((m->Qr + 2.0 * m->Kr) * m->E + (double)m->Hr * m->E + 3.0 * m->Fr) * m->D;
    return (m->L * layer + (double)m->Vr * m->D) * (double)dtype_bytes(weights);
}

double cost_prefill_flops(const struct arch *a, int n)
{
    double heads = (double)a->n_heads * a->head_dim, kv = (double)a->n_kv_heads * a->head_dim, flops = 0;
    for (int l = 0; l < a->n_layers; l++) {
        double left = l < a->n_layers - 1 ? n : 1; /* whose logits are wanted: the last token */
        flops += 2.0 * a->hidden * (n * (heads + 2 * kv) + left * (heads + 3.0 * a->ffn));
        double w = a->slides[l] && a->sliding_window < n ? a->sliding_window : n;
        double pairs = w * (w + 1) / 2 + (n - w) * w; /* query and key that see each other */
        flops += 4.0 * heads * pairs;
    }
    return flops + 2.0 * a->hidden * a->vocab;
}
