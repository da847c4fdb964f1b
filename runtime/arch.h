/* arch.h - the model as numbers: a Hugging Face config.json read into one struct.
 *
 * A family is one row of the table in arch.c (architecture name, which flags it sets); the forward pass reads
 * flags and sizes only and never asks for the family. Everything the file says that would change the result
 * and that we do not compute is refused with the field's name (an unknown activation, a rope type,
 * attention_bias in a family that has none, ...). Sizes are checked so that no product of them overflows. */
#ifndef RETRO_ARCH_H
#define RETRO_ARCH_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/status.h"

enum rope_type { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN, ROPE_TYPE_COUNT };

struct rope_scaling {
    enum rope_type type;
    double factor;
    int original_context;                     /* original_max_position_embeddings */
    double low_freq_factor, high_freq_factor; /* llama3 */
    double beta_fast, beta_slow;              /* yarn; 32 and 1 unless told */
    bool truncate;           /* yarn: the ramp begins and ends at whole dimensions; true unless told */
    double attention_factor; /* yarn: multiplies cos and sin; from mscale where the file has it */
};

#define ARCH_EOS_MAX 8
#define ARCH_LAYERS_MAX 512

struct arch {
    const char *family; /* the table's name: "llama", "mistral", "qwen2", "qwen3"; static storage */
    int n_layers;       /* L */
    int n_heads;        /* H query heads */
    int n_kv_heads;     /* K; H % K == 0 */
    int head_dim;       /* E, even */
    int hidden;         /* D */
    int ffn;            /* F */
    int vocab;          /* V */
    int context;        /* max_position_embeddings; with yarn at least factor * original_context */
    double norm_eps;
    double rope_theta;
    struct rope_scaling rope;
    bool tied_head; /* LM head is the embedding matrix */
    bool qkv_bias, o_bias, mlp_bias;
    bool qk_norm;                      /* Qwen3: RMSNorm of every q and k head before rope */
    int sliding_window;                /* tokens a query sees including itself; 0: all */
    bool slides[ARCH_LAYERS_MAX];      /* which layers use the window */
    int bos, n_eos, eos[ARCH_EOS_MAX]; /* -1 / 0 where the folder names none; generation_config.json wins */
    enum dtype dtype;                  /* torch_dtype; the tensors' own type decides when they differ */
};

/* Reads DIR/config.json (and DIR/generation_config.json when present, for eos ids). Status BAD_MODEL with one
 * line. */
enum status arch_load(struct arch *a, const char *dir, struct reason *why);

/* The same from the text of a config.json; the fuzz target. `name` is used in messages. */
enum status arch_parse(struct arch *a, const char *json, size_t json_bytes, const char *name,
                       struct reason *why);

/* cos and sin multiply with `*attention_factor`; inv_freq has head_dim/2 entries (f64 in, f32 out as the
 * families' published code computes them). Sources: Su et al. 2104.09864; Llama 3.1's frequency bands; Peng
 * et al. 2309.00071. */
void arch_rope_frequencies(const struct arch *a, float *inv_freq, float *attention_factor);

#endif
