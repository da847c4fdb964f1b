/* tokenizer.c - opening a tokenizer and looking at its ids; tokenizer_encode.c and tokenizer_stream.c use it.
 *
 * Everything is read and checked here, once: unknown types, fields that would change ids (truncation,
 * padding) and contradictions are refused with the field's name, so encode and decode have nothing left to
 * refuse but their input. */
#include "runtime/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/tokenizer_config.h"
#include "runtime/tokenizer_parts.h"

#define FILE_BYTES_MAX ((size_t)512 << 20)

/* ------------------------------------------------------------------------------------------ lists */
void token_list_free(struct token_list *l)
{
    free(l->ids);
    *l = (struct token_list){0};
}

void token_list_push(struct token_list *l, int32_t id)
{
    if (l->n_ids == l->capacity) {
        l->capacity += l->capacity / 2 + 64;
        l->ids = buffer_realloc(l->ids, l->capacity, sizeof *l->ids);
    }
    l->ids[l->n_ids++] = id;
}

/* ------------------------------------------------------------------------------------------ post-processor
 */
static void push_special(struct token_list *l, struct fields *f, const json_t *piece)
{
    const char *name = json_string_value(json_object_get(piece, "id"));
    const json_t *special = fields_get(f, "special_tokens");
    const json_t *ids = name ? json_object_get(json_object_get(special, name), "ids") : NULL;
    if (!json_is_array(ids)) {
        fields_fail(f, "special_tokens", "has no ids for \"%.60s\", which \"single\" names",
                    name ? name : "");
        return;
    }
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= VOCAB_IDS_MAX) {
            fields_fail(f, "special_tokens", "needs ids from 0 to %d", VOCAB_IDS_MAX - 1);
            return;
        }
        token_list_push(l, (int32_t)json_integer_value(id));
    }
}

/* The template around one sequence; an outer template stands around what an inner one made. */
static void read_template(struct tokenizer *t, struct fields *f)
{
    const json_t *single = fields_get(f, "single");
    if (!json_is_array(single)) fields_fail(f, "single", "needs an array of pieces");
    struct token_list before = {0}, after = {0};
    int sequences = 0;
    for (size_t i = 0; f->status == STATUS_OK && i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i);
        const json_t *special = json_object_get(piece, "SpecialToken"),
                     *sequence = json_object_get(piece, "Sequence");
        const char *which = json_string_value(json_object_get(sequence, "id"));
        if (special) push_special(sequences ? &after : &before, f, special);
        else if (which && !strcmp(which, "A")) sequences++;
        else fields_fail(f, "single", "needs pieces SpecialToken and Sequence A");
    }
    if (sequences != 1) fields_fail(f, "single", "needs the sequence A once");
    for (size_t i = 0; i < t->prefix.n_ids; i++) token_list_push(&before, t->prefix.ids[i]);
    for (size_t i = 0; i < after.n_ids; i++) token_list_push(&t->suffix, after.ids[i]);
    token_list_free(&t->prefix);
    token_list_free(&after);
    t->prefix = before;
}

static void read_processor(struct tokenizer *t, const struct fields *file, const json_t *object, int depth,
                           enum status *status)
{
    struct fields f = {.object = object, .file = file->file, .path = "post_processor.", .why = file->why};
    const char *type = fields_string(&f, "type", "");
    if (!json_is_object(object)) fields_fail(&f, "type", "needs an object");
    if (f.status == STATUS_OK && !strcmp(type, "Sequence")) {
        const json_t *list = fields_get(&f, "processors");
        if (!json_is_array(list) || depth > 4) fields_fail(&f, "processors", "needs a flat array");
        for (size_t i = 0; f.status == STATUS_OK && i < json_array_size(list); i++)
            read_processor(t, file, json_array_get(list, i), depth + 1, &f.status);
    } else if (f.status == STATUS_OK && !strcmp(type, "TemplateProcessing")) {
        read_template(t, &f);
    } else if (f.status == STATUS_OK && strcmp(type, "ByteLevel") != 0) { /* ByteLevel only moves offsets */
        fields_fail(&f, "type", "is not covered; TemplateProcessing, ByteLevel and Sequence are");
    }
    *status = f.status;
}

enum status tokenizer_read_postprocessor(struct tokenizer *t, struct fields *file)
{
    const json_t *object = fields_get(file, "post_processor");
    if (object && file->status == STATUS_OK) read_processor(t, file, object, 0, &file->status);
    return file->status;
}

/* ------------------------------------------------------------------------------------------ parse */
static void refuse_unread(struct fields *f)
{
    const char *version = fields_string(f, "version", "1.0");
    if (f->status == STATUS_OK && strcmp(version, "1.0") != 0)
        fields_fail(f, "version", "only 1.0 is covered");
    static const char *const names[] = {"truncation", "padding"};
    for (int i = 0; i < 2; i++)
        if (fields_get(f, names[i]))
            fields_fail(f, names[i], "would change ids and is not covered; set it to null");
}

static void read_parts(struct tokenizer *t, struct fields *f)
{
    refuse_unread(f);
    if (normalizer_open(&t->normalizer, f) != STATUS_OK) return;
    if (pretokenizer_open(&t->pretokenizer, f) != STATUS_OK) return;
    for (int i = 0; i < t->pretokenizer.n_stages; i++)
        if (t->pretokenizer.stages[i].prefix == PREFIX_FIRST && normalizer_deletes(&t->normalizer))
            fields_fail(f, "pre_tokenizer",
                        "prepend_scheme \"first\" beside a normalizer that deletes is not covered");
    struct fields model = {
        .object = fields_get(f, "model"), .file = f->file, .path = "model.", .why = f->why};
    if (!json_is_object(model.object)) fields_fail(f, "model", "needs an object");
    if (f->status != STATUS_OK) return;
    f->status = bpe_open(&t->bpe, &model);
    if (f->status == STATUS_OK && t->pretokenizer.byte_level) f->status = bpe_set_byte_level(&t->bpe, f->why);
    if (f->status != STATUS_OK) return;
    if (addedtokens_open(&t->added, f, &t->bpe.vocab, &t->normalizer) != STATUS_OK) return;
    if (decoder_open(&t->decoder, f) != STATUS_OK) return;
    tokenizer_read_postprocessor(t, f);
}

static bool is_special_content(const struct tokenizer *t, const char *text)
{
    const struct addedtoken *token = addedtokens_find(&t->added, text);
    return token && token->special;
}

/* The table by id: the model's strings, over them the added tokens. */
static void fill_ids(struct tokenizer *t)
{
    t->n_ids = t->bpe.vocab.n_ids;
    for (int i = 0; i < t->added.n_tokens; i++)
        if (t->added.tokens[i].id >= t->n_ids) t->n_ids = t->added.tokens[i].id + 1;
    t->ids = buffer_zeroed((size_t)t->n_ids, sizeof *t->ids);
    size_t n;
    for (int id = 0; id < t->bpe.vocab.n_ids; id++) {
        t->ids[id].text = vocab_string(&t->bpe.vocab, id, &n);
        if (t->ids[id].text) t->ids[id].n_text = (uint32_t)n;
    }
    for (int i = 0; i < t->added.n_tokens; i++) {
        const struct addedtoken *token = &t->added.tokens[i];
        t->ids[token->id] = (struct tokenizer_id){
            .text = token->text, .n_text = (uint32_t)token->n_text, .special = token->special};
        t->ids[token->id].skipped = is_special_content(t, token->text);
    }
    for (int id = 0; id < t->n_ids; id++) {
        struct tokenizer_id *entry = &t->ids[id];
        if (!entry->text) continue;
        entry->raw = t->raw.n;
        decoder_token_bytes(&t->decoder, entry->text, entry->n_text, &t->raw);
        entry->n_raw = (uint32_t)(t->raw.n - entry->raw);
    }
}

static enum status open_json(struct tokenizer **out, const json_t *root, const char *file, struct reason *why)
{
    struct tokenizer *t = buffer_zeroed(1, sizeof *t);
    t->bos = t->eos = -1;
    struct fields f = {.object = root, .file = file, .path = "", .why = why};
    read_parts(t, &f);
    if (f.status == STATUS_OK) fill_ids(t);
    for (int side = 0; side < 2 && f.status == STATUS_OK; side++) {
        const struct token_list *list = side ? &t->suffix : &t->prefix;
        for (size_t i = 0; i < list->n_ids; i++)
            if (list->ids[i] >= t->n_ids || !t->ids[list->ids[i]].text)
                fields_fail(&f, "post_processor", "names id %d, which is no token", list->ids[i]);
    }
    if (f.status != STATUS_OK) {
        tokenizer_close(t);
        t = NULL;
    }
    *out = t;
    return f.status;
}

enum status tokenizer_parse(struct tokenizer **out, const char *json, size_t json_bytes, struct reason *why)
{
    *out = NULL;
    json_t *root;
    enum status status = fields_parse(&root, json, json_bytes, "tokenizer.json", why);
    if (status == STATUS_OK) status = open_json(out, root, "tokenizer.json", why);
    json_decref(root);
    return status;
}

/* ------------------------------------------------------------------------------------------ open */
/* DIR/generation_config.json; absent files give NULL and STATUS_OK. */
static enum status load_generation(json_t **root, const char *dir, struct reason *why)
{
    char *text;
    size_t n;
    *root = NULL;
    enum status status = tokenizer_config_read(&text, &n, dir, "generation_config.json", why);
    if (status == STATUS_OK && text) status = fields_parse(root, text, n, "generation_config.json", why);
    free(text);
    return status;
}

static int named_token(const struct tokenizer *t, const json_t *config, const char *name)
{
    const char *token = tokenizer_config_token(config, name);
    return token ? tokenizer_id(t, token) : -1;
}

/* "eos_token_id": 2 or [2, 3]: the first; -1 when absent or no token. */
static int numbered_token(const struct tokenizer *t, const json_t *config, const char *name)
{
    const json_t *value = json_object_get(config, name);
    if (json_is_array(value)) value = json_array_get(value, 0);
    json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
    return id >= 0 && id < t->n_ids && t->ids[id].text ? (int)id : -1;
}

static enum status read_ends(struct tokenizer *t, const char *dir, struct reason *why)
{
    json_t *config = NULL, *generation = NULL;
    enum status status = tokenizer_config_load(&config, dir, why);
    if (status == STATUS_OK) status = load_generation(&generation, dir, why);
    if (status == STATUS_OK) {
        t->bos = named_token(t, config, "bos_token");
        t->eos = named_token(t, config, "eos_token");
        if (t->bos < 0) t->bos = numbered_token(t, generation, "bos_token_id");
        if (t->eos < 0) t->eos = numbered_token(t, generation, "eos_token_id");
    }
    json_decref(config);
    json_decref(generation);
    return status;
}

enum status tokenizer_open(struct tokenizer **out, const char *dir, struct reason *why)
{
    *out = NULL;
    struct buffer path = {0};
    buffer_append_string(&path, dir);
    buffer_append_string(&path, "/tokenizer.json");
    char *file = buffer_take(&path);
    json_t *root = NULL;
    enum status status = fields_load(&root, file, FILE_BYTES_MAX, why);
    if (status == STATUS_OK) status = open_json(out, root, file, why);
    json_decref(root);
    free(file);
    if (status == STATUS_OK) status = read_ends(*out, dir, why);
    if (status != STATUS_OK) {
        tokenizer_close(*out);
        *out = NULL;
    }
    return status;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t) return;
    bpe_close(&t->bpe);
    addedtokens_close(&t->added);
    normalizer_close(&t->normalizer);
    pretokenizer_close(&t->pretokenizer);
    decoder_close(&t->decoder);
    token_list_free(&t->prefix);
    token_list_free(&t->suffix);
    buffer_free(&t->raw);
    free(t->ids);
    free(t);
}

/* ------------------------------------------------------------------------------------------ ids */
int tokenizer_vocab_size(const struct tokenizer *t) { return t->n_ids; }

int tokenizer_id(const struct tokenizer *t, const char *token)
{
    const struct addedtoken *added = addedtokens_find(&t->added, token);
    return added ? added->id : vocab_find(&t->bpe.vocab, token, strlen(token));
}

const char *tokenizer_bytes(const struct tokenizer *t, int32_t id, size_t *n_bytes)
{
    *n_bytes = 0;
    if (id < 0 || id >= t->n_ids || !t->ids[id].text || t->ids[id].special) return NULL;
    *n_bytes = t->ids[id].n_raw;
    return t->raw.bytes ? t->raw.bytes + t->ids[id].raw : "";
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->n_ids && t->ids[id].special;
}

int tokenizer_bos(const struct tokenizer *t) { return t->bos; }

int tokenizer_eos(const struct tokenizer *t) { return t->eos; }
