/*
 * WASI preview 1: file descriptors. 0 to 2 are the standard streams, the preopened folders come from 3 on.
 *
 * Without folders every function answers with an honest errno and zeroes its out-parameters.
 */
#include "files.h"

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
