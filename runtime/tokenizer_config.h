/* tokenizer_config.h - reads tokenizer_config.json, whose numbers are not ours to judge.
 *
 * Published files say "model_max_length": 1000000000000000019884624838656 for "no limit". Integers are
 * therefore read as reals here, which is harmless: only strings, booleans and objects of the file are used.
 */
#ifndef RETRO_TOKENIZER_CONFIG_H
#define RETRO_TOKENIZER_CONFIG_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#include "runtime/base/status.h"

/* DIR/tokenizer_config.json as an object; *root is NULL where the file is absent. The caller decrefs. */
enum status tokenizer_config_load(json_t **root, const char *dir, struct reason *why);
/* "<s>" or {"content": "<s>"}: the string, borrowed; NULL when absent. */
const char *tokenizer_config_token(const json_t *root, const char *name);
/* DIR/name as a string with a NUL behind it; NULL in *text where the file is absent. At most 16 MiB. */
enum status tokenizer_config_read(char **text, size_t *n, const char *dir, const char *name,
                                  struct reason *why);

#endif
