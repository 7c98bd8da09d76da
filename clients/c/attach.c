/* The attach socket, docs/attach.md: a channel is asked for, comes, and is taken away. */
#include "frames.h"
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_NAME_BYTES 255u
#define MAX_POLICY_BYTES (16u * MIB)
#define POLICY_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | F_SEAL_WRITE)

struct sbx_attachment {
    int socket;
    uint64_t max_backlog_bytes;
    sbx_policy *policy; /* while the plugin is down */
    char reason[256];
};

/* ---- connecting -------------------------------------------------------------------------------------------------- */

static int check_owner(int socket, uint32_t uid, sbx_error *error)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (uid == SBX_ANY_UID)
        return SBX_OK;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
        return fail_errno(error, "SO_PEERCRED");
    if (peer.uid != uid)
        return fail(error, SBX_PROTOCOL, "the attach socket belongs to user %u, not to %u", (unsigned)peer.uid,
                    (unsigned)uid);
    return SBX_OK;
}

static int connect_to(const char *path, sbx_error *error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t len = path ? strlen(path) : 0;
    if (!len || len >= sizeof address.sun_path) {
        fail(error, SBX_INVALID, "the attach socket's path must have 1 to %zu bytes", sizeof address.sun_path - 1);
        return -1;
    }
    memcpy(address.sun_path, path, len + 1);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof address) < 0) {
        fail_errno(error, "connecting to the attach socket");
        if (fd >= 0)
            close(fd);
        return -1;
    }
    return fd;
}

/* u16 length of the tenant, u16 of the plugin, u32 0, then both. */
static int request(int socket, const sbx_attach_options *options, sbx_error *error)
{
    const char *plugin = options->plugin ? options->plugin : "";
    size_t tenant_len = options->tenant ? strlen(options->tenant) : 0, plugin_len = strlen(plugin);
    uint8_t payload[8 + 2 * MAX_NAME_BYTES] = {0};
    if (!tenant_len || tenant_len > MAX_NAME_BYTES || plugin_len > MAX_NAME_BYTES)
        return fail(error, SBX_INVALID, "tenant and plugin have at most %u bytes, and the tenant is not empty",
                    MAX_NAME_BYTES);
    put_u32(payload, (uint32_t)tenant_len | (uint32_t)plugin_len << 16);
    memcpy(payload + 8, options->tenant, tenant_len);
    memcpy(payload + 8 + tenant_len, plugin, plugin_len);
    /* EPIPE: the daemon refused already, and said why. */
    if (frame_send(socket, FRAME_ATTACH, payload, 8 + tenant_len + plugin_len) < 0 && errno != EPIPE)
        return fail_errno(error, "sending to the daemon");
    return SBX_OK;
}

int sbx_attach_begin(const sbx_attach_options *options, sbx_attachment **attachment, sbx_error *error)
{
    *attachment = NULL;
    sbx_error local;
    sbx_error *told = error ? error : &local;
    int socket = connect_to(options->socket_path, told);
    if (socket < 0)
        return told->status;
    int status = check_owner(socket, options->daemon_uid, told);
    if (!status)
        status = request(socket, options, told);
    sbx_attachment *made = status ? NULL : calloc(1, sizeof *made);
    if (!made) {
        close(socket);
        return status ? status : fail(error, SBX_NO_MEMORY, "no memory to attach");
    }
    made->socket = socket;
    made->max_backlog_bytes = options->max_backlog_bytes;
    *attachment = made;
    return SBX_OK;
}

int sbx_attachment_fd(const sbx_attachment *attachment)
{
    return attachment->socket;
}

sbx_policy *sbx_attachment_policy(const sbx_attachment *attachment)
{
    return attachment->policy;
}

const char *sbx_attachment_reason(const sbx_attachment *attachment)
{
    return attachment->reason;
}

void sbx_attach_cancel(sbx_attachment *attachment)
{
    if (!attachment)
        return;
    if (attachment->socket >= 0)
        close(attachment->socket);
    sbx_policy_release(attachment->policy);
    free(attachment);
}

/* ---- what the daemon answers ------------------------------------------------------------------------------------- */

/* Reads a sealed file: once the seals are there nobody can change it, so it may be read piece by piece. */
static int read_policy(int fd, sbx_policy **policy, sbx_error *error)
{
    struct stat status;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & POLICY_SEALS) != POLICY_SEALS || fstat(fd, &status) < 0 || status.st_size < 0 ||
        status.st_size > (off_t)MAX_POLICY_BYTES)
        return fail(error, SBX_PROTOCOL, "the compiled policy is not sealed, or too large");
    size_t size = (size_t)status.st_size, done = 0;
    uint8_t *data = malloc(size + 1);
    if (!data)
        return fail(error, SBX_NO_MEMORY, "no memory for a policy");
    while (done < size) {
        ssize_t got = pread(fd, data + done, size - done, (off_t)done);
        if (got <= 0 && !(got < 0 && errno == EINTR))
            break;
        done += got > 0 ? (size_t)got : 0;
    }
    int result = done == size ? sbx_policy_load(data, size, policy, error)
                              : fail(error, SBX_PROTOCOL, "the compiled policy cannot be read");
    free(data);
    return result;
}

/* The plugin is configured but no VM of it runs: the channel follows on this connection when one does. */
static int take_down(sbx_attachment *attachment, struct frame *frame, sbx_error *error)
{
    sbx_policy *policy;
    if (frame->fd_count != 1)
        return fail(error, SBX_PROTOCOL, "the daemon sent no policy");
    int status = read_policy(frame->fds[0], &policy, error);
    if (status)
        return status;
    sbx_policy_release(attachment->policy);
    attachment->policy = policy;
    frame_text(frame->payload, attachment->reason, sizeof attachment->reason);
    return SBX_AGAIN;
}

/* u32 ring_bytes, u32 spin_ns, u64 channel id; memfd, eventfd of the VM, eventfd of the client, policy. */
static int take_attached(sbx_attachment *attachment, struct frame *frame, sbx_channel **channel, sbx_error *error)
{
    sbx_policy *policy;
    if (frame->fd_count != 4 || frame->payload.len != 16)
        return fail(error, SBX_PROTOCOL, "the daemon sent a malformed channel");
    int status = read_policy(frame->fds[3], &policy, error);
    if (status)
        return status;
    sbx_descriptors descriptors = {
        .memfd = frame_take_fd(frame, 0),
        .vm_event_fd = frame_take_fd(frame, 1),
        .client_event_fd = frame_take_fd(frame, 2),
        .socket = attachment->socket,
        .ring_bytes = get_u32(frame->payload.data),
        .max_backlog_bytes = attachment->max_backlog_bytes,
        .spin_ns = get_u32(frame->payload.data + 4),
    };
    attachment->socket = -1;
    status = sbx_channel_open(&descriptors, policy, channel, error);
    sbx_policy_release(policy);
    return status;
}

static int take_refused(const struct frame *frame, sbx_error *error)
{
    if (frame->payload.len < 4)
        return fail(error, SBX_PROTOCOL, "the daemon sent a malformed refusal");
    sbx_bytes text = {frame->payload.data + 4, frame->payload.len - 4};
    fail(error, SBX_REFUSED, "%.*s", (int)text.len, (const char *)text.data);
    if (error)
        error->code = (int)get_u32(frame->payload.data);
    return SBX_REFUSED;
}

static int take_answer(sbx_attachment *attachment, struct frame *frame, sbx_channel **channel, sbx_error *error)
{
    switch (frame->type) {
    case FRAME_ATTACHED:
        return take_attached(attachment, frame, channel, error);
    case FRAME_DOWN:
        return take_down(attachment, frame, error);
    case FRAME_REFUSED:
        return take_refused(frame, error);
    default:
        return fail(error, SBX_PROTOCOL, "the daemon sent a frame of type %u", frame->type);
    }
}

int sbx_attach_step(sbx_attachment *attachment, sbx_channel **channel, sbx_error *error)
{
    struct frame frame;
    *channel = NULL;
    int status;
    do {
        status = frame_receive(attachment->socket, &frame, error);
        if (status == SBX_AGAIN)
            return status;
        if (status == SBX_OK) {
            status = take_answer(attachment, &frame, channel, error);
            frame_close(&frame);
        }
    } while (status == SBX_AGAIN); /* there may be more than one frame */
    sbx_attach_cancel(attachment);
    return status;
}

int sbx_attach(const sbx_attach_options *options, uint64_t timeout_ns, sbx_channel **channel, sbx_error *error)
{
    sbx_attachment *attachment;
    uint64_t begin_ns = monotonic_ns();
    *channel = NULL;
    int status = sbx_attach_begin(options, &attachment, error);
    while (!status) {
        status = sbx_attach_step(attachment, channel, error);
        if (status != SBX_AGAIN)
            return status;
        uint64_t passed_ns = monotonic_ns() - begin_ns;
        if (passed_ns >= timeout_ns) {
            const char *reason = attachment->reason[0] ? attachment->reason : "the daemon does not answer";
            status = fail(error, SBX_TIMEOUT, "no channel in time: %.200s", reason);
            sbx_attach_cancel(attachment);
            return status;
        }
        struct pollfd fd = {.fd = attachment->socket, .events = POLLIN};
        struct timespec left = {(time_t)((timeout_ns - passed_ns) / 1000000000u),
                                (long)((timeout_ns - passed_ns) % 1000000000u)};
        ppoll(&fd, 1, &left, NULL);
        status = SBX_OK;
    }
    return status;
}

/* ---- afterwards -------------------------------------------------------------------------------------------------- */

void channel_tell_broken(sbx_channel *channel)
{
    if (channel->socket >= 0) /* a daemon that does not read learns it by its own watchdog */
        frame_send(channel->socket, FRAME_BROKEN, (const uint8_t *)channel->reason, strlen(channel->reason));
}

static int detached(sbx_channel *channel, sbx_error *error, const char *reason)
{
    channel_break(channel, SBX_DETACHED, "%s", reason);
    return fail(error, channel->dead, "%s", channel->reason);
}

static int take_notice(sbx_channel *channel, const struct frame *frame, sbx_error *error)
{
    char text[256];
    frame_text(frame->payload, text, sizeof text);
    if (frame->type == FRAME_DETACHED)
        return detached(channel, error, text);
    if (frame->type != FRAME_DRAIN)
        return detached(channel, error, "the daemon sent a frame that makes no sense");
    channel->draining = true;
    return SBX_OK;
}

int sbx_channel_check(sbx_channel *channel, sbx_error *error)
{
    struct frame frame;
    sbx_error local = {0};
    int status = channel->dead;
    while (!status && channel->socket >= 0) {
        status = frame_receive(channel->socket, &frame, &local);
        if (status == SBX_OK) {
            status = take_notice(channel, &frame, error);
            frame_close(&frame);
        } else if (status != SBX_AGAIN) {
            return detached(channel, error, local.text);
        }
    }
    if (channel->dead)
        return fail(error, channel->dead, "%s", channel->reason);
    return channel->draining ? SBX_DRAIN : SBX_OK;
}
