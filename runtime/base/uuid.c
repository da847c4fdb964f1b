#include "runtime/base/uuid.h"

#include <stdio.h>

void uuid_print(char text[UUID_TEXT], const unsigned char id[UUID_BYTES])
{
    int n = snprintf(text, UUID_TEXT, "GPU-");
    for (int i = 0; i < UUID_BYTES; i++)
        n += snprintf(text + n, (size_t)(UUID_TEXT - n),
                      i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", id[i]);
}
