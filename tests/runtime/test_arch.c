/* test_arch.c - config.json of published models, family defaults, refusals by name, hostile text.
 *
 * tests/runtime/configs holds the fields and values of published models, typed by hand and not copied byte
 * for byte; the *-style and *-yarn files are variants. Runs in the source folder. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "runtime/arch.h"

#define FOLDER "tests/runtime/configs"

/* ------------------------------------------------------------------------------------------ helpers */

static char *read_text(const char *path, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s: run the test in the source folder", path);
    char *text = NULL;
    size_t room = 0;
    ssize_t n = getdelim(&text, &room, EOF, f);
    fclose(f);
    assert_true(n > 0);
    *bytes = (size_t)n;
    return text;
}

static enum status parse_text(struct arch *a, const char *json, struct reason *why)
{
    memset(a, 0xa5, sizeof *a); /* every field must be set by the parser */
    why->text[0] = '\0';
    return arch_parse(a, json, strlen(json), "config.json", why);
}

/* A small valid config with `changes` (a JSON object; a value "-" takes the field away) applied. */
static enum status parse_changed(struct arch *a, const char *changes, struct reason *why)
{
    static const char base[] =
        "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 64,"
        "\"intermediate_size\": 96, \"num_hidden_layers\": 3, \"num_attention_heads\": 8,"
        "\"num_key_value_heads\": 2, \"vocab_size\": 100}";
    json_error_t error;
    json_t *root = json_loads(base, 0, NULL), *patch = json_loads(changes, 0, &error), *value;
    if (!patch) fail_msg("%s: %s", changes, error.text);
    const char *name;
    json_object_foreach(patch, name, value)
    {
        const char *text = json_string_value(value);
        if (text && strcmp(text, "-") == 0) json_object_del(root, name);
        else json_object_set(root, name, value);
    }
    char *text = json_dumps(root, JSON_COMPACT);
    enum status status = parse_text(a, text, why);
    free(text);
    json_decref(patch);
    json_decref(root);
    return status;
}

static void must_parse(struct arch *a, const char *changes)
{
    struct reason why;
    if (parse_changed(a, changes, &why) != STATUS_OK) fail_msg("%s: %s", changes, why.text);
}

static void assert_one_line(const char *text)
{
    assert_true(text[0] != '\0' && strlen(text) < 511);
    assert_null(strpbrk(text, "\n\r\t"));
}

/* ------------------------------------------------------------------------------------------ published models
 */

static const struct {
    const char *file, *family;
    int n_layers, n_heads, n_kv_heads, head_dim, hidden, ffn, vocab, context;
    double theta, eps;
    enum rope_type rope;
    bool tied, qkv_bias, qk_norm;
    int window, n_sliding, n_eos, eos0;
    enum dtype dtype;
} published[] = {
    {"llama-2-7b", "llama",      32,    32,    32,    128, 4096, 11008, 32000, 4096,     1e4,
     1e-5,         ROPE_DEFAULT, false, false, false, 0,   0,    1,     2,     DTYPE_F16},
    {"llama-3-8b", "llama",      32,    32,    8,     128, 4096, 14336, 128256, 8192,      5e5,
     1e-5,         ROPE_DEFAULT, false, false, false, 0,   0,    1,     128001, DTYPE_BF16},
    {"llama-3.1-70b-instruct",
     "llama",
     80,
     64,
     8,
     128,
     8192,
     28672,
     128256,
     131072,
     5e5,
     1e-5,
     ROPE_LLAMA3,
     false,
     false,
     false,
     0,
     0,
     3,
     128001,
     DTYPE_BF16},
    {"llama-3.2-1b", "llama",     16,   32,    8,     64, 2048, 8192, 128256, 131072,    5e5,
     1e-5,           ROPE_LLAMA3, true, false, false, 0,  0,    1,    128001, DTYPE_BF16},
    {"mistral-7b-v0.1", "mistral", 32,    32,    8,    128, 4096, 14336, 32000,     32768, 1e4, 1e-5,
     ROPE_DEFAULT,      false,     false, false, 4096, 32,  1,    2,     DTYPE_BF16},
    {"mistral-7b-v0.3", "mistral", 32,    32,    8, 128, 4096, 14336, 32768,     32768, 1e6, 1e-5,
     ROPE_DEFAULT,      false,     false, false, 0, 0,   1,    2,     DTYPE_BF16},
    {"mistral-nemo", "mistral",    40,    32,    8,     128, 5120, 14336, 131072, 128000,    1e6,
     1e-5,           ROPE_DEFAULT, false, false, false, 0,   0,    1,     2,      DTYPE_BF16},
    {"qwen2-0.5b", "qwen2",      24,   14,   2,     64, 896, 4864, 151936, 131072,    1e6,
     1e-6,         ROPE_DEFAULT, true, true, false, 0,  0,   1,    151643, DTYPE_BF16},
    {"qwen2.5-7b-instruct", "qwen2", 28,   28,    4, 128, 3584, 18944,  152064,    32768, 1e6, 1e-6,
     ROPE_DEFAULT,          false,   true, false, 0, 0,   1,    151645, DTYPE_BF16},
    {"qwen2.5-7b-yarn", "qwen2", 28,   28,    4, 128, 3584, 18944,  152064,    131072, 1e6, 1e-6,
     ROPE_YARN,         false,   true, false, 0, 0,   1,    151645, DTYPE_BF16},
    {"qwen3-0.6b", "qwen3",      28,   16,    8,    128, 1024, 3072, 151936, 40960,     1e6,
     1e-6,         ROPE_DEFAULT, true, false, true, 0,   0,    1,    151645, DTYPE_BF16},
    {"qwen3-new-style", "qwen3", 4,     64,   8, 128, 5120, 25600,  151936,    40960, 1e6, 1e-6,
     ROPE_DEFAULT,      false,   false, true, 0, 0,   1,    151645, DTYPE_BF16},
    {"r1-distill-llama-8b", "llama", 32,    32,    8, 128, 4096, 14336,  128256,    131072, 5e5, 1e-5,
     ROPE_LLAMA3,           false,   false, false, 0, 0,   1,    128001, DTYPE_BF16},
    {"r1-distill-qwen-1.5b", "qwen2", 28,   12,    2, 128, 1536, 8960,   151936,    131072, 1e4, 1e-6,
     ROPE_DEFAULT,           false,   true, false, 0, 0,   1,    151643, DTYPE_BF16},
    {"smollm2-135m-instruct",
     "llama",
     30,
     9,
     3,
     64,
     576,
     1536,
     49152,
     8192,
     1e5,
     1e-5,
     ROPE_DEFAULT,
     true,
     false,
     false,
     0,
     0,
     1,
     2,
     DTYPE_BF16},
    {"llama-linear-old-style",
     "llama",
     32,
     32,
     32,
     128,
     4096,
     11008,
     32000,
     16384,
     1e4,
     1e-5,
     ROPE_LINEAR,
     false,
     false,
     false,
     0,
     0,
     1,
     2,
     DTYPE_F16},
};

static int count_sliding(const struct arch *a)
{
    int n = 0;
    for (int i = 0; i < a->n_layers; i++) n += a->slides[i];
    return n;
}

static void test_published(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof published / sizeof published[0]; i++) {
        char path[256];
        size_t bytes;
        struct arch a;
        struct reason why;
        snprintf(path, sizeof path, "%s/%s.json", FOLDER, published[i].file);
        char *text = read_text(path, &bytes);
        memset(&a, 0xa5, sizeof a);
        if (arch_parse(&a, text, bytes, path, &why) != STATUS_OK) fail_msg("%s", why.text);
        assert_string_equal(a.family, published[i].family);
        assert_int_equal(a.n_layers, published[i].n_layers);
        assert_int_equal(a.n_heads, published[i].n_heads);
        assert_int_equal(a.n_kv_heads, published[i].n_kv_heads);
        assert_int_equal(a.head_dim, published[i].head_dim);
        assert_int_equal(a.hidden, published[i].hidden);
        assert_int_equal(a.ffn, published[i].ffn);
        assert_int_equal(a.vocab, published[i].vocab);
        assert_int_equal(a.context, published[i].context);
        assert_true(a.rope_theta == published[i].theta && a.norm_eps == published[i].eps);
        assert_int_equal(a.rope.type, published[i].rope);
        assert_int_equal(a.tied_head, published[i].tied);
        assert_int_equal(a.qkv_bias, published[i].qkv_bias);
        assert_false(a.o_bias || a.mlp_bias);
        assert_int_equal(a.qk_norm, published[i].qk_norm);
        assert_int_equal(a.sliding_window, published[i].window);
        assert_int_equal(count_sliding(&a), published[i].n_sliding);
        assert_int_equal(a.n_eos, published[i].n_eos);
        assert_int_equal(a.eos[0], published[i].eos0);
        assert_int_equal(a.dtype, published[i].dtype);
        free(text);
    }
}

/* ------------------------------------------------------------------------------------------ families */

static void test_absent_fields(void **state)
{
    (void)state;
    struct arch a;
    struct reason why;
    /* The configuration classes' own defaults. */
    assert_int_equal(parse_text(&a, "{\"architectures\": [\"LlamaForCausalLM\"]}", &why), STATUS_OK);
    assert_int_equal(a.ffn, 11008);
    assert_int_equal(a.n_kv_heads, 32);
    assert_int_equal(a.context, 2048);
    assert_true(a.norm_eps == 1e-6 && a.rope_theta == 1e4 && !a.tied_head && a.rope.type == ROPE_DEFAULT);
    assert_true(a.bos == 1 && a.n_eos == 1 && a.eos[0] == 2 && a.dtype == DTYPE_F32);
    assert_int_equal(parse_text(&a, "{\"model_type\": \"mistral\"}", &why), STATUS_OK);
    assert_int_equal(a.n_kv_heads, 8);
    assert_int_equal(a.context, 131072);
    assert_int_equal(a.sliding_window, 4096); /* absent is not null */
    assert_int_equal(count_sliding(&a), 32);
    assert_int_equal(parse_text(&a, "{\"model_type\": \"mistral\", \"num_key_value_heads\": null}", &why),
                     STATUS_OK);
    assert_int_equal(a.n_kv_heads, 32);
    assert_int_equal(parse_text(&a, "{\"architectures\": [\"Qwen2ForCausalLM\"]}", &why), STATUS_OK);
    assert_int_equal(a.vocab, 151936);
    assert_true(a.bos == -1 && a.n_eos == 0 && a.qkv_bias && !a.o_bias && a.sliding_window == 0);
    assert_int_equal(parse_text(&a,
                                "{\"architectures\": [\"Qwen3ForCausalLM\"], \"hidden_size\": 1024,"
                                "\"num_attention_heads\": 16, \"num_key_value_heads\": 8}",
                                &why),
                     STATUS_OK);
    assert_int_equal(a.head_dim, 128); /* Qwen3's own, not hidden / heads */
    must_parse(&a, "{\"num_key_value_heads\": \"-\"}");
    assert_int_equal(a.n_kv_heads, 8);
    must_parse(&a, "{\"head_dim\": null, \"vocab_size\": 2}");
    assert_int_equal(a.head_dim, 8);
    assert_true(a.bos == 1 && a.n_eos == 0); /* the family's id 2 lies outside a vocabulary of 2 */
}

static void test_biases(void **state)
{
    (void)state;
    struct arch a;
    must_parse(&a, "{\"attention_bias\": true}");
    assert_true(a.qkv_bias && a.o_bias && !a.mlp_bias);
    must_parse(&a, "{\"mlp_bias\": true}");
    assert_true(!a.qkv_bias && !a.o_bias && a.mlp_bias);
    must_parse(&a, "{\"architectures\": [\"Qwen3ForCausalLM\"], \"attention_bias\": true}");
    assert_true(a.qkv_bias && a.o_bias && a.qk_norm);
    must_parse(&a, "{\"architectures\": [\"Qwen2ForCausalLM\"], \"attention_bias\": false}");
    assert_true(a.qkv_bias && !a.o_bias);
}

static void test_windows(void **state)
{
    (void)state;
    struct arch a;
    must_parse(
        &a,
        "{\"architectures\": [\"Qwen2ForCausalLM\"], \"use_sliding_window\": true, \"sliding_window\": 16,"
        "\"max_window_layers\": 2}");
    assert_int_equal(a.sliding_window, 16);
    assert_true(!a.slides[0] && !a.slides[1] && a.slides[2]);
    must_parse(
        &a,
        "{\"architectures\": [\"Qwen2ForCausalLM\"], \"use_sliding_window\": true, \"sliding_window\": 16,"
        "\"max_window_layers\": 0}");
    assert_int_equal(count_sliding(&a), 3);
    must_parse(&a, "{\"architectures\": [\"Qwen3ForCausalLM\"], \"use_sliding_window\": true}");
    assert_int_equal(count_sliding(&a), 0); /* max_window_layers is 28 by default, three layers here */
    must_parse(
        &a, "{\"architectures\": [\"Qwen3ForCausalLM\"], \"use_sliding_window\": true, \"sliding_window\": 7,"
            "\"layer_types\": [\"sliding_attention\", \"full_attention\", \"sliding_attention\"]}");
    assert_true(a.slides[0] && !a.slides[1] && a.slides[2]);
    must_parse(
        &a,
        "{\"architectures\": [\"Qwen2ForCausalLM\"], \"use_sliding_window\": false, \"sliding_window\": 7,"
        "\"layer_types\": [\"full_attention\", \"full_attention\", \"full_attention\"]}");
    assert_int_equal(a.sliding_window, 0);
    must_parse(&a,
               "{\"sliding_window\": 7}"); /* Llama's published code has no window, whatever the file says */
    assert_int_equal(a.sliding_window, 0);
    must_parse(&a, "{\"architectures\": [\"MistralForCausalLM\"], \"sliding_window\": 7,"
                   "\"layer_types\": [\"sliding_attention\", \"sliding_attention\", \"sliding_attention\"]}");
    assert_int_equal(count_sliding(&a), 3);
}

static void test_special_ids(void **state)
{
    (void)state;
    struct arch a;
    must_parse(&a, "{\"eos_token_id\": 99, \"bos_token_id\": 0}");
    assert_true(a.n_eos == 1 && a.eos[0] == 99 && a.bos == 0);
    must_parse(&a, "{\"eos_token_id\": [5, 6, 7]}");
    assert_true(a.n_eos == 3 && a.eos[0] == 5 && a.eos[2] == 7);
    must_parse(&a, "{\"eos_token_id\": null, \"bos_token_id\": null}");
    assert_true(a.n_eos == 0 && a.bos == -1);
    must_parse(&a, "{\"eos_token_id\": []}");
    assert_int_equal(a.n_eos, 0);
    must_parse(&a, "{\"dtype\": \"float16\", \"torch_dtype\": \"float32\"}");
    assert_int_equal(a.dtype, DTYPE_F16);
    must_parse(&a, "{\"torch_dtype\": \"torch.bfloat16\"}");
    assert_int_equal(a.dtype, DTYPE_BF16);
    must_parse(&a, "{\"pretraining_tp\": 8, \"hidden_act\": \"swish\", \"quantization_config\": null,"
                   "\"num_local_experts\": 0, \"rope_scaling\": {}, \"partial_rotary_factor\": 1.0}");
}

/* ------------------------------------------------------------------------------------------ refusals */

/* Each pair: what is changed, and what the line must name. */
static const char *const refusals[][2] = {
    {"{\"architectures\": [\"MixtralForCausalLM\"]}", "MixtralForCausalLM"},
    {"{\"architectures\": \"LlamaForCausalLM\"}", "architectures"},
    {"{\"architectures\": []}", "architectures"},
    {"{\"architectures\": [\"LlamaForCausalLM\", \"X\"]}", "architectures"},
    {"{\"architectures\": \"-\"}", "architectures is missing"},
    {"{\"architectures\": \"-\", \"model_type\": \"gpt2\"}", "model_type is \"gpt2\""},
    {"{\"model_type\": \"mistral\"}", "model_type"},
    {"{\"model_type\": 7}", "model_type"},
    {"{\"hidden_act\": \"gelu\"}", "hidden_act is \"gelu\""},
    {"{\"hidden_act\": 1}", "hidden_act"},
    {"{\"quantization_config\": {\"quant_method\": \"awq\"}}", "quantization_config"},
    {"{\"num_local_experts\": 8}", "num_local_experts"},
    {"{\"n_routed_experts\": 8.5}", "n_routed_experts"},
    {"{\"partial_rotary_factor\": 0.5}", "partial_rotary_factor"},
    {"{\"partial_rotary_factor\": 0}", "partial_rotary_factor"},
    {"{\"rope_interleaved\": true}", "rope_interleaved"},
    {"{\"use_mrope\": true}", "use_mrope"},
    {"{\"final_logit_softcapping\": 30.0}", "final_logit_softcapping"},
    {"{\"architectures\": [\"MistralForCausalLM\"], \"attention_bias\": true}", "attention_bias"},
    {"{\"architectures\": [\"Qwen2ForCausalLM\"], \"attention_bias\": true}", "attention_bias"},
    {"{\"architectures\": [\"Qwen3ForCausalLM\"], \"mlp_bias\": true}", "mlp_bias"},
    {"{\"attention_bias\": 1}", "attention_bias"},
    {"{\"tie_word_embeddings\": \"yes\"}", "tie_word_embeddings"},
    {"{\"torch_dtype\": \"float8_e4m3fn\"}", "torch_dtype is \"float8_e4m3fn\""},
    {"{\"dtype\": \"int8\"}", "dtype"},
    /* sizes */
    {"{\"hidden_size\": 64.0}", "hidden_size is 64.0"},
    {"{\"hidden_size\": \"64\"}", "hidden_size"},
    {"{\"hidden_size\": 0}", "hidden_size"},
    {"{\"hidden_size\": -64}", "hidden_size"},
    {"{\"hidden_size\": 9223372036854775807}", "hidden_size"},
    {"{\"hidden_size\": true}", "hidden_size"},
    {"{\"hidden_size\": 66}", "hidden_size is 66: is no multiple"},
    {"{\"hidden_size\": 72}", "head_dim"}, /* 9 wide: odd */
    {"{\"head_dim\": 7}", "head_dim is 7"},
    {"{\"head_dim\": 0}", "head_dim"},
    {"{\"head_dim\": -8}", "head_dim"},
    {"{\"head_dim\": 4294967304}", "head_dim"},
    {"{\"intermediate_size\": 0}", "intermediate_size"},
    {"{\"intermediate_size\": 4294967296}", "intermediate_size"},
    {"{\"num_hidden_layers\": 513}", "num_hidden_layers"},
    {"{\"num_hidden_layers\": 0}", "num_hidden_layers"},
    {"{\"num_attention_heads\": 0}", "num_attention_heads"},
    {"{\"head_dim\": 258}", "head_dim is 258"},
    {"{\"hidden_size\": 5000, \"num_attention_heads\": 10}", "head_dim is missing: is 500 here"},
    {"{\"num_attention_heads\": 16384, \"num_key_value_heads\": 16384, \"head_dim\": 256}",
     "num_attention_heads is 16384: times head_dim"},
    {"{\"num_attention_heads\": 65, \"num_key_value_heads\": 1, \"head_dim\": 8}",
     "are 65 for each kv head; attention is computed for at most 64 of head_dim 8"},
    {"{\"num_attention_heads\": 49, \"num_key_value_heads\": 1, \"head_dim\": 256}",
     "at most 48 of head_dim 256"},
    {"{\"num_key_value_heads\": 3}", "num_key_value_heads is 3"},
    {"{\"num_key_value_heads\": 16}", "num_key_value_heads"},
    {"{\"num_key_value_heads\": 0}", "num_key_value_heads"},
    {"{\"vocab_size\": 0}", "vocab_size"},
    {"{\"vocab_size\": 99999999999}", "vocab_size"},
    {"{\"max_position_embeddings\": -1}", "max_position_embeddings"},
    {"{\"rms_norm_eps\": 0}", "rms_norm_eps"},
    {"{\"rms_norm_eps\": -1e-5}", "rms_norm_eps"},
    {"{\"rms_norm_eps\": \"1e-5\"}", "rms_norm_eps"},
    /* special ids */
    {"{\"eos_token_id\": 100}", "eos_token_id"},
    {"{\"eos_token_id\": -1}", "eos_token_id"},
    {"{\"eos_token_id\": 2.0}", "eos_token_id"},
    {"{\"eos_token_id\": [1, null]}", "eos_token_id"},
    {"{\"eos_token_id\": [1, 2, 3, 4, 5, 6, 7, 8, 9]}", "eos_token_id"},
    {"{\"bos_token_id\": 100}", "bos_token_id"},
    {"{\"bos_token_id\": [1]}", "bos_token_id"},
    /* windows */
    {"{\"architectures\": [\"MistralForCausalLM\"], \"sliding_window\": 0}", "sliding_window"},
    {"{\"architectures\": [\"MistralForCausalLM\"], \"sliding_window\": 4096.5}", "sliding_window"},
    {"{\"architectures\": [\"MistralForCausalLM\"], \"layer_types\": [\"full_attention\", "
     "\"sliding_attention\","
     "\"full_attention\"]}",
     "layer_types"},
    {"{\"architectures\": [\"Qwen2ForCausalLM\"], \"use_sliding_window\": 1}", "use_sliding_window"},
    {"{\"architectures\": [\"Qwen2ForCausalLM\"], \"max_window_layers\": -1}", "max_window_layers"},
    {"{\"architectures\": [\"Qwen2ForCausalLM\"], \"layer_types\": [\"full_attention\"]}", "layer_types"},
    {"{\"architectures\": [\"Qwen2ForCausalLM\"], \"layer_types\": [\"full_attention\", 3, "
     "\"full_attention\"]}",
     "layer_types"},
    {"{\"architectures\": [\"Qwen2ForCausalLM\"], \"layer_types\": [\"full_attention\", "
     "\"sliding_attention\","
     "\"full_attention\"]}",
     "layer_types"},
    {"{\"layer_types\": [\"full_attention\", \"linear_attention\", \"full_attention\"]}", "layer_types"},
    /* rope */
    {"{\"rope_theta\": 0}", "rope_theta"},
    {"{\"rope_theta\": -10000}", "rope_theta"},
    {"{\"rope_theta\": 1e300}", "rope_theta"},
    {"{\"rope_theta\": \"big\"}", "rope_theta"},
    {"{\"rope_scaling\": \"linear\"}", "rope_scaling"},
    {"{\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2.0}}", "rope_scaling.type is \"dynamic\""},
    {"{\"rope_scaling\": {\"rope_type\": \"longrope\"}}", "rope_scaling.rope_type is \"longrope\""},
    {"{\"rope_scaling\": {\"type\": \"mrope\", \"mrope_section\": [1, 2]}}", "mrope"},
    {"{\"rope_scaling\": {\"type\": \"linear\", \"rope_type\": \"yarn\", \"factor\": 2}}", "contradicts"},
    {"{\"rope_scaling\": {\"type\": \"linear\"}}", "rope_scaling.factor is missing"},
    {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0}}", "rope_scaling.factor"},
    {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": -2.0}}", "rope_scaling.factor"},
    {"{\"rope_scaling\": {\"type\": 5}}", "rope_scaling.type"},
    {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}, \"rope_parameters\": {\"rope_type\": "
     "\"default\"}}",
     "contradicts"},
    {"{\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 0.5}}",
     "rope_parameters.rope_theta"},
    {"{\"rope_parameters\": {\"full_attention\": {\"rope_type\": \"default\"}}}", "rope_parameters"},
    {"{\"rope_parameters\": {\"rope_type\": \"default\", \"partial_rotary_factor\": 0.25}}",
     "partial_rotary_factor"},
    {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1}}",
     "high_freq_factor"},
    {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, "
     "\"high_freq_factor\": 4}}",
     "high_freq_factor"},
    {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, "
     "\"high_freq_factor\": 4,"
     "\"original_max_position_embeddings\": 0}}",
     "original_max_position_embeddings"},
    {"{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4, \"original_max_position_embeddings\": 512},"
     "\"original_max_position_embeddings\": 1024}",
     "original_max_position_embeddings"},
    {"{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4, \"beta_fast\": -1}}", "beta_fast"},
    {"{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4, \"attention_factor\": 0}}",
     "attention_factor"},
    {"{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4, \"truncate\": 1}}", "truncate"},
    {"{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": \"4\"}}", "rope_scaling.factor"},
};

static void test_refusals(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        struct arch a;
        struct reason why;
        if (parse_changed(&a, refusals[i][0], &why) != STATUS_BAD_MODEL)
            fail_msg("accepted: %s", refusals[i][0]);
        assert_one_line(why.text);
        if (!strstr(why.text, refusals[i][1]) || strncmp(why.text, "config.json: ", 13) != 0)
            fail_msg("%s: the line does not name %s: %s", refusals[i][0], refusals[i][1], why.text);
    }
}

static void refuse_text(const char *text, size_t bytes)
{
    struct arch a;
    struct reason why;
    assert_int_equal(arch_parse(&a, text, bytes, "config.json", &why), STATUS_BAD_MODEL);
    assert_one_line(why.text);
}

static void test_hostile_text(void **state)
{
    (void)state;
    struct arch a;
    struct reason why;
    size_t bytes;
    char *deep = malloc(1 << 20);
    memset(deep, '[', 1 << 20);
    refuse_text(deep, 1 << 20);
    for (size_t i = 0; i + 5 <= 1 << 20; i += 5) memcpy(deep + i, "{\"a\":", 5);
    refuse_text(deep, 1 << 20);
    free(deep);
    refuse_text("", 0);
    refuse_text("[]", 2);
    refuse_text("null", 4);
    refuse_text("{}", 2);
    refuse_text("\xff\xfe{}", 4);
    static const char twice[] =
        "{\"architectures\": [\"LlamaForCausalLM\"], \"vocab_size\": 1, \"vocab_size\": 2}";
    refuse_text(twice, sizeof twice - 1);
    static const char huge[] = "{\"architectures\": [\"LlamaForCausalLM\"], \"vocab_size\": 1e999}";
    refuse_text(huge, sizeof huge - 1);
    static const char digits[] =
        "{\"architectures\": [\"LlamaForCausalLM\"], \"vocab_size\": 99999999999999999999}";
    refuse_text(digits, sizeof digits - 1);
    /* A long value, a long file name and control characters still leave one line that names the field. */
    char changes[6000], name[3000];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    snprintf(changes, sizeof changes,
             "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_act\": \"\\n%s\"}", name);
    assert_int_equal(arch_parse(&a, changes, strlen(changes), name, &why), STATUS_BAD_MODEL);
    assert_one_line(why.text);
    assert_non_null(strstr(why.text, "hidden_act is \"\\nnnn"));
    /* Cut anywhere, a file is refused; with any one byte changed it is refused or understood, never worse. */
    char *text = read_text(FOLDER "/qwen2.5-7b-yarn.json", &bytes);
    while (text[bytes - 1] == '\n') bytes--;
    for (size_t i = 0; i < bytes; i++) refuse_text(text, i);
    for (size_t i = 0; i < bytes; i++) {
        static const char replacements[] = "\"{}[]:,0-9e.n \\\x80";
        char kept = text[i];
        for (size_t k = 0; k < sizeof replacements; k++) {
            text[i] = replacements[k];
            enum status status = arch_parse(&a, text, bytes, "config.json", &why);
            assert_true(status == STATUS_OK || status == STATUS_BAD_MODEL);
        }
        text[i] = kept;
    }
    assert_int_equal(arch_parse(&a, text, bytes, "config.json", &why), STATUS_OK);
    free(text);
}

/* ------------------------------------------------------------------------------------------ folders */

static char folder[] = "/tmp/test_arch_XXXXXX";

static void write_file(const char *name, const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static void remove_file(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_int_equal(remove(path), 0);
}

static void test_load(void **state)
{
    (void)state;
    static const char config[] =
        "{\"architectures\": [\"LlamaForCausalLM\"], \"vocab_size\": 100, \"eos_token_id\": 7}";
    struct arch a;
    struct reason why;
    char path[128];
    assert_non_null(mkdtemp(folder));
    assert_int_equal(arch_load(&a, folder, &why), STATUS_BAD_MODEL);
    assert_non_null(strstr(why.text, "config.json"));
    snprintf(path, sizeof path, "%s/config.json", folder);
    assert_int_equal(mkfifo(path, 0600), 0); /* must be refused, not waited for */
    assert_int_equal(arch_load(&a, folder, &why), STATUS_BAD_MODEL);
    remove_file("config.json");
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(arch_load(&a, folder, &why), STATUS_BAD_MODEL);
    remove_file("config.json");
    write_file("config.json", config);
    assert_int_equal(truncate(path, 17 << 20), 0);
    assert_int_equal(arch_load(&a, folder, &why), STATUS_BAD_MODEL);
    assert_non_null(strstr(why.text, "17825792")); /* too big, said before it is read */
    write_file("config.json", config);
    assert_int_equal(arch_load(&a, folder, &why), STATUS_OK);
    assert_true(a.n_eos == 1 && a.eos[0] == 7 && a.bos == 1);
    write_file("generation_config.json",
               "{\"eos_token_id\": [8, 9], \"bos_token_id\": 3, \"temperature\": 0.6}");
    assert_int_equal(arch_load(&a, folder, &why), STATUS_OK);
    assert_true(a.n_eos == 2 && a.eos[0] == 8 && a.eos[1] == 9 && a.bos == 3);
    write_file("generation_config.json", "{\"do_sample\": true}");
    assert_int_equal(arch_load(&a, folder, &why), STATUS_OK);
    assert_true(a.n_eos == 1 && a.eos[0] == 7);
    write_file("generation_config.json", "{\"eos_token_id\": 100}");
    assert_int_equal(arch_load(&a, folder, &why), STATUS_BAD_MODEL);
    assert_non_null(strstr(why.text, "generation_config.json: eos_token_id is 100"));
    write_file("generation_config.json", "{");
    assert_int_equal(arch_load(&a, folder, &why), STATUS_BAD_MODEL);
    remove_file("generation_config.json");
    remove_file("config.json");
    assert_int_equal(rmdir(folder), 0);
    char *long_name = malloc(5001);
    memset(long_name, 'a', 5000);
    long_name[5000] = '\0';
    assert_int_equal(arch_load(&a, long_name, &why), STATUS_BAD_MODEL);
    free(long_name);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published),    cmocka_unit_test(test_absent_fields),
        cmocka_unit_test(test_biases),       cmocka_unit_test(test_windows),
        cmocka_unit_test(test_special_ids),  cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_hostile_text), cmocka_unit_test(test_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
