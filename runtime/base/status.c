#include "runtime/base/status.h"

#include <stdio.h>

#include "runtime/base/die.h"

static const struct {
    const char *text;
    int exit_code;
} table[STATUS_COUNT] = {
#define STATUS(name, exit_code_, text_) [STATUS_##name] = {text_, exit_code_},
#include "runtime/base/status.def"
#undef STATUS
};

const char *status_text(enum status s)
{
    ASSERT(s < STATUS_COUNT);
    return table[s].text;
}

int status_exit_code(enum status s)
{
    ASSERT(s < STATUS_COUNT);
    return table[s].exit_code;
}

enum status status_fail(struct reason *why, enum status s, const char *format, ...)
{
    if (why) {
        va_list ap;
        va_start(ap, format);
        vsnprintf(why->text, sizeof why->text, format, ap);
        va_end(ap);
        /* One line whatever the input held: a control character in a foreign name must not forge a second. */
        for (char *c = why->text; *c; c++)
            if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    }
    return s;
}
