package enginetest

import (
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// How says what becomes of the call that a proxy is armed for.
type How string

// The ways.
const (
	Refuse How = "refused" // the engine does not see it, and is said to have no space left
	Cut    How = "cut"     // the engine does not see it, and the connection breaks
	Lose   How = "lost"    // the engine carries it out, and the connection breaks before the answer
	Before How = "before"  // At is called, and the engine does not see it
	During How = "during"  // At is called as soon as the engine has it, which goes on with it
	After  How = "after"   // At is called when the engine has answered
)

// NoSpace is what an engine says when its disk is full.
const NoSpace = "write /storage/layer: no space left on device"

// Proxy stands between a driver and its engine, and spoils one chosen call.
type Proxy struct {
	Socket string
	At     func()

	// Skip says which calls are never chosen. Nil: those that only watch an engine.
	Skip func(*http.Request) bool

	pass   *httputil.ReverseProxy
	server *http.Server

	mu    sync.Mutex
	how   How
	n     int
	reads bool // reading calls are counted too
	count int
	hit   string // the call that was spoiled
}

// NewProxy serves a proxy until the test ends.
func NewProxy(tb testing.TB, e *Engine) *Proxy {
	tb.Helper()
	dir, err := os.MkdirTemp("", "sgp-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", e.Socket)
	}}
	socket := filepath.Join(dir, "sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(transport.CloseIdleConnections)
	p := Between(tb, l, transport, &url.URL{Scheme: "http", Host: "engine"})
	p.Socket = socket
	return p
}

// Between serves a proxy until the test ends: what it accepts goes to a server.
func Between(tb testing.TB, l net.Listener, transport http.RoundTripper, server *url.URL) *Proxy {
	tb.Helper()
	p := &Proxy{Skip: func(r *http.Request) bool {
		return strings.HasSuffix(r.URL.Path, "/events") || strings.HasSuffix(r.URL.Path, "_ping")
	}}
	p.pass = &httputil.ReverseProxy{Transport: transport, FlushInterval: -1,
		Rewrite:      func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = server.Scheme, server.Host },
		ErrorLog:     log.New(io.Discard, "", 0), // a stream that broke is a test's intention
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }}
	p.server = &http.Server{Handler: p, ErrorLog: log.New(io.Discard, "", 0)} //nolint:gosec // of tests alone
	done := make(chan error, 1)
	go func() { done <- p.server.Serve(l) }()
	tb.Cleanup(func() {
		_ = p.server.Close()
		<-done
	})
	return p
}

// Arm chooses the n-th call from now on; calls that only read are counted where reads says so.
func (p *Proxy) Arm(n int, how How, reads bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n, p.how, p.reads, p.count, p.hit = n, how, reads, 0, ""
}

// Disarm lets every call pass, and returns the one that was spoiled; "" if none was.
func (p *Proxy) Disarm() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n = 0
	return p.hit
}

func (p *Proxy) chosen(r *http.Request) (How, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n == 0 || p.Skip(r) {
		return "", false
	}
	if !p.reads && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		return "", false
	}
	if p.count++; p.count != p.n {
		return "", false
	}
	p.hit = r.Method + " " + r.URL.Path
	return p.how, true
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	how, chosen := p.chosen(r)
	if !chosen {
		p.pass.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r = r.WithContext(context.WithoutCancel(r.Context())) // an engine does not know that its caller went away
	r.Body = io.NopCloser(bytes.NewReader(body))
	switch how {
	case Refuse:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = io.WriteString(w, `{"message":"`+NoSpace+`","cause":"no space","response":500}`)
		return
	case Before:
		p.At()
	case Lose:
		p.pass.ServeHTTP(&nowhere{}, r)
	case During:
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.pass.ServeHTTP(&nowhere{}, r)
		}()
		p.At()
		<-done
	case After:
		p.pass.ServeHTTP(&nowhere{}, r)
		p.At()
	}
	panic(http.ErrAbortHandler)
}

// nowhere takes an answer that nobody gets.
type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header {
	if n.header == nil {
		n.header = http.Header{}
	}
	return n.header
}

func (*nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (*nowhere) WriteHeader(int)             {}
