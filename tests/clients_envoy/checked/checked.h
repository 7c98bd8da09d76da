/*
 * Included before every file of the checked build: memory and string functions go through runtime.c.
 *
 * The macros take calls alone; a function's address is the C library's.
 */
#ifndef CHECKED_H
#define CHECKED_H

#include <stdlib.h>
#include <string.h>

void *checked_malloc(size_t size);
void *checked_calloc(size_t count, size_t size);
void *checked_realloc(void *block, size_t size);
void checked_free(void *block);
void *checked_memcpy(void *to, const void *from, size_t len);
void *checked_memmove(void *to, const void *from, size_t len);
void *checked_memset(void *to, int byte, size_t len);
int checked_memcmp(const void *one, const void *other, size_t len);
void *checked_memchr(const void *in, int byte, size_t len);
size_t checked_strlen(const char *text);

#ifndef CHECKED_RUNTIME
#define malloc(size) checked_malloc(size)
#define calloc(count, size) checked_calloc(count, size)
#define realloc(block, size) checked_realloc(block, size)
#define free(block) checked_free(block)
#define memcpy(to, from, len) checked_memcpy(to, from, len)
#define memmove(to, from, len) checked_memmove(to, from, len)
#define memset(to, byte, len) checked_memset(to, byte, len)
#define memcmp(one, other, len) checked_memcmp(one, other, len)
#define memchr(in, byte, len) checked_memchr(in, byte, len)
#define strlen(text) checked_strlen(text)
#endif

#endif
