/* WASI preview 1: paths, below a folder that is open. There are no links. And sockets, of which there are none. */
#include "files.h"

enum open_flag { OPEN_CREATE = 1, OPEN_FOLDER = 2, OPEN_EXCLUSIVE = 4, OPEN_TRUNCATE = 8 };

/* The folder's descriptor, and the place below it. Without a folder: `otherwise`. */
static u32 look(u32 fd, u32 path, u32 path_len, struct open_file **from, struct place *place, enum errno_code otherwise)
{
    host_call(AT_START);
    *from = file_at(fd);
    if (!*from)
        return otherwise;
    return find_place(*from, path, path_len, place);
}

static u32 open_existing(const struct open_file *file, const struct place *place, u32 flags)
{
    if (flags & OPEN_CREATE && flags & OPEN_EXCLUSIVE)
        return EXIST;
    if (flags & OPEN_FOLDER && !place->node->is_folder)
        return NOTDIR;
    if (place->node->is_folder && (file->can_write || flags & (OPEN_TRUNCATE | OPEN_CREATE)))
        return ISDIR;
    if (flags & OPEN_TRUNCATE && !file->folder->writable)
        return ROFS;
    return SUCCESS;
}

u32 EXPORT(path_open)(u32 fd, UNUSED lookup, u32 path, u32 path_len, u32 flags, u64 base, UNUSED64 inheriting,
                      u32 fd_flags, u32 fd_out)
{
    struct open_file *from;
    struct place place;
    u32 opened, error = look(fd, path, path_len, &from, &place, NOENT);
    if (error)
        return error;
    if (!guest_ok(fd_out, 4))
        return FAULT;
    struct open_file file = {.node = place.node, .folder = from->folder, .append = fd_flags & FLAG_APPEND,
                             .can_read = base & RIGHT_FD_READ, .can_write = base & RIGHT_FD_WRITE};
    if ((file.can_write || (flags & OPEN_CREATE && !place.node)) && !from->folder->writable)
        return ROFS;
    if (place.node) {
        error = open_existing(&file, &place, flags);
    } else if (!(flags & OPEN_CREATE)) {
        error = NOENT;
    } else if (flags & OPEN_FOLDER || place.slash) {
        error = INVAL;
    }
    if (error)
        return error;
    bool fresh = !file.node;
    if (fresh) {
        error = node_make(from->folder, &place, false, &file.node);
        if (error)
            return error;
    }
    error = file_open(&file, &opened);
    if (!error && !fresh && flags & OPEN_TRUNCATE && file.node->len) {
        error = node_resize(from->folder, file.node, 0);
        if (error)
            file_close(opened);
    }
    return error ? error : guest_write_u32(fd_out, opened) ? SUCCESS : FAULT;
}

u32 EXPORT(path_filestat_get)(u32 fd, UNUSED lookup, u32 path, u32 path_len, u32 stat_out)
{
    struct open_file *from;
    struct place place;
    u32 error = look(fd, path, path_len, &from, &place, NOTSUP);
    if (error)
        return error;
    if (!place.node)
        return NOENT;
    return write_filestat(from->folder, place.node, stat_out) ? SUCCESS : FAULT;
}

u32 EXPORT(path_filestat_set_times)(UNUSED fd, UNUSED lookup, UNUSED path, UNUSED path_len, UNUSED64 access,
                                    UNUSED64 modification, UNUSED flags)
{
    return answer(NOTSUP);
}

/* As `look`, for what changes the folder. */
static u32 look_to_change(u32 fd, u32 path, u32 path_len, struct open_file **from, struct place *place)
{
    u32 error = look(fd, path, path_len, from, place, NOTSUP);
    if (error)
        return error;
    if (!(*from)->folder->writable)
        return ROFS;
    return place->parent ? SUCCESS : INVAL; /* not the folder itself */
}

u32 EXPORT(path_create_directory)(u32 fd, u32 path, u32 path_len)
{
    struct open_file *from;
    struct place place;
    struct node *made;
    u32 error = look_to_change(fd, path, path_len, &from, &place);
    if (error)
        return error == INVAL ? EXIST : error;
    return place.node ? EXIST : node_make(from->folder, &place, true, &made);
}

static u32 remove_node(u32 fd, u32 path, u32 path_len, bool is_folder)
{
    struct open_file *from;
    struct place place;
    u32 error = look_to_change(fd, path, path_len, &from, &place);
    if (error)
        return error;
    if (!place.node)
        return NOENT;
    if (place.node->is_folder != is_folder)
        return is_folder ? NOTDIR : ISDIR;
    return node_remove(from->folder, place.node);
}

u32 EXPORT(path_remove_directory)(u32 fd, u32 path, u32 path_len)
{
    return remove_node(fd, path, path_len, true);
}

u32 EXPORT(path_unlink_file)(u32 fd, u32 path, u32 path_len)
{
    return remove_node(fd, path, path_len, false);
}

u32 EXPORT(path_rename)(u32 fd, u32 path, u32 path_len, u32 to_fd, u32 to_path, u32 to_len)
{
    struct open_file *from, *target = file_at(to_fd);
    struct place place, to;
    u32 error = look_to_change(fd, path, path_len, &from, &place);
    if (error)
        return error;
    if (!target)
        return BADF;
    if (!place.node)
        return NOENT;
    if (target->folder != from->folder)
        return XDEV;
    error = find_place(target, to_path, to_len, &to);
    if (error)
        return error;
    if (!to.parent || (to.slash && !place.node->is_folder))
        return INVAL;
    return node_rename(from->folder, place.node, &to);
}

/* Whatever there is, it is no link. */
u32 EXPORT(path_readlink)(u32 fd, u32 path, u32 path_len, UNUSED buffer, UNUSED buffer_len, u32 used_out)
{
    struct open_file *from;
    struct place place;
    u32 error = look(fd, path, path_len, &from, &place, NOTSUP);
    if (!guest_write_u32(used_out, 0))
        return FAULT;
    return error ? error : place.node ? INVAL : NOENT;
}

u32 EXPORT(path_link)(UNUSED fd, UNUSED lookup, UNUSED from, UNUSED from_len, UNUSED to_fd, UNUSED to, UNUSED to_len)
{
    return answer(NOTSUP);
}

u32 EXPORT(path_symlink)(UNUSED target, UNUSED target_len, UNUSED fd, UNUSED path, UNUSED path_len)
{
    return answer(NOTSUP);
}

/* ---- sockets ----------------------------------------------------------------------------------------------------- */

static u32 store_zero(u32 out, enum errno_code code)
{
    host_call(AT_START);
    return guest_write_u32(out, 0) ? code : FAULT;
}

u32 EXPORT(sock_accept)(UNUSED fd, UNUSED flags, u32 fd_out)
{
    return store_zero(fd_out, NOTSUP);
}

u32 EXPORT(sock_recv)(UNUSED fd, UNUSED vectors, UNUSED count, UNUSED flags, u32 received_out, u32 flags_out)
{
    const u16 none = 0;
    host_call(AT_START);
    if (!guest_write_u32(received_out, 0) || !guest_write(flags_out, &none, sizeof none))
        return FAULT;
    return NOTSUP;
}

u32 EXPORT(sock_send)(UNUSED fd, UNUSED vectors, UNUSED count, UNUSED flags, u32 sent_out)
{
    return store_zero(sent_out, NOTSUP);
}

u32 EXPORT(sock_shutdown)(UNUSED fd, UNUSED how)
{
    return answer(NOTSUP);
}
