/* api.h - OpenAI's request bodies and response bodies, without HTTP: for the server and for batch files.
 *
 * Reading: every field is honoured or refused with the field's name, unknown ones too; null is a field that is not
 * there. JSON is strict (UTF-8, no duplicate keys, no NUL). Writing: one api_answer collects what the service's
 * sink hears about a request, as one response or as server-sent events. docs/serving.md lists the fields.
 *
 * An api is immutable after api_open but for its store of compiled schemas, which has a lock: any thread may parse.
 * An api_answer is used by one thread at a time. */
#ifndef RETRO_API_H
#define RETRO_API_H

#include <jansson.h>

#include "runtime/buffer.h"
#include "runtime/chat.h"
#include "runtime/service.h"

struct api;
struct grammar;

struct api_options { /* borrowed, all but model */
    const struct tokenizer *tokenizer;
    const struct chat_template *chat; /* NULL: chat is refused, and why_no_chat says why */
    const char *why_no_chat;
    const char *model;    /* the served name */
    struct policy policy; /* where a request does not say */
    int window;           /* of a request that asks for retro without one */
    int max_window;       /* largest that the engine was opened for */
    int context, vocab;
    const int32_t *eos;
    int n_eos;
};

struct api *api_open(const struct api_options *o);
void api_close(struct api *a);

/* ------------------------------------------------------------------------------------------ errors */
struct api_error {
    int http;             /* 400, 401, 404, ... */
    const char *type;     /* "invalid_request_error", ... */
    const char *code;     /* or NULL */
    char param[64];       /* the field, "" for none */
    struct reason reason; /* the message */
};
/* Of a status that the service gave. */
void api_error_from_status(struct api_error *e, enum status status, const struct reason *why);
/* {"error": {"message", "type", "param", "code"}}, appended. */
void api_error_write(const struct api_error *e, struct buffer *out);

/* ------------------------------------------------------------------------------------------ requests */
enum api_endpoint { API_COMPLETIONS = 1, API_CHAT = 2 };

struct api_request {
    enum api_endpoint endpoint;
    struct token_list *prompt; /* (n_prompts) */
    char **prompt_text;        /* (n_prompts) with echo, else NULL */
    int n_prompts, n;          /* choices of each prompt; choice i of prompt p is p * n + i */
    bool stream, include_usage, continuous_usage, echo;
    int n_top;        /* log-probabilities: of this many alternatives; -1: none at all */
    int max_tokens;   /* 0: to the end of the context */
    bool prompt_only; /* max_tokens 0 with echo: nothing is drawn */
    bool ignore_eos, keep_special;
    struct sampling sampling;
    bool seeded; /* it names its seed: else each prompt has another */
    struct sampling_bias *bias;
    char *stop[SERVICE_STOPS_MAX];
    int n_stop;
    int32_t stop_token[SERVICE_STOPS_MAX];
    int n_stop_tokens;
    int priority;
    struct policy policy;
    struct grammar *grammar; /* response_format, or NULL */
};

/* False: *e says why not. *out is the caller's to free. */
bool api_parse(struct api *a, enum api_endpoint endpoint, const char *body, size_t n,
               struct api_request **out, struct api_error *e);
bool api_parse_json(struct api *a, enum api_endpoint endpoint, const json_t *body, struct api_request **out,
                    struct api_error *e);
void api_request_free(struct api_request *r); /* NULL is fine */
/* What to submit for one prompt: all but sink and user. Pointers are borrowed from `r`; the constraint, when there is
 * one, is new: service_submit takes it when it accepts, api_constraint_free frees it when it does not. */
void api_request_service(struct api *a, const struct api_request *r, int prompt, struct service_request *out);
void api_constraint_free(struct service_request *q);

/* ------------------------------------------------------------------------------------------ responses */
struct api_answer;

/* `id` ("chatcmpl-...") is copied; created: seconds since 1970. The request is borrowed. */
struct api_answer *api_answer_open(const struct api *a, const struct api_request *r, const char *id,
                                   int64_t created);
void api_answer_close(struct api_answer *w);
/* The response has nothing in it that differs from run to run: no times, cached tokens or interruptions. */
void api_answer_leave_out_measured(struct api_answer *w);
/* What the service's sink heard of prompt `prompt`. For a stream, events are appended to `out`. */
void api_answer_prompt(struct api_answer *w, int prompt, const struct service_prompt_token *t);
void api_answer_token(struct api_answer *w, int prompt, const struct service_token *t, struct buffer *out);
void api_answer_end(struct api_answer *w, int prompt, const struct service_end *e, struct buffer *out);
/* True when this was the last prompt: then a stream's last events (usage, [DONE]) were appended. */
bool api_answer_done(struct api_answer *w, int prompt, const struct service_usage *u, struct buffer *out);
/* The whole response after the last done; false: the shutdown (503) or logits that are no numbers
 * (500) cut it off, *e says so. */
bool api_answer_write(struct api_answer *w, struct buffer *out, struct api_error *e);

/* ------------------------------------------------------------------------------------------ beside generation */
/* POST /tokenize and /detokenize; GET /v1/models and /v1/models/NAME. */
bool api_tokenize(struct api *a, const char *body, size_t n, struct buffer *out, struct api_error *e);
bool api_detokenize(struct api *a, const char *body, size_t n, struct buffer *out, struct api_error *e);
void api_models(const struct api *a, int64_t created, struct buffer *out);
bool api_model_object(const struct api *a, const char *name, int64_t created, struct buffer *out,
                      struct api_error *e);

#endif
