/* weights.h - this rank's part of the parameters, in device memory.
 *
 * Read-only after weights_load. q, k and v are one matrix, gate and up another, so that a layer is four
 * GEMMs. Column shards (o, down) are cut while reading, so that a rank touches only the bytes it keeps. Norm
 * weights and biases are f32 on the device. */
#ifndef RETRO_WEIGHTS_H
#define RETRO_WEIGHTS_H

#include "kernels/kernels.h"
#include "runtime/arch.h"
#include "runtime/base/arena.h"
#include "runtime/shard.h"
#include "runtime/tensors.h"

struct layer_weights {
    float *attn_norm;       /* (D) */
    struct matrix qkv;      /* (Qr+2Kr)*E x D, rows [q | k | v] */
    float *qkv_bias;        /* ((Qr+2Kr)*E) or NULL */
    float *q_norm, *k_norm; /* (E) or NULL */
    struct matrix o;        /* D x Hr*E */
    float *o_bias;          /* (D), rank 0 only, or NULL */
    float *mlp_norm;        /* (D) */
    struct matrix gate_up;  /* 2*Fr x D, rows [gate | up] */
    float *gate_up_bias;    /* (2*Fr) or NULL */
    struct matrix down;     /* D x Fr */
    float *down_bias;       /* (D), rank 0 only, or NULL */
};

struct weights {
    struct matrix embed; /* Vr x D */
    struct layer_weights *layer;
    float *final_norm;  /* (D) */
    struct matrix head; /* Vr x D; the embedding's when tied */
};

/* Checks that every tensor the model needs is there with the right shape and a type we read, before anything
 * is allocated; others are fine (weights_unused names them). BAD_MODEL with one line. */
enum status weights_check(const struct arch *a, const struct tensors *t, struct reason *why);

/* After weights_check: how many tensors the model does not use, and the first of them (NULL: none), not counting
 * rotary frequencies and the head beside a tied embedding. */
int weights_unused(const struct arch *a, const struct tensors *t, const struct tensor **first);

/* Carves all of it from `arena` (counting mode gives the bytes). Matrices keep the type they are stored in,
 * or are converted to *matrix_dtype when that is not NULL; without files (`t` NULL) they have config.json's.
 * `w->layer` is malloc'd; weights_close frees it. */
void weights_carve(struct weights *w, struct arena *arena, const struct arch *a, const struct shard *s,
                   const struct tensors *t, struct device *d, const enum dtype *matrix_dtype);
/* Reads this rank's ranges into device memory. With `progress`, prints GB/s and the remaining time on the
 * log. */
void weights_load(struct weights *w, struct device *d, const struct arch *a, const struct shard *s,
                  const struct tensors *t, bool progress);
/* Fills them with random numbers instead (retro bench), the same whatever the number of ranks. */
void weights_randomize(struct weights *w, struct device *d, const struct arch *a, const struct shard *s);
void weights_close(struct weights *w);

#endif
