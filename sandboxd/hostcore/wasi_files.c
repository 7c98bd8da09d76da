/*
 * WASI preview 1: file descriptors. 0 to 2 are the standard streams, the preopened folders come from 3 on.
 *
 * Without folders every function answers with an honest errno and zeroes its out-parameters. fd_prestat_get must answer
 * 8 where there is no folder: Go's runtime accepts nothing else.
 */
#include "files.h"

#define RIGHT_FD_READ 2u
#define RIGHT_FD_WRITE 64u
#define RIGHTS_ALL 0x1fffffffull
#define RIGHTS_WRITE (1ull << 6 | 1ull << 8 | 1ull << 22) /* write, allocate, set size */
#define FLAG_APPEND 1u

enum file_type { TYPE_FOLDER = 3, TYPE_FILE = 4 };

static u32 if_output(u32 fd)
{
    return is_output(fd) ? SUCCESS : BADF;
}

/* ---- reading and writing ----------------------------------------------------------------------------------------- */

/* Checks the vectors, and tells how much they hold, up to `most`. */
static u32 measure(u32 vectors, u32 count, u32 most, u32 *total)
{
    *total = 0;
    if (count > MAX_IOVECS)
        return INVAL;
    if (!guest_ok(vectors, count * 8))
        return FAULT;
    for (u32 i = 0; i < count; i++) {
        u32 vector[2];
        guest_read(vectors + 8 * i, vector, sizeof vector);
        if (!guest_ok(vector[0], vector[1]))
            return FAULT;
        *total += vector[1] < most - *total ? vector[1] : most - *total;
    }
    return SUCCESS;
}

/*
 * Copies between the vectors, which `measure` has found good, and the bytes. What is read may be written over the
 * vectors themselves: each is checked again, and there are no more than there were.
 */
static void copy(u32 vectors, u32 count, u8 *at, u32 len, bool to_guest)
{
    for (; len && count; vectors += 8, count--) {
        u32 vector[2];
        guest_read(vectors, vector, sizeof vector);
        u32 part = vector[1] < len ? vector[1] : len;
        if (to_guest)
            guest_write(vector[0], at, part);
        else
            guest_read(vector[0], at, part);
        at += part;
        len -= part;
    }
}

static u32 read_at(const struct open_file *file, u32 vectors, u32 count, u64 offset, u32 read_out, u32 *len)
{
    if (file->node->is_folder)
        return ISDIR;
    if (!file->can_read)
        return NOTCAPABLE;
    u32 left = offset < file->node->len ? file->node->len - (u32)offset : 0;
    u32 error = measure(vectors, count, left, len);
    if (error)
        return error;
    if (!guest_write_u32(read_out, *len))
        return FAULT;
    copy(vectors, count, file->node->data + (*len ? offset : 0), *len, true);
    return SUCCESS;
}

u32 EXPORT(fd_read)(u32 fd, u32 vectors, u32 count, u32 read_out)
{
    u32 len;
    host_call(AT_START);
    struct open_file *file = file_at(fd);
    if (!file)
        return NOSYS;
    u32 error = read_at(file, vectors, count, file->offset, read_out, &len);
    if (!error)
        file->offset += len;
    return error;
}

u32 EXPORT(fd_pread)(u32 fd, u32 vectors, u32 count, u64 offset, u32 read_out)
{
    u32 len;
    host_call(AT_START);
    const struct open_file *file = file_at(fd);
    return file ? read_at(file, vectors, count, offset, read_out, &len) : NOSYS;
}

static u32 write_at(const struct open_file *file, u32 vectors, u32 count, u64 offset, u32 written_out, u32 *len)
{
    struct message *message;
    if (file->node->is_folder)
        return ISDIR;
    if (!file->can_write)
        return NOTCAPABLE;
    u32 error = measure(vectors, count, MAX_CHANGE_BYTES, len);
    if (error)
        return error;
    if (!guest_ok(written_out, 4))
        return FAULT;
    if (offset > file->folder->max_bytes)
        return FBIG;
    if (*len)
        error = node_begin_write(file->folder, file->node, (u32)offset, *len, &message);
    if (error)
        return error;
    if (*len) {
        copy(vectors, count, file->node->data + offset, *len, false);
        node_end_write(file->node, (u32)offset, *len, message);
    }
    guest_write_u32(written_out, *len);
    return SUCCESS;
}

u32 file_write(struct open_file *file, u32 vectors, u32 count, u32 written_out)
{
    u32 len;
    u64 offset = file->append ? file->node->len : file->offset;
    u32 error = write_at(file, vectors, count, offset, written_out, &len);
    if (!error)
        file->offset = offset + len;
    return error;
}

u32 file_write_at(const struct open_file *file, u32 vectors, u32 count, u64 offset, u32 written_out)
{
    u32 len;
    return write_at(file, vectors, count, offset, written_out, &len);
}

/* ---- places ------------------------------------------------------------------------------------------------------ */

static u32 no_place(u32 fd, u32 position_out)
{
    if (!is_output(fd))
        return BADF;
    return guest_write_u64(position_out, 0) ? SUCCESS : FAULT;
}

u32 EXPORT(fd_seek)(u32 fd, u64 offset, u32 whence, u32 position_out)
{
    host_call(AT_START);
    struct open_file *file = file_at(fd);
    if (!file)
        return no_place(fd, position_out);
    const u64 base[] = {0, file->offset, file->node->len};
    if (file->node->is_folder)
        return ISDIR;
    if (whence > 2)
        return INVAL;
    u64 place = base[whence] + offset; /* two's complement: the offset may be negative */
    if (place >> 63)
        return INVAL;
    if (!guest_write_u64(position_out, place))
        return FAULT;
    file->offset = place;
    return SUCCESS;
}

u32 EXPORT(fd_tell)(u32 fd, u32 position_out)
{
    host_call(AT_START);
    const struct open_file *file = file_at(fd);
    if (!file)
        return no_place(fd, position_out);
    return guest_write_u64(position_out, file->offset) ? SUCCESS : FAULT;
}

u32 EXPORT(fd_close)(u32 fd)
{
    host_call(AT_START);
    if (fd <= STDERR)
        return SUCCESS;
    if (!file_at(fd))
        return BADF;
    file_close(fd);
    return SUCCESS;
}

u32 EXPORT(fd_renumber)(u32 from, u32 to)
{
    host_call(AT_START);
    if (is_output(from) && is_output(to))
        return NOTSUP;
    return file_move(from, to) ? SUCCESS : BADF;
}

/* ---- facts ------------------------------------------------------------------------------------------------------- */

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

/* ---- folders ----------------------------------------------------------------------------------------------------- */

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
