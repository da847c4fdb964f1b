/* uuid.h - a GPU's 16 bytes of identity as text. */
#ifndef RETRO_BASE_UUID_H
#define RETRO_BASE_UUID_H

enum { UUID_BYTES = 16, UUID_TEXT = 48 };

/* As nvidia-smi -L prints it: "GPU-8f6c3a52-...". */
void uuid_print(char text[UUID_TEXT], const unsigned char id[UUID_BYTES]);

#endif
