package podman

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	gonet "net"
	"net/http"
	"net/url"
	"strings"

	"github.com/sandgate/sandgate/drivers/container"
	"github.com/sandgate/sandgate/shared/fault"
)

// base is the oldest version of the API that has all that is used; later engines serve it too.
const base = "http://podman/v4.0.0/libpod"

// maxReply is how much of an answer is read, logs and streams aside.
const maxReply = 64 << 20

// api is a client of libpod's API. There is no Go module of Podman that could be used without the engine itself.
type api struct{ http *http.Client }

func dial(socket string) *api {
	return &api{&http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32,
		DialContext: func(ctx context.Context, _, _ string) (gonet.Conn, error) {
			return (&gonet.Dialer{}).DialContext(ctx, "unix", socket)
		}}}}
}

// refusal is what the engine says when it does not do what it was told.
type refusal struct {
	Status  int    `json:"response"`
	Message string `json:"message"`
	Cause   string `json:"cause"`
}

func (r *refusal) Error() string { return r.Message }

// call is one call: what it does and about what, for people, and how it is sent.
type call struct {
	what, about  string
	method, path string
	query        url.Values
	body         any // an io.Reader is a tar, all else is encoded
}

// send makes a call. The caller closes the answer's body.
func (a *api) send(ctx context.Context, c call) (*http.Response, error) {
	var body io.Reader
	typ := "application/json"
	switch b := c.body.(type) {
	case nil:
	case io.Reader:
		body, typ = b, "application/x-tar"
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			return nil, c.failed(err)
		}
		body = bytes.NewReader(raw)
	}
	u := base + c.path
	if len(c.query) > 0 {
		u += "?" + c.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, c.method, u, body)
	if err != nil {
		return nil, c.failed(err)
	}
	req.Header.Set("Content-Type", typ)
	resp, err := a.http.Do(req)
	if err != nil {
		var of *url.Error
		if errors.As(err, &of) { // its text is the address, which means nothing
			err = fmt.Errorf("the connection to the engine broke: %w", of.Err)
		}
		return nil, c.failed(err)
	}
	if resp.StatusCode < http.StatusBadRequest {
		return resp, nil
	}
	no := &refusal{}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err == nil && (json.Unmarshal(raw, no) != nil || no.Message == "") {
		no.Message = strings.TrimSpace(string(raw))
	}
	no.Status = resp.StatusCode
	return nil, c.failed(errors.Join(no, err, resp.Body.Close()))
}

// do makes a call and decodes the answer into out, unless that is nil.
func (a *api) do(ctx context.Context, c call, out any) error {
	resp, err := a.send(ctx, c)
	if err != nil {
		return err
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return c.failed(err)
	}
	if out == nil || len(raw) == 0 {
		return nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return c.failed(fmt.Errorf("its answer cannot be read: %w", err))
	}
	return nil
}

// failed turns what went wrong into a fault.
func (c call) failed(err error) error {
	var no *refusal
	code := fault.Unavailable
	text := strings.ToLower(err.Error())
	switch {
	case errors.Is(err, context.Canceled):
		code = fault.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		code = fault.DeadlineExceeded
	case !errors.As(err, &no): // a connection that broke
	case strings.Contains(text, "no space left on device"), strings.Contains(text, "quota exceeded"):
		code = fault.ResourceExhausted
	case strings.Contains(text, "already allocated"), strings.Contains(text, "is being used"), strings.Contains(text, "address already in use"):
		code = fault.Conflict
	case strings.Contains(text, "already in use"), strings.Contains(text, "already exists"), strings.Contains(text, "already used"):
		code = fault.AlreadyExists
	case no.Status == http.StatusNotFound, strings.Contains(text, "no such container"): // also where it went meanwhile
		code = fault.NotFound
	case no.Status == http.StatusConflict:
		code = fault.Conflict
	case no.Status == http.StatusBadRequest:
		code = fault.Invalid
	default:
		code = fault.FailedPrecondition // the engine has answered: it is not in doubt
	}
	return container.Failed(code, "podman", c.what, c.about, err)
}

// filters encodes labels for a query.
func filters(labels map[string]string) string {
	all := []string{}
	for k, v := range labels {
		all = append(all, k+"="+v)
	}
	raw, err := json.Marshal(map[string][]string{"label": all})
	if err != nil {
		panic(err) // strings can be encoded
	}
	return string(raw)
}

// have reports whether labels has all of want: not every version of the engine asks for all of a filter's labels.
func have(labels, want map[string]string) bool {
	for k, v := range want {
		if labels[k] != v {
			return false
		}
	}
	return true
}
