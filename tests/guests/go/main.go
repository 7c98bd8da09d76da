// go_filter adds response headers and, on demand, turns request bodies to upper case.
//
// Plugin configuration: {"headers": {"name": "value", ...}, "uppercase_request_body": true}; both may be left out.
// The response also gets `x-go-region`, the value of the environment variable REGION, if that is set.
package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"
	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm/types"
)

// Go runs init when the module is initialised; main is never called.
func main() {}

func init() {
	proxywasm.SetVMContext(&vm{})
}

type vm struct {
	types.DefaultVMContext
}

func (*vm) NewPluginContext(uint32) types.PluginContext {
	return &plugin{}
}

type configuration struct {
	Headers              map[string]string `json:"headers"`
	UppercaseRequestBody bool              `json:"uppercase_request_body"`
}

type plugin struct {
	types.DefaultPluginContext
	configuration configuration
	region        string
}

func (p *plugin) OnPluginStart(size int) types.OnPluginStartStatus {
	p.region = os.Getenv("REGION")
	if size == 0 {
		return types.OnPluginStartStatusOK
	}
	text, err := proxywasm.GetPluginConfiguration()
	if err == nil {
		err = json.Unmarshal(text, &p.configuration)
	}
	if err != nil {
		proxywasm.LogErrorf("configuration: %v", err)
		return types.OnPluginStartStatusFailed
	}
	return types.OnPluginStartStatusOK
}

func (p *plugin) NewHttpContext(contextID uint32) types.HttpContext {
	return &stream{plugin: p, contextID: contextID, started: time.Now()}
}

type stream struct {
	types.DefaultHttpContext
	plugin    *plugin
	contextID uint32
	started   time.Time
}

func (s *stream) OnHttpRequestHeaders(numHeaders int, endOfStream bool) types.Action {
	path, err := proxywasm.GetHttpRequestHeader(":path")
	if err != nil {
		proxywasm.LogErrorf("#%d no path: %v", s.contextID, err)
	}
	proxywasm.LogInfof("#%d %s with %d headers at %s", s.contextID, path, numHeaders, s.started.UTC().Format(time.RFC3339))
	if s.plugin.configuration.UppercaseRequestBody && !endOfStream {
		s.check(proxywasm.RemoveHttpRequestHeader("content-length"))
	}
	return types.ActionContinue
}

func (s *stream) OnHttpRequestBody(bodySize int, endOfStream bool) types.Action {
	if !s.plugin.configuration.UppercaseRequestBody {
		return types.ActionContinue
	}
	if !endOfStream {
		return types.ActionPause
	}
	s.uppercaseRequestBody(bodySize)
	return types.ActionContinue
}

// A body with trailers has no chunk that ends the stream; what was withheld is still readable here.
func (s *stream) OnHttpRequestTrailers(int) types.Action {
	if s.plugin.configuration.UppercaseRequestBody {
		const wholeBody = 1<<31 - 1
		s.uppercaseRequestBody(wholeBody)
	}
	return types.ActionContinue
}

func (s *stream) uppercaseRequestBody(size int) {
	body, err := proxywasm.GetHttpRequestBody(0, size)
	if err == types.ErrorStatusNotFound {
		return // an empty body
	}
	s.check(err)
	s.check(proxywasm.ReplaceHttpRequestBody(bytes.ToUpper(body)))
}

func (s *stream) OnHttpResponseHeaders(int, bool) types.Action {
	headers := s.plugin.configuration.Headers
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		s.check(proxywasm.AddHttpResponseHeader(name, headers[name]))
	}
	if s.plugin.region != "" {
		s.check(proxywasm.AddHttpResponseHeader("x-go-region", s.plugin.region))
	}
	return types.ActionContinue
}

func (s *stream) OnHttpStreamDone() {
	proxywasm.LogInfof("#%d done, no earlier than it began: %t", s.contextID, !time.Now().Before(s.started))
}

func (s *stream) check(err error) {
	if err != nil {
		proxywasm.LogErrorf("#%d %v", s.contextID, err)
	}
}
