/*
 * WASI preview 1: the preopened folders, and what is in a folder.
 *
 * fd_prestat_get must answer 8 where there is no folder: Go's runtime accepts nothing else.
 */
#include "files.h"

static const struct folder *preopened(u32 fd)
{
    const struct open_file *file = file_at(fd);
    return file && file->preopened ? file->folder : NULL;
}

u32 EXPORT(fd_prestat_get)(u32 fd, u32 prestat_out)
{
    host_call(AT_START);
    const struct folder *folder = preopened(fd);
    if (!folder)
        return BADF;
    return guest_write_u64(prestat_out, (u64)folder->name.len << 32) ? SUCCESS : FAULT;
}

u32 EXPORT(fd_prestat_dir_name)(u32 fd, u32 path_out, u32 path_len)
{
    host_call(AT_START);
    const struct folder *folder = preopened(fd);
    if (!folder)
        return NOSYS;
    if (path_len < folder->name.len)
        return NAMETOOLONG;
    return guest_write(path_out, folder->name.at, folder->name.len) ? SUCCESS : FAULT;
}

enum { ENTRY_BYTES = 24, ITSELF = 1, PARENT = 2 }; /* cookies; those of others: the node's number and PARENT */

struct listing {
    u32 buffer, left;
    u64 cookie;
    bool fits;
};

/* As much of the entry as the buffer takes: one that is cut says that there is more. */
static void list(struct listing *listing, u64 cookie, const struct node *node, struct bytes name)
{
    u8 entry[ENTRY_BYTES] = {0};
    store_u64(entry, cookie);
    store_u64(entry + 8, node->number);
    store_u32(entry + 16, name.len);
    entry[20] = node->is_folder ? TYPE_FOLDER : TYPE_FILE;
    const struct bytes parts[] = {{entry, ENTRY_BYTES}, name};
    for (u32 i = 0; i < 2; i++) {
        u32 len = parts[i].len < listing->left ? parts[i].len : listing->left;
        listing->fits &= guest_write(listing->buffer, parts[i].at, len);
        listing->buffer += len;
        listing->left -= len;
    }
}

u32 EXPORT(fd_readdir)(u32 fd, u32 buffer, u32 buffer_len, u64 cookie, u32 used_out)
{
    host_call(AT_START);
    const struct open_file *file = file_at(fd);
    if (!guest_write_u32(used_out, 0) || !guest_ok(buffer, buffer_len))
        return FAULT;
    if (!file || !file->node->is_folder)
        return NOTDIR;
    const struct node *folder = file->node, *above = folder;
    if (folder->parent && !file->preopened && !folder->removed) /* else its parent may be gone as well */
        above = folder->parent;
    struct listing listing = {buffer, buffer_len, cookie, true};
    if (cookie < ITSELF)
        list(&listing, ITSELF, folder, TEXT("."));
    if (cookie < PARENT)
        list(&listing, PARENT, above, TEXT(".."));
    for (const struct node *node = folder->children; node && listing.left; node = node->next)
        if (cookie <= PARENT || node->number + PARENT < cookie)
            list(&listing, node->number + PARENT, node, (struct bytes){node->name, node->name_len});
    if (!listing.fits || !guest_write_u32(used_out, buffer_len - listing.left))
        return FAULT;
    return SUCCESS;
}
