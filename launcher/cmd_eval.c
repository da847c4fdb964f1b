/* cmd_eval.c - `retro eval`: teacher-forced measurement; the last line of standard output is one JSON object.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "launcher/commands.h"
#include "launcher/session.h"
#include "runtime/base/die.h"
#include "runtime/eval.h"

static enum status read_request(const struct session *s, struct eval_request *q, int32_t **tokens,
                                int *context, struct reason *why)
{
    const struct options *o = s->options;
    int n_tokens = 0;
    if (!o->tokens) return status_fail(why, STATUS_BAD_OPTION, "--tokens FILE is missing: token ids as text");
    enum status status = eval_read_tokens(o->tokens, s->files.arch.vocab, tokens, &n_tokens, why);
    if (status != STATUS_OK) return status;
    *q = (struct eval_request){
        .policy = s->policy,
        .token = *tokens,
        .n_prompt = o->prompt_tokens,
        .n_steps = o->steps,
        .greedy = o->greedy,
        .dump_logits = o->dump_logits,
        .prefill_chunk = o->prefill_chunk,
    };
    long wanted = (long)q->n_prompt + (q->greedy ? 0 : q->n_steps), total = (long)q->n_prompt + q->n_steps;
    if (n_tokens < wanted)
        return status_fail(why, STATUS_BAD_INPUT, "--tokens %s: %d ids, --prompt %d and --steps %d need %ld",
                           o->tokens, n_tokens, q->n_prompt, q->n_steps, wanted);
    long limit = o->max_context == OPTIONS_UNSET ? s->files.arch.context : o->max_context;
    if (total > limit)
        return status_fail(why, STATUS_TOO_LONG,
                           "--prompt %d and --steps %d: %ld tokens, the context limit is %ld", q->n_prompt,
                           q->n_steps, total, limit);
    *context = o->max_context == OPTIONS_UNSET ? (int)total : o->max_context;
    return STATUS_OK;
}

static void print_json(const struct session *s, const struct eval_request *q, const struct eval_result *r)
{
    json_t *j = json_pack(
        "{s:s, s:i, s:f, s:f, s:f, s:I, s:I, s:f, s:f, s:i, s:i, s:i, s:s, s:s}", "policy",
        policy_kind_name(q->policy.kind), "window", q->policy.window, "nll", r->nll, "ppl", r->ppl,
        "exposure", r->exposure.exposure, "pages_loaded", (json_int_t)r->exposure.pages_loaded, "pages_met",
        (json_int_t)r->exposure.pages_met, "kv_read_share", r->exposure.kv_read_share, "tokens_per_s",
        r->tokens_per_s, "prompt", q->n_prompt, "steps", q->n_steps, "ranks", s->world.size, "device",
        device_describe(s->model->device), "kv_dtype", dtype_name(s->model->dims.kv));
    ASSERT(j);
    if (r->generated) {
        json_t *tokens = json_array();
        for (int i = 0; i < q->n_steps; i++) json_array_append_new(tokens, json_integer(r->generated[i]));
        json_object_set_new(j, "tokens", tokens);
    }
    char *text = json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(10));
    ASSERT(text);
    puts(text);
    free(text);
    json_decref(j);
}

static void print_table(const struct eval_request *q, const struct eval_result *r)
{
    printf("policy         %s, window %d\n", policy_kind_name(q->policy.kind), q->policy.window);
    printf("nll            %.5f nats (ppl %.4f) over %d tokens after %d\n", r->nll, r->ppl, q->n_steps,
           q->n_prompt);
    printf("exposure       %.3f (%lld pages loaded)\n", r->exposure.exposure,
           (long long)r->exposure.pages_loaded);
    printf("kv_read_share  %.4f\n", r->exposure.kv_read_share);
    printf("speed          %.1f tokens/s\n", r->tokens_per_s);
    if (!r->generated) return;
    for (int i = 0; i < q->n_steps; i++) printf("%d%c", r->generated[i], i + 1 < q->n_steps ? ' ' : '\n');
}

int cmd_eval(const struct options *o, const struct comm_world *w)
{
    struct session s;
    struct reason why;
    struct eval_request q;
    struct eval_result r;
    int32_t *tokens = NULL;
    int context = 0;
    enum status status = session_prepare(&s, o, w, &why);
    if (status == STATUS_OK && w->rank == 0) status = read_request(&s, &q, &tokens, &context, &why);
    status = session_agree(&s, status, &context, &why);
    if (status == STATUS_OK) {
        status = session_load(&s, context, 1, &why);
        if (status == STATUS_OK && w->rank != 0) engine_follow(s.engine);
        if (status == STATUS_OK && w->rank == 0) status = eval_run(s.engine, &q, &r, &why);
        if (status != STATUS_OK) session_fail(w, status, &why);
        if (status == STATUS_OK && w->rank == 0) {
            if (o->json) print_json(&s, &q, &r);
            else print_table(&q, &r);
            free(r.generated);
        }
    }
    session_close(&s);
    free(tokens);
    return status_exit_code(status);
}
