// as_filter adds the response header `hello`, whose value is the plugin configuration, or `world` without one.
//
// It logs the path of each request, and that the stream is done. The plugin's root_id must be `as_filter`: for any
// other the SDK finds no factory, logs so and aborts.
export * from "@solo-io/proxy-runtime/proxy";
import {
  Context,
  FilterHeadersStatusValues,
  log,
  LogLevelValues,
  registerRootContext,
  RootContext,
  stream_context,
} from "@solo-io/proxy-runtime";

class Plugin extends RootContext {
  // Chosen once: the compiler frees the configuration too early if it is one branch of a ?: in a callback.
  greeting: string = "world";

  onConfigure(configuration_size: u32): bool {
    // The SDK's own version decodes the configuration even if there is none, and traps.
    if (configuration_size == 0) return true;
    if (!super.onConfigure(configuration_size)) return false;
    this.greeting = this.getConfiguration();
    return true;
  }

  createContext(context_id: u32): Context {
    return new Stream(context_id, this);
  }
}

class Stream extends Context {
  plugin: Plugin;

  constructor(context_id: u32, plugin: Plugin) {
    super(context_id, plugin);
    this.plugin = plugin;
  }

  onRequestHeaders(count: u32, end_of_stream: bool): FilterHeadersStatusValues {
    log(LogLevelValues.info, "request for " + stream_context.headers.request.get(":path"));
    return FilterHeadersStatusValues.Continue;
  }

  onResponseHeaders(count: u32, end_of_stream: bool): FilterHeadersStatusValues {
    stream_context.headers.response.add("hello", this.plugin.greeting);
    return FilterHeadersStatusValues.Continue;
  }

  onLog(): void {
    log(LogLevelValues.info, "stream done");
  }
}

registerRootContext((context_id: u32) => new Plugin(context_id), "as_filter");
