#include "launcher/serving.h"

#include <stdlib.h>
#include <string.h>

enum { DEFAULT_CONTEXT = 8192 };

/* The last part of a path; --model DIR/ ends in a slash like DIR does not. */
static const char *name_of_folder(const char *path)
{
    const char *name = path;
    for (const char *at = path; *at; at++)
        if (*at == '/' && at[1] && at[1] != '/') name = at + 1;
    return name;
}

/* Of any sequence: the options' own or what a request may ask for. */
static int largest_window(const struct session *s)
{
    return s->window < s->options->max_window ? s->options->max_window : s->window;
}

void serving_size(struct session *s)
{
    const struct options *o = s->options;
    s->window = largest_window(s);
    if (o->kv_tokens != OPTIONS_UNSET) s->kv_tokens = o->kv_tokens;
    if (o->max_batch_tokens != OPTIONS_UNSET) s->room.max_rows = o->max_batch_tokens;
    s->room.swap_bytes = (int64_t)(o->swap_space * (1 << 30));
}

enum status serving_prepare(struct serving *v, const struct session *s, int *context, struct reason *why)
{
    const struct options *o = s->options;
    int limit = s->files.arch.context;
    *v = (struct serving){.model = o->served_model_name ? o->served_model_name : name_of_folder(o->model)};
    if (!v->model[0]) return status_fail(why, STATUS_BAD_OPTION, "--served-model-name: an empty name");
    if (o->max_context != OPTIONS_UNSET && o->max_context > limit)
        return status_fail(why, STATUS_TOO_LONG, "--max-context %d: the model's limit is %d", o->max_context,
                           limit);
    int decode_rows = o->max_seqs * largest_window(s);
    if (o->max_batch_tokens != OPTIONS_UNSET && o->max_batch_tokens <= decode_rows)
        return status_fail(why, STATUS_BAD_OPTION,
                           "--max-batch-tokens %d: %d sequences with windows of up to %d need at least %d",
                           o->max_batch_tokens, o->max_seqs, largest_window(s), decode_rows + 1);
    *context = o->max_context != OPTIONS_UNSET ? o->max_context
               : limit < DEFAULT_CONTEXT       ? limit
                                               : DEFAULT_CONTEXT;
    enum status status = tokenizer_open(&v->tokenizer, o->model, why);
    /* A folder without a chat template is complete: what needs one says so. */
    if (status == STATUS_OK && chat_open(&v->chat, o->model, &v->why_no_chat) == STATUS_OK)
        v->why_no_chat.text[0] = 0;
    return status;
}

enum status serving_open(struct serving *v, const struct session *s, int context, int max_queue,
                         struct reason *why)
{
    const struct arch *a = &s->files.arch;
    v->eos_of_tokenizer = tokenizer_eos(v->tokenizer);
    const int32_t *eos = a->n_eos ? a->eos : &v->eos_of_tokenizer;
    int n_eos = a->n_eos ? a->n_eos : v->eos_of_tokenizer >= 0;
    struct service_options service = {.tokenizer = v->tokenizer,
                                      .eos = eos,
                                      .n_eos = n_eos,
                                      .max_queue = max_queue,
                                      .prefix_cache = (enum sched_cache)s->options->prefix_cache};
    enum status status = front_open(&v->front, s->replica, s->n_replicas, &service, why);
    if (status != STATUS_OK) return status;
    bool chats = !v->why_no_chat.text[0];
    struct api_options api = {.tokenizer = v->tokenizer,
                              .chat = chats ? &v->chat : NULL,
                              .why_no_chat = chats ? NULL : v->why_no_chat.text,
                              .model = v->model,
                              .policy = s->policy,
                              .window = s->options->window,
                              .max_window = s->window,
                              .context = context,
                              .vocab = a->vocab,
                              .eos = eos,
                              .n_eos = n_eos};
    v->api = api_open(&api);
    return STATUS_OK;
}

void serving_close(struct serving *v)
{
    front_close(v->front);
    api_close(v->api);
    chat_close(&v->chat);
    tokenizer_close(v->tokenizer);
    *v = (struct serving){0};
}
