package engine

import (
	"cmp"
	"maps"
	"slices"

	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/driver"
)

// What is kept of the notices of one sandbox, and of one notice.
const (
	maxNotices       = 32
	maxNoticeWord    = 256     // bytes of a source, a reason, a key and a value
	maxNoticeMessage = 1 << 10 // bytes, as Kubernetes has it for the note of an event
	maxNoticeKeys    = 16
)

// Notice is what a driver's platform told people of a sandbox. Kept in memory alone.
type Notice struct {
	Number uint64 // grows with each notice of the gateway
	driver.Notice
}

// heard keeps a notice of a sandbox that is known, and wakes those who pass it on.
func (e *Engine) heard(d *Driver, n *driver.Notice) {
	kept := Notice{Notice: short(n)}
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.subjects[n.Identity.ID]
	if s == nil || s.sandbox == nil || s.sandbox.Driver != d.Name || s.sandbox.Ended != nil {
		return
	}
	if kept.At.IsZero() {
		kept.At = e.Now()
	}
	e.noticed++
	kept.Number = e.noticed
	s.notices = append(s.notices[max(0, len(s.notices)-maxNotices+1):], kept)
	e.Logger.Debug("the driver's platform says", "driver", d.Name, "sandbox", s.id, "reason", kept.Reason, "message", kept.Message)
	e.notify()
}

// short returns a notice with what it may say at most: it is somebody else's text.
func short(n *driver.Notice) driver.Notice {
	out := *n
	out.Source, out.Reason = pipeline.Words(n.Source, maxNoticeWord), pipeline.Words(n.Reason, maxNoticeWord)
	out.Message, out.Metadata = pipeline.Words(n.Message, maxNoticeMessage), nil
	for _, k := range slices.Sorted(maps.Keys(n.Metadata)) {
		if len(out.Metadata) == maxNoticeKeys {
			break
		}
		if len(k) <= maxNoticeWord {
			if out.Metadata == nil {
				out.Metadata = map[string]string{}
			}
			out.Metadata[k] = pipeline.Words(n.Metadata[k], maxNoticeWord)
		}
	}
	return out
}

// Noticed returns the number of the last notice of any sandbox.
func (e *Engine) Noticed() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.noticed
}

// Notices returns what is kept of a sandbox's notices with a number above after, oldest first.
func (e *Engine) Notices(id string, after uint64) []Notice {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.subjects[id]
	if s == nil {
		return nil
	}
	i, _ := slices.BinarySearchFunc(s.notices, after+1, func(n Notice, number uint64) int { return cmp.Compare(n.Number, number) })
	return slices.Clone(s.notices[i:])
}
