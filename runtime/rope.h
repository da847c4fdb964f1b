/* rope.h - rotary position frequencies: what config.json says about them, and the numbers.
 *
 * Computed: default, linear, llama3, yarn. Refused by name: every other type (dynamic and longrope depend on
 * the length of the text, mrope on images), partial rotary factors, parameters that differ by layer, and two
 * spellings of one thing (rope_scaling and rope_parameters, type and rope_type) that contradict each other.
 * Values that parse yield finite frequencies > 0. */
#ifndef RETRO_ROPE_H
#define RETRO_ROPE_H

#include "runtime/arch.h"
#include "runtime/fields.h"

/* Reads rope_theta and rope_scaling / rope_parameters of a config.json; a->context must be set. Fails the
 * reader. */
void rope_read(struct arch *a, struct fields *f);

/* See arch_rope_frequencies(). */
void rope_frequencies(const struct rope_scaling *r, double theta, int head_dim, float *inv_freq,
                      float *attention_factor);

#endif
