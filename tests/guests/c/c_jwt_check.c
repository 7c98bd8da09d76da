// JWT check: lets a request pass if it has a bearer token (RFC 7519) that is signed with HS256, in force, and from whom
// and for whom it should be. Claims go on to the upstream as headers.
//
// Configuration:
//   {"secret": "...",           of 32 to 256 bytes; required
//    "issuer": "",              if given, what `iss` must be
//    "audience": "",            if given, what `aud` must be, as a string or one item of a list
//    "claims": "sub scope",     strings and whole numbers that go on, as `prefix` and the claim's name
//    "prefix": "x-jwt-",        what clients send under it is removed, so that nobody can pretend
//    "leeway_s": 30,            by which clocks may differ
//    "need_exp": 1,             0: a token without `exp` is good for ever
//    "keep_token": 0}           1: `authorization` goes on to the upstream
//
// Anything else is answered with 401 and says in `www-authenticate` what is wrong. Algorithms other than HS256, `crit`,
// and claims that occur twice are refused. The plugin sees `authorization` only if its policy shows it.
// Metrics: `jwt_check.allowed`, `jwt_check.refused`.
#include "json.h"
#include "sha256.h"

enum { MAX_TOKEN = 8192, MAX_CLAIMS = 8, MIN_SECRET = 32 };

static struct setting_text secret, issuer, audience, claims = {9, "sub scope"}, prefix = {6, "x-jwt-"};
static uint64_t leeway_s = 30, need_exp = 1, keep_token;
static uint32_t allowed_metric, refused_metric;

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

static const struct setting settings[] = {
    {.name = {TEXT("secret")}, .text = &secret},
    {.name = {TEXT("issuer")}, .text = &issuer},
    {.name = {TEXT("audience")}, .text = &audience},
    {.name = {TEXT("claims")}, .text = &claims},
    {.name = {TEXT("prefix")}, .text = &prefix},
    {.name = {TEXT("leeway_s")}, .number = &leeway_s, .most = 3600},
    {.name = {TEXT("need_exp")}, .number = &need_exp, .most = 1},
    {.name = {TEXT("keep_token")}, .number = &keep_token, .most = 1},
};

uint32_t WASM_EXPORT(proxy_on_configure)(uint32_t context, uint32_t size) {
    (void)context;
    arena_reset();
    if (!configure(size, settings, sizeof settings / sizeof *settings)) return 0;
    if (secret.size < MIN_SECRET || prefix.size == 0) {
        proxy_log(LOG_ERROR, TEXT("the secret has less than 32 bytes, or the prefix is empty"));
        return 0;
    }
    uint32_t failed = proxy_define_metric(METRIC_COUNTER, TEXT("jwt_check.allowed"), &allowed_metric);
    failed |= proxy_define_metric(METRIC_COUNTER, TEXT("jwt_check.refused"), &refused_metric);
    return failed == STATUS_OK;
}

// ---- base64url without padding (RFC 7515)

static int digit64(char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (is_digit(c)) return c - '0' + 52;
    return c == '-' ? 62 : c == '_' ? 63 : -1;
}

// Into `buffer`, which has room for three quarters. False if a character is wrong, or bits are left over: so that no
// two texts stand for the same bytes.
static bool decode64(struct text text, char *buffer, struct text *decoded) {
    uint32_t bits = 0, have = 0;
    size_t size = 0;
    if (text.size % 4 == 1) return false;
    for (size_t i = 0; i < text.size; i++) {
        int digit = digit64(text.at[i]);
        if (digit < 0) return false;
        bits = (bits << 6 | (uint32_t)digit) & 0xffff;
        have += 6;
        if (have < 8) continue;
        have -= 8;
        buffer[size++] = (char)(bits >> have);
    }
    *decoded = (struct text){buffer, size};
    return (bits & ((1u << have) - 1)) == 0;
}

// ---- what a token says

static struct {
    bool algorithm, issuer, audience, expires, begins;
    uint64_t exp, nbf;
    struct text names[MAX_CLAIMS], values[MAX_CLAIMS];
    uint32_t count;
} token;

static bool is_text(const struct json_value *value, struct text wanted) {
    return value->kind == '"' && !value->escaped && same(value->text, wanted);
}

static bool in_header(struct text name, const struct json_value *value) {
    if (same(name, LITERAL("crit"))) return false; // what it names has to be understood, and nothing is
    if (!same(name, LITERAL("alg"))) return true;
    if (token.algorithm || !is_text(value, LITERAL("HS256"))) return false;
    return token.algorithm = true;
}

// Seconds; fractions are cut off.
static bool take_time(const struct json_value *value, bool *have, uint64_t *time) {
    struct text whole = {value->text.at, 0};
    while (whole.size < value->text.size && value->text.at[whole.size] != '.') whole.size++;
    if (*have || value->kind != '0' || !text_number(whole, time) || *time > UINT64_MAX / 2) return false;
    return *have = true;
}

static bool has_audience(const struct json_value *value) {
    struct text wanted = setting_value(&audience), list = value->text;
    struct json_value item;
    if (value->kind != '[') return is_text(value, wanted);
    if (!take_char(&list, '[')) return false;
    do
        if (json_value(&list, &item, 0) && is_text(&item, wanted)) return true;
    while (take_char(&list, ','));
    return false;
}

// Whether the settings' list of claims, parted by spaces, has this name.
static bool wanted_claim(struct text name) {
    struct text left = setting_value(&claims);
    while (left.size) {
        struct text word = {left.at, 0};
        while (word.size < left.size && left.at[word.size] != ' ') word.size++;
        if (word.size && same(word, name)) return true;
        size_t skip = word.size < left.size ? word.size + 1 : word.size;
        left.at += skip, left.size -= skip;
    }
    return false;
}

static bool printable(struct text text) {
    for (size_t i = 0; i < text.size; i++)
        if (text.at[i] < ' ' || text.at[i] > '~') return false;
    return text.size < MAX_SETTING_TEXT;
}

static bool keep_claim(struct text name, const struct json_value *value) {
    for (uint32_t i = 0; i < token.count; i++)
        if (same(token.names[i], name)) return false;
    bool text = value->kind == '"' && !value->escaped;
    if ((!text && value->kind != '0') || !printable(value->text) || token.count == MAX_CLAIMS) return false;
    token.names[token.count] = name;
    token.values[token.count++] = value->text;
    return true;
}

static bool in_claims(struct text name, const struct json_value *value) {
    if (same(name, LITERAL("exp")) && !take_time(value, &token.expires, &token.exp)) return false;
    if (same(name, LITERAL("nbf")) && !take_time(value, &token.begins, &token.nbf)) return false;
    if (issuer.size && same(name, LITERAL("iss"))) {
        if (token.issuer || !is_text(value, setting_value(&issuer))) return false;
        token.issuer = true;
    }
    if (audience.size && same(name, LITERAL("aud"))) {
        if (token.audience || !has_audience(value)) return false;
        token.audience = true;
    }
    return !wanted_claim(name) || keep_claim(name, value);
}

// ---- a token's parts

static struct text until_dot(struct text *left) {
    struct text part = {left->at, 0};
    while (part.size < left->size && part.at[part.size] != '.') part.size++;
    size_t skip = part.size < left->size ? part.size + 1 : part.size;
    left->at += skip, left->size -= skip;
    return part;
}

static bool well_signed(struct text text, struct text signature) {
    uint8_t expected[SHA256_BYTES];
    char given[SHA256_BYTES + 1];
    struct text decoded;
    if (signature.size != 43 || !decode64(signature, given, &decoded)) return false;
    hmac_sha256(secret.bytes, secret.size, text.at, text.size, expected);
    return equal_digests(expected, (const uint8_t *)given);
}

// What is wrong with a token; empty if nothing is. The signature comes first: nothing else of a stranger's is read.
static struct text judge(struct text text) {
    static char header_bytes[MAX_TOKEN], claims_bytes[MAX_TOKEN];
    struct text left = text, header_json, claims_json;
    if (text.size > MAX_TOKEN) return LITERAL("too long");
    struct text header_part = until_dot(&left), claims_part = until_dot(&left), signature = left;
    size_t signed_size = header_part.size + 1 + claims_part.size;
    if (signed_size + 1 > text.size || !well_signed((struct text){text.at, signed_size}, signature))
        return LITERAL("the signature is wrong");
    __builtin_memset(&token, 0, sizeof token);
    if (!decode64(header_part, header_bytes, &header_json) || !each_member(header_json, in_header) || !token.algorithm)
        return LITERAL("the header is not one of HS256");
    if (!decode64(claims_part, claims_bytes, &claims_json) || !each_member(claims_json, in_claims))
        return LITERAL("a claim is not acceptable");
    if ((issuer.size && !token.issuer) || (audience.size && !token.audience)) return LITERAL("a claim is missing");
    uint64_t now = now_ns() / NS_PER_SECOND;
    if (need_exp && !token.expires) return LITERAL("it has no exp");
    if (token.expires && now >= token.exp + leeway_s) return LITERAL("it has expired");
    if (token.begins && now + leeway_s < token.nbf) return LITERAL("it is not valid yet");
    return LITERAL("");
}

// ---- requests

static void hand_on_claims(void) {
    char name[2 * MAX_SETTING_TEXT];
    for (uint32_t i = 0; i < token.count; i++) {
        char *end = put_bytes(put_bytes(name, SPREAD(setting_value(&prefix))), SPREAD(token.names[i]));
        set_header(REQUEST_HEADERS, (struct text){name, (size_t)(end - name)}, token.values[i]);
    }
    if (!keep_token) proxy_remove_header_map_value(REQUEST_HEADERS, TEXT("authorization"));
}

static uint32_t refuse(struct text why) {
    char challenge[160];
    struct header_list headers = {.count = 0};
    char *end = put_bytes(challenge, TEXT("Bearer"));
    if (why.size) {
        end = put_bytes(end, TEXT(" error=\"invalid_token\", error_description=\""));
        end = put_bytes(put_bytes(end, SPREAD(why)), TEXT("\""));
    }
    list_header(&headers, LITERAL("www-authenticate"), (struct text){challenge, (size_t)(end - challenge)});
    proxy_increment_metric(refused_metric, 1);
    answer(401, LITERAL("jwt_refused"), &headers, LITERAL("Unauthorized.\n"));
    return ACTION_PAUSE;
}

// The scheme's name may be in any case.
static bool bearer(struct text value, struct text *credentials) {
    static const struct text scheme = {TEXT("bearer ")};
    if (value.size <= scheme.size) return false;
    for (size_t i = 0; i < scheme.size; i++) {
        char c = value.at[i];
        if ((c >= 'A' && c <= 'Z' ? c + 32 : c) != scheme.at[i]) return false;
    }
    *credentials = (struct text){value.at + scheme.size, value.size - scheme.size};
    return true;
}

uint32_t WASM_EXPORT(proxy_on_request_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)context, (void)count, (void)end_of_stream;
    struct text value, credentials;
    arena_reset();
    if (!remove_prefixed(setting_value(&prefix))) return refuse(LITERAL("too many headers"));
    if (header_count(REQUEST_HEADERS, LITERAL("authorization")) > 1) return refuse(LITERAL("more than one token"));
    if (!header(REQUEST_HEADERS, LITERAL("authorization"), &value) || !bearer(value, &credentials))
        return refuse(LITERAL(""));
    struct text wrong = judge(credentials);
    if (wrong.size) return refuse(wrong);
    proxy_increment_metric(allowed_metric, 1);
    hand_on_claims();
    return ACTION_CONTINUE;
}
