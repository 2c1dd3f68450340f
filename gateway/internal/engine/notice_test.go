package engine

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// The newest notices of a live sandbox are kept, cut to what a line may say; those of others are not.
func TestNoticesAreKept(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a"}, func(t *testing.T, r *rig) {
		id, err := r.create("one")
		r.must(err)
		stranger := id
		stranger.ID = "nobody"
		say := func(of sandbox.Identity, n int) {
			metadata := map[string]string{strings.Repeat("k", 5*maxNoticeWord): "v"}
			for i := range 2 * maxNoticeKeys {
				metadata[fmt.Sprintf("key-%02d", i)] = "v"
			}
			r.world.Tell(driver.Notice{Identity: of, Reason: fmt.Sprintf("R%d", n), Message: strings.Repeat("x", 5*maxNoticeMessage), Metadata: metadata})
		}
		for n := range maxNotices + 8 {
			say(id, n)
			say(stranger, n)
		}
		synctest.Wait()
		all := r.engine.Notices(id.ID, 0)
		if len(all) != maxNotices || all[0].Reason != "R8" || all[maxNotices-1].Number != r.engine.Noticed() || r.engine.Noticed() != maxNotices+8 {
			t.Errorf("kept are %d, from %s on, the last is %d of %d", len(all), all[0].Reason, all[len(all)-1].Number, r.engine.Noticed())
		}
		if n := all[0]; len(n.Message) > 2*maxNoticeMessage || len(n.Metadata) != maxNoticeKeys || n.At.IsZero() {
			t.Errorf("it says %d bytes with %d keys at %v", len(n.Message), len(n.Metadata), n.At)
		}
		if later := r.engine.Notices(id.ID, all[maxNotices-2].Number); len(later) != 1 || later[0].Number != r.engine.Noticed() {
			t.Errorf("after the last but one come %v", later)
		}
		if none := r.engine.Notices(id.ID, r.engine.Noticed()); len(none) != 0 {
			t.Errorf("after the last come %v", none)
		}
	})
}
