/*
 * WASI preview 1: files, paths and sockets, of which there are none.
 *
 * Every function answers with an honest errno and zeroes its out-parameters. fd_prestat_get must answer 8: Go's runtime
 * accepts nothing else.
 */
#include "wasi.h"

/* ---- file descriptors -------------------------------------------------------------------------------------------- */

static u32 if_output(u32 fd)
{
    host_call(AT_START);
    return is_output(fd) ? SUCCESS : BADF;
}

static u32 store_zero(u32 out, enum errno_code code)
{
    host_call(AT_START);
    return guest_write_u32(out, 0) ? code : FAULT;
}

u32 EXPORT(fd_read)(UNUSED fd, UNUSED vectors, UNUSED count, UNUSED read_out)
{
    return answer(NOSYS);
}

u32 EXPORT(fd_pread)(UNUSED fd, UNUSED vectors, UNUSED count, UNUSED64 offset, UNUSED read_out)
{
    return answer(NOSYS);
}

u32 EXPORT(fd_seek)(u32 fd, UNUSED64 offset, UNUSED whence, u32 position_out)
{
    host_call(AT_START);
    if (!is_output(fd))
        return BADF;
    return guest_write_u64(position_out, 0) ? SUCCESS : FAULT;
}

u32 EXPORT(fd_tell)(u32 fd, u32 position_out)
{
    host_call(AT_START);
    if (!is_output(fd))
        return BADF;
    return guest_write_u64(position_out, 0) ? SUCCESS : FAULT;
}

u32 EXPORT(fd_close)(u32 fd)
{
    host_call(AT_START);
    return fd <= STDERR ? SUCCESS : BADF;
}

u32 EXPORT(fd_fdstat_get)(u32 fd, u32 stat_out)
{
    u8 stat[24] = {0};
    host_call(AT_START);
    if (!is_output(fd))
        return BADF;
    store_u64(stat + 8, RIGHT_FD_WRITE);
    return guest_write(stat_out, stat, sizeof stat) ? SUCCESS : FAULT;
}

u32 EXPORT(fd_fdstat_set_flags)(UNUSED fd, UNUSED flags)
{
    return answer(NOSYS);
}

u32 EXPORT(fd_fdstat_set_rights)(u32 fd, UNUSED64 base, UNUSED64 inheriting)
{
    return if_output(fd);
}

u32 EXPORT(fd_filestat_get)(UNUSED fd, UNUSED stat_out)
{
    return answer(BADF);
}

u32 EXPORT(fd_filestat_set_size)(u32 fd, UNUSED64 size)
{
    return if_output(fd);
}

u32 EXPORT(fd_filestat_set_times)(u32 fd, UNUSED64 access, UNUSED64 modification, UNUSED flags)
{
    return if_output(fd);
}

/* 8 means: there are no preopened directories. Go accepts no other answer. */
u32 EXPORT(fd_prestat_get)(UNUSED fd, UNUSED prestat_out)
{
    return answer(BADF);
}

u32 EXPORT(fd_prestat_dir_name)(UNUSED fd, UNUSED path_out, UNUSED path_len)
{
    return answer(NOSYS);
}

u32 EXPORT(fd_advise)(UNUSED fd, UNUSED64 offset, UNUSED64 len, UNUSED advice)
{
    return answer(SUCCESS);
}

u32 EXPORT(fd_allocate)(u32 fd, UNUSED64 offset, UNUSED64 len)
{
    return if_output(fd);
}

u32 EXPORT(fd_datasync)(u32 fd)
{
    return if_output(fd);
}

u32 EXPORT(fd_sync)(u32 fd)
{
    return if_output(fd);
}

u32 EXPORT(fd_readdir)(UNUSED fd, UNUSED buffer, UNUSED buffer_len, UNUSED64 cookie, u32 used_out)
{
    return store_zero(used_out, NOTDIR);
}

u32 EXPORT(fd_renumber)(u32 from, u32 to)
{
    return answer(is_output(from) && is_output(to) ? NOTSUP : BADF);
}

/* ---- paths ------------------------------------------------------------------------------------------------------- */

u32 EXPORT(path_open)(UNUSED fd, UNUSED lookup, UNUSED path, UNUSED path_len, UNUSED open_flags, UNUSED64 base,
                      UNUSED64 inheriting, UNUSED fd_flags, UNUSED fd_out)
{
    return answer(NOENT);
}

u32 EXPORT(path_filestat_get)(UNUSED fd, UNUSED lookup, UNUSED path, UNUSED path_len, UNUSED stat_out)
{
    return answer(NOTSUP);
}

u32 EXPORT(path_filestat_set_times)(UNUSED fd, UNUSED lookup, UNUSED path, UNUSED path_len, UNUSED64 access,
                                    UNUSED64 modification, UNUSED flags)
{
    return answer(NOTSUP);
}

u32 EXPORT(path_create_directory)(UNUSED fd, UNUSED path, UNUSED path_len)
{
    return answer(NOTSUP);
}

u32 EXPORT(path_remove_directory)(UNUSED fd, UNUSED path, UNUSED path_len)
{
    return answer(NOTSUP);
}

u32 EXPORT(path_unlink_file)(UNUSED fd, UNUSED path, UNUSED path_len)
{
    return answer(NOTSUP);
}

u32 EXPORT(path_rename)(UNUSED fd, UNUSED from, UNUSED from_len, UNUSED to_fd, UNUSED to, UNUSED to_len)
{
    return answer(NOTSUP);
}

u32 EXPORT(path_readlink)(UNUSED fd, UNUSED path, UNUSED path_len, UNUSED buffer, UNUSED buffer_len, u32 used_out)
{
    return store_zero(used_out, NOTSUP);
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
