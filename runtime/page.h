/* page.h - the page at /: page.html as it lies in the tree, put into the program by the build. */
#ifndef RETRO_PAGE_H
#define RETRO_PAGE_H

#include <stddef.h>

extern const char page_html[]; /* a NUL behind it */
size_t page_bytes(void);

#endif
