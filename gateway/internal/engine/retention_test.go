package engine

import (
	"testing"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/journal"
)

// The audit is kept whole, or as long as somebody has said.
func TestTheAuditIsKeptAsLongAsItIsTo(t *testing.T) {
	for _, keep := range []time.Duration{0, 30 * time.Hour} {
		bubble(t, rigOptions{audit: keep}, []string{"a"}, func(t *testing.T, r *rig) {
			oldest := func() time.Time {
				list, err := r.engine.Journal.List(t.Context(), journal.Query{Kind: kindAudit, Limit: 1})
				r.must(err)
				if len(list) == 0 {
					return time.Time{}
				}
				a, err := decode[AuditEntry](list[0])
				r.must(err)
				return a.Time
			}
			began := time.Now()
			_, err := r.create("one")
			r.must(err)
			for i := range 3 * purgeBatch {
				r.must(r.engine.Reloaded("g", []string{"line"}, "test"))
				if i%300 == 0 {
					time.Sleep(time.Hour)
				}
			}
			time.Sleep(28 * time.Hour) // about 33 hours have passed: more than one batch is older than 30
			switch first := oldest(); {
			case keep == 0 && first.After(began.Add(time.Minute)):
				t.Errorf("the audit begins %v late", first.Sub(began))
			case keep > 0 && time.Since(first) > keep+time.Hour:
				t.Errorf("the audit begins %v ago", time.Since(first))
			case keep > 0 && first.IsZero():
				t.Error("nothing is left of the audit")
			}
		})
	}
}
