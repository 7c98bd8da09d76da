/* Frames of the attach socket, docs/attach.md. */
#ifndef SBX_FRAMES_H
#define SBX_FRAMES_H

#include "data.h"

#define MAX_FRAME_BYTES 4096u
#define MAX_FDS 4

enum frame_type {
    FRAME_ATTACH = 1,
    FRAME_BROKEN = 2,
    FRAME_ATTACHED = 16,
    FRAME_DOWN = 17,
    FRAME_REFUSED = 18,
    FRAME_DRAIN = 19,
    FRAME_DETACHED = 20,
};

struct frame {
    unsigned type;
    uint8_t bytes[MAX_FRAME_BYTES];
    sbx_bytes payload; /* in `bytes` */
    int fds[MAX_FDS];
    int fd_count;
};

/* 0, or -1 with errno; `len` fits a frame. */
int frame_send(int socket, enum frame_type type, const uint8_t *payload, size_t len);
void frame_close(struct frame *frame);
/* Takes a descriptor out of the frame, which then does not close it. */
int frame_take_fd(struct frame *frame, int index);
/* SBX_OK, SBX_AGAIN, SBX_DETACHED (the daemon closed), SBX_PROTOCOL, SBX_SYSTEM. Descriptors are the frame's. */
int frame_receive(int socket, struct frame *frame, sbx_error *error);
/* What a frame says to people, made printable. */
void frame_text(sbx_bytes payload, char *to, size_t size);

#endif
