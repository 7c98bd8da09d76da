/*
 * Shared queues: proxy_register_shared_queue, _resolve_, _enqueue_, _dequeue_, and proxy_on_queue_ready.
 *
 * They lie in the region that the tenant's VMs share (shared.c), so names are resolved across the vm_ids of one tenant
 * and never across tenants. An id means a place in the region's table; a VM may use those that it has registered or
 * resolved itself. The VM that registered last is told of every item: it looks when another VM of its worker asks it
 * to, and now and then by itself.
 */
#include "outbox.h"
#include "shared.h"
#include "stream.h"

#define MOST_PER_TURN 32u /* proxy_on_queue_ready in one go */

STATE static struct {
    u64 known;   /* queues that this VM may use, a bit for each */
    u64 watched; /* those that it has registered */
    u32 told[MAX_QUEUES]; /* how many of the items ever enqueued it has been told of */
    u32 noticed, noticed_turn; /* the last VM that is to be told of an item, and since when */
} mine;

STATE static u8 item_copy[SCRATCH_BYTES];

static u32 place_of(u32 index)
{
    return shared.queues_at + index * QUEUE_BYTES;
}

/* Index of the queue, or MAX_QUEUES; `free` is the first that is not in use. */
static u32 find_queue(struct bytes scope, struct bytes name, u32 *free)
{
    *free = MAX_QUEUES;
    for (u32 index = 0; index < MAX_QUEUES; index++) {
        u32 at = shared_load(place_of(index) + QUEUE_NAME);
        if (at && name_is(at, scope, name))
            return index;
        if (!at && *free == MAX_QUEUES)
            *free = index;
    }
    return MAX_QUEUES;
}

/* Index of the queue that the id means, if this VM may use it; else MAX_QUEUES. */
static u32 queue_of(u32 id)
{
    return id && id <= MAX_QUEUES && mine.known >> (id - 1) & 1 ? id - 1 : MAX_QUEUES;
}

static void watch(u32 index)
{
    mine.watched |= 1ull << index;
    vm.status.queues_watched = (u32)__builtin_popcountll(mine.watched);
}

static void unwatch(u32 index)
{
    mine.watched &= ~(1ull << index);
    vm.status.queues_watched = (u32)__builtin_popcountll(mine.watched);
}

/* Under the lock: the queue of that name, made if there is none; MAX_QUEUES: no room. */
static u32 open_queue(struct bytes scope, struct bytes name)
{
    u32 free, index = find_queue(scope, name, &free);
    if (index != MAX_QUEUES)
        return index;
    u32 place = free == MAX_QUEUES ? 0 : name_put(scope, name);
    if (!place)
        return MAX_QUEUES;
    u32 at = place_of(free);
    shared_store(at + QUEUE_HEAD, 0);
    shared_store(at + QUEUE_TAIL, 0);
    shared_store(at + QUEUE_COUNT, 0);
    shared_store(at + QUEUE_NAME, place);
    return free;
}

u32 EXPORT(proxy_register_shared_queue)(u32 name, u32 name_len, u32 queue_id_out)
{
    host_call(IN_CALLBACKS);
    if (!guest_ok(name, name_len) || !guest_ok(queue_id_out, 4))
        return STATUS_INVALID_MEMORY_ACCESS;
    if (!shared.bytes || name_len > MAX_NAME_BYTES)
        return STATUS_INTERNAL_FAILURE;
    guest_read(name, scratch, name_len);
    if (!shared_lock())
        return STATUS_INTERNAL_FAILURE;
    u32 index = open_queue(vm.config.vm_id, (struct bytes){scratch, name_len});
    if (index != MAX_QUEUES)
        shared_store(place_of(index) + QUEUE_CONSUMER, shared.me);
    shared_unlock();
    if (index == MAX_QUEUES)
        return STATUS_INTERNAL_FAILURE;
    if (!(mine.watched >> index & 1))
        mine.told[index] = shared_load(place_of(index) + QUEUE_ENQUEUED);
    mine.known |= 1ull << index;
    watch(index);
    guest_write_u32(queue_id_out, index + 1);
    return STATUS_OK;
}

/* An empty vm_id means the caller's own. */
u32 EXPORT(proxy_resolve_shared_queue)(u32 vm_id, u32 vm_id_len, u32 name, u32 name_len, u32 queue_id_out)
{
    host_call(IN_CALLBACKS);
    if (!guest_ok(vm_id, vm_id_len) || !guest_ok(name, name_len) || !guest_ok(queue_id_out, 4))
        return STATUS_INVALID_MEMORY_ACCESS;
    if (!shared.bytes || name_len > MAX_NAME_BYTES || vm_id_len > MAX_NAME_BYTES)
        return STATUS_NOT_FOUND;
    guest_read(vm_id, scratch, vm_id_len);
    guest_read(name, scratch + vm_id_len, name_len);
    struct bytes scope = vm_id_len ? (struct bytes){scratch, vm_id_len} : vm.config.vm_id;
    u32 free, index = find_queue(scope, (struct bytes){scratch + vm_id_len, name_len}, &free);
    if (index == MAX_QUEUES)
        return STATUS_NOT_FOUND;
    mine.known |= 1ull << index;
    guest_write_u32(queue_id_out, index + 1);
    return STATUS_OK;
}

static void empty(u32 queue)
{
    shared_store(queue + QUEUE_HEAD, 0);
    shared_store(queue + QUEUE_TAIL, 0);
    shared_store(queue + QUEUE_COUNT, 0);
}

/*
 * Under the lock: how many items there are. A queue without a first or a last one is emptied, for it would stay as it is
 * for ever: a foe has written here, or a VM that was taken for dead and has written what was long past.
 */
static u32 items_of(u32 queue)
{
    struct bytes first, last;
    u32 count = shared_load(queue + QUEUE_COUNT);
    if (!count)
        return 0;
    if (block_data(shared_load(queue + QUEUE_HEAD), &first) && first.len <= sizeof item_copy &&
        block_data(shared_load(queue + QUEUE_TAIL), &last))
        return count;
    empty(queue);
    return 0;
}

/* Under the lock. The new item is the tail's successor before it is the tail: a repair finds it in either case. */
static bool append(u32 queue, u32 value, u32 value_len)
{
    u32 count = items_of(queue), tail = shared_load(queue + QUEUE_TAIL);
    if (count >= vm.config.limits.queue_items)
        return false;
    u32 item = block_alloc(value_len);
    if (!item)
        return false;
    guest_read(value, block_bytes(item), value_len);
    if (!shared_locked())
        return false;
    if (count)
        shared_store(tail + BLOCK_NEXT, item);
    else
        shared_store(queue + QUEUE_HEAD, item);
    shared_store(queue + QUEUE_TAIL, item);
    shared_store(queue + QUEUE_COUNT, count + 1);
    shared_store(queue + QUEUE_ENQUEUED, shared_load(queue + QUEUE_ENQUEUED) + 1);
    return true;
}

/* A full queue answers as one that is not there: the only refusal of this call that every SDK survives. */
u32 EXPORT(proxy_enqueue_shared_queue)(u32 queue_id, u32 value, u32 value_len)
{
    static const u32 no_parts[OUT_PARTS];
    host_call(IN_CALLBACKS);
    if (!guest_ok(value, value_len))
        return STATUS_INVALID_MEMORY_ACCESS;
    u32 index = queue_of(queue_id);
    if (index == MAX_QUEUES)
        return STATUS_NOT_FOUND;
    u32 queue = place_of(index);
    bool fits = value_len <= MAX_VALUE_BYTES && value_len <= vm.config.limits.shared_value_bytes;
    if (!fits || !shared_lock()) {
        shared_count(COUNT_QUEUE_FULL);
        return STATUS_NOT_FOUND;
    }
    bool done = append(queue, value, value_len);
    u32 consumer = shared_load(queue + QUEUE_CONSUMER);
    shared_unlock();
    shared_count(done ? COUNT_ENQUEUED : COUNT_QUEUE_FULL);
    if (done && consumer && (mine.noticed != consumer || mine.noticed_turn != vm.turn)) { /* once per turn will do */
        mine.noticed = consumer;
        mine.noticed_turn = vm.turn;
        struct message *notice = outbox_make(OUT_QUEUE_NOTIFY, consumer, 0, no_parts);
        if (notice)
            outbox_send(notice);
    }
    return done ? STATUS_OK : STATUS_NOT_FOUND;
}

/* Under the lock: copies the first item and takes it off. */
static u32 take_first(u32 queue, struct bytes *item)
{
    u32 count = items_of(queue), head = shared_load(queue + QUEUE_HEAD);
    struct bytes data;
    if (!count || !block_data(head, &data) || data.len > sizeof item_copy)
        return STATUS_EMPTY;
    copy_short(item_copy, data.at, data.len);
    *item = (struct bytes){item_copy, data.len};
    u32 next = shared_load(head + BLOCK_NEXT);
    if (!shared_locked())
        return STATUS_EMPTY;
    if (count > 1 && next) {
        shared_store(queue + QUEUE_COUNT, count - 1);
        shared_store(queue + QUEUE_HEAD, next);
    } else {
        empty(queue);
    }
    block_free(head);
    return STATUS_OK;
}

u32 EXPORT(proxy_dequeue_shared_queue)(u32 queue_id, u32 value_out, u32 size_out)
{
    host_call(IN_CALLBACKS);
    if (!guest_ok(value_out, 4) || !guest_ok(size_out, 4))
        return STATUS_INVALID_MEMORY_ACCESS;
    u32 index = queue_of(queue_id);
    struct bytes item;
    if (index == MAX_QUEUES)
        return STATUS_NOT_FOUND;
    if (!shared_load(place_of(index) + QUEUE_COUNT))
        return STATUS_EMPTY;
    if (!shared_lock())
        return STATUS_EMPTY;
    u32 status = take_first(place_of(index), &item);
    shared_unlock();
    return status == STATUS_OK ? return_bytes(item, value_out, size_out) : status;
}

/* Tell the guest of what came since it was last told, once for each item. */
static u32 tell(u32 index, u32 most)
{
    u32 queue = place_of(index), calls = 0;
    if (shared_load(queue + QUEUE_CONSUMER) != shared.me) { /* another VM has registered since */
        unwatch(index);
        return 0;
    }
    u32 enqueued = shared_load(queue + QUEUE_ENQUEUED), items = (u32)vm.config.limits.queue_items;
    if (enqueued - mine.told[index] > items)
        mine.told[index] = enqueued - items; /* the queue never held more */
    for (; calls < most && mine.told[index] != enqueued; calls++) {
        mine.told[index]++;
        if (callback_granted(CALLBACK_QUEUE_READY))
            call_guest(CALLBACK_QUEUE_READY, NULL, index + 1, 0);
        run_deferred();
    }
    return calls;
}

bool queues_deliver(void)
{
    u32 left = MOST_PER_TURN;
    for (u64 watched = mine.watched; watched && left; watched &= watched - 1)
        left -= tell((u32)__builtin_ctzll(watched), left);
    return left == 0;
}
