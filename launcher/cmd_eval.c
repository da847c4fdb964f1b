/* cmd_eval.c - `retro eval`: teacher-forced measurement; with --json every policy is one object on a line of
 * its own, the last line of standard output is the last policy's. Order: dense where --compare asks for it,
 * the command's own policy, then those of --also. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/commands.h"
#include "launcher/session.h"
#include "runtime/base/die.h"
#include "runtime/eval.h"

enum { ALSO_WORDS_MAX = 32 };

/* The policy of one --also: defaults, not the command's values, where it does not say. */
static enum status parse_also(const struct options *o, const char *text, struct policy *p, struct reason *why)
{
    char copy[1024], *word[ALSO_WORDS_MAX], *rest = copy;
    struct options also;
    struct reason fault;
    int n = 0;
    if (strlen(text) >= sizeof copy)
        return status_fail(why, STATUS_BAD_OPTION, "--also: longer than %zu characters", sizeof copy - 1);
    strcpy(copy, text);
    for (char *w; (w = strtok_r(n ? NULL : copy, " ", &rest)); word[n++] = w)
        if (n == ALSO_WORDS_MAX)
            return status_fail(why, STATUS_BAD_OPTION, "--also: more than %d words", ALSO_WORDS_MAX);
    enum status status = options_parse(&also, CMD_POLICY, n, word, 0, &fault);
    if (status == STATUS_OK && also.page_size != o->page_size && also.preset != 0)
        status =
            status_fail(&fault, STATUS_BAD_OPTION,
                        "--preset: has pages of %d tokens, and all policies of a run share --page-size %d",
                        also.page_size, o->page_size);
    also.page_size = o->page_size;
    also.block_size = o->block_size;
    also.kv_dtype = o->kv_dtype;
    if (status == STATUS_OK && also.score_alpha < 1) also.summary = o->summary;
    if (status == STATUS_OK && also.score_alpha >= 1 && options_summary(o) >= SUMMARY_Q8 &&
        (also.policy == POLICY_QUEST || also.policy == POLICY_RETRO))
        status = status_fail(
            &fault, STATUS_BAD_OPTION,
            "--score-alpha 1: all policies of a run share its --summary, whose codes bound no score");
    if (status == STATUS_OK) status = options_policy(&also, p, &fault);
    options_close(&also);
    return status == STATUS_OK ? status : status_fail(why, status, "--also: %.400s", fault.text);
}

/* All ranks: the policies, and the largest window among them. */
static enum status read_policies(struct session *s, struct eval_request *q, struct reason *why)
{
    const struct options *o = s->options;
    enum status status = STATUS_OK;
    q->compare = o->compare;
    q->first = o->compare;
    if (o->compare && o->greedy)
        return status_fail(why, STATUS_BAD_OPTION,
                           "--compare and --greedy: texts that differ have no "
                           "predictions to compare; leave one out");
    if (o->compare)
        q->policy[q->n_policies++] = (struct policy){.kind = POLICY_DENSE, .window = 1, .kv_budget = 1};
    q->policy[q->n_policies++] = s->policy;
    for (int i = 0; i < o->also.n_items && status == STATUS_OK; i++)
        status = parse_also(o, o->also.item[i], &q->policy[q->n_policies++], why);
    for (int i = q->first + 1; i < q->n_policies && status == STATUS_OK; i++) {
        struct policy *p = &q->policy[i];
        if (p->window > s->window) s->window = p->window;
        if (s->world.rank == 0 && p->dense_layers > s->files.arch.n_layers)
            p->dense_layers = s->files.arch.n_layers;
    }
    return status;
}

static enum status read_request(const struct session *s, struct eval_request *q, int32_t **tokens,
                                int *context, struct reason *why)
{
    const struct options *o = s->options;
    int n_tokens = 0;
    if (!o->tokens) return status_fail(why, STATUS_BAD_OPTION, "--tokens FILE is missing: token ids as text");
    enum status status = eval_read_tokens(o->tokens, s->files.arch.vocab, tokens, &n_tokens, why);
    if (status != STATUS_OK) return status;
    q->token = *tokens;
    q->n_prompt = o->prompt_tokens;
    q->n_steps = o->steps;
    q->greedy = o->greedy;
    q->dump_logits = o->dump_logits;
    q->dump_steps = o->dump_steps;
    q->prefill_chunk = o->prefill_chunk;
    long wanted = (long)q->n_prompt + (q->greedy ? 0 : q->n_steps), total = (long)q->n_prompt + q->n_steps;
    if (n_tokens < wanted)
        return status_fail(why, STATUS_BAD_INPUT, "--tokens %s: %d ids, --prompt %d and --steps %d need %ld",
                           o->tokens, n_tokens, q->n_prompt, q->n_steps, wanted);
    long limit = o->max_context == OPTIONS_UNSET ? s->files.arch.context : o->max_context;
    if (total > limit)
        return status_fail(why, STATUS_TOO_LONG,
                           "--prompt %d and --steps %d: %ld tokens, the context limit is %ld", q->n_prompt,
                           q->n_steps, total, limit);
    if (limit > s->files.arch.context)
        LOG_WARN("--max-context %d: the model's own limit is %d, positions beyond it are out of its range",
                 o->max_context, s->files.arch.context);
    *context = o->max_context == OPTIONS_UNSET ? (int)total : o->max_context;
    return STATUS_OK;
}

static void print_json(const struct session *s, const struct eval_request *q, const struct eval_result *r,
                       int i)
{
    static const char *const groups[SCORE_GROUP_COUNT] = {"max", "mean", "softmax", "recent"};
    static const char *const summaries[SUMMARY_TYPE_COUNT] = {"f32", "f16", "bf16", "q8", "q4"};
    const struct policy *p = &q->policy[i];
    json_t *j = json_pack(
        "{s:s, s:i, s:f, s:f, s:f, s:I, s:I, s:f, s:f, s:i, s:i, s:i, s:s, s:s}", "policy",
        policy_kind_name(p->kind), "window", p->window, "nll", r->nll, "ppl", r->ppl, "exposure",
        r->exposure.exposure, "pages_loaded", (json_int_t)r->exposure.pages_loaded, "pages_met",
        (json_int_t)r->exposure.pages_met, "kv_read_share", r->exposure.kv_read_share, "tokens_per_s",
        r->tokens_per_s, "prompt", q->n_prompt, "steps", q->n_steps, "ranks", s->world.size, "device",
        device_describe(s->model->device), "kv_dtype", dtype_name(s->model->dims.kv));
    json_t *how = json_pack("{s:f, s:i, s:i, s:f, s:s, s:i, s:i, s:s, s:i}", "kv_budget", p->kv_budget,
                            "kv_budget_tokens", p->kv_budget_tokens, "dense_layers", p->dense_layers,
                            "score_alpha", (double)p->score_alpha, "score_group", groups[p->score_group],
                            "sink_pages", p->sink_pages, "page_size", s->model->dims.P, "summary",
                            summaries[s->model->dims.summary], "threads", s->threads);
    ASSERT(j && how);
    json_object_update(j, how);
    json_decref(how);
    json_object_set_new(j, "accuracy", json_real(r->right));
    if (q->compare) {
        json_object_set_new(j, "kl", json_real(r->kl));
        json_object_set_new(j, "top1", json_real(r->top));
    }
    if (s->model->probe) {
        struct probe_errors e = probe_read(s->model->probe, i);
        json_object_set_new(j, "attention_error", json_real(e.used));
        if (p->window > 1) json_object_set_new(j, "attention_error_revised", json_real(e.revised));
    }
    if (r->generated) {
        json_t *tokens = json_array();
        for (int t = 0; t < q->n_steps; t++) json_array_append_new(tokens, json_integer(r->generated[t]));
        json_object_set_new(j, "tokens", tokens);
    }
    char *text = json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(10));
    ASSERT(text);
    puts(text);
    free(text);
    json_decref(j);
}

static void print_table(const struct session *s, const struct eval_request *q, const struct eval_result *r,
                        int i)
{
    const struct policy *p = &q->policy[i];
    printf("policy         %s, window %d, budget ", policy_kind_name(p->kind), p->window);
    if (p->kv_budget_tokens > 0) printf("%d tokens\n", p->kv_budget_tokens);
    else printf("%g\n", p->kv_budget);
    printf("nll            %.5f nats (ppl %.4f) over %d tokens after %d\n", r->nll, r->ppl, q->n_steps,
           q->n_prompt);
    if (q->compare)
        printf("from dense     KL %.5f nats, %.2f %% equal likeliest tokens\n", r->kl, 100 * r->top);
    printf("exposure       %.3f (%lld pages loaded)\n", r->exposure.exposure,
           (long long)r->exposure.pages_loaded);
    printf("kv_read_share  %.4f\n", r->exposure.kv_read_share);
    if (s->model->probe) {
        struct probe_errors e = probe_read(s->model->probe, i);
        printf("attention      %.4f off when used", e.used);
        if (p->window > 1) printf(", %.4f after the last revision", e.revised);
        putchar('\n');
    }
    printf("speed          %.1f tokens/s\n", r->tokens_per_s);
    if (!r->generated) return;
    for (int t = 0; t < q->n_steps; t++) printf("%d%c", r->generated[t], t + 1 < q->n_steps ? ' ' : '\n');
}

static enum status measure(struct session *s, const struct eval_request *q, struct reason *why)
{
    struct eval_result r[EVAL_POLICIES_MAX];
    if (s->options->attention_error > 0)
        s->model->probe = probe_open(s->model->device, &s->model->dims, s->options->attention_error);
    enum status status = eval_run(s->engine, q, r, why);
    for (int i = 0; i < q->n_policies && status == STATUS_OK; i++) {
        if (s->options->json) print_json(s, q, &r[i], i);
        else print_table(s, q, &r[i], i);
    }
    if (status == STATUS_OK) eval_close(r, q->n_policies);
    probe_close(s->model->probe);
    s->model->probe = NULL;
    return status;
}

int cmd_eval(const struct options *o, const struct comm_world *w)
{
    struct session s;
    struct reason why;
    struct eval_request q = {0};
    int32_t *tokens = NULL;
    int context = 0;
    enum status status = session_prepare(&s, o, w, &why);
    if (status == STATUS_OK) status = read_policies(&s, &q, &why);
    if (status == STATUS_OK && w->rank == 0) status = read_request(&s, &q, &tokens, &context, &why);
    status = session_agree(&s, status, &context, &why);
    if (status == STATUS_OK) {
        status = session_load(&s, context, q.n_policies, &why);
        if (status == STATUS_OK && w->rank != 0) engine_follow(s.engine);
        if (status == STATUS_OK && w->rank == 0) status = measure(&s, &q, &why);
        if (status != STATUS_OK) session_fail(w, status, &why);
    }
    session_close(&s);
    free(tokens);
    return status_exit_code(status);
}
