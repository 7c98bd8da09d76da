/*
 * Fuzzer of the preopened folders: what the configuration brings, good and damaged, and a guest that does anything with
 * its files. After each call the tree's book-keeping is true, and its journal speaks of what the guest may change.
 */
#include <stdlib.h>

#include "files.h"
#include "native.h"

#define MOST_BYTES 8192u
#define PATH_AT 1024u
#define OTHER_AT 4096u
#define VECTORS_AT 8192u

u32 hc_path_open(u32 fd, u32 lookup, u32 path, u32 len, u32 flags, u64 base, u64 inheriting, u32 fd_flags, u32 out);
u32 hc_fd_pread(u32 fd, u32 vectors, u32 count, u64 offset, u32 out);
u32 hc_fd_filestat_set_size(u32 fd, u64 size);
u32 hc_fd_allocate(u32 fd, u64 offset, u64 len);
u32 hc_fd_fdstat_set_rights(u32 fd, u64 base, u64 inheriting);

static u8 *snapshot;
static u32 snapshot_len;
static bool intact;

/* ---- the configuration ------------------------------------------------------------------------------------------- */

static u32 put_word(u8 *to, u32 at, u32 value)
{
    store_u32(to + at, value);
    return at + 4;
}

static u32 put_bytes(u8 *to, u32 at, const void *bytes, u32 len)
{
    memcpy(to + at, bytes, len);
    return at + len;
}

static u32 put_entry(u8 *to, u32 at, const char *path, u32 path_len, bool is_folder)
{
    u8 data[300];
    u32 len = is_folder ? 0 : pick(chance(10) ? sizeof data : 20);
    for (u32 i = 0; i < len; i++)
        data[i] = (u8)pick(256);
    const u32 words[] = {path_len, is_folder, len, 0, any(), pick(4)};
    for (u32 i = 0; i < 6; i++)
        at = put_word(to, at, words[i]);
    at = put_bytes(to, at, path, path_len);
    return put_bytes(to, at, data, len);
}

/* Folders a and b, files x and y in them and beside them: each there or not. */
static u32 put_folder(u8 *to, u32 at)
{
    static const char *const folders[] = {"a", "b", "a/a", "a/a/b"};
    static const char *const files[] = {"x", "a/x", "a/y", "b/x", "a/a/x", "a/a/b/y"};
    bool there[4];
    u32 count = 0, words = at;
    at += 20;
    at = put_bytes(to, at, "/data", 5);
    for (u32 i = 0; i < 4; i++) {
        there[i] = chance(60) && (i < 2 || there[i == 2 ? 0 : 2]);
        if (there[i]) {
            at = put_entry(to, at, folders[i], (u32)strlen(folders[i]), true);
            count++;
        }
    }
    for (u32 i = 0; i < 6; i++) {
        static const u8 above[] = {4, 0, 0, 1, 2, 3};
        if (chance(60) && (above[i] == 4 || there[above[i]])) {
            at = put_entry(to, at, files[i], (u32)strlen(files[i]), false);
            count++;
        }
    }
    const u32 head[] = {chance(80), pick(3000), pick(16), count, 5};
    for (u32 i = 0; i < 5; i++)
        put_word(to, words + 4 * i, head[i]);
    return at;
}

static u32 damage(u8 *bytes, u32 len)
{
    static const u32 nasty[] = {0, 1, 2, 255, 256, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff};
    for (u32 times = 1 + pick(4); len && times; times--) {
        if (chance(20))
            len -= pick(len < 40 ? len : 40);
        else if (chance(50) && len >= 4)
            store_u32(bytes + pick(len - 3), nasty[pick(sizeof nasty / sizeof *nasty)]);
        else
            bytes[pick(len)] = chance(30) ? '/' : (u8)pick(256);
    }
    return len;
}

static void make_snapshot(void)
{
    static u8 made[MOST_BYTES];
    u32 len = 0, count = chance(5) ? pick(MAX_FOLDERS + 2) : 1 + pick(3);
    u32 fitting = 0;
    for (; fitting < count && len < MOST_BYTES - 2600; fitting++)
        len = put_folder(made, len);
    intact = fitting <= MAX_FOLDERS;
    if (chance(40)) {
        len = damage(made, len);
        intact = false;
    }
    snapshot = malloc(len ? len : 1); /* exactly as long: the sanitizer sees every byte read past the end */
    if (!snapshot)
        abort();
    memcpy(snapshot, made, len);
    snapshot_len = len;
}

/* ---- what has to be true ----------------------------------------------------------------------------------------- */

struct sums {
    u64 bytes, files;
};

static void check_node(const struct node *node, struct sums *sums)
{
    u64 before = UINT64_MAX;
    for (const struct node *child = node->children; child; child = child->next) {
        if (child->parent != node || child->removed || !node->is_folder || child->number >= before)
            finding("a tree of files is not one");
        if (node_child(node, (struct bytes){child->name, child->name_len}) != child)
            finding("two files have one name");
        if (child->cap && child->len > child->cap)
            finding("a file is longer than its block");
        before = child->number;
        sums->files++;
        sums->bytes += child->len + path_bytes(child);
        check_node(child, sums);
    }
}

static void check_folders(void)
{
    for (u32 fd = 3; fd < 3 + MAX_OPEN_FILES; fd++) {
        const struct open_file *file = file_at(fd);
        if (!file)
            continue;
        struct sums sums = {0};
        check_node(file->folder->root, &sums);
        if (sums.files != file->folder->files || sums.bytes != file->folder->bytes)
            finding("a folder's files or bytes are counted wrong");
        if (sums.bytes > file->folder->max_bytes)
            finding("a folder holds more than its quota");
        if (file->can_write && !file->folder->writable)
            finding("a file is open for writing in a folder to read");
        if (!file->node->opens || (file->node->removed && file->node->parent == NULL))
            finding("an open file is not known to be open");
    }
}

static void check_journal(void)
{
    for (const u8 *at; (at = hc_outbox_first()); hc_outbox_done()) {
        u32 kind = load_u32(at + 8), path = load_u32(at + 12), other = load_u32(at + 16);
        if (load_u32(at) != OUT_FILE)
            continue; /* metrics and the like */
        if (kind < CHANGE_CREATE || kind > CHANGE_RENAME || !path || path > MAX_FILE_PATH_BYTES ||
            other > (kind == CHANGE_WRITE ? MAX_CHANGE_BYTES : MAX_FILE_PATH_BYTES))
            finding("a change that nobody may make");
        if (32 + path + other + 8 != hc_outbox_first_len())
            finding("a change of another length");
    }
}

/* ---- the guest --------------------------------------------------------------------------------------------------- */

static u32 random_fd(void)
{
    return chance(90) ? 3 + pick(6) : chance(50) ? pick(300) : any();
}

static u32 put_path(u32 to)
{
    static const char *const parts[] = {"a", "b", "x", "y", "a/a", "..", ".", "", "/", "new", "a/a/b", "z"};
    u32 at = 0;
    if (chance(50)) { /* one of a few, which calls have in common */
        const char *part = parts[pick(5)];
        memcpy(guest_memory + to, part, strlen(part));
        return (u32)strlen(part);
    }
    for (u32 count = 1 + pick(chance(5) ? 30 : 3); count; count--) {
        const char *part = parts[pick(chance(80) ? 4 : sizeof parts / sizeof *parts)];
        u32 len = (u32)strlen(part);
        memcpy(guest_memory + to + at, part, len);
        at += len;
        if (count > 1 || chance(5))
            guest_memory[to + at++] = '/';
    }
    if (chance(2)) { /* long, or with what no path has */
        u32 len = 200 + pick(1000);
        memset(guest_memory + to, chance(50) ? 'n' : pick(256), len);
        return len;
    }
    return at;
}

static u32 put_vectors(void)
{
    u32 count = pick(4);
    for (u32 i = 0; i < count; i++) {
        store_u32(guest_memory + VECTORS_AT + 8 * i, chance(95) ? 16384 + pick(1000) : any());
        store_u32(guest_memory + VECTORS_AT + 8 * i + 4, chance(90) ? pick(400) : chance(90) ? pick(60000) : any());
    }
    return count;
}

static void call_something(void)
{
    u32 fd = random_fd(), len = put_path(PATH_AT), other = put_path(OTHER_AT), count = put_vectors();
    u64 wide = chance(90) ? pick(500) : ~0ull >> pick(64);
    u32 out = chance(97) ? 64 : GUEST_BYTES - pick(8);
    switch (pick(22)) {
    case 0: case 1: case 2: case 3:
        hc_path_open(fd, 0, PATH_AT, len, pick(chance(90) ? 2 : 16), chance(80) ? 66 : any(), 0, pick(2), out);
        break;
    case 4: case 5: hc_fd_write(fd, VECTORS_AT, count, out); break;
    case 6: hc_fd_pwrite(fd, VECTORS_AT, count, wide, out); break;
    case 7: hc_fd_read(fd, VECTORS_AT, count, out); break;
    case 8: hc_fd_pread(fd, VECTORS_AT, count, wide, out); break;
    case 9: hc_fd_seek(fd, wide, pick(4), out); break;
    case 10: hc_fd_readdir(fd, 16384, pick(chance(50) ? 60 : 3000), chance(50) ? 0 : wide, out); break;
    case 11: hc_path_create_directory(fd, PATH_AT, len); break;
    case 12: hc_path_remove_directory(fd, PATH_AT, len); break;
    case 13: hc_path_unlink_file(fd, PATH_AT, len); break;
    case 14: case 15: hc_path_rename(fd, PATH_AT, len, random_fd(), OTHER_AT, other); break;
    case 16: hc_fd_filestat_set_size(fd, chance(50) ? wide : pick(3000)); break;
    case 17: hc_fd_allocate(fd, wide, pick(500)); break;
    case 18: hc_path_filestat_get(fd, 0, PATH_AT, len, out); break;
    case 19: chance(70) ? hc_fd_close(fd) : chance(50) ? hc_fd_renumber(fd, random_fd()) : hc_fd_tell(fd, out); break;
    case 20: hc_fd_fdstat_set_rights(fd, any(), any()); break;
    default: chance(50) ? hc_fd_prestat_get(fd, out) : hc_fd_prestat_dir_name(fd, 16384, pick(9));
    }
}

static u32 guest(enum callback callback, u32 context_id, u32 a, u32 b)
{
    (void)context_id, (void)a, (void)b;
    if (callback != CALLBACK_VM_START)
        return 1;
    if (chance(5)) {
        heap_fail_after = pick(30);
        intact = false;
    }
    bool good = folders_start((struct bytes){snapshot, snapshot_len}, chance(50) ? pick(6) : 200);
    heap_fail_after = -1;
    if (intact && !good)
        finding("a good folder is refused");
    for (u32 calls = good ? pick(chance(10) ? 800 : 60) : 0; calls; calls--) {
        if (chance(1))
            heap_fail_after = pick(3);
        call_something();
        heap_fail_after = -1;
        check_folders();
        if (chance(10))
            check_journal();
    }
    check_journal();
    return 1;
}

static u32 no_memory(u32 size)
{
    (void)size;
    return 0;
}

void fuzz_folders(void)
{
    static const struct limits most = {.heap_bytes = 4 * MIB, .host_calls_per_event = 2000, .log_message_bytes = 512};
    native_reset();
    make_snapshot();
    native_callback = guest;
    native_allocator = no_memory;
    native_start(1, 0, 3, &most);
    native_reset();
    free(snapshot);
}
