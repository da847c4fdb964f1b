/* jsonpattern.h - regular expressions of JSON schemas ("pattern"), as grammar over the inside of a JSON
 * string.
 *
 * Covered: literals, ., classes with ranges and ^, \d \w \s \D \W \S, \n \r \t \f \v \xHH \uHHHH, groups
 * (capturing or (?:...)), |, * + ? {m} {m,} {m,n} and their lazy forms (the same texts), ^ and $ at the ends
 * of a branch. Without them anything may stand around, as the schema's authors say. Where ECMA 262 and
 * Python's `re` differ, fewer characters match: \d and \w are ASCII, and so are classes with \D \W \S in them
 * and negated ones with \d \w \s. Refused by name: references, look-around, \b, \p, named groups, flags, ^
 * and $ elsewhere. */
#ifndef RETRO_JSONPATTERN_H
#define RETRO_JSONPATTERN_H

#include "runtime/grammar.h"

/* What may stand between the quotes of a string that matches; BAD_INPUT says why not. */
enum status jsonpattern_compile(struct grammar *g, const char *pattern, int *expression, struct reason *why);
/* One character of the spans as it is written inside a JSON string: escaped where it must be. */
int jsonpattern_char(struct grammar *g, const struct grammar_span *span, int n);

#endif
