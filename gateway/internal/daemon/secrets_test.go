package daemon

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/sandgate/sandgate/gateway/internal/config"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// A value that an extension declares sensitive is not in what is said about its configuration: not in the line that is
// shown, and not where the extension quotes it.
func TestASensitiveAttributeIsNotShown(t *testing.T) {
	const secret = "hush-hush"
	for name, block := range map[string]string{
		"the wrong type":       "    token = [\"" + secret + "\"]",
		"unknown beside it":    "    token = \"" + secret + "\"\n    nope = 1",
		"it is refused":        "    tag   = \"refuse\"\n    token = \"" + secret + "\"",
		"it cannot be used":    "    tag   = \"fail\"\n    token = \"" + secret + "\"",
		"twice on one line":    "    tag   = \"refuse\"\n    token = \"" + secret + "${\"-\"}" + secret + "\"",
		"computed from others": "    tag   = \"refuse\"\n    token = \"${\"" + secret + "\"}\"",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.write(s.keeperBlock(block), keeperBind)
			f, err := Check(t.Context(), s.options())
			if err != nil || f == nil || !f.HasErrors() {
				t.Fatalf("%v %v", f, err)
			}
			if said := everyForm(t, f); strings.Contains(said, secret) {
				t.Errorf("it is shown:\n%s", said)
			}
			if strings.Contains(s.logs.String(), secret) {
				t.Errorf("it is in the log:\n%s", s.logs.String())
			}
		})
	}
}

func everyForm(t *testing.T, f *config.Findings) string {
	t.Helper()
	var out bytes.Buffer
	if err := f.Render(&out); err != nil {
		t.Fatal(err)
	}
	if err := f.JSON(&out); err != nil {
		t.Fatal(err)
	}
	return out.String() + f.String()
}

// Two owners of one secret variable: the conflict names both and shows digests, wherever it is told.
func TestAConflictShowsDigestsOnly(t *testing.T) {
	s := newSite(t)
	s.write(s.keeperBlock(""), "bind \"keeper\" {\n    grant {\n      mutate = [\"Process.environment\"]\n      read   = [\"Process.command\"]\n    }\n  }")
	s.start()
	defer s.end()
	secrets := []string{"of-the-" + "caller", "of-the-" + "keeper"}
	_, err := s.create("one", sandbox.Spec{Environment: map[string]string{"PASSWORD": secrets[0]}, Labels: map[string]string{"password": secrets[1]}})
	if !fault.Is(err, fault.Conflict) {
		t.Fatalf("no conflict: %v", err)
	}
	for _, want := range []string{"request", "keeper", "PASSWORD", "(sensitive, "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("it does not say %q: %v", want, err)
		}
	}
	audit, aerr := s.d.engine.Audit(t.Context(), "", 0)
	if aerr != nil {
		t.Fatal(aerr)
	}
	told, jerr := json.Marshal(audit)
	if jerr != nil {
		t.Fatal(jerr)
	}
	if text := string(told); !strings.Contains(text, "PASSWORD") || strings.Contains(text, secrets[0]) || strings.Contains(text, secrets[1]) {
		t.Errorf("the audit: %s", text)
	}
	for _, secret := range secrets {
		if strings.Contains(err.Error(), secret) || strings.Contains(s.logs.String(), secret) {
			t.Errorf("%q is told: %v", secret, err)
		}
	}
}
