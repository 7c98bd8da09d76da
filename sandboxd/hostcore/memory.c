/*
 * The heap: a buddy allocator of 4 KiB pages, and size classes for small blocks on top of it.
 *
 * Bounded by `heap_bytes` of the limits, O(log) for pages and O(1) for small blocks. A page of a size class is never
 * given back, which the limit bounds. The natively built host uses the C library's heap instead (heap_native.c in the
 * fuzzers), where the sanitizers see every block; there this file is tested through region_alloc and region_free.
 */
#include "hostcore.h"

#define PAGE_SHIFT 12
#define PAGE_BYTES (1u << PAGE_SHIFT)
#define REGION_BYTES (128u * MIB)
#define PAGES (REGION_BYTES >> PAGE_SHIFT)
#define ORDERS 16 /* 4 KiB to 128 MiB */
#define SMALLEST_SHIFT 4
#define CLASSES 8 /* 16 to 2048 bytes */

/* What a page is the first of: the low bits hold an order or a class. */
enum { PAGE_INNER = 0, PAGE_FREE = 0x80, PAGE_LARGE = 0x40, PAGE_SMALL = 0x20, PAGE_MASK = 0x1f };

struct link {
    struct link *next, *previous;
};

static struct {
    u8 *base;
    struct link *free_blocks[ORDERS];
    struct link *free_small[CLASSES];
    u8 page[PAGES];
    u32 used_pages, limit_pages;
} region;

static void *page_address(u32 page)
{
    return region.base + ((size_t)page << PAGE_SHIFT);
}

static u32 page_of(const void *block)
{
    return (u32)((size_t)((const u8 *)block - region.base) >> PAGE_SHIFT);
}

static void push_free(u32 page, u32 order)
{
    struct link *block = page_address(page);
    block->previous = NULL;
    block->next = region.free_blocks[order];
    if (block->next)
        block->next->previous = block;
    region.free_blocks[order] = block;
    region.page[page] = (u8)(PAGE_FREE | order);
}

static void take_free(u32 page, u32 order)
{
    struct link *block = page_address(page);
    if (block->previous)
        block->previous->next = block->next;
    else
        region.free_blocks[order] = block->next;
    if (block->next)
        block->next->previous = block->previous;
    region.page[page] = PAGE_INNER;
}

void region_init(u8 *base)
{
    memset(&region, 0, sizeof region);
    region.base = base;
    region.limit_pages = PAGES;
    push_free(0, ORDERS - 1);
}

void region_set_limit(u64 bytes)
{
    u64 pages = bytes >> PAGE_SHIFT;
    region.limit_pages = pages < PAGES ? (u32)pages : PAGES;
}

u32 region_used(void)
{
    return region.used_pages << PAGE_SHIFT;
}

static void *alloc_pages(u32 order)
{
    u32 from = order;
    if (order >= ORDERS || region.used_pages + (1u << order) > region.limit_pages)
        return NULL;
    while (from < ORDERS && !region.free_blocks[from])
        from++;
    if (from == ORDERS)
        return NULL;
    u32 page = page_of(region.free_blocks[from]);
    take_free(page, from);
    while (from > order) { /* give the upper half back */
        from--;
        push_free(page + (1u << from), from);
    }
    region.used_pages += 1u << order;
    region.page[page] = (u8)(PAGE_LARGE | order);
    return page_address(page);
}

static void free_pages(u32 page, u32 order)
{
    region.used_pages -= 1u << order;
    region.page[page] = PAGE_INNER;
    while (order < ORDERS - 1) {
        u32 buddy = page ^ (1u << order);
        if (region.page[buddy] != (PAGE_FREE | order))
            break;
        take_free(buddy, order);
        page &= ~(1u << order);
        order++;
    }
    push_free(page, order);
}

static void *alloc_small(u32 class)
{
    struct link *block = region.free_small[class];
    if (LIKELY(block != NULL)) {
        region.free_small[class] = block->next;
        return block;
    }
    u8 *page = alloc_pages(0);
    if (!page)
        return NULL;
    region.page[page_of(page)] = (u8)(PAGE_SMALL | class);
    u32 size = 1u << (class + SMALLEST_SHIFT);
    for (u32 at = PAGE_BYTES - size; at; at -= size) {
        block = (struct link *)(page + at);
        block->next = region.free_small[class];
        region.free_small[class] = block;
    }
    return page;
}

static u32 log2_ceiling(u32 value)
{
    return value <= 1 ? 0 : 32 - (u32)__builtin_clz(value - 1);
}

void *region_alloc(u32 len)
{
    if (len <= PAGE_BYTES / 2)
        return alloc_small(len <= 1u << SMALLEST_SHIFT ? 0 : log2_ceiling(len) - SMALLEST_SHIFT);
    if (len > REGION_BYTES)
        return NULL;
    return alloc_pages(log2_ceiling((len + PAGE_BYTES - 1) >> PAGE_SHIFT));
}

u32 region_usable(const void *block)
{
    u8 kind = region.page[page_of(block)];
    if (kind & PAGE_LARGE)
        return PAGE_BYTES << (kind & PAGE_MASK);
    return 1u << ((kind & PAGE_MASK) + SMALLEST_SHIFT);
}

void region_free(void *block)
{
    if (!block)
        return;
    u32 page = page_of(block);
    u8 kind = region.page[page];
    if (kind & PAGE_LARGE) {
        free_pages(page, kind & PAGE_MASK);
        return;
    }
    struct link *link = block;
    link->next = region.free_small[kind & PAGE_MASK];
    region.free_small[kind & PAGE_MASK] = link;
}

#ifndef SANDBOXD_NATIVE

#define HEAP_AT (32u * MIB)

void heap_init(void)
{
    region_init((u8 *)HEAP_AT);
}

void heap_set_limit(u64 bytes)
{
    region_set_limit(bytes);
}

void *heap_alloc(u32 len)
{
    void *block = region_alloc(len);
    u32 used = region_used();
    vm.status.heap_used_bytes = used;
    if (used > vm.status.heap_peak_bytes)
        vm.status.heap_peak_bytes = used;
    return block;
}

void heap_free(void *block)
{
    region_free(block);
    vm.status.heap_used_bytes = region_used();
}

u32 heap_usable(const void *block)
{
    return region_usable(block);
}

void *memcpy(void *restrict to, const void *restrict from, size_t len)
{
    __builtin_memcpy(to, from, len); /* becomes memory.copy */
    return to;
}

void *memmove(void *to, const void *from, size_t len)
{
    __builtin_memmove(to, from, len);
    return to;
}

void *memset(void *to, int value, size_t len)
{
    __builtin_memset(to, value, len);
    return to;
}

int memcmp(const void *a, const void *b, size_t len)
{
    const u8 *x = a, *y = b;
    for (; len >= 8; len -= 8, x += 8, y += 8)
        if (load_u64(x) != load_u64(y))
            break;
    for (; len; len--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

#endif

void *heap_grow(void *block, u32 used, u32 len)
{
    if (block && heap_usable(block) >= len)
        return block;
    void *larger = heap_alloc(len);
    if (!larger)
        return NULL;
    if (used)
        memcpy(larger, block, used);
    heap_free(block);
    return larger;
}
