package sandbox

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/sandgate/sandgate/shared/fault"
)

// Limits on what a caller may ask for. Those that OpenShell has are the same here.
const (
	MaxName             = 63
	MaxID               = 128
	MaxImage            = 1024
	MaxCommandArgs      = 256
	MaxCommandBytes     = 256 << 10
	MaxEnvironment      = 128
	MaxEnvironmentKey   = 256
	MaxEnvironmentValue = 8192
	MaxLabels           = 128
	MaxLabelKey         = 317
	MaxLabelValue       = 1024
	MaxDriverConfig     = 64 << 10
	MaxToken            = 64 << 10
	MaxExtensions       = 64
	MaxMilliCPU         = 1000 << 20
	MaxMemory           = 1 << 60
	MaxPIDs             = 1 << 22 // what Linux can count
)

var (
	label  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	idForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)
	envKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)
)

// CheckName reports whether name can be the name of a sandbox or workspace: a DNS-1123 label of at most MaxName.
// Field is what the error calls it.
func CheckName(field, name string) error {
	if len(name) > MaxName || !label.MatchString(name) {
		return invalid(field, "%q is not a name: use 1 to %d of a-z, 0-9 and '-', beginning and ending with a letter or digit", clip(name), MaxName)
	}
	return nil
}

// CheckID reports whether id can be a sandbox's id. It is used as a file name and in labels.
func CheckID(field, id string) error {
	if len(id) > MaxID || !idForm.MatchString(id) || strings.Contains(id, "..") {
		return invalid(field, "%q is not an id: use 1 to %d of letters, digits, '.', '_' and '-', beginning and ending with a letter or digit", clip(id), MaxID)
	}
	return nil
}

// Check reports everything that is wrong with the spec, each with its field, or nil. It never repeats a value of
// the environment, of the driver's configuration or of the token.
func (s *Spec) Check() error {
	var d []fault.Diagnostic
	add := func(ok bool, path, format string, args ...any) {
		if !ok {
			d = append(d, fault.Diagnostic{Path: path, Summary: fmt.Sprintf(format, args...)})
		}
	}
	add(len(s.Image) <= MaxImage, "image", "is %d bytes long; at most %d", len(s.Image), MaxImage)
	add(!control(s.Image), "image", "contains a control character")
	add(len(s.Command) <= MaxCommandArgs, "command", "has %d arguments; at most %d", len(s.Command), MaxCommandArgs)
	total := 0
	for i, a := range s.Command {
		total += len(a)
		add(!strings.ContainsRune(a, 0), fmt.Sprintf("command[%d]", i), "contains a NUL byte")
	}
	add(total <= MaxCommandBytes, "command", "is %d bytes long; at most %d", total, MaxCommandBytes)
	add(len(s.Environment) <= MaxEnvironment, "environment", "has %d entries; at most %d", len(s.Environment), MaxEnvironment)
	for k, v := range s.Environment {
		path := "environment." + clip(k)
		add(len(k) <= MaxEnvironmentKey && envKey.MatchString(k), path, "is not a variable's name of at most %d bytes", MaxEnvironmentKey)
		add(len(v) <= MaxEnvironmentValue, path, "has a value of %d bytes; at most %d", len(v), MaxEnvironmentValue)
		add(!strings.ContainsRune(v, 0), path, "has a value with a NUL byte")
	}
	add(len(s.Labels) <= MaxLabels, "labels", "has %d entries; at most %d", len(s.Labels), MaxLabels)
	for k, v := range s.Labels {
		path := "labels." + clip(k)
		add(k != "" && len(k) <= MaxLabelKey, path, "has a key of %d bytes; 1 to %d", len(k), MaxLabelKey)
		add(len(v) <= MaxLabelValue, path, "has a value of %d bytes; at most %d", len(v), MaxLabelValue)
		add(!control(k) && !control(v), path, "contains a control character")
	}
	for _, r := range []struct {
		path   string
		n, max int64
	}{{"resources.cpu", s.Resources.MilliCPU, MaxMilliCPU}, {"resources.memory", s.Resources.Memory, MaxMemory}, {"resources.pids", s.Resources.PIDs, MaxPIDs}} {
		add(r.n >= 0, r.path, "is negative")
		add(r.n <= r.max, r.path, "is %d; at most %d", r.n, r.max)
	}
	add(len(s.DriverConfig) <= MaxDriverConfig, "driver_config", "is %d bytes long; at most %d", len(s.DriverConfig), MaxDriverConfig)
	add(isObject(s.DriverConfig), "driver_config", "is not a JSON object")
	add(len(s.Extensions) <= MaxExtensions, "extensions", "has %d names; at most %d", len(s.Extensions), MaxExtensions)
	for i, x := range s.Extensions {
		add(CheckName("", x) == nil, fmt.Sprintf("extensions[%d]", i), "%q is not the name of an extension", clip(x))
	}
	add(len(s.Token) <= MaxToken, "token", "is %d bytes long; at most %d", len(s.Token), MaxToken)
	return summarize(d)
}

// control reports characters that would garble whatever shows them.
func control(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// summarize makes one error of all that is wrong: its message names every field, sorted.
func summarize(d []fault.Diagnostic) error {
	if len(d) == 0 {
		return nil
	}
	sortDiagnostics(d)
	lines := make([]string, len(d))
	for i, x := range d {
		lines[i] = x.Path + " " + x.Summary
	}
	return (&fault.Error{Code: fault.Invalid, Message: strings.Join(lines, "; ")}).With(d...)
}

func invalid(field, format string, args ...any) error {
	msg := fmt.Sprintf(format, args...)
	return fault.New(fault.Invalid, "%s: %s", field, msg).With(fault.Diagnostic{Path: field, Summary: msg})
}

// clip keeps what is quoted in an error short.
func clip(s string) string {
	if len(s) > MaxName+1 {
		return strings.ToValidUTF8(s[:MaxName], "") + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
