/* The preopened folders: what the configuration brings, and what the guest has open. */
#include "files.h"

STATE static struct {
    struct folder folders[MAX_FOLDERS];
    struct open_file open[MAX_OPEN_FILES];
    u32 count, max_open, in_use;
} files;

/* ---- open files -------------------------------------------------------------------------------------------------- */

#define FIRST_FD 3u

struct open_file *file_at(u32 fd)
{
    struct open_file *file = fd >= FIRST_FD && fd - FIRST_FD < MAX_OPEN_FILES ? &files.open[fd - FIRST_FD] : NULL;
    return file && file->node ? file : NULL;
}

u32 file_open(const struct open_file *file, u32 *fd)
{
    if (files.in_use >= files.max_open)
        return MFILE;
    u32 index = 0;
    while (files.open[index].node)
        index++;
    files.open[index] = *file;
    files.in_use++;
    file->node->opens++;
    *fd = index + FIRST_FD;
    return SUCCESS;
}

void file_close(u32 fd)
{
    struct open_file *file = file_at(fd);
    struct node *node = file->node;
    *file = (struct open_file){0};
    files.in_use--;
    if (--node->opens == 0 && node->removed)
        node_free(node);
}

/* `to` becomes what `from` was. */
bool file_move(u32 from, u32 to)
{
    if (!file_at(from) || !file_at(to))
        return false;
    if (from == to)
        return true;
    file_close(to);
    *(&files.open[to - FIRST_FD]) = *file_at(from);
    *file_at(from) = (struct open_file){0};
    return true;
}

/* ---- what the configuration brings ------------------------------------------------------------------------------- */

static bool take_u32(struct bytes *data, u32 *value)
{
    if (data->len < 4)
        return false;
    *value = load_u32(data->at);
    data->at += 4;
    data->len -= 4;
    return true;
}

static bool take_text(struct bytes *data, u32 len, struct bytes *text)
{
    if (len > data->len)
        return false;
    *text = (struct bytes){data->at, len};
    data->at += len;
    data->len -= len;
    return true;
}

/* u32 length of the path, u32 1 for a folder, u32 length of the data, u32 0, u64 time of change; path; data */
static bool take_entry(struct bytes *data, struct folder *folder)
{
    u32 path_len, is_folder, len, zero, low, high;
    struct bytes path, content;
    if (!take_u32(data, &path_len) || !take_u32(data, &is_folder) || !take_u32(data, &len) || !take_u32(data, &zero) ||
        !take_u32(data, &low) || !take_u32(data, &high) || !take_text(data, path_len, &path) ||
        !take_text(data, len, &content))
        return false;
    struct node *parent = folder->root;
    u32 at = 0;
    for (u32 end = 0; end < path.len; end++) {
        if (path.at[end] != '/')
            continue;
        parent = node_child(parent, (struct bytes){path.at + at, end - at});
        at = end + 1;
        if (!parent || !parent->is_folder)
            return false;
    }
    const struct bytes name = {path.at + at, path.len - at};
    if (!name.len || name.len > MAX_NAME_BYTES || node_child(parent, name))
        return false;
    struct node *node = node_new(name, is_folder);
    if (!node)
        return false;
    node->changed_ns = (u64)high << 32 | low;
    node->data = (u8 *)(uintptr_t)content.at;
    node->len = content.len;
    node_attach(node, parent);
    folder->files++;
    folder->bytes += path.len + content.len;
    return true;
}

/* u32 1 if writable, u32 most bytes, u32 most files, u32 number of entries, u32 length of the name; name; entries */
static bool take_folder(struct bytes *data, struct folder *folder)
{
    u32 writable, entries, name_len, fd;
    if (!take_u32(data, &writable) || !take_u32(data, &folder->max_bytes) || !take_u32(data, &folder->max_files) ||
        !take_u32(data, &entries) || !take_u32(data, &name_len) || !take_text(data, name_len, &folder->name))
        return false;
    folder->writable = writable;
    folder->root = node_new((struct bytes){(const u8 *)"", 0}, true);
    if (!folder->root)
        return false;
    while (entries--)
        if (!take_entry(data, folder))
            return false;
    if (folder->bytes > folder->max_bytes) /* somebody else has put more there than the guest may */
        folder->max_bytes = folder->bytes;
    const struct open_file file = {.node = folder->root, .folder = folder, .preopened = true, .can_read = true};
    return file_open(&file, &fd) == SUCCESS;
}

bool folders_start(struct bytes snapshot, u32 open_files)
{
    u32 most = open_files < MAX_OPEN_FILES - MAX_FOLDERS ? open_files : MAX_OPEN_FILES - MAX_FOLDERS;
    files.max_open = MAX_FOLDERS;
    while (snapshot.len) {
        if (files.count == MAX_FOLDERS || !take_folder(&snapshot, &files.folders[files.count]))
            return false;
        files.folders[files.count].number = files.count;
        files.count++;
    }
    files.max_open = most + files.count;
    return true;
}
