// Compares hosts by their foreign functions. The request header `x-foreign` holds commands, parted by `;`, which run in
// the request's headers callback; `x-foreign-response` holds those of the response's. The plugin configuration holds
// commands for proxy_on_configure. What each answered stands, parted by `; `, in the response's headers `x-request`,
// `x-response` and `x-start`: the request is changed by the command `header` alone, for a change has its own effect on
// the route. Bytes are hexadecimal, `-` is none; a status comes first.
//
//   call NAME BYTES   the result; of a failure, whether the out-parameters were `kept` or `written`
//   blind NAME BYTES  the same call with neither out-parameter; `size` and `address`: with that one alone
//   pack BYTES        compresses and uncompresses: both statuses, and whether the bytes are the `same`
//   fill SIZE         the same with as many bytes
//   set PATH BYTES    and `get PATH`: properties; the path's segments are parted by `/`
//   header NAME VALUE sets a request header
#include "filter.h"

enum { MAX_PATH = 128, MAX_RESULT = 4096, MAX_COMMANDS = 4096 };
#define UNTOUCHED 0xABABABABu

struct result {
    size_t size;
    char bytes[MAX_RESULT];
};

static struct result of_request, of_response, of_start;
static struct text later; // for the response; requests come one after the other

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

static void say_bytes(struct result *result, struct text bytes) {
    static const char digits[] = "0123456789abcdef";
    if (bytes.size > (MAX_RESULT - result->size) / 2) {
        say_number(result, bytes.size);
        return say(result, LITERAL(" bytes"));
    }
    for (size_t i = 0; i < bytes.size; i++) {
        uint8_t byte = (uint8_t)bytes.at[i];
        result->bytes[result->size++] = digits[byte >> 4];
        result->bytes[result->size++] = digits[byte & 15];
    }
}

// What stands before the separator; the rest stays.
static struct text part(struct text *left, char separator) {
    struct text found = {left->at, 0};
    while (found.size < left->size && found.at[found.size] != separator) found.size++;
    size_t skip = found.size < left->size ? found.size + 1 : found.size;
    left->at += skip, left->size -= skip;
    return found;
}

static uint8_t nibble(char digit) {
    return (uint8_t)(is_digit(digit) ? digit - '0' : digit - 'a' + 10);
}

static struct text word(struct text *left) {
    struct text found = part(left, ' ');
    return same(found, LITERAL("-")) ? LITERAL("") : found;
}

static struct text bytes_of(struct text digits) {
    size_t size = digits.size / 2;
    char *bytes = proxy_on_memory_allocate(size);
    if (bytes == NULL) return LITERAL("");
    for (size_t i = 0; i < size; i++)
        bytes[i] = (char)(nibble(digits.at[2 * i]) << 4 | nibble(digits.at[2 * i + 1]));
    return (struct text){bytes, size};
}

static uint32_t foreign(struct text name, struct text arguments, struct text *found) {
    char *at = NULL;
    size_t size = 0;
    uint32_t status = proxy_call_foreign_function(SPREAD(name), SPREAD(arguments), &at, &size);
    *found = (struct text){at, size};
    return status;
}

// The out-parameters hold a mark, so that it shows who writes them when.
static void call(struct result *result, struct text name, struct text arguments) {
    char *at = (char *)(uintptr_t)UNTOUCHED;
    size_t size = UNTOUCHED;
    uint32_t status = proxy_call_foreign_function(SPREAD(name), SPREAD(arguments), &at, &size);
    say_number(result, status);
    bool kept = (uintptr_t)at == UNTOUCHED && size == UNTOUCHED;
    if (status != STATUS_OK || kept) return say(result, kept ? LITERAL(" kept") : LITERAL(" written"));
    say(result, LITERAL("="));
    say_bytes(result, (struct text){at, size});
}

static void call_partly(struct result *result, struct text what, struct text name, struct text arguments) {
    char *at = NULL;
    size_t size = 0;
    bool sized = same(what, LITERAL("size")), found = same(what, LITERAL("address"));
    say_number(result,
               proxy_call_foreign_function(SPREAD(name), SPREAD(arguments), found ? &at : NULL, sized ? &size : NULL));
    if (!sized) return;
    say(result, LITERAL("="));
    say_number(result, size);
}

static void pack(struct result *result, struct text bytes) {
    struct text packed, unpacked;
    uint32_t status = foreign(LITERAL("compress"), bytes, &packed);
    say_number(result, status);
    if (status != STATUS_OK) return;
    say(result, packed.size < bytes.size ? LITERAL(" smaller ") : LITERAL(" not smaller "));
    say_number(result, foreign(LITERAL("uncompress"), packed, &unpacked));
    say(result, same(bytes, unpacked) ? LITERAL(" same") : LITERAL(" different"));
}

static void fill(struct result *result, struct text size) {
    uint64_t number = 0;
    char *bytes = NULL;
    if (text_number(size, &number)) bytes = proxy_on_memory_allocate((size_t)number);
    if (bytes == NULL) return say(result, LITERAL("?"));
    for (size_t i = 0; i < number; i++) bytes[i] = (char)(i / 1000);
    pack(result, (struct text){bytes, (size_t)number});
}

static struct text path_of(struct text text) {
    static char path[MAX_PATH];
    size_t size = text.size < sizeof path ? text.size : sizeof path;
    for (size_t i = 0; i < size; i++) path[i] = text.at[i] == '/' ? 0 : text.at[i];
    return (struct text){path, size};
}

static void get(struct result *result, struct text path) {
    char *at = NULL;
    size_t size = 0;
    uint32_t status = proxy_get_property(SPREAD(path), &at, &size);
    say_number(result, status);
    if (status != STATUS_OK) return;
    say(result, LITERAL("="));
    say_bytes(result, (struct text){at, size});
}

static void run(struct result *result, struct text left) {
    struct text name = word(&left), first = word(&left), second = word(&left);
    if (same(name, LITERAL("call"))) {
        call(result, first, bytes_of(second));
    } else if (same(name, LITERAL("blind")) || same(name, LITERAL("size")) || same(name, LITERAL("address"))) {
        call_partly(result, name, first, bytes_of(second));
    } else if (same(name, LITERAL("pack"))) {
        pack(result, bytes_of(first));
    } else if (same(name, LITERAL("fill"))) {
        fill(result, first);
    } else if (same(name, LITERAL("set"))) {
        struct text path = path_of(first), value = bytes_of(second);
        say_number(result, proxy_set_property(SPREAD(path), SPREAD(value)));
    } else if (same(name, LITERAL("get"))) {
        get(result, path_of(first));
    } else if (same(name, LITERAL("header"))) {
        say_number(result, proxy_replace_header_map_value(REQUEST_HEADERS, SPREAD(first), SPREAD(second)));
    } else {
        say(result, LITERAL("?"));
    }
}

static void run_all(struct result *result, struct text commands) {
    result->size = 0;
    while (commands.size) {
        run(result, part(&commands, ';'));
        if (commands.size) say(result, LITERAL("; "));
    }
}

uint32_t WASM_EXPORT(proxy_on_configure)(uint32_t context, uint32_t size) {
    (void)context;
    char *text = NULL;
    size_t got = 0;
    arena_reset();
    if (size && proxy_get_buffer_bytes(PLUGIN_CONFIGURATION, 0, size, &text, &got) != STATUS_OK) return 0;
    run_all(&of_start, (struct text){text, got});
    return 1;
}

static void keep_for_response(void) {
    static char kept[MAX_COMMANDS];
    struct text commands;
    later = (struct text){kept, 0};
    if (!header(REQUEST_HEADERS, LITERAL("x-foreign-response"), &commands) || commands.size > sizeof kept) return;
    put_bytes(kept, SPREAD(commands));
    later.size = commands.size;
}

uint32_t WASM_EXPORT(proxy_on_request_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)context, (void)count, (void)end_of_stream;
    struct text commands;
    arena_reset();
    keep_for_response();
    if (!header(REQUEST_HEADERS, LITERAL("x-foreign"), &commands)) commands = LITERAL("");
    run_all(&of_request, commands);
    return ACTION_CONTINUE;
}

uint32_t WASM_EXPORT(proxy_on_response_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)context, (void)count, (void)end_of_stream;
    arena_reset();
    run_all(&of_response, later);
    set_header(RESPONSE_HEADERS, LITERAL("x-request"), (struct text){of_request.bytes, of_request.size});
    set_header(RESPONSE_HEADERS, LITERAL("x-response"), (struct text){of_response.bytes, of_response.size});
    set_header(RESPONSE_HEADERS, LITERAL("x-start"), (struct text){of_start.bytes, of_start.size});
    return ACTION_CONTINUE;
}
