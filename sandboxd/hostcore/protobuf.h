/* As much of protobuf as arguments of callouts and foreign functions need. Reads what the guest has written. */
#ifndef SANDBOXD_PROTOBUF_H
#define SANDBOXD_PROTOBUF_H

#include "memory.h"

enum wire_type { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

struct field {
    u32 number;
    enum wire_type type;
    u64 value;          /* of WIRE_VARINT */
    struct bytes bytes; /* of WIRE_BYTES */
};

/* A varint; false: cut short, or longer than 64 bits. */
static inline bool take_varint(struct bytes *data, u64 *value)
{
    *value = 0;
    for (u32 shift = 0; data->len && shift < 64; shift += 7) {
        u8 byte = *data->at;
        data->at++;
        data->len--;
        *value |= (u64)(byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return shift < 63 || byte < 2;
    }
    return false;
}

static inline bool take_len(struct bytes *data, u64 len, struct bytes *taken)
{
    if (len > data->len)
        return false;
    *taken = (struct bytes){data->at, (u32)len};
    data->at += len;
    data->len -= (u32)len;
    return true;
}

/* The next field, off the front of `data`; false: malformed. Groups are. */
static inline bool take_field(struct bytes *data, struct field *field)
{
    u64 tag, len;
    if (!take_varint(data, &tag) || tag >> 3 == 0 || tag >> 32)
        return false;
    *field = (struct field){.number = (u32)(tag >> 3), .type = (enum wire_type)(tag & 7)};
    switch (field->type) {
    case WIRE_VARINT:
        return take_varint(data, &field->value);
    case WIRE_64:
        return take_len(data, 8, &field->bytes);
    case WIRE_BYTES:
        return take_varint(data, &len) && take_len(data, len, &field->bytes);
    case WIRE_32:
        return take_len(data, 4, &field->bytes);
    }
    return false;
}

#endif
