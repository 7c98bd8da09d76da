/* The preopened folders' tree, and where paths lead in it. */
#include "files.h"

STATE static u64 last_number;

/* ---- nodes ------------------------------------------------------------------------------------------------------- */

u8 *bytes_copy(struct bytes bytes)
{
    u8 *copy = heap_alloc(bytes.len ? bytes.len : 1);
    if (copy && bytes.len)
        memcpy(copy, bytes.at, bytes.len);
    return copy;
}

struct node *node_new(struct bytes name, bool is_folder)
{
    struct node *node = heap_alloc(sizeof *node);
    if (!node)
        return NULL;
    *node = (struct node){.number = ++last_number, .is_folder = is_folder, .name_len = (u8)name.len};
    node->name = bytes_copy(name);
    if (!node->name) {
        heap_free(node);
        return NULL;
    }
    return node;
}

void node_free(struct node *node)
{
    if (node->cap)
        heap_free(node->data);
    heap_free(node->name);
    heap_free(node);
}

struct node *node_child(const struct node *parent, struct bytes name)
{
    struct node *node = parent->children;
    while (node && !bytes_equal(name, (struct bytes){node->name, node->name_len}))
        node = node->next;
    return node;
}

/* Children are in descending order of their numbers, so that a listing that goes on later finds its place. */
void node_attach(struct node *node, struct node *parent)
{
    struct node **at = &parent->children;
    while (*at && (*at)->number > node->number)
        at = &(*at)->next;
    node->parent = parent;
    node->next = *at;
    *at = node;
}

void node_detach(struct node *node)
{
    struct node **at = &node->parent->children;
    while (*at != node)
        at = &(*at)->next;
    *at = node->next;
    node->next = NULL;
}

/* ---- paths ------------------------------------------------------------------------------------------------------- */

static u32 step(const struct open_file *from, struct place *place, struct bytes name, u32 *depth)
{
    if (name.len == 1 && name.at[0] == '.')
        return SUCCESS;
    if (name.len == 2 && name.at[0] == '.' && name.at[1] == '.') {
        if (place->node == from->node || !place->node->parent)
            return NOTCAPABLE; /* out of the folder */
        place->node = place->node->parent;
        (*depth)--;
        return SUCCESS;
    }
    if (name.len > MAX_NAME_BYTES || ++*depth > MAX_DEPTH)
        return NAMETOOLONG;
    place->parent = place->node;
    place->name = name;
    place->node = node_child(place->node, name);
    return SUCCESS;
}

/*
 * Parts are taken one by one below the folder that `from` has open, and never above it. There are no links. What does
 * not exist may only be the last part.
 */
u32 find_place(const struct open_file *from, u32 path, u32 path_len, struct place *place)
{
    u32 depth = 0;
    *place = (struct place){.node = from->node};
    if (!guest_ok(path, path_len))
        return FAULT;
    if (!from->node->is_folder)
        return NOTDIR;
    if (path_len > MAX_FILE_PATH_BYTES)
        return NAMETOOLONG;
    if (!path_len || from->node->removed)
        return NOENT;
    guest_read(path, scratch, path_len);
    if (scratch[0] == '/')
        return NOTCAPABLE;
    for (const struct node *node = from->node; node->parent; node = node->parent)
        depth++;
    for (u32 at = 0; at < path_len;) {
        u32 end = at;
        for (; end < path_len && scratch[end] != '/'; end++)
            if (!scratch[end])
                return INVAL;
        if (!place->node)
            return NOENT; /* its parent does not exist */
        if (end > at && !place->node->is_folder)
            return NOTDIR;
        u32 error = end > at ? step(from, place, (struct bytes){scratch + at, end - at}, &depth) : SUCCESS;
        if (error)
            return error;
        place->slash = end < path_len;
        for (at = end; at < path_len && scratch[at] == '/'; at++)
            ;
    }
    if (place->node && place->slash && !place->node->is_folder)
        return NOTDIR;
    if (place->node) {
        place->parent = place->node == from->node ? NULL : place->node->parent;
        place->name = (struct bytes){place->node->name, place->node->name_len};
    }
    return SUCCESS;
}
