package guest

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func whole() *Config {
	return &Config{Run: 3, Hostname: "box-1", Command: []string{"/bin/worker", "--now"}, Environment: map[string]string{"A": "b"},
		Directory: "/work", User: "1000:1000", PIDs: 100, Token: []byte("secret"),
		Network: &Network{MAC: "52:54:00:12:34:56", Addresses: []string{"10.80.1.2/24", "fd00::2/64"}, Gateway: "10.80.1.1", Nameservers: []string{"10.80.1.1"}},
		DropIns: []DropIn{{Name: "10-first.sh", Contents: []byte("#!/bin/sh\n")}, {Name: "50-b.sh", Contents: []byte{0, 0xff}}}}
}

func TestConfigSurvivesItsDocument(t *testing.T) {
	want := whole()
	raw, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseConfig(raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDropInsAreInTheOrderOfTheirBytes(t *testing.T) {
	c := whole()
	c.DropIns = nil
	for _, name := range []string{"50-b", "9-z", "10-a", "B", "a", "50-a"} {
		c.DropIns = append(c.DropIns, DropIn{Name: name})
	}
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseConfig(raw)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range got.DropIns {
		names = append(names, d.Name)
	}
	if want := []string{"10-a", "50-a", "50-b", "9-z", "B", "a"}; !slices.Equal(names, want) {
		t.Errorf("order %v, want %v", names, want)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"command: is missing":            func(c *Config) { c.Command = nil },
		"hostname":                       func(c *Config) { c.Hostname = "a b" },
		"no absolute path":               func(c *Config) { c.Directory = "work" },
		"has a zero byte":                func(c *Config) { c.Command = []string{"a", "b\x00"} },
		`variable "A=B"`:                 func(c *Config) { c.Environment["A=B"] = "" },
		`the name ""`:                    func(c *Config) { c.DropIns[0].Name = "" },
		`the name ".."`:                  func(c *Config) { c.DropIns[0].Name = ".." },
		`the name "../../etc/passwd"`:    func(c *Config) { c.DropIns[0].Name = "../../etc/passwd" },
		`the name "a b"`:                 func(c *Config) { c.DropIns[0].Name = "a b" },
		`two of the name "10-first.sh"`:  func(c *Config) { c.DropIns[1].Name = c.DropIns[0].Name },
		"no address with the length":     func(c *Config) { c.Network.Addresses[0] = "10.80.1.2" },
		`network: "nowhere" is no addre`: func(c *Config) { c.Network.Gateway = "nowhere" },
		`network: "1.2.3" is no address`: func(c *Config) { c.Network.Nameservers[0] = "1.2.3" },
	} {
		c := whole()
		change(c)
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	if _, err := ParseConfig([]byte(`{"comand":["x"]}`)); err == nil {
		t.Error("a key that is not known was read")
	}
}

func TestLinesAreCutHoweverTheyCome(t *testing.T) {
	stream := "one\n\ntwo\n" + strings.Repeat("x", MaxLine+1) + "\nthree\nrest"
	for _, size := range []int{1, 2, 7, 1000, len(stream)} {
		var l Lines
		var got []string
		for piece := range slices.Chunk([]byte(stream), size) {
			l.Add(piece, func(line []byte) { got = append(got, string(line)) })
		}
		if want := []string{"one", "two", "three"}; !slices.Equal(got, want) {
			t.Errorf("in pieces of %d: %.40q", size, got)
		}
	}
}

func TestEventsOfAStranger(t *testing.T) {
	e, err := ParseEvent([]byte(`{"type":"failed","run":2,"reason":"DropInFailed","message":"a\u001b[31m\nb","more":1}`))
	if err != nil || e.Message != "a [31m b" || e.Run != 2 {
		t.Errorf("%+v %v", e, err)
	}
	for _, line := range []string{"", "{", "null", `{"type":"gone"}`, `{"type":"exit","code":256}`, `{"type":"exit","code":-1}`,
		`{"type":"init","run":-1}`, `{"type":"init","reason":"` + strings.Repeat("x", MaxLine) + `"}`} {
		if e, err := ParseEvent([]byte(line)); err == nil {
			t.Errorf("%.40q is read as %+v", line, e)
		}
	}
}

func FuzzParseEvent(f *testing.F) {
	f.Add(Line(Event{Type: Exit, Run: 1, Uptime: 1500, Code: 137, Message: "ü"}))
	f.Add([]byte(`{"type":"failed","message":"\ud800"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := ParseEvent(line)
		if err != nil {
			return
		}
		if len(e.Message) > maxMessage || !utf8.ValidString(e.Message) || strings.ContainsAny(e.Message, "\x1b\n\r") {
			t.Errorf("message %q", e.Message)
		}
		again, err := ParseEvent(Line(e))
		if err != nil && len(Line(e)) <= MaxLine || err == nil && again != e {
			t.Errorf("%+v became %+v (%v)", e, again, err)
		}
	})
}

func FuzzParseOrder(f *testing.F) {
	f.Add(Line(Order{Stop: &Stop{Grace: 5000}}))
	f.Fuzz(func(t *testing.T, line []byte) {
		if o, err := ParseOrder(line); err == nil && (o.Stop == nil || o.Stop.Grace < 0) {
			t.Errorf("%+v", o)
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	raw, err := json.Marshal(whole())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := ParseConfig(raw)
		if err != nil {
			return
		}
		again, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if d, err := ParseConfig(again); err != nil || !slices.EqualFunc(d.DropIns, c.DropIns, func(a, b DropIn) bool {
			return a.Name == b.Name && bytes.Equal(a.Contents, b.Contents)
		}) {
			t.Errorf("%s became %s (%v)", raw, again, err)
		}
	})
}
