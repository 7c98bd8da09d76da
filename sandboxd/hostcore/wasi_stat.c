/* WASI preview 1: what is known of an open file, its rights and its size. */
#include "files.h"

#define RIGHTS_ALL 0x1fffffffull
#define RIGHTS_WRITE (1ull << 6 | 1ull << 8 | 1ull << 22) /* write, allocate, set size */

static u32 if_output(u32 fd)
{
    return is_output(fd) ? SUCCESS : BADF;
}

u32 EXPORT(fd_fdstat_get)(u32 fd, u32 stat_out)
{
    u8 stat[24] = {0};
    host_call(AT_START);
    const struct open_file *file = file_at(fd);
    if (!file && !is_output(fd))
        return BADF;
    if (file) {
        stat[0] = file->node->is_folder ? TYPE_FOLDER : TYPE_FILE;
        stat[2] = file->append ? FLAG_APPEND : 0;
        bool no_writing = !file->can_write && !file->node->is_folder;
        u64 without = (file->can_read ? 0 : RIGHT_FD_READ) | (no_writing ? RIGHTS_WRITE : 0);
        store_u64(stat + 8, RIGHTS_ALL & ~without);
        store_u64(stat + 16, file->node->is_folder ? RIGHTS_ALL : 0); /* of what is opened below it */
    } else {
        store_u64(stat + 8, RIGHT_FD_WRITE);
    }
    return guest_write(stat_out, stat, sizeof stat) ? SUCCESS : FAULT;
}

u32 EXPORT(fd_fdstat_set_flags)(u32 fd, u32 flags)
{
    host_call(AT_START);
    struct open_file *file = file_at(fd);
    if (!file)
        return NOSYS;
    file->append = flags & FLAG_APPEND;
    return SUCCESS;
}

/* Rights can only be given up. */
u32 EXPORT(fd_fdstat_set_rights)(u32 fd, u64 base, UNUSED64 inheriting)
{
    host_call(AT_START);
    struct open_file *file = file_at(fd);
    if (!file)
        return if_output(fd);
    file->can_read &= (base & RIGHT_FD_READ) != 0;
    file->can_write &= (base & RIGHT_FD_WRITE) != 0;
    return SUCCESS;
}

bool write_filestat(const struct folder *folder, const struct node *node, u32 stat_out)
{
    u8 stat[64] = {0};
    store_u64(stat, (u64)folder->root->number);
    store_u64(stat + 8, node->number);
    stat[16] = node->is_folder ? TYPE_FOLDER : TYPE_FILE;
    store_u64(stat + 24, node->removed ? 0 : 1);
    store_u64(stat + 32, node->len);
    for (u32 at = 40; at < 64; at += 8)
        store_u64(stat + at, node->changed_ns);
    return guest_write(stat_out, stat, sizeof stat);
}

u32 EXPORT(fd_filestat_get)(u32 fd, u32 stat_out)
{
    host_call(AT_START);
    const struct open_file *file = file_at(fd);
    if (!file)
        return BADF;
    return write_filestat(file->folder, file->node, stat_out) ? SUCCESS : FAULT;
}

static u32 resize(const struct open_file *file, u64 size)
{
    if (file->node->is_folder)
        return ISDIR;
    if (!file->can_write)
        return NOTCAPABLE;
    return size > file->folder->max_bytes ? FBIG : node_resize(file->folder, file->node, (u32)size);
}

u32 EXPORT(fd_filestat_set_size)(u32 fd, u64 size)
{
    host_call(AT_START);
    const struct open_file *file = file_at(fd);
    return file ? resize(file, size) : if_output(fd);
}

u32 EXPORT(fd_allocate)(u32 fd, u64 offset, u64 len)
{
    host_call(AT_START);
    const struct open_file *file = file_at(fd);
    if (!file)
        return if_output(fd);
    if (len == 0 || offset + len < offset)
        return INVAL;
    return offset + len > file->node->len || file->node->is_folder ? resize(file, offset + len) : SUCCESS;
}

/* Times are those of the last change. */
u32 EXPORT(fd_filestat_set_times)(u32 fd, UNUSED64 access, UNUSED64 modification, UNUSED flags)
{
    host_call(AT_START);
    return file_at(fd) ? NOTSUP : if_output(fd);
}

u32 EXPORT(fd_advise)(UNUSED fd, UNUSED64 offset, UNUSED64 len, UNUSED advice)
{
    return answer(SUCCESS);
}

/* What was written is on its way to the disk at once; nothing waits for its arrival. */
u32 EXPORT(fd_datasync)(u32 fd)
{
    host_call(AT_START);
    return file_at(fd) ? SUCCESS : if_output(fd);
}

u32 EXPORT(fd_sync)(u32 fd)
{
    host_call(AT_START);
    return file_at(fd) ? SUCCESS : if_output(fd);
}
