/* One frame a packet, descriptors beside it: sent, received, taken apart. */
#include "frames.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#define FRAME_MAGIC 0x41584253u /* SBXA */
#define FRAME_VERSION 1u
#define FRAME_HEAD 16u

int frame_send(int socket, enum frame_type type, const uint8_t *payload, size_t len)
{
    uint8_t bytes[MAX_FRAME_BYTES] = {0};
    put_u32(bytes, FRAME_MAGIC);
    put_u32(bytes + 4, FRAME_VERSION | (uint32_t)type << 16);
    put_u32(bytes + 8, (uint32_t)len);
    memcpy(bytes + FRAME_HEAD, payload, len);
    ssize_t sent;
    do
        sent = send(socket, bytes, FRAME_HEAD + len, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -1 : 0;
}

void frame_close(struct frame *frame)
{
    for (int i = 0; i < frame->fd_count; i++)
        if (frame->fds[i] >= 0)
            close(frame->fds[i]);
    frame->fd_count = 0;
}

int frame_take_fd(struct frame *frame, int index)
{
    int fd = frame->fds[index];
    frame->fds[index] = -1;
    return fd;
}

static void take_fds(struct frame *frame, struct msghdr *message)
{
    for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
            if (frame->fd_count < MAX_FDS)
                frame->fds[frame->fd_count++] = fd;
            else
                close(fd);
        }
    }
}

int frame_receive(int socket, struct frame *frame, sbx_error *error)
{
    union {
        struct cmsghdr align;
        uint8_t bytes[CMSG_SPACE(MAX_FDS * sizeof(int))];
    } control;
    struct iovec part = {frame->bytes, sizeof frame->bytes};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    ssize_t got;
    bool reset = false;
    frame->fd_count = 0;
    do {
        got = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        /* The daemon closed without having read all: what it said before is still there behind this error. */
    } while (got < 0 && (errno == EINTR || (errno == ECONNRESET && !reset && (reset = true))));
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return SBX_AGAIN;
    if (got < 0 && errno != ECONNRESET)
        return fail_errno(error, "receiving from the daemon");
    if (got <= 0)
        return fail(error, SBX_DETACHED, "the daemon closed the connection");
    take_fds(frame, &message);
    if (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC) || (size_t)got < FRAME_HEAD ||
        get_u32(frame->bytes) != FRAME_MAGIC || get_u16(frame->bytes + 4) != FRAME_VERSION ||
        get_u32(frame->bytes + 8) != (size_t)got - FRAME_HEAD) {
        frame_close(frame);
        return fail(error, SBX_PROTOCOL, "the daemon sent a malformed frame");
    }
    frame->type = get_u16(frame->bytes + 6);
    frame->payload = (sbx_bytes){frame->bytes + FRAME_HEAD, (size_t)got - FRAME_HEAD};
    return SBX_OK;
}

void frame_text(sbx_bytes payload, char *to, size_t size)
{
    put_text(to, size, "%.*s", (int)payload.len, (const char *)payload.data);
}
