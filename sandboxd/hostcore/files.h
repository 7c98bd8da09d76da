/*
 * The preopened folders: a tree in memory (files.c), made from what the configuration brings (folders.c). What
 * the guest changes (file_changes.c) goes out as a journal, for the trusted side to do the same on disk.
 */
#ifndef SANDBOXD_FILES_H
#define SANDBOXD_FILES_H

#include "outbox.h"
#include "wasi.h"

#define MAX_FOLDERS 16u
#define MAX_DEPTH 16u
#define MAX_NAME_BYTES 255u
#define MAX_FILE_PATH_BYTES 1024u
#define MAX_OPEN_FILES 256u
#define MAX_CHANGE_BYTES (32u * KIB) /* of one write; the rest is the guest's next call */

struct node {
    struct node *parent, *next, *children; /* `next` is the next child of the parent */
    u64 number;                            /* inode */
    u64 changed_ns;
    u8 *data;       /* of a file */
    u32 len, cap;   /* `cap` 0: the data lies in the configuration and is not ours to change */
    u32 opens;
    bool is_folder;
    bool removed; /* not in the tree any more; lives while it is open */
    u8 name_len;
    u8 *name;
};

struct folder {
    struct bytes name; /* as the guest sees it */
    bool writable;
    u32 max_bytes, max_files;
    u32 bytes, files; /* in use; folders count as files, and paths as bytes */
    u32 number;       /* its place among them */
    struct node *root;
};

struct open_file {
    struct node *node; /* NULL: not open */
    struct folder *folder;
    u64 offset;
    bool preopened, can_read, can_write, append;
};

enum file_type { TYPE_FOLDER = 3, TYPE_FILE = 4 };

enum change {
    CHANGE_CREATE = 1,
    CHANGE_WRITE,
    CHANGE_RESIZE,
    CHANGE_FOLDER,
    CHANGE_UNLINK,
    CHANGE_REMOVE,
    CHANGE_RENAME,
};

bool folders_start(struct bytes snapshot, u32 open_files); /* false: malformed, or no memory */
struct open_file *file_at(u32 fd); /* NULL: not open */
u32 file_open(const struct open_file *file, u32 *fd);
void file_close(u32 fd);
bool file_move(u32 from, u32 to);

u8 *bytes_copy(struct bytes bytes); /* NULL: no memory */
struct node *node_new(struct bytes name, bool is_folder); /* NULL: no memory */
void node_free(struct node *node);
struct node *node_child(const struct node *parent, struct bytes name);
void node_attach(struct node *node, struct node *parent);
void node_detach(struct node *node);

/* Where a path leads. */
struct place {
    struct node *node;   /* NULL: nothing there */
    struct node *parent; /* NULL: the path is the folder itself */
    struct bytes name;   /* of the last part, in `scratch` */
    bool slash;          /* the path ends with one */
};
u32 find_place(const struct open_file *from, u32 path, u32 path_len, struct place *place); /* an errno */

u32 path_bytes(const struct node *node); /* of its path below the preopened folder */

/* Changes: memory and quota first, then the journal; an errno, and nothing has happened but for SUCCESS. */
u32 node_make(struct folder *folder, const struct place *place, bool is_folder, struct node **made);
u32 node_resize(struct folder *folder, struct node *node, u32 len);
/* Makes the file reach as far; the caller puts the bytes there, and ends it: there is nothing that could fail then. */
u32 node_begin_write(struct folder *folder, struct node *node, u32 from, u32 len, struct message **message);
void node_end_write(const struct node *node, u32 from, u32 len, struct message *message);
u32 node_remove(struct folder *folder, struct node *node);
u32 node_rename(struct folder *folder, struct node *node, const struct place *to);

/* wasi_files.c, wasi_stat.c */
u32 file_write(struct open_file *file, u32 vectors, u32 count, u32 written_out);
u32 file_write_at(const struct open_file *file, u32 vectors, u32 count, u64 offset, u32 written_out);
bool write_filestat(const struct folder *folder, const struct node *node, u32 stat_out);

#endif
