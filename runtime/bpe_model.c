/* bpe_model.c - reads the object "model" of tokenizer.json: vocabulary, merges and flags, everything checked.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/bpe.h"
#include "runtime/utf8.h"

#define MERGES_MAX (1u << 24)

static void read_flags(struct bpe *b, struct fields *model)
{
    const char *type = fields_string(model, "type", "BPE");
    if (model->status == STATUS_OK && strcmp(type, "BPE") != 0)
        fields_fail(model, "type", "only BPE is covered; take a model of a supported family");
    if (fields_number(model, "dropout", 0, 0, 1) != 0)
        fields_fail(model, "dropout", "is not covered; set it to null");
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++)
        if (*fields_string(model, affixes[i], ""))
            fields_fail(model, affixes[i], "is not covered; only null is");
    b->byte_fallback = fields_bool(model, "byte_fallback", false);
    b->fuse_unknown = fields_bool(model, "fuse_unk", false);
    b->ignore_merges = fields_bool(model, "ignore_merges", false);
}

static void read_vocab(struct bpe *b, struct fields *model)
{
    json_t *vocab = (json_t *)fields_get(model, "vocab");
    if (model->status != STATUS_OK) return;
    if (!json_is_object(vocab) || !json_object_size(vocab)) {
        fields_fail(model, "vocab", "needs an object of tokens and ids; fetch the file again");
        return;
    }
    /* Published vocabularies have few holes or none; a bound on them keeps the arrays by id in proportion. */
    json_int_t limit = (json_int_t)json_object_size(vocab) * 2 + 65536;
    const char *token;
    json_t *id;
    json_object_foreach(vocab, token, id)
    {
        size_t n = strlen(token);
        json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
        if (value < 0 || value >= limit || value >= VOCAB_IDS_MAX ||
            !vocab_add(&b->vocab, token, n, (int)value)) {
            char shown[48];
            fields_show(id, shown, sizeof shown);
            model->status =
                status_fail(model->why, STATUS_BAD_MODEL,
                            "%s: model.vocab: id %s of \"%.60s\" is taken, no integer, or not below %lld: "
                            "fetch the file again",
                            model->file, shown, token, (long long)limit);
            return;
        }
        if (n > b->longest_bytes) b->longest_bytes = n;
    }
}

static void fill_tables(struct bpe *b, struct fields *model)
{
    char text[8];
    for (int i = 0; i < 256; i++) {
        snprintf(text, sizeof text, "<0x%02X>", (unsigned)i);
        b->fallback_id[i] = vocab_find(&b->vocab, text, 6);
        b->byte_id[i] = vocab_find(&b->vocab, text, utf8_encode(bpe_byte_char((uint8_t)i), text));
        if (i < 128) b->ascii_id[i] = vocab_find(&b->vocab, (char[]){(char)i}, 1);
    }
    const char *unknown = fields_string(model, "unk_token", NULL);
    b->wants_unknown = unknown != NULL;
    b->unknown = unknown ? vocab_find(&b->vocab, unknown, strlen(unknown)) : -1;
}

/* "a b" or ["a", "b"]: the two strings, borrowed. */
static bool split_merge(const json_t *merge, const char **left, size_t *n_left, const char **right,
                        size_t *n_right)
{
    if (json_is_array(merge) && json_array_size(merge) == 2) {
        const json_t *a = json_array_get(merge, 0), *b = json_array_get(merge, 1);
        if (!json_is_string(a) || !json_is_string(b)) return false;
        *left = json_string_value(a), *n_left = json_string_length(a);
        *right = json_string_value(b), *n_right = json_string_length(b);
        return true;
    }
    if (!json_is_string(merge)) return false;
    const char *text = json_string_value(merge), *blank = strchr(text, ' ');
    if (!blank || strchr(blank + 1, ' ')) return false;
    *left = text, *n_left = (size_t)(blank - text);
    *right = blank + 1, *n_right = strlen(blank + 1);
    return true;
}

static size_t slot_of(const struct bpe *b, int32_t left, int32_t right)
{
    size_t at = bpe_pair_slot(b, left, right);
    while (b->merges[at].left >= 0 && (b->merges[at].left != left || b->merges[at].right != right))
        at = (at + 1) & (b->n_slots - 1);
    return at;
}

/* False where the merge is malformed or one of the three strings is no token. */
static bool add_merge(struct bpe *b, const json_t *merge, uint32_t rank, struct buffer *joined)
{
    const char *left, *right;
    size_t n_left, n_right;
    if (!split_merge(merge, &left, &n_left, &right, &n_right)) return false;
    joined->n = 0;
    buffer_append(joined, left, n_left);
    buffer_append(joined, right, n_right);
    int a = vocab_find(&b->vocab, left, n_left), c = vocab_find(&b->vocab, right, n_right);
    int merged = joined->n ? vocab_find(&b->vocab, joined->bytes, joined->n) : -1;
    if (a < 0 || c < 0 || merged < 0) return false;
    b->merges[slot_of(b, a, c)] =
        (struct bpe_merge){a, c, rank, merged}; /* a later rank replaces an earlier one */
    return true;
}

static void read_merges(struct bpe *b, struct fields *model)
{
    const json_t *merges = fields_get(model, "merges");
    if (model->status != STATUS_OK) return;
    if (!json_is_array(merges) || json_array_size(merges) > MERGES_MAX) {
        fields_fail(model, "merges", "needs an array of at most %u pairs; fetch the file again", MERGES_MAX);
        return;
    }
    size_t n = json_array_size(merges);
    for (b->n_slots = 16; b->n_slots < 2 * n; b->n_slots *= 2) continue;
    b->merges = buffer_realloc(NULL, b->n_slots, sizeof *b->merges);
    for (size_t i = 0; i < b->n_slots; i++) b->merges[i].left = -1;
    b->seed = vocab_seed();
    struct buffer joined = {0};
    for (size_t i = 0; i < n && model->status == STATUS_OK; i++) {
        const json_t *merge = json_array_get(merges, i);
        const char *text = json_string_value(merge);
        if (text && !strncmp(text, "#version", 8)) continue;
        if (!add_merge(b, merge, (uint32_t)i, &joined)) {
            char shown[72];
            fields_show(merge, shown, sizeof shown);
            model->status = status_fail(model->why, STATUS_BAD_MODEL,
                                        "%s: model.merges[%zu] is %s: needs two tokens of model.vocab whose "
                                        "concatenation is a token; fetch the file again",
                                        model->file, i, shown);
        }
    }
    buffer_free(&joined);
}

enum status bpe_open(struct bpe *b, struct fields *model)
{
    *b = (struct bpe){.unknown = -1};
    vocab_open(&b->vocab);
    read_flags(b, model);
    read_vocab(b, model);
    fill_tables(b, model);
    read_merges(b, model);
    return model->status;
}

void bpe_close(struct bpe *b)
{
    vocab_close(&b->vocab);
    free(b->merges);
    *b = (struct bpe){0};
}

enum status bpe_set_byte_level(struct bpe *b, struct reason *why)
{
    b->byte_level = true;
    for (int i = 0; i < 256; i++)
        if (b->byte_id[i] < 0 && b->byte_fallback)
            return status_fail(
                why, STATUS_BAD_MODEL,
                "tokenizer.json: model.byte_fallback beside ByteLevel needs all 256 byte characters as "
                "tokens; byte 0x%02x has none: set it to false",
                (unsigned)i);
    return STATUS_OK;
}
