#include "runtime/page.h"

#include <string.h>

/* RETRO_PAGE is the file's path; CMakeLists.txt sets it and makes this object depend on it. */
__asm__(".pushsection .rodata\n"
        ".global page_html\n"
        ".type page_html, %object\n"
        "page_html:\n"
        ".incbin \"" RETRO_PAGE "\"\n"
        ".byte 0\n"
        ".size page_html, . - page_html\n"
        ".popsection\n");

size_t page_bytes(void) { return strlen(page_html); }
