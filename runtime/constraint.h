/* constraint.h - what may come next: the hook of constrained decoding.
 *
 * Whoever implements a grammar puts a struct constraint first into its own struct and fills the table. The
 * service calls it on the engine's thread only: fill before a token is drawn, accept after. A choice owns its
 * constraint; further choices of a request get clones of the first, taken before anything was accepted. */
#ifndef RETRO_CONSTRAINT_H
#define RETRO_CONSTRAINT_H

#include <stdbool.h>
#include <stdint.h>

struct constraint;

struct constraint_table {
    /* Writes all (vocab + 31) / 32 words of `mask`: bit t % 32 of word t / 32 says that token t may come
     * next. End-of-text tokens are tokens like others: their bits are set where the text may end. False:
     * nothing may follow, the text ends here (the mask is not used). */
    bool (*fill)(struct constraint *c, uint32_t *mask, int vocab);
    /* The token that was drawn; it was allowed. Not called for a token that ends the text. */
    void (*accept)(struct constraint *c, int32_t token);
    struct constraint *(*clone)(const struct constraint *c);
    void (*free)(struct constraint *c);
};

struct constraint {
    const struct constraint_table *table;
};

#endif
