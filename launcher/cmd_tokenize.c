/* cmd_tokenize.c - `retro tokenize`: standard input to ids separated by blanks; --decode back to the text. */
#include <stdio.h>
#include <stdlib.h>

#include "launcher/commands.h"
#include "launcher/session.h"
#include "launcher/text.h"
#include "runtime/base/die.h"

static enum status encode(const struct tokenizer *t, bool special, const char *text, size_t n,
                          struct reason *why)
{
    struct token_list ids = {0};
    enum status status = tokenizer_encode(t, text, n, special, &ids, why);
    for (size_t i = 0; status == STATUS_OK && i < ids.n_ids; i++) printf(i ? " %d" : "%d", ids.ids[i]);
    if (status == STATUS_OK) putchar('\n');
    token_list_free(&ids);
    return status;
}

static enum status decode(const struct tokenizer *t, bool skip_special, const char *text, size_t n,
                          struct reason *why)
{
    struct token_list ids = {0};
    enum status status = text_parse_ids(text, n, &ids, why);
    char *out = NULL;
    size_t n_bytes;
    if (status == STATUS_OK)
        status = tokenizer_decode(t, ids.ids, ids.n_ids, skip_special, &out, &n_bytes, why);
    if (status == STATUS_OK) fwrite(out, 1, n_bytes, stdout);
    free(out);
    token_list_free(&ids);
    return status;
}

int cmd_tokenize(const struct options *o, const struct comm_world *w)
{
    struct reason why;
    struct tokenizer *t = NULL;
    char *text = NULL;
    size_t n;
    enum status status = STATUS_OK;
    if (!o->model)
        status = status_fail(&why, STATUS_BAD_OPTION, "--model DIR is missing: a folder with tokenizer.json");
    if (status == STATUS_OK && o->decode && o->no_special)
        status = status_fail(&why, STATUS_BAD_OPTION,
                             "--no-special: not with --decode, which leaves special tokens out by itself");
    if (status == STATUS_OK && o->keep_special && !o->decode)
        status = status_fail(&why, STATUS_BAD_OPTION, "--keep-special: needs --decode");
    if (status == STATUS_OK) status = tokenizer_open(&t, o->model, &why);
    if (status == STATUS_OK) status = text_read_stream(stdin, "standard input", &text, &n, &why);
    if (status == STATUS_OK)
        status =
            o->decode ? decode(t, !o->keep_special, text, n, &why) : encode(t, !o->no_special, text, n, &why);
    free(text);
    tokenizer_close(t);
    return status == STATUS_OK ? EXIT_CODE_OK : session_fail(w, status, &why);
}
