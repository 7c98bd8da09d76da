/* Hooks that Envoy insists on and that this filter has no use for. */
#include "module.h"

#define UNUSED(name) \
    ENVOY_HOOK int envoy_dynamic_module_on_##name(void); \
    int envoy_dynamic_module_on_##name(void) \
    { \
        return 0; \
    } \
    struct unused_##name

UNUSED(http_filter_stream_complete);
UNUSED(http_filter_http_callout_done);
UNUSED(http_filter_http_stream_headers);
UNUSED(http_filter_http_stream_data);
UNUSED(http_filter_http_stream_trailers);
UNUSED(http_filter_http_stream_complete);
UNUSED(http_filter_http_stream_reset);
UNUSED(http_filter_local_reply);
UNUSED(http_filter_config_scheduled);
UNUSED(http_filter_config_http_callout_done);
/* Watermarks are Envoy's own: a body that waits for a verdict stands in its buffer, which stops the reading. */
UNUSED(http_filter_downstream_above_write_buffer_high_watermark);
UNUSED(http_filter_downstream_below_write_buffer_low_watermark);
