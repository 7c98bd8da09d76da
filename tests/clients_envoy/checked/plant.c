/* plant(NAME): one fault for each name, by a look or a write just outside; "none" does the same things rightly. */
#include <stdio.h>

static char global[10] = "global";
static volatile int sink;

static __attribute__((noinline)) int at(const char *bytes, int index)
{
    return bytes[index];
}

static __attribute__((noinline)) void put(char *bytes, int index)
{
    bytes[index] = 1;
}

static int on_stack(int index)
{
    char few[13] = {0};
    put(few, index);
    return at(few, 0);
}

static int after_scope(int late)
{
    const char *kept = global;
    int found = 0;
    {
        char inner[16] = {7};
        kept = inner;
        found += at(kept, 0);
    }
    return late ? found + at(kept, 0) : found;
}

int plant(const char *fault);
int plant(const char *fault)
{
    int on = 0;
#define IS(name) (on = !strcmp(fault, name))
    char *block = malloc(21), *other = calloc(3, 5);
    memset(block, 0, 21);
    sink = at(block, IS("heap_overflow") ? 21 : 20);
    sink = at(block, IS("heap_underflow") ? -1 : 0);
    put(other, IS("calloc_overflow") ? 15 : 14);
    memcpy(block, other, IS("memcpy_overflow") ? 16 : 15);
    sink = (int)strlen(memset(other, IS("unterminated") ? 'x' : 0, 15));
    sink = on_stack(IS("stack_overflow") ? 13 : 12);
    sink = after_scope(IS("use_after_scope"));
    sink = at(global, IS("global_overflow") ? 10 : 9);
    block = realloc(block, 300);
    sink = at(block, IS("realloc_overflow") ? 300 : 20);
    free(other);
    if (IS("use_after_free"))
        sink = at(other, 0);
    if (IS("double_free"))
        free(other);
    free(block + (IS("bad_free") ? 16 : 0));
    puts("no fault");
    return 0;
}
