/* arch.c - the table of model families and the reading of config.json; see arch.h.
 *
 * To add a family: one row below, and, if it computes something new, a flag in struct arch that the forward
 * pass reads. Absent fields take the values that the family's published configuration class has. What the
 * file says and we do not compute is refused by name (`refused` below, the rope types in rope.c); fields that
 * only matter to training or to one framework (pretraining_tp, attention_dropout, initializer_range,
 * use_cache, ...) are ignored. Limits: the *_MAX values below keep every product of two sizes inside an int64
 * and n_heads * head_dim inside an int; they are far above any published model. */
#include "runtime/arch.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "kernels/kernels.h"
#include "runtime/base/die.h"
#include "runtime/fields.h"
#include "runtime/rope.h"

#define HIDDEN_MAX (1 << 20)
#define FFN_MAX (1 << 24)
#define VOCAB_MAX (1 << 24)
#define HEADS_MAX (1 << 14)
#define CONTEXT_MAX (1 << 28)
#define CONFIG_BYTES_MAX ((size_t)16 << 20) /* published ones have a few KiB */

enum bias_rule { BIAS_NONE, BIAS_QKV, BIAS_ASK }; /* ASK: q, k, v and o when attention_bias is true */
enum window_rule {
    WINDOW_NONE,
    WINDOW_ALL,
    WINDOW_LATE
}; /* LATE: layers from max_window_layers on, or layer_types */

struct family {
    const char *name,
        *architecture; /* struct arch.family and config's model_type; config's architectures[0] */
    enum bias_rule bias;
    bool may_have_mlp_bias, qk_norm;
    enum window_rule window;
    /* What absent fields mean; n_kv_heads 0: as many as heads; head_dim 0: hidden / heads; bos, eos -1: none.
     */
    int hidden, ffn, n_layers, n_heads, n_kv_heads, head_dim, vocab, context, bos, eos;
};

static const struct family families[] = {
    {"llama", "LlamaForCausalLM", BIAS_ASK, true, false,
     WINDOW_NONE, /* Touvron et al. 2307.09288; 2407.21783 */
     4096, 11008, 32, 32, 0, 0, 32000, 2048, 1, 2},
    {"mistral", "MistralForCausalLM", BIAS_NONE, false, false, WINDOW_ALL, /* Jiang et al. 2310.06825 */
     4096, 14336, 32, 32, 8, 0, 32000, 131072, 1, 2},
    {"qwen2", "Qwen2ForCausalLM", BIAS_QKV, false, false, WINDOW_LATE, /* Yang et al. 2407.10671 */
     4096, 22016, 32, 32, 32, 0, 151936, 32768, -1, -1},
    {"qwen3", "Qwen3ForCausalLM", BIAS_ASK, false, true, WINDOW_LATE, /* Yang et al. 2505.09388 */
     4096, 22016, 32, 32, 32, 128, 151936, 32768, -1, -1},
};

#define N_FAMILIES ((int)(sizeof families / sizeof families[0]))

/* Fields that change the result in some published model and that the forward pass does not compute. They may
 * be absent, null, false, empty or the neutral number. */
static const struct {
    const char *name;
    double neutral;
    const char *hint;
} refused[] = {
    {"quantization_config", 0, "quantised weights are not read; use the bf16 or f16 folder of the model"},
    {"compression_config", 0, "compressed weights are not read; use the bf16 or f16 folder of the model"},
    {"partial_rotary_factor", 1, "only 1 is computed: every dimension turns"},
    {"rotary_pct", 1, "only 1 is computed: every dimension turns"},
    {"rope_interleave", 0, "only the half-split rotation is computed"},
    {"rope_interleaved", 0, "only the half-split rotation is computed"},
    {"use_mrope", 0, "positions of images are not computed"},
    {"use_qk_norm", 0, "this family has no norm of q and k here"},
    {"num_experts", 0, "mixtures of experts are not computed"},
    {"num_local_experts", 0, "mixtures of experts are not computed"},
    {"n_routed_experts", 0, "mixtures of experts are not computed"},
    {"no_rope_layers", 0, "layers without rotary positions are not computed"},
    {"attn_logit_softcapping", 0, "capped scores are not computed"},
    {"final_logit_softcapping", 0, "capped logits are not computed"},
    {"attention_multiplier", 0, "scores are scaled by 1/sqrt(head_dim) only"},
    {"embedding_multiplier", 1, "scaled embeddings are not computed"},
    {"residual_multiplier", 1, "scaled residuals are not computed"},
    {"logits_scaling", 1, "scaled logits are not computed"},
    {"attention_chunk_size", 0, "chunked attention is not computed"},
};

static void refuse_unknown(struct fields *f)
{
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        const json_t *value = fields_get(f, refused[i].name);
        bool neutral = !value || json_is_false(value) ||
                       (json_is_number(value) && json_number_value(value) == refused[i].neutral) ||
                       (json_is_array(value) && json_array_size(value) == 0) ||
                       (json_is_object(value) && json_object_size(value) == 0);
        if (!neutral) fields_fail(f, refused[i].name, "%s", refused[i].hint);
    }
    const char *act = fields_string(f, "hidden_act", "silu");
    if (strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
        fields_fail(f, "hidden_act",
                    "only silu is computed; use a model of the families llama, mistral, qwen2, qwen3");
}

/* By architectures[0], or by model_type where a folder has no architectures; both must agree where both
 * speak. */
static const struct family *find_family(struct fields *f)
{
    static const char known[] =
        "known are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM";
    const json_t *list = fields_get(f, "architectures");
    const char *type = fields_string(f, "model_type", NULL);
    const struct family *found = NULL;
    if (list) {
        const json_t *first =
            json_is_array(list) && json_array_size(list) == 1 ? json_array_get(list, 0) : NULL;
        const char *name = json_string_value(first);
        for (int i = 0; i < N_FAMILIES && name; i++)
            if (strcmp(name, families[i].architecture) == 0) found = &families[i];
        if (!found) fields_fail(f, "architectures", "%s", known);
        else if (type && strcmp(type, found->name) != 0)
            fields_fail(f, "model_type", "contradicts architectures (%s)", found->architecture);
        return found;
    }
    for (int i = 0; i < N_FAMILIES && type; i++)
        if (strcmp(type, families[i].name) == 0) found = &families[i];
    if (!found) fields_fail(f, type ? "model_type" : "architectures", "%s", known);
    return found;
}

static void read_sizes(struct arch *a, const struct family *family, struct fields *f)
{
    a->n_layers = fields_int(f, "num_hidden_layers", family->n_layers, 1, ARCH_LAYERS_MAX);
    a->hidden = fields_int(f, "hidden_size", family->hidden, 1, HIDDEN_MAX);
    a->ffn = fields_int(f, "intermediate_size", family->ffn, 1, FFN_MAX);
    a->vocab = fields_int(f, "vocab_size", family->vocab, 1, VOCAB_MAX);
    a->context = fields_int(f, "max_position_embeddings", family->context, 1, CONTEXT_MAX);
    a->norm_eps = fields_number(f, "rms_norm_eps", 1e-6, 1e-12, 1);
    a->n_heads = fields_int(f, "num_attention_heads", family->n_heads, 1, HEADS_MAX);
    /* Absent means the family's own number, null means one kv head for every query head. */
    bool absent = !json_object_get(f->object, "num_key_value_heads");
    int fallback = absent && family->n_kv_heads ? family->n_kv_heads : a->n_heads;
    a->n_kv_heads = fields_int(f, "num_key_value_heads", fallback, 1, HEADS_MAX);
    if (a->n_heads % a->n_kv_heads != 0)
        fields_fail(f, "num_key_value_heads",
                    "does not divide num_attention_heads (%d); with none given it is %d", a->n_heads,
                    fallback);
    a->head_dim = fields_int(f, "head_dim", family->head_dim, 1, HIDDEN_MAX);
    if (a->head_dim == 0) {
        if (a->hidden % a->n_heads != 0)
            fields_fail(f, "hidden_size",
                        "is no multiple of num_attention_heads (%d) and head_dim is not given", a->n_heads);
        a->head_dim = a->hidden / a->n_heads;
    }
    if (a->head_dim % 2 != 0 || a->head_dim < 2 || a->head_dim > HEAD_DIM_MAX)
        fields_fail(f, "head_dim", "is %d here; attention is computed for an even number from 2 to %d",
                    a->head_dim, HEAD_DIM_MAX);
    if ((int64_t)a->n_heads * a->head_dim > HIDDEN_MAX)
        fields_fail(f, "num_attention_heads", "times head_dim (%d) exceeds %d", a->head_dim, HIDDEN_MAX);
    if (f->status != STATUS_OK) return;
    int group = a->n_heads / a->n_kv_heads, most = GROUP_ELEMENTS_MAX / a->head_dim;
    if (most > GROUP_MAX) most = GROUP_MAX;
    if (group > most)
        fields_fail(f, "num_attention_heads",
                    "are %d for each kv head; attention is computed for at most %d of head_dim %d", group,
                    most, a->head_dim);
}

static void read_biases(struct arch *a, const struct family *family, struct fields *f)
{
    bool attention = fields_bool(f, "attention_bias", false), mlp = fields_bool(f, "mlp_bias", false);
    /* Qwen2 always has biases of q, k and v and never one of o; its configuration has no such field. */
    if (attention && family->bias != BIAS_ASK)
        fields_fail(f, "attention_bias", "the family %s has no such choice; set it to false if that is meant",
                    family->name);
    if (mlp && !family->may_have_mlp_bias) fields_fail(f, "mlp_bias", "the family %s has none", family->name);
    a->qkv_bias = family->bias == BIAS_QKV || attention;
    a->o_bias = attention;
    a->mlp_bias = mlp;
}

/* Which layers slide: layer_types where the file has it, else the family's rule. */
static void read_window(struct arch *a, const struct family *family, struct fields *f)
{
    bool window_null = json_is_null(json_object_get(f->object, "sliding_window"));
    bool used = family->window == WINDOW_ALL ||
                (family->window == WINDOW_LATE && fields_bool(f, "use_sliding_window", false));
    if (used && !window_null) a->sliding_window = fields_int(f, "sliding_window", 4096, 1, CONTEXT_MAX);
    int first = 0;
    if (family->window == WINDOW_LATE) first = fields_int(f, "max_window_layers", 28, 0, CONTEXT_MAX);
    for (int layer = 0; layer < a->n_layers; layer++) a->slides[layer] = a->sliding_window && layer >= first;
    const json_t *types = fields_get(f, "layer_types");
    if (!types) return;
    if (!json_is_array(types) || json_array_size(types) != (size_t)a->n_layers) {
        fields_fail(f, "layer_types", "needs a list with one name for each of the %d layers", a->n_layers);
        return;
    }
    for (int layer = 0; layer < a->n_layers; layer++) {
        const char *type = json_string_value(json_array_get(types, (size_t)layer));
        bool slides = type && strcmp(type, "sliding_attention") == 0;
        if (!slides && !(type && strcmp(type, "full_attention") == 0))
            fields_fail(f, "layer_types", "layer %d: only full_attention and sliding_attention are computed",
                        layer);
        if (slides && !a->sliding_window)
            fields_fail(f, "layer_types",
                        "layer %d slides but there is no window; see sliding_window and "
                        "use_sliding_window",
                        layer);
        /* A Mistral window belongs to all layers; interleaved ones go by another architecture name. */
        if (family->window == WINDOW_ALL && slides != a->slides[layer])
            fields_fail(f, "layer_types", "layer %d: all layers of a %s slide or none", layer, family->name);
        a->slides[layer] = slides;
    }
}

/* bos_token_id and eos_token_id (an id, a list, or null) of config.json or generation_config.json. */
static void read_special_ids(struct arch *a, struct fields *f)
{
    if (json_object_get(f->object, "bos_token_id"))
        a->bos = fields_int(f, "bos_token_id", -1, 0, a->vocab - 1);
    const json_t *eos = json_object_get(f->object, "eos_token_id");
    if (!eos) return;
    size_t n = json_is_array(eos) ? json_array_size(eos) : json_is_null(eos) ? 0 : 1;
    if (n > ARCH_EOS_MAX) {
        fields_fail(f, "eos_token_id", "has %zu ids, at most %d are kept; shorten the list", n, ARCH_EOS_MAX);
        return;
    }
    a->n_eos = 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(eos) ? json_array_get(eos, i) : eos;
        json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value >= a->vocab) {
            fields_fail(f, "eos_token_id", "needs ids from 0 to vocab_size - 1 (%d)", a->vocab - 1);
            return;
        }
        a->eos[a->n_eos++] = (int)value;
    }
}

static void read_dtype(struct arch *a, struct fields *f)
{
    static const char *const names[DTYPE_COUNT] = {"float32", "float16", "bfloat16"};
    const char *field = fields_get(f, "dtype") ? "dtype" : "torch_dtype",
               *text = fields_string(f, field, "float32");
    const char *name = strncmp(text, "torch.", 6) == 0 ? text + 6 : text;
    for (int t = 0; t < DTYPE_COUNT; t++)
        if (strcmp(name, names[t]) == 0) {
            a->dtype = (enum dtype)t;
            return;
        }
    fields_fail(f, field, "only float32, float16 and bfloat16 are read");
}

static enum status parse_root(struct arch *a, const json_t *root, const char *name, struct reason *why)
{
    struct fields f = {.object = root, .file = name, .path = "", .why = why};
    const struct family *family = find_family(&f);
    if (f.status != STATUS_OK) return f.status;
    *a = (struct arch){.family = family->name, .qk_norm = family->qk_norm};
    refuse_unknown(&f);
    read_sizes(a, family, &f);
    read_biases(a, family, &f);
    a->tied_head = fields_bool(&f, "tie_word_embeddings", false);
    if (f.status == STATUS_OK) read_window(a, family, &f);
    if (f.status == STATUS_OK) rope_read(a, &f);
    double reach = a->rope.factor * a->rope.original_context;
    /* The published way to switch yarn on leaves max_position_embeddings at the old length. */
    if (a->rope.type == ROPE_YARN && reach > a->context)
        a->context = reach < CONTEXT_MAX ? (int)reach : CONTEXT_MAX;
    a->bos = family->bos < a->vocab ? family->bos : -1;
    if (family->eos >= 0 && family->eos < a->vocab) a->eos[a->n_eos++] = family->eos;
    if (f.status == STATUS_OK) read_special_ids(a, &f);
    read_dtype(a, &f);
    return f.status;
}

enum status arch_parse(struct arch *a, const char *json, size_t json_bytes, const char *name,
                       struct reason *why)
{
    json_t *root;
    enum status status = fields_parse(&root, json, json_bytes, name, why);
    if (status != STATUS_OK) return status;
    status = parse_root(a, root, name, why);
    json_decref(root);
    return status;
}

enum status arch_load(struct arch *a, const char *dir, struct reason *why)
{
    char file[4096];
    json_t *root;
    if ((size_t)snprintf(file, sizeof file, "%s/config.json", dir) >= sizeof file)
        return status_fail(why, STATUS_BAD_MODEL, "%.200s...: the folder's name is too long", dir);
    enum status status = fields_load(&root, file, CONFIG_BYTES_MAX, why);
    if (status != STATUS_OK) return status;
    status = parse_root(a, root, file, why);
    json_decref(root);
    if (status != STATUS_OK) return status;

    struct stat st;
    if ((size_t)snprintf(file, sizeof file, "%s/generation_config.json", dir) >= sizeof file)
        return status_fail(why, STATUS_BAD_MODEL, "%.200s...: the folder's name is too long", dir);
    if (stat(file, &st) != 0) return STATUS_OK; /* older folders have none */
    status = fields_load(&root, file, CONFIG_BYTES_MAX, why);
    if (status != STATUS_OK) return status;
    struct fields f = {.object = root, .file = file, .path = "", .why = why};
    read_special_ids(a, &f);
    json_decref(root);
    return f.status;
}

void arch_rope_frequencies(const struct arch *a, float *inv_freq, float *attention_factor)
{
    rope_frequencies(&a->rope, a->rope_theta, a->head_dim, inv_freq, attention_factor);
}
