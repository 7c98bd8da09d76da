// Compares hosts by TCP connections. The plugin configuration names what it does; all else passes unchanged:
//
//   pass             nothing
//   trace            logs each callback
//   upper            turns both directions' letters to upper case
//   surround         puts `<` before and `>` behind each piece that it sees, both directions
//   drop             empties what comes from upstream
//   whole-lines      withholds what comes from downstream until it ends in a line end
//   whole-answers    the same for what comes from upstream
//   until-end        withholds what comes from downstream until its end
//   swap-end         as until-end, and then puts `[all]` in its place
//   pause-new        pauses in proxy_on_new_connection; upstream's first piece continues it
//   resume-down      withholds downstream data after the first piece until upstream sends something, which continues it
//   close-new        closes the connection in proxy_on_new_connection
//   close-down       closes downstream when downstream sends `close`
//   close-up         closes upstream when downstream sends `close`
//   close-answer     closes downstream when upstream sends `close`
//   trap             traps when downstream sends `trap`
//   address          puts `source.address` and a line end before what upstream sends
//   property         sets the property `tcp.down` to what downstream has sent last, `tcp.up` to what upstream has, and
//                    `tcp.new` to `yes`
#include "proxy_wasm.h"

enum { DOWNSTREAM_DATA = 2, UPSTREAM_DATA = 3 };
enum { DOWNSTREAM = 2, UPSTREAM = 3 };
enum { PLUGIN_CONFIGURATION = 7 };
enum { MAX_NAME = 32, MAX_CONNECTIONS = 256 };

static char behaviour[MAX_NAME + 1];
static uint8_t pieces[MAX_CONNECTIONS]; // how many downstream pieces a connection has brought, by context id

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

static bool is(const char *name) {
    size_t at = 0;
    while (name[at] != 0 && name[at] == behaviour[at]) at++;
    return name[at] == behaviour[at];
}

static bool read_data(uint32_t buffer, char **data, size_t *size) {
    *data = NULL, *size = 0;
    return proxy_get_buffer_bytes(buffer, 0, WHOLE_BUFFER, data, size) == STATUS_OK;
}

static void set_to_data(const char *path, size_t path_size, uint32_t buffer) {
    char *data;
    size_t size;
    if (is("property") && read_data(buffer, &data, &size) && size > 0) proxy_set_property(path, path_size, data, size);
}

static bool says(uint32_t buffer, const char *word) {
    char *data;
    size_t size, at = 0;
    if (!read_data(buffer, &data, &size)) return false;
    while (at < size && word[at] != 0 && data[at] == word[at]) at++;
    return word[at] == 0;
}

static void upper(uint32_t buffer) {
    char *data;
    size_t size;
    if (!read_data(buffer, &data, &size)) return;
    for (size_t at = 0; at < size; at++)
        if (data[at] >= 'a' && data[at] <= 'z') data[at] -= 'a' - 'A';
    proxy_set_buffer_bytes(buffer, 0, size, data, size);
}

static void surround(uint32_t buffer) {
    proxy_set_buffer_bytes(buffer, 0, 0, TEXT("<"));
    proxy_set_buffer_bytes(buffer, WHOLE_BUFFER, 0, TEXT(">"));
}

static bool whole_line(uint32_t buffer) {
    char *data;
    size_t size;
    return !read_data(buffer, &data, &size) || size == 0 || data[size - 1] == '\n';
}

static void trace(const char *what, size_t what_size, uint32_t number, uint32_t end) {
    char line[64];
    size_t size = 0;
    if (!is("trace")) return;
    for (; size < what_size; size++) line[size] = what[size];
    line[size++] = ' ';
    char digits[10];
    size_t count = 0;
    do digits[count++] = (char)('0' + number % 10), number /= 10;
    while (number != 0);
    while (count > 0) line[size++] = digits[--count];
    if (end) line[size++] = '.';
    proxy_log(LOG_INFO, line, size);
}

uint32_t WASM_EXPORT(proxy_on_configure)(uint32_t context, uint32_t size) {
    (void)context;
    char *text = NULL;
    size_t length = 0;
    arena_reset();
    if (size > MAX_NAME) return 0;
    if (size != 0 && proxy_get_buffer_bytes(PLUGIN_CONFIGURATION, 0, size, &text, &length) != STATUS_OK) return 0;
    for (size_t at = 0; at < length; at++) behaviour[at] = text[at];
    behaviour[length] = 0;
    return 1;
}

void WASM_EXPORT(proxy_on_context_create)(uint32_t context, uint32_t parent) {
    (void)parent;
    pieces[context % MAX_CONNECTIONS] = 0;
}

uint32_t WASM_EXPORT(proxy_on_new_connection)(uint32_t context) {
    (void)context;
    trace(TEXT("new"), 0, 0);
    if (is("close-new")) proxy_close_stream(DOWNSTREAM);
    if (is("property")) proxy_set_property(TEXT("tcp\0new"), TEXT("yes"));
    return is("pause-new") ? ACTION_PAUSE : ACTION_CONTINUE;
}

uint32_t WASM_EXPORT(proxy_on_downstream_data)(uint32_t context, uint32_t size, uint32_t end) {
    arena_reset();
    trace(TEXT("down"), size, end);
    if (is("upper")) upper(DOWNSTREAM_DATA);
    set_to_data(TEXT("tcp\0down"), DOWNSTREAM_DATA);
    if (is("surround")) surround(DOWNSTREAM_DATA);
    if (is("whole-lines") && !end && !whole_line(DOWNSTREAM_DATA)) return ACTION_PAUSE;
    if ((is("until-end") || is("swap-end")) && !end) return ACTION_PAUSE;
    if (is("swap-end")) proxy_set_buffer_bytes(DOWNSTREAM_DATA, 0, size, TEXT("[all]"));
    if (is("resume-down") && ++pieces[context % MAX_CONNECTIONS] > 1) return ACTION_PAUSE;
    if (is("close-down") && says(DOWNSTREAM_DATA, "close")) proxy_close_stream(DOWNSTREAM);
    if (is("close-up") && says(DOWNSTREAM_DATA, "close")) proxy_close_stream(UPSTREAM);
    if (is("trap") && says(DOWNSTREAM_DATA, "trap")) __builtin_trap();
    return ACTION_CONTINUE;
}

uint32_t WASM_EXPORT(proxy_on_upstream_data)(uint32_t context, uint32_t size, uint32_t end) {
    (void)context;
    arena_reset();
    trace(TEXT("up"), size, end);
    if (is("upper")) upper(UPSTREAM_DATA);
    set_to_data(TEXT("tcp\0up"), UPSTREAM_DATA);
    if (is("surround")) surround(UPSTREAM_DATA);
    if (is("drop")) proxy_set_buffer_bytes(UPSTREAM_DATA, 0, size, TEXT(""));
    if (is("whole-answers") && !end && !whole_line(UPSTREAM_DATA)) return ACTION_PAUSE;
    if (is("pause-new") || is("resume-down")) proxy_continue_stream(DOWNSTREAM);
    if (is("close-answer") && says(UPSTREAM_DATA, "close")) proxy_close_stream(DOWNSTREAM);
    if (is("address")) {
        char *address = NULL;
        size_t length = 0;
        if (proxy_get_property(TEXT("source\0address"), &address, &length) == STATUS_OK) {
            proxy_set_buffer_bytes(UPSTREAM_DATA, 0, 0, TEXT("\n"));
            proxy_set_buffer_bytes(UPSTREAM_DATA, 0, 0, address, length);
        }
    }
    return ACTION_CONTINUE;
}

void WASM_EXPORT(proxy_on_downstream_connection_close)(uint32_t context, uint32_t peer) {
    (void)context;
    trace(TEXT("down-close"), peer, 0);
}

void WASM_EXPORT(proxy_on_upstream_connection_close)(uint32_t context, uint32_t peer) {
    (void)context;
    trace(TEXT("up-close"), peer, 0);
}

uint32_t WASM_EXPORT(proxy_on_done)(uint32_t context) {
    (void)context;
    trace(TEXT("done"), 0, 0);
    return 1;
}

void WASM_EXPORT(proxy_on_log)(uint32_t context) {
    (void)context;
    trace(TEXT("log"), 0, 0);
}
