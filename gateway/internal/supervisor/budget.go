package supervisor

import "time"

// budget decides when an extension is started again, and whether.
type budget struct {
	restart    Restart
	first, max time.Duration
	jitter     func() float64
	spent      []time.Time // restarts within the window, oldest first
}

// spend takes one restart from the budget. It returns how long to wait for it; false means that nothing is left.
// The pause doubles with each restart in the window and lies between half of that and all of it.
func (b *budget) spend(now time.Time) (time.Duration, bool) {
	for len(b.spent) > 0 && now.Sub(b.spent[0]) >= b.restart.Window {
		b.spent = b.spent[1:]
	}
	if len(b.spent) >= b.restart.Budget {
		return 0, false
	}
	pause := b.first
	for range b.spent {
		if pause *= 2; pause >= b.max {
			pause = b.max
			break
		}
	}
	b.spent = append(b.spent, now)
	return pause/2 + time.Duration(b.jitter()*float64(pause/2)), true
}

// reset forgets what was spent.
func (b *budget) reset() { b.spent = nil }
