package conformance

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/wire"
)

func byHand(_ context.Context, r *rig) error {
	x, err := start(r.p, launch{byHand: true})
	if err != nil {
		return err
	}
	defer func() { _ = x.close() }()
	switch {
	case !x.ended(2 * r.patience):
		return fmt.Errorf("started without %s in its environment it is still running after %s", wire.CookieKey, 2*r.patience)
	case strings.Contains(x.out.String(), "|grpc|"):
		return fmt.Errorf("started without %s in its environment it printed a handshake: %q", wire.CookieKey, x.out.String())
	case strings.TrimSpace(x.err.String()+x.out.String()) == "":
		return errors.New("it said nothing; whoever tries it wonders")
	}
	return nil
}

var handshakeForm = regexp.MustCompile(`^1\|1\|unix\|(/[^|]+)\|grpc\|\n$`)

// parseHandshake reads the line to the byte, and returns the socket.
func parseHandshake(line, dir string) (string, error) {
	m := handshakeForm.FindStringSubmatch(line)
	if m == nil {
		return "", fmt.Errorf("the first line on standard output is %q; a gateway expects \"1|1|unix|PATH|grpc|\\n\"", line)
	}
	if !strings.HasPrefix(filepath.Clean(m[1]), dir+"/") {
		return "", fmt.Errorf("its socket is %s; PLUGIN_UNIX_SOCKET_DIR is %s, and it has to be in there", m[1], dir)
	}
	return m[1], nil
}

// hello starts the program in a way of its own, and returns the handshake.
func (r *rig) hello(how launch) (*process, string, error) {
	if r.barren {
		return nil, "", notApplicable("it does not start: see above")
	}
	x, err := start(r.p, how)
	if err != nil {
		return nil, "", err
	}
	line, err := x.handshake(4 * r.patience)
	return x, line, err
}

func handshakeLine(_ context.Context, r *rig) (err error) {
	defer func() { r.barren = err != nil }() // nobody would come further
	x, line, err := r.hello(launch{})
	if x != nil {
		defer func() { _ = x.close() }()
	}
	if err != nil {
		return err
	}
	socket, err := parseHandshake(line, x.dir)
	if err != nil {
		return err
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return fmt.Errorf("nothing listens yet when the handshake is printed: %w", err)
	}
	return conn.Close()
}

func handshakeVersions(_ context.Context, r *rig) error {
	for _, v := range []struct{ offer, want string }{{"1,2,99", "1|1|"}, {"99,1", "1|1|"}, {"98,99", ""}} {
		x, line, err := r.hello(launch{versions: v.offer})
		if x == nil {
			return err
		}
		ended := x.ended(0)
		_ = x.close()
		switch {
		case v.want == "" && (strings.HasPrefix(line, "1|98|") || strings.HasPrefix(line, "1|99|")):
			return fmt.Errorf("offered %s it claims to speak that: %q", v.offer, line)
		case v.want == "" && (err == nil || ended): // it serves what it has, or ends: the host refuses both
		case err != nil:
			return fmt.Errorf("offered %s: %w", v.offer, err)
		case !strings.HasPrefix(line, v.want):
			return fmt.Errorf("offered %s it answers %q; expected %q at the beginning", v.offer, line, v.want)
		}
	}
	return nil
}

func launchLine(ctx context.Context, r *rig) error {
	x, line, err := r.hello(launch{slow: true})
	if x != nil {
		defer func() { _ = x.close() }()
	}
	if err != nil {
		return err
	}
	socket, err := parseHandshake(line, x.dir)
	if err != nil {
		return err
	}
	return x.connect(ctx, socket, r.patience)
}

func mutualTLS(ctx context.Context, r *rig) error {
	x, err := r.started(ctx)
	if err != nil {
		return err
	}
	socket, err := parseHandshake(first(x.out.String()), x.dir)
	if err != nil {
		return err
	}
	_, stranger, err := wire.NewLaunch()
	if err != nil {
		return err
	}
	anyone := func(config *tls.Config) *tls.Config {
		config.VerifyConnection = nil // as a client that does not care whom it talks to
		return config
	}
	clients := []struct {
		who string
		how func() (*grpc.ClientConn, error)
	}{
		{"a client without TLS", func() (*grpc.ClientConn, error) {
			return grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		}},
		{"a client without a certificate", func() (*grpc.ClientConn, error) {
			config := anyone(x.tls.Clone())
			config.Certificates = nil
			return dial(socket, config)
		}},
		{"a client with the certificate of another launch", func() (*grpc.ClientConn, error) { return dial(socket, anyone(stranger)) }},
	}
	for _, c := range clients {
		conn, err := c.how()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, r.patience)
		_, err = serving(ctx, conn)
		late := ctx.Err()
		cancel()
		_ = conn.Close()
		switch {
		case err == nil:
			return fmt.Errorf("%s is served", c.who)
		case late != nil:
			return fmt.Errorf("%s is neither served nor refused within %s", c.who, r.patience)
		}
	}
	within, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	if _, err := serving(within, x.conn); err != nil {
		return x.why(fmt.Errorf("after strangers were refused the host is, too: %w", err))
	}
	return nil
}

func first(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line + "\n"
}

func healthService(ctx context.Context, r *rig) error {
	if _, err := r.started(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	if _, _, err := r.remote.Health(ctx); err != nil {
		return fmt.Errorf("Health of the extension's own service, which may be asked before Configure: %w", err)
	}
	return nil
}

func checkManifest(ctx context.Context, r *rig) error {
	if _, err := r.started(ctx); err != nil {
		return err
	}
	m := r.manifest
	if m.Name == "" || m.Version == "" {
		return fmt.Errorf("name %q, version %q: neither may be empty", m.Name, m.Version)
	}
	if len(m.Phases) == 0 {
		return errors.New("it declares no phase: it would never be called")
	}
	for i, p := range m.Phases {
		if !p.Known() {
			return fmt.Errorf("%q is no phase", p)
		}
		if slices.Contains(m.Phases[:i], p) {
			return fmt.Errorf("%s is declared twice", p)
		}
	}
	if m.StateWrites != 0 && !slices.Contains(m.StateReads, m.StateWrites) {
		return fmt.Errorf("it writes state of version %d and reads only %v: it could not read its own", m.StateWrites, m.StateReads)
	}
	if len(m.ConfigSchema) > 0 {
		dec := json.NewDecoder(bytes.NewReader(m.ConfigSchema))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&extension.ConfigSchema{}); err != nil {
			return fmt.Errorf("its config schema cannot be read: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	again, err := r.remote.Describe(ctx)
	if err != nil {
		return r.why(err)
	}
	a, _ := json.Marshal(m)
	b, _ := json.Marshal(again)
	if !bytes.Equal(a, b) {
		return fmt.Errorf("asked twice it describes itself differently:\n%s\n%s", a, b)
	}
	return nil
}

func configAccepted(ctx context.Context, r *rig) error {
	if _, err := r.started(ctx); err != nil {
		return err
	}
	for _, time := range []string{"the first", "a second"} {
		d, err := r.configure(ctx, r.p.Config, r.contract)
		if err != nil {
			return fmt.Errorf("Configure failed %s time: %w", time, err)
		}
		if len(d) > 0 {
			return fmt.Errorf("Configure refused the configuration %s time: %s", time, told(d))
		}
	}
	r.configured, r.accepted = true, true
	return nil
}

func drain(ctx context.Context, r *rig) error {
	x, err := r.up(ctx)
	if err != nil {
		return err
	}
	type reply struct {
		c   *extension.Call
		s   *subject
		err error
	}
	var calls []reply
	if ts := r.takers(); len(ts) > 0 {
		for range 8 {
			s, err := r.fresh(ctx, ts[0])
			if err != nil {
				return err
			}
			calls = append(calls, reply{c: r.next(s, ts[0]), s: s})
		}
	}
	replies := make(chan reply, len(calls))
	for _, c := range calls {
		go func() {
			ctx, cancel := context.WithTimeout(ctx, r.patience)
			defer cancel()
			_, c.err = r.remote.Call(ctx, c.c)
			if ctx.Err() == nil && !x.ended(0) { // refused is answered, too
				c.err = nil
			}
			replies <- c
		}()
	}
	within := r.patience / 2
	began := time.Now()
	limit, cancel := context.WithTimeout(ctx, r.patience)
	err = r.remote.Drain(limit, within)
	cancel()
	took := time.Since(began)
	for range calls {
		if c := <-replies; c.err != nil {
			return fmt.Errorf("%s was being served when Drain came, and was never answered: %w", c.c.Phase, c.err)
		}
	}
	if err != nil {
		return x.why(fmt.Errorf("Drain failed after %s: %w", took.Round(time.Millisecond), err))
	}
	if took > within+within/4 {
		return fmt.Errorf("Drain was given %s and took %s", within, took.Round(time.Millisecond))
	}
	r.drop()
	if _, err := r.up(ctx); err != nil {
		return err
	}
	return r.releaseAll(ctx)
}

func terminate(ctx context.Context, r *rig) error {
	x, err := r.up(ctx)
	if err != nil {
		return err
	}
	x.signal(syscall.SIGTERM)
	if !x.ended(r.patience) {
		return fmt.Errorf("%s after SIGTERM it is still running", r.patience)
	}
	if err := syscall.Kill(-x.cmd.Process.Pid, 0); err == nil {
		return errors.New("it has ended, and a process that it started has not")
	}
	return nil
}

func parentDeath(ctx context.Context, r *rig) error {
	x, err := r.up(ctx)
	if err != nil {
		return err
	}
	if err := x.lifeline.Close(); err != nil {
		return err
	}
	if !x.ended(r.patience) {
		return fmt.Errorf("%s after descriptor %d ended it is still running", r.patience, wire.LaunchFD)
	}
	return nil
}
