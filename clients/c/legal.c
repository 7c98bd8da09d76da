/* What one name and one value may be that leave a plugin; write.c has the rules for whole maps. */
#include "internal.h"

/* ---- alphabets --------------------------------------------------------------------------------------------------- */

static bool is_alnum(uint8_t c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool is_in(uint8_t c, const char *set)
{
    return c && strchr(set, c);
}

static bool is_token_char(uint8_t c)
{
    return is_alnum(c) || is_in(c, "!#$%&'*+.^_`|~-");
}

static bool is_value_char(uint8_t c)
{
    return c == '\t' || (c >= 0x20 && c != 0x7f);
}

static bool is_path_char(uint8_t c)
{
    return c >= 0x21 && c != '#' && c != 0x7f; /* neither white space nor a fragment */
}

static bool is_authority_char(uint8_t c)
{
    return is_alnum(c) || is_in(c, "._~!$&'()*+,;=:%[]-"); /* a host and port, no user information */
}

static bool is_digit(uint8_t c)
{
    return c >= '0' && c <= '9';
}

static bool all(sbx_bytes text, bool (*fits)(uint8_t))
{
    for (size_t i = 0; i < text.len; i++)
        if (!fits(text.data[i]))
            return false;
    return true;
}

/* ---- single rules ------------------------------------------------------------------------------------------------ */

static bool is(sbx_bytes name, const char *text)
{
    return name.len == strlen(text) && memcmp(name.data, text, name.len) == 0;
}

static bool is_authority(sbx_bytes value)
{
    return value.len && all(value, is_authority_char);
}

static bool is_path(sbx_bytes value)
{
    return is(value, "*") || (value.len && value.data[0] == '/' && all(value, is_path_char));
}

static bool legal_pseudo(sbx_bytes name, sbx_bytes value, enum section section)
{
    if (section == SECTION_RESPONSE_HEADERS) /* a final response cannot be made an interim one */
        return is(name, ":status") && value.len == 3 && value.data[0] >= '2' && value.data[0] <= '5' &&
               all(value, is_digit);
    if (section != SECTION_REQUEST_HEADERS)
        return false;
    if (is(name, ":method"))
        return value.len >= 1 && value.len <= 64 && all(value, is_token_char);
    if (is(name, ":path"))
        return is_path(value);
    if (is(name, ":authority"))
        return is_authority(value);
    return is(name, ":scheme") && (is(value, "http") || is(value, "https"));
}

static bool legal_special(sbx_bytes name, sbx_bytes value)
{
    if (is(name, "content-length"))
        return value.len >= 1 && value.len <= 18 && all(value, is_digit);
    if (is(name, "te"))
        return equal_lower(value, LITERAL("trailers"));
    return !is(name, "host") || is_authority(value);
}

/* Headers of one hop: they frame messages, so they are the proxy's alone (request smuggling). */
static bool is_connection_name(sbx_bytes name)
{
    return is(name, "connection") || is(name, "http2-settings") || is(name, "keep-alive") ||
           is(name, "proxy-connection") || is(name, "transfer-encoding") || is(name, "upgrade");
}

enum sbx_reason name_problem(const sbx_policy *policy, sbx_bytes name)
{
    if (name.len > MAX_HEADER_NAME_BYTES)
        return SBX_TOO_LARGE;
    size_t colon = is_pseudo(name);
    if (name.len == colon || !all((sbx_bytes){name.data + colon, name.len - colon}, is_token_char))
        return SBX_ILLEGAL_NAME;
    if (is_connection_name(name))
        return SBX_CONNECTION_HEADER;
    if (rules_find(&policy->denied, name) || (policy->has_allowed && !rules_find(&policy->allowed, name)))
        return SBX_DENIED_BY_POLICY;
    return SBX_ALLOWED;
}

enum sbx_reason entry_problem(const sbx_policy *policy, sbx_bytes name, sbx_bytes value, enum section section)
{
    if (is_pseudo(name)) {
        if (!legal_pseudo(name, value, section))
            return SBX_ILLEGAL_PSEUDO_HEADER;
    } else if (!all(value, is_value_char) || !legal_special(name, value)) {
        return SBX_ILLEGAL_VALUE;
    }
    return name_problem(policy, name);
}
