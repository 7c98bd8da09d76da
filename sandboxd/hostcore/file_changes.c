/* Changes of the preopened folders' tree: quotas, and the journal that tells the trusted side. */
#include "files.h"

#define MIN_CAP 256u

/* ---- the journal ------------------------------------------------------------------------------------------------- */

u32 path_bytes(const struct node *node)
{
    u32 len = 0;
    for (; node->parent; node = node->parent)
        len += node->name_len + 1u;
    return len ? len - 1 : 0;
}

static void write_path(const struct node *node, u8 *end)
{
    for (; node->parent; node = node->parent) {
        end -= node->name_len;
        memcpy(end, node->name, node->name_len);
        if (node->parent->parent)
            *--end = '/';
    }
}

/* The node's path, room for bytes or another path, an offset or size. NULL: no room for what this event changes. */
static struct message *journal_make(const struct folder *folder, enum change kind, const struct node *node, u32 with_len,
                                    u64 number)
{
    u32 path_len = path_bytes(node);
    const u32 lens[OUT_PARTS] = {path_len, with_len, sizeof number};
    struct message *message = outbox_make(OUT_FILE, folder->number, kind, lens);
    if (!message)
        return NULL;
    u8 *parts = outbox_parts(message);
    write_path(node, parts + path_len);
    store_u64(parts + path_len + with_len, number);
    return message;
}

static void journal_send(const struct node *node, struct message *message, struct bytes with)
{
    if (with.len)
        memcpy(outbox_parts(message) + path_bytes(node), with.at, with.len);
    outbox_send(message);
}

static u32 journal(const struct folder *folder, enum change kind, const struct node *node, struct bytes with,
                   u64 number)
{
    struct message *message = journal_make(folder, kind, node, with.len, number);
    if (!message)
        return NOSPC;
    journal_send(node, message, with);
    return SUCCESS;
}

/* ---- changes ----------------------------------------------------------------------------------------------------- */

static const struct bytes nothing = {0};

u32 node_make(struct folder *folder, const struct place *place, bool is_folder, struct node **made)
{
    if (folder->files >= folder->max_files)
        return DQUOT;
    struct node *node = node_new(place->name, is_folder);
    if (!node)
        return NOSPC;
    node_attach(node, place->parent);
    u32 path_len = path_bytes(node);
    u32 error = path_len > MAX_FILE_PATH_BYTES ? NAMETOOLONG
                : path_len > folder->max_bytes - folder->bytes
                    ? DQUOT
                    : journal(folder, is_folder ? CHANGE_FOLDER : CHANGE_CREATE, node, nothing, 0);
    if (error) {
        node_detach(node);
        node_free(node);
        return error;
    }
    node->changed_ns = vm.now_ns;
    folder->files++;
    folder->bytes += path_len;
    *made = node;
    return SUCCESS;
}

static u32 reserve(struct folder *folder, struct node *node, u32 len)
{
    if (len > node->len && (node->removed || len - node->len > folder->max_bytes - folder->bytes))
        return DQUOT;
    if (node->cap && node->cap >= len)
        return SUCCESS;
    u32 most = len > node->len ? len : node->len; /* what the configuration brought is copied whole */
    u32 cap = most < MIN_CAP ? MIN_CAP : most + most / 2;
    u8 *data = heap_alloc(cap);
    if (!data)
        return NOSPC;
    if (node->len) /* a new file has no data yet */
        memcpy(data, node->data, node->len);
    if (node->cap)
        heap_free(node->data);
    node->data = data;
    node->cap = cap;
    return SUCCESS;
}

static void set_len(struct folder *folder, struct node *node, u32 len)
{
    if (!node->removed)
        folder->bytes = folder->bytes - node->len + len;
    node->len = len;
    node->changed_ns = vm.now_ns;
}

u32 node_resize(struct folder *folder, struct node *node, u32 len)
{
    u32 error = reserve(folder, node, len);
    if (!error && !node->removed)
        error = journal(folder, CHANGE_RESIZE, node, nothing, len);
    if (error)
        return error;
    if (len > node->len)
        memset(node->data + node->len, 0, len - node->len);
    set_len(folder, node, len);
    return SUCCESS;
}

u32 node_begin_write(struct folder *folder, struct node *node, u32 from, u32 len, struct message **message)
{
    u32 end = from + len > node->len ? from + len : node->len;
    u32 error = reserve(folder, node, end);
    if (error)
        return error;
    *message = NULL;
    if (!node->removed) {
        *message = journal_make(folder, CHANGE_WRITE, node, len, from);
        if (!*message)
            return NOSPC;
    }
    if (from > node->len)
        memset(node->data + node->len, 0, from - node->len);
    set_len(folder, node, end);
    return SUCCESS;
}

void node_end_write(const struct node *node, u32 from, u32 len, struct message *message)
{
    if (message)
        journal_send(node, message, (struct bytes){node->data + from, len});
}

/* Out of the tree; it lives on while it is open. */
static void drop(struct folder *folder, struct node *node)
{
    folder->files--;
    folder->bytes -= node->len + path_bytes(node);
    node_detach(node);
    node->removed = true;
    if (!node->opens)
        node_free(node);
}

u32 node_remove(struct folder *folder, struct node *node)
{
    if (node->children)
        return NOTEMPTY;
    u32 error = journal(folder, node->is_folder ? CHANGE_REMOVE : CHANGE_UNLINK, node, nothing, 0);
    if (!error)
        drop(folder, node);
    return error;
}

static bool is_below(const struct node *node, const struct node *above)
{
    while (node && node != above)
        node = node->parent;
    return node;
}

static u32 height(const struct node *node)
{
    u32 most = 0;
    for (const struct node *one = node->children; one; one = one->next) {
        u32 its = height(one); /* no deeper than MAX_DEPTH */
        most = its > most ? its : most;
    }
    return most + 1;
}

static u32 nodes_in(const struct node *node)
{
    u32 count = 1;
    for (const struct node *one = node->children; one; one = one->next)
        count += nodes_in(one);
    return count;
}

u32 node_rename(struct folder *folder, struct node *node, const struct place *to)
{
    u32 depth = 0;
    if (to->node == node)
        return SUCCESS;
    if (is_below(to->parent, node))
        return INVAL;
    if (to->node && to->node->is_folder != node->is_folder)
        return node->is_folder ? NOTDIR : ISDIR;
    if (to->node && to->node->children)
        return NOTEMPTY;
    for (const struct node *above = to->parent; above->parent; above = above->parent)
        depth++;
    struct node renamed = {.parent = to->parent, .name = (u8 *)(uintptr_t)to->name.at, .name_len = (u8)to->name.len};
    u8 path[MAX_FILE_PATH_BYTES];
    u32 path_len = path_bytes(&renamed);
    if (path_len > MAX_FILE_PATH_BYTES || depth + height(node) > MAX_DEPTH)
        return NAMETOOLONG;
    u32 old_len = path_bytes(node), moved = nodes_in(node);
    u32 freed = to->node ? to->node->len + path_len : 0;
    if (path_len > old_len && moved * (path_len - old_len) > folder->max_bytes - folder->bytes + freed)
        return DQUOT;
    write_path(&renamed, path + path_len);
    u8 *name = bytes_copy(to->name);
    if (!name)
        return NOSPC;
    u32 error = journal(folder, CHANGE_RENAME, node, (struct bytes){path, path_len}, 0);
    if (error) {
        heap_free(name);
        return error;
    }
    if (to->node) /* replaced, without a word of its own in the journal */
        drop(folder, to->node);
    node_detach(node);
    heap_free(node->name);
    node->name = name;
    node->name_len = (u8)to->name.len;
    node_attach(node, to->parent);
    folder->bytes += moved * (path_len - old_len); /* modulo 2^32: it may get shorter */
    return SUCCESS;
}
