// Compares hosts by timers, shared data and shared queues. The request header `x-state` holds commands, parted by `;`;
// `x-result` in the request says what each answered, parted by `;`: a status, and `=` and a value if there is one.
//
//   get KEY              the value, and `cas` if its number is not 0
//   set KEY VALUE CAS    CAS: `0`, `last` (of the last get), `stale` (another). VALUE `-`: empty
//   big KEY SIZE         sets as many bytes; `size KEY`: their number
//   register NAME        and `resolve VM NAME` (VM `-`: no name): `same` queue as before or `new`; used from now on
//   enqueue VALUE        and `dequeue`; `unknown`: both on a queue that does not exist
//   tick MS              sets the period. `ticks`: `none`, `one`, `many` since the last look
//   ready                how often `proxy_on_queue_ready` ran for this queue since the last look
//   take                 from now on `proxy_on_queue_ready` dequeues
//   later COMMAND        runs in the next tick, which it asks for: `report` tells what came of it
#include "filter.h"

enum { MAX_RESULT = 2048, BIG = 65536 };

struct result {
    size_t size;
    char bytes[MAX_RESULT];
};

static struct result of_request, of_root;
static struct setting_text later_commands;
static uint32_t queue, last_cas, ticks, ready, root_context;
static bool takes;

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

static void say(struct result *result, struct text text) {
    if (text.size > MAX_RESULT - result->size) return;
    put_bytes(result->bytes + result->size, SPREAD(text));
    result->size += text.size;
}

static void say_number(struct result *result, uint64_t number) {
    char digits[NUMBER_DIGITS];
    say(result, number_text(digits, number));
}

static void say_value(struct result *result, uint32_t status, const char *value, size_t size) {
    say_number(result, status);
    if (status != STATUS_OK) return;
    say(result, LITERAL("="));
    say(result, (struct text){value, size});
}

// What stands before the separator; the rest stays.
static struct text part(struct text *left, char separator) {
    struct text found = {left->at, 0};
    while (found.size < left->size && found.at[found.size] != separator) found.size++;
    size_t skip = found.size < left->size ? found.size + 1 : found.size;
    left->at += skip, left->size -= skip;
    return found;
}

static struct text word(struct text *left) {
    struct text found = part(left, ' ');
    return same(found, LITERAL("-")) ? LITERAL("") : found;
}

static uint32_t get(struct text key, struct text *value) {
    char *at = NULL;
    size_t size = 0;
    last_cas = 0;
    uint32_t status = proxy_get_shared_data(SPREAD(key), &at, &size, &last_cas);
    *value = (struct text){at, size};
    return status;
}

static void set(struct result *result, struct text key, struct text value, struct text cas) {
    uint32_t number = same(cas, LITERAL("last")) ? last_cas : same(cas, LITERAL("stale")) ? last_cas + 1000000 : 0;
    say_number(result, proxy_set_shared_data(SPREAD(key), SPREAD(value), number));
}

static void set_big(struct result *result, struct text key, struct text size) {
    static char bytes[BIG];
    uint64_t number = 0;
    if (!text_number(size, &number) || number > BIG) return say(result, LITERAL("?"));
    say_number(result, proxy_set_shared_data(SPREAD(key), bytes, (size_t)number, 0));
}

static void use_queue(struct result *result, uint32_t status, uint32_t found) {
    say_number(result, status);
    if (status != STATUS_OK) return;
    say(result, found == queue ? LITERAL("=same") : LITERAL("=new"));
    queue = found;
}

static void dequeue(struct result *result, uint32_t from) {
    char *value = NULL;
    size_t size = 0;
    uint32_t status = proxy_dequeue_shared_queue(from, &value, &size);
    say_value(result, status, value, size);
}

static void tell_ticks(struct result *result) {
    say(result, ticks == 0 ? LITERAL("none") : ticks == 1 ? LITERAL("one") : LITERAL("many"));
    ticks = 0;
}

static void set_later(struct result *result, struct text commands) {
    if (commands.size > MAX_SETTING_TEXT) return say(result, LITERAL("?"));
    put_bytes(later_commands.bytes, SPREAD(commands));
    later_commands.size = commands.size;
    of_root.size = 0;
    takes = false;
    say_number(result, proxy_set_tick_period_milliseconds(5));
}

static void run_state(struct result *result, struct text name, struct text left) {
    struct text value = {0}, key;
    uint32_t found = 0;
    uint64_t number = 0;
    if (same(name, LITERAL("get"))) {
        uint32_t status = get(word(&left), &value);
        say_value(result, status, SPREAD(value));
        if (last_cas) say(result, LITERAL(" cas"));
    } else if (same(name, LITERAL("set"))) {
        key = word(&left), value = word(&left);
        set(result, key, value, word(&left));
    } else if (same(name, LITERAL("big"))) {
        key = word(&left);
        set_big(result, key, word(&left));
    } else if (same(name, LITERAL("size"))) {
        say_number(result, get(word(&left), &value));
        say(result, LITERAL("="));
        say_number(result, value.size);
    } else if (same(name, LITERAL("register"))) {
        value = word(&left);
        uint32_t status = proxy_register_shared_queue(SPREAD(value), &found);
        use_queue(result, status, found);
    } else if (same(name, LITERAL("resolve"))) {
        key = word(&left), value = word(&left);
        uint32_t status = proxy_resolve_shared_queue(SPREAD(key), SPREAD(value), &found);
        use_queue(result, status, found);
    } else if (same(name, LITERAL("tick")) && text_number(left, &number)) {
        say_number(result, proxy_set_tick_period_milliseconds((uint32_t)number));
    } else {
        say(result, LITERAL("?"));
    }
}

static void run(struct result *result, struct text left) {
    struct text name = word(&left);
    if (same(name, LITERAL("enqueue"))) {
        struct text value = word(&left);
        say_number(result, proxy_enqueue_shared_queue(queue, SPREAD(value)));
    } else if (same(name, LITERAL("dequeue"))) {
        dequeue(result, queue);
    } else if (same(name, LITERAL("unknown"))) {
        say_number(result, proxy_enqueue_shared_queue(12345678, TEXT("value")));
        dequeue(result, 12345678);
    } else if (same(name, LITERAL("ticks"))) {
        tell_ticks(result);
    } else if (same(name, LITERAL("ready"))) {
        say_number(result, ready);
        ready = 0;
    } else if (same(name, LITERAL("take"))) {
        takes = true;
        of_root.size = 0;
    } else if (same(name, LITERAL("report"))) {
        say(result, (struct text){of_root.bytes, of_root.size});
    } else if (same(name, LITERAL("later"))) {
        set_later(result, left);
    } else {
        run_state(result, name, left);
    }
}

uint32_t WASM_EXPORT(proxy_on_configure)(uint32_t context, uint32_t size) {
    (void)size;
    root_context = context;
    return 1;
}

uint32_t WASM_EXPORT(proxy_on_request_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)context, (void)count, (void)end_of_stream;
    struct text commands;
    arena_reset();
    of_request.size = 0;
    if (!header(REQUEST_HEADERS, LITERAL("x-state"), &commands)) return ACTION_CONTINUE;
    while (commands.size) {
        run(&of_request, part(&commands, ';'));
        if (commands.size) say(&of_request, LITERAL("; "));
    }
    set_header(REQUEST_HEADERS, LITERAL("x-result"), (struct text){of_request.bytes, of_request.size});
    return ACTION_CONTINUE;
}

void WASM_EXPORT(proxy_on_tick)(uint32_t context) {
    arena_reset();
    ticks++;
    if (!later_commands.size) return;
    say(&of_root, context == root_context ? LITERAL("root ") : LITERAL("another "));
    run(&of_root, setting_value(&later_commands));
    later_commands.size = 0;
    proxy_set_tick_period_milliseconds(0);
}

void WASM_EXPORT(proxy_on_queue_ready)(uint32_t context, uint32_t which) {
    arena_reset();
    if (which == queue) ready++;
    if (!takes) return;
    say(&of_root, context == root_context ? LITERAL("root ") : LITERAL("another "));
    dequeue(&of_root, which);
    say(&of_root, LITERAL(","));
}
