/* cmd_info.c - `retro info`: what a model folder holds and how it would be sharded. Reads headers only. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "launcher/commands.h"
#include "launcher/session.h"
#include "runtime/base/die.h"
#include "runtime/chat.h"
#include "runtime/shard.h"
#include "runtime/tokenizer.h"

static const char *rope_name(enum rope_type t)
{
    static const char *const names[ROPE_TYPE_COUNT] = {"default", "linear", "llama3", "yarn"};
    return names[t];
}

static int sliding_layers(const struct arch *a)
{
    int n = 0;
    for (int l = 0; l < a->n_layers; l++) n += a->slides[l];
    return n;
}

static int64_t parameters(const struct tensors *t)
{
    int64_t n = 0;
    for (int i = 0; i < tensors_count(t); i++)
        n += (int64_t)(tensors_at(t, i)->bytes / dtype_bytes(tensors_at(t, i)->dtype));
    return n;
}

static json_t *shard_json(const struct arch *a, int ranks)
{
    json_t *list = json_array();
    for (int r = 0; r < ranks; r++) {
        struct shard s;
        shard_make(&s, r, ranks, a->n_heads, a->n_kv_heads, a->ffn, a->vocab);
        json_array_append_new(list,
                              json_pack("{s:i, s:[i,i], s:[i,i], s:[i,i], s:[i,i]}", "rank", r, "kv_heads",
                                        s.kv_first, s.n_kv, "query_heads", s.head_first, s.n_heads, "ffn",
                                        s.ffn_first, s.n_ffn, "vocab", s.vocab_first, s.n_vocab));
    }
    return list;
}

static void print_json(const struct model_files *f, const char *chat, int vocab, int ranks)
{
    const struct arch *a = &f->arch;
    json_t *j = json_pack(
        "{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:s, s:b, s:s, s:i, s:i, s:I, s:I, s:i, "
        "s:s, s:i}",
        "family", a->family, "layers", a->n_layers, "hidden", a->hidden, "heads", a->n_heads, "kv_heads",
        a->n_kv_heads, "head_dim", a->head_dim, "ffn", a->ffn, "vocab", a->vocab, "context", a->context,
        "rope_theta", a->rope_theta, "rope", rope_name(a->rope.type), "tied_head", a->tied_head, "dtype",
        dtype_name(a->dtype), "sliding_window", a->sliding_window, "sliding_layers", sliding_layers(a),
        "parameters", (json_int_t)parameters(f->tensors), "bytes",
        (json_int_t)tensors_total_bytes(f->tensors), "tensors", tensors_count(f->tensors), "chat", chat,
        "tokenizer_vocab", vocab);
    ASSERT(j);
    json_object_set_new(j, "shards", shard_json(a, ranks));
    char *text = json_dumps(j, JSON_COMPACT);
    ASSERT(text);
    puts(text);
    free(text);
    json_decref(j);
}

static void print_text(const struct model_files *f, const char *chat, int vocab, int ranks)
{
    const struct arch *a = &f->arch;
    printf("family      %s, %d layers, hidden %d, %d query heads, %d kv heads of %d, ffn %d\n", a->family,
           a->n_layers, a->hidden, a->n_heads, a->n_kv_heads, a->head_dim, a->ffn);
    printf("vocabulary  %d (tokenizer: %d), %s LM head\n", a->vocab, vocab,
           a->tied_head ? "tied" : "separate");
    printf("context     %d, rope %s, theta %g", a->context, rope_name(a->rope.type), a->rope_theta);
    if (sliding_layers(a)) printf(", sliding window %d in %d layers", a->sliding_window, sliding_layers(a));
    printf("\nweights     %d tensors, %.1f M parameters, %.2f GB\n", tensors_count(f->tensors),
           (double)parameters(f->tensors) * 1e-6, (double)tensors_total_bytes(f->tensors) * 1e-9);
    printf("KV cache    %.1f KiB a token in bf16\n",
           (double)a->n_layers * 2 * a->n_kv_heads * a->head_dim * 2 / 1024);
    printf("chat        %s\n", chat);
    for (int r = 0; r < ranks; r++) {
        struct shard s;
        shard_make(&s, r, ranks, a->n_heads, a->n_kv_heads, a->ffn, a->vocab);
        printf("rank %-6d query heads %d-%d, kv heads %d-%d, ffn %d-%d, vocabulary %d-%d\n", r, s.head_first,
               s.head_first + s.n_heads - 1, s.kv_first, s.kv_first + s.n_kv - 1, s.ffn_first,
               s.ffn_first + s.n_ffn - 1, s.vocab_first, s.vocab_first + s.n_vocab - 1);
    }
}

int cmd_info(const struct options *o, const struct comm_world *w)
{
    struct reason why, no_chat;
    struct model_files files = {0};
    struct tokenizer *t = NULL;
    struct chat_template chat = {0};
    int ranks = o->tp == OPTIONS_UNSET ? w->size : o->tp;
    enum status status = STATUS_OK;
    if (!o->model)
        status = status_fail(&why, STATUS_BAD_OPTION, "--model DIR is missing: a Hugging Face model folder");
    if (status == STATUS_OK) status = model_files_open(&files, o->model, &why);
    if (status == STATUS_OK && ranks > files.arch.n_heads)
        status = status_fail(&why, STATUS_BAD_OPTION,
                             "--tp %d: the model has %d query heads, at most that many ranks", ranks,
                             files.arch.n_heads);
    if (status == STATUS_OK) status = tokenizer_open(&t, o->model, &why);
    if (status == STATUS_OK) {
        model_files_warn(&files);
        /* A folder without a chat template is complete: say why --chat will not work and go on. */
        const char *format =
            chat_open(&chat, o->model, &no_chat) == STATUS_OK ? chat_format_name(chat.format) : no_chat.text;
        (o->json ? print_json : print_text)(&files, format, tokenizer_vocab_size(t), ranks);
    }
    chat_close(&chat);
    tokenizer_close(t);
    model_files_close(&files);
    return status == STATUS_OK ? EXIT_CODE_OK : session_fail(w, status, &why);
}
