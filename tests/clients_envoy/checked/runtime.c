/*
 * AddressSanitizer for a library inside a process that the usual runtime cannot live in.
 *
 * Envoy's allocator spreads over the address space that libasan wants for its shadow, and puts its objects where that has
 * none. So gcc instruments as for a kernel (-fsanitize=kernel-address: each access is a call, and the shadow lies where
 * -fasan-shadow-offset says), and this file is the runtime. It covers the top of the address space: the kernel puts
 * thread stacks, libraries and our heap there. What lies below (Envoy's own heap) is not checked.
 *
 * A shadow byte stands for 8 bytes: 0 all may be used, 1 to 7 only so many of the first, otherwise none.
 * A fault is told on stderr, with a backtrace, and ends the process.
 */
#define CHECKED_RUNTIME
#include "checked.h"

#include <execinfo.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define COVERED 0x7e0000000000ull
#define COVERED_END 0x800000000000ull
#define SHADOW_BYTES ((COVERED_END - COVERED) >> 3)
#define SHADOW (SHADOW_OFFSET + (COVERED >> 3)) /* SHADOW_OFFSET: what the compiler was told */

enum { HEAP_LEFT = 0xfa, HEAP_RIGHT = 0xfb, HEAP_FREED = 0xfd, GLOBAL = 0xf9, ALLOCA_LEFT = 0xca, ALLOCA_RIGHT = 0xcb };
enum { STACK_LEFT = 0xf1, STACK_MID = 0xf2, STACK_RIGHT = 0xf3, SCOPE = 0xf8 };

static const char *meaning(uint8_t shadow)
{
    switch (shadow) {
    case HEAP_LEFT: return "heap-buffer-underflow";
    case HEAP_RIGHT: return "heap-buffer-overflow";
    case HEAP_FREED: return "heap-use-after-free";
    case GLOBAL: return "global-buffer-overflow";
    case STACK_LEFT:
    case STACK_MID:
    case STACK_RIGHT:
    case ALLOCA_LEFT:
    case ALLOCA_RIGHT: return "stack-buffer-overflow";
    case SCOPE: return "stack-use-after-scope";
    default: return "buffer-overflow"; /* behind the last of fewer than 8 bytes */
    }
}

static _Noreturn void report(const char *what, const char *how, uintptr_t at, size_t len, const void *pc)
{
    void *frames[40];
    char text[200];
    int size = snprintf(text, sizeof text, "CHECKED: %s: %s %zu bytes at %p, from %p\n", what, how, len, (void *)at, pc);
    if (write(STDERR_FILENO, text, (size_t)size) == size)
        backtrace_symbols_fd(frames, backtrace(frames, 40), STDERR_FILENO);
    abort();
}

static _Noreturn void refuse(const char *why)
{
    fprintf(stderr, "CHECKED: cannot work here: %s\n", why);
    abort();
}

/* ---- shadow ------------------------------------------------------------------------------------------------------ */

static bool ready;

/* Called first by whatever comes first: the dynamic linker loads one thing at a time. */
static void start(void)
{
    if (ready)
        return;
    void *made = mmap((void *)SHADOW, SHADOW_BYTES, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (made != (void *)SHADOW)
        refuse("the shadow's place is taken");
    madvise(made, SHADOW_BYTES, MADV_DONTDUMP);
    ready = true;
}

static bool covered(uintptr_t at, size_t len)
{
    return at >= COVERED && at < COVERED_END && len <= COVERED_END - at;
}

static uint8_t *shadow_of(uintptr_t at)
{
    return (uint8_t *)(SHADOW_OFFSET + (at >> 3));
}

/* `at` is a multiple of 8. The last 8 bytes may be used in part. */
static void allow(uintptr_t at, size_t len)
{
    memset(shadow_of(at), 0, len >> 3);
    if (len & 7)
        *shadow_of(at + len) = len & 7;
}

static void forbid(uintptr_t at, uintptr_t end, uint8_t why)
{
    memset(shadow_of(at), why, (end >> 3) - (at >> 3));
}

static uintptr_t up(uintptr_t value, uintptr_t unit)
{
    return (value + unit - 1) & ~(unit - 1);
}

static inline void check(uintptr_t at, size_t len, const char *how, const void *pc)
{
    if (!len || !covered(at, len) || !ready)
        return;
    for (uintptr_t granule = at & ~(uintptr_t)7; granule < at + len; granule += 8) {
        uint8_t shadow = *shadow_of(granule);
        uintptr_t used = at + len - granule < 8 ? at + len - granule : 8;
        if (!shadow || (shadow < 8 && used <= shadow))
            continue;
        /* Behind an object's last bytes stands what follows it. */
        report(meaning(shadow < 8 ? *shadow_of(granule + 8) : shadow), how, at, len, pc);
    }
}

/* ---- what the compiler calls ------------------------------------------------------------------------------------- */

#define PC __builtin_return_address(0)
#define ACCESS(size)                                                                             \
    void __asan_load##size##_noabort(uintptr_t at);                                              \
    void __asan_load##size##_noabort(uintptr_t at) { check(at, size, "read of", PC); }           \
    void __asan_store##size##_noabort(uintptr_t at);                                             \
    void __asan_store##size##_noabort(uintptr_t at) { check(at, size, "write of", PC); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)

void __asan_loadN_noabort(uintptr_t at, size_t len);
void __asan_loadN_noabort(uintptr_t at, size_t len)
{
    check(at, len, "read of", PC);
}

void __asan_storeN_noabort(uintptr_t at, size_t len);
void __asan_storeN_noabort(uintptr_t at, size_t len)
{
    check(at, len, "write of", PC);
}

/* Nothing of ours is left by a jump or a thread's exit: only by an abort. */
void __asan_handle_no_return(void);
void __asan_handle_no_return(void)
{
}

/* Of variables too large for stores in the function itself, at the end and the beginning of their scope. */
void __asan_poison_stack_memory(uintptr_t at, size_t len);
void __asan_poison_stack_memory(uintptr_t at, size_t len)
{
    forbid(at, up(at + len, 8), SCOPE);
}

void __asan_unpoison_stack_memory(uintptr_t at, size_t len);
void __asan_unpoison_stack_memory(uintptr_t at, size_t len)
{
    allow(at, len);
}

struct global {
    uintptr_t at;
    size_t size, size_with_redzone;
    const char *name, *file;
    size_t dynamic;
    void *location, *indicator;
};

void __asan_register_globals(const struct global *globals, size_t count);
void __asan_register_globals(const struct global *globals, size_t count)
{
    start();
    for (size_t i = 0; i < count; i++) {
        if (!covered(globals[i].at, globals[i].size_with_redzone))
            continue;
        forbid(globals[i].at, globals[i].at + globals[i].size_with_redzone, GLOBAL);
        allow(globals[i].at, globals[i].size);
    }
}

void __asan_unregister_globals(const struct global *globals, size_t count);
void __asan_unregister_globals(const struct global *globals, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (covered(globals[i].at, globals[i].size_with_redzone))
            allow(globals[i].at, globals[i].size_with_redzone);
}

/* ---- heap: blocks between red zones, and a while before one is used again ---------------------------------------- */

#define ARENA_BYTES (1ull << 20)
#define QUARANTINE_BYTES (16ull << 20)
#define LIVE 0x6c697665626c6f63ull
#define DEAD 0x6465616462726963ull
enum { HEAD_BYTES = 48, TAIL_BYTES = 16, CLASSES = 40 };

struct block {
    uint64_t state;
    size_t size, whole; /* what was asked for; what it takes, a power of two */
    struct block *next;
    uint64_t unused[2];
};
_Static_assert(sizeof(struct block) == HEAD_BYTES, "the caller's bytes are 16-aligned");

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct block *spare[CLASSES], *oldest, *newest;
static size_t quarantined;
static uintptr_t arena_at, arena_end;

static uintptr_t fresh(size_t whole)
{
    if (arena_end - arena_at < whole) {
        size_t bytes = whole > ARENA_BYTES ? whole : ARENA_BYTES;
        void *arena = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (arena == MAP_FAILED)
            return 0;
        if (!covered((uintptr_t)arena, bytes))
            refuse("memory without a shadow");
        arena_at = (uintptr_t)arena;
        arena_end = arena_at + bytes;
    }
    arena_at += whole;
    return arena_at - whole;
}

static void quarantine(struct block *block)
{
    block->next = NULL;
    if (newest)
        newest->next = block;
    else
        oldest = block;
    newest = block;
    quarantined += block->whole;
    while (quarantined > QUARANTINE_BYTES) {
        struct block *out = oldest;
        oldest = out->next;
        if (!oldest)
            newest = NULL;
        quarantined -= out->whole;
        unsigned class = (unsigned)__builtin_ctzll(out->whole);
        out->next = spare[class];
        spare[class] = out;
    }
}

void *checked_malloc(size_t size)
{
    unsigned class = 7;
    start();
    while (class < CLASSES && (1ull << class) < HEAD_BYTES + up(size, 8) + TAIL_BYTES)
        class++;
    if (class == CLASSES || size > 1ull << (CLASSES - 1))
        return NULL;
    size_t whole = 1ull << class;
    pthread_mutex_lock(&lock);
    struct block *block = spare[class];
    if (block)
        spare[class] = block->next;
    else
        block = (struct block *)fresh(whole);
    pthread_mutex_unlock(&lock);
    if (!block)
        return NULL;
    *block = (struct block){.state = LIVE, .size = size, .whole = whole};
    uintptr_t at = (uintptr_t)block;
    forbid(at, at + HEAD_BYTES, HEAP_LEFT);
    forbid(at + HEAD_BYTES, at + whole, HEAP_RIGHT);
    allow(at + HEAD_BYTES, size);
    return memset(block + 1, 0xbe, size); /* whoever takes it for cleared will notice */
}

void checked_free(void *given)
{
    if (!given)
        return;
    struct block *block = (struct block *)given - 1;
    if (!covered((uintptr_t)given, 1) || *shadow_of((uintptr_t)block) != HEAP_LEFT || block->state != LIVE) {
        bool twice = covered((uintptr_t)given, 1) && *shadow_of((uintptr_t)block) == HEAP_FREED;
        report(twice ? "double-free" : "bad-free", "free of", (uintptr_t)given, 0, PC);
    }
    pthread_mutex_lock(&lock);
    block->state = DEAD;
    forbid((uintptr_t)block, (uintptr_t)block + block->whole, HEAP_FREED);
    quarantine(block);
    pthread_mutex_unlock(&lock);
}

void *checked_calloc(size_t count, size_t size)
{
    size_t all;
    if (__builtin_mul_overflow(count, size, &all))
        return NULL;
    void *made = checked_malloc(all);
    return made ? memset(made, 0, all) : NULL;
}

void *checked_realloc(void *given, size_t size)
{
    void *made = checked_malloc(size);
    if (given && made) {
        size_t before = ((struct block *)given - 1)->size;
        check((uintptr_t)given, before, "realloc of", PC);
        memcpy(made, given, before < size ? before : size);
        checked_free(given);
    }
    return made;
}

/* ---- memory and strings ------------------------------------------------------------------------------------------ */

void *checked_memcpy(void *to, const void *from, size_t len)
{
    check((uintptr_t)from, len, "read of", PC);
    check((uintptr_t)to, len, "write of", PC);
    return memcpy(to, from, len);
}

void *checked_memmove(void *to, const void *from, size_t len)
{
    check((uintptr_t)from, len, "read of", PC);
    check((uintptr_t)to, len, "write of", PC);
    return memmove(to, from, len);
}

void *checked_memset(void *to, int byte, size_t len)
{
    check((uintptr_t)to, len, "write of", PC);
    return memset(to, byte, len);
}

int checked_memcmp(const void *one, const void *other, size_t len)
{
    check((uintptr_t)one, len, "read of", PC);
    check((uintptr_t)other, len, "read of", PC);
    return memcmp(one, other, len);
}

void *checked_memchr(const void *in, int byte, size_t len)
{
    void *found = memchr(in, byte, len);
    check((uintptr_t)in, found ? (size_t)((char *)found - (const char *)in) + 1 : len, "read of", PC);
    return found;
}

size_t checked_strlen(const char *text)
{
    size_t len = strlen(text);
    check((uintptr_t)text, len + 1, "read of", PC);
    return len;
}
