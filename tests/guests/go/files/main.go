// go_files does with the file system what the request's path says, through package os alone, and sets the request header
// `x-done`. Commands and results are those of the Rust guest `files`, but for the texts of errors.
package main

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"

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

type plugin struct {
	types.DefaultPluginContext
}

func (*plugin) NewHttpContext(uint32) types.HttpContext {
	return &filter{}
}

type filter struct {
	types.DefaultHttpContext
}

func (*filter) OnHttpRequestHeaders(int, bool) types.Action {
	path, _ := proxywasm.GetHttpRequestHeader(":path")
	var results []string
	for _, command := range strings.Split(strings.TrimPrefix(path, "/"), ";") {
		result, err := run(strings.SplitN(command, " ", 3))
		if err != nil {
			result = "error: " + reason(err)
		}
		results = append(results, result)
	}
	if err := proxywasm.ReplaceHttpRequestHeader("x-done", strings.Join(results, "|")); err != nil {
		proxywasm.LogErrorf("answer: %v", err)
	}
	return types.ActionContinue
}

func run(words []string) (string, error) {
	words = append(words, "", "")
	path, rest := words[1], words[2]
	switch words[0] {
	case "read":
		data, err := os.ReadFile(path)
		return string(data), err
	case "write":
		return "written", os.WriteFile(path, []byte(rest), 0o600)
	case "append":
		file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return "", err
		}
		defer file.Close()
		_, err = file.WriteString(rest)
		return "appended", err
	case "list":
		entries, err := os.ReadDir(path) // sorted by name
		var names []string
		for _, entry := range entries {
			name := entry.Name()
			if entry.IsDir() {
				name += "/"
			}
			names = append(names, name)
		}
		return strings.Join(names, ","), err
	case "mkdir":
		return "made", os.MkdirAll(path, 0o700)
	case "rename":
		return "renamed", os.Rename(path, rest)
	case "remove", "rmdir":
		return "removed", os.Remove(path)
	case "size":
		facts, err := os.Stat(path)
		if err != nil {
			return "", err
		}
		return strconv.FormatInt(facts.Size(), 10), nil
	case "fill":
		size, err := strconv.Atoi(rest)
		if err != nil {
			return "", err
		}
		return "filled", os.WriteFile(path, []byte(strings.Repeat("x", size)), 0o600)
	}
	return "", fs.ErrInvalid
}

func reason(err error) string {
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return err.Error()
}
