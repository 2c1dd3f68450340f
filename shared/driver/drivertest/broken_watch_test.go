package drivertest

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

func brokenWatches() []broken {
	return []broken{
		{"the end of a sandbox is not told", "Watch shows what there is, then Synced, then changes", func(f *faulty) {
			f.filter(func(e driver.Event, _ bool) bool { return e.Status != nil || e.Synced })
		}},
		{"Synced is not told", "Watch shows what there is, then Synced, then changes", func(f *faulty) {
			f.filter(func(e driver.Event, _ bool) bool { return !e.Synced })
		}},
		{"changes are not told", "Watch shows what there is, then Synced, then changes", func(f *faulty) {
			f.filter(func(_ driver.Event, synced bool) bool { return !synced })
		}},
		{"the snapshot has only what runs", "Watch shows in its snapshot what changed while nobody watched", func(f *faulty) {
			f.filter(func(e driver.Event, synced bool) bool { return synced || e.Status == nil || runs(e.Status.State) })
		}},
		{"the function's errors are not heard", "Watch ends when its function fails", func(f *faulty) {
			f.watch = func(ctx context.Context, fn func(driver.Event) error) error {
				return f.Fake.Watch(ctx, func(e driver.Event) error { _ = fn(e); return nil })
			}
		}},
		{"Watch goes on after its function failed", "Watch ends when its function fails", func(f *faulty) {
			f.watch = func(ctx context.Context, fn func(driver.Event) error) error {
				var failed error
				err := f.Fake.Watch(ctx, func(e driver.Event) error {
					if err := fn(e); err != nil {
						if failed != nil {
							return failed
						}
						failed = err
					}
					return nil
				})
				return err
			}
		}},
		{"Watch ends without an error", "Watch ends with its context", func(f *faulty) {
			f.watch = func(ctx context.Context, fn func(driver.Event) error) error { _ = f.Fake.Watch(ctx, fn); return nil }
		}},
		{"only the first Watch is told", "Two watches see the same", func(f *faulty) {
			var taken atomic.Bool
			f.watch = func(ctx context.Context, fn func(driver.Event) error) error {
				deaf, synced := !taken.CompareAndSwap(false, true), false
				return f.Fake.Watch(ctx, func(e driver.Event) error {
					if deaf && synced {
						return nil
					}
					synced = synced || e.Synced
					return fn(e)
				})
			}
		}},
	}
}

func brokenWorkloads() []broken {
	code := func(change func(*driver.Status)) func(f *faulty) {
		return func(f *faulty) { f.edit(change) }
	}
	zero := 0
	return []broken{
		{"success has no code", "Exit code 0 is reported", code(func(s *driver.Status) { s.ExitCode = nil })},
		{"failure is shown as success", "Exit code 1 is reported", code(func(s *driver.Status) { s.ExitCode = &zero })},
		{"codes are not told apart", "Exit code 42 is reported", code(func(s *driver.Status) { one := 1; s.ExitCode = &one })},
		{"a second Create runs it again", "What has exited is not run again by itself", func(f *faulty) {
			f.create = func(ctx context.Context, r *driver.CreateRequest) error {
				if s := f.know(r.Identity); s != nil {
					return f.Fake.Start(ctx, &driver.StartRequest{Identity: r.Identity, Operation: r.Operation, Run: s.Run + 1, Plan: r.Plan})
				}
				return f.Fake.Create(ctx, r)
			}
		}},
		{"exits are not told", "An exit is told to who watches", func(f *faulty) {
			f.filter(func(e driver.Event, _ bool) bool { return e.Status == nil || e.Status.State != driver.Exited })
		}},
		{"the exit code is forgotten", "An exit is found by a driver opened again", func(f *faulty) {
			own := f.creator()
			f.edit(func(s *driver.Status) {
				if !own[s.Identity.ID] {
					s.ExitCode = nil
				}
			})
		}},
		{"an exit that nobody saw is taken for a loss", "An exit while no driver was open is found", func(f *faulty) {
			own := f.creator()
			f.edit(func(s *driver.Status) {
				if !own[s.Identity.ID] && s.State == driver.Exited {
					s.State = driver.Lost
				}
			})
		}},
		{"what has exited is not started again", "What has exited is started again", func(f *faulty) {
			f.start = func(ctx context.Context, r *driver.StartRequest) error {
				if s := f.know(r.Identity); s != nil && s.State == driver.Exited {
					return fault.New(fault.FailedPrecondition, "it has exited")
				}
				return f.Fake.Start(ctx, r)
			}
		}},
		{"what has exited is not deleted", "Delete leaves nothing of what has exited", func(f *faulty) {
			f.deletesUnless(func(s *driver.Status) bool { return s.State == driver.Exited })
		}},
		{"arguments are split at spaces", "A command gets its arguments as they were written", func(f *faulty) {
			f.layers = func(ctx context.Context, r *driver.Request) ([]plan.Layer, error) {
				split := *r
				split.Spec.Command = strings.Fields(strings.Join(r.Spec.Command, " "))
				return f.Fake.Layers(ctx, &split)
			}
		}},
		{"logs are kept in memory", "Logs are kept over the end and over a restart", func(f *faulty) {
			own := f.creator()
			f.logs = func(ctx context.Context, id sandbox.Identity, follow bool, out io.Writer) error {
				if !own[id.ID] {
					return nil
				}
				return f.Fake.Logs(ctx, id, follow, out)
			}
		}},
		{"logs followed never end", "Logs followed end with the sandbox", func(f *faulty) {
			f.logs = func(ctx context.Context, id sandbox.Identity, follow bool, out io.Writer) error {
				err := f.Fake.Logs(ctx, id, follow, out)
				if follow && err == nil {
					<-ctx.Done()
					return ctx.Err()
				}
				return err
			}
		}},
		{"logs cut short look complete", "Logs followed end with their context", func(f *faulty) {
			f.logs = func(ctx context.Context, id sandbox.Identity, follow bool, out io.Writer) error {
				_ = f.Fake.Logs(ctx, id, follow, out)
				return nil
			}
		}},
		{"logs of nothing are empty", "Logs of nothing are NotFound", func(f *faulty) {
			f.logs = func(ctx context.Context, id sandbox.Identity, follow bool, out io.Writer) error {
				if err := f.Fake.Logs(ctx, id, follow, out); !fault.Is(err, fault.NotFound) {
					return err
				}
				return nil
			}
		}},
		{"the request's environment is dropped", "The request's environment reaches the command", func(f *faulty) {
			f.layers = func(ctx context.Context, r *driver.Request) ([]plan.Layer, error) {
				bare := *r
				bare.Spec.Environment = nil
				return f.Fake.Layers(ctx, &bare)
			}
		}},
		{"contributions are dropped", "A contributed environment reaches the command", func(f *faulty) {
			f.create = func(ctx context.Context, r *driver.CreateRequest) error {
				schema, err := Schema()
				if err != nil {
					return err
				}
				own := slices.DeleteFunc(slices.Clone(r.Plan.Layers()), func(l plan.Layer) bool { return l.Phase != "" })
				bare := *r
				if bare.Plan, err = schema.Compute(own); err != nil {
					return err
				}
				return f.Fake.Create(ctx, &bare)
			}
		}},
		{"the work directory is new for each run", "The work directory is kept over Stop and Start", func(f *faulty) {
			f.start = func(ctx context.Context, r *driver.StartRequest) error {
				f.world.mu.Lock()
				if b := f.world.find(r.Identity.ID); b != nil {
					b.runs = 0
				}
				f.world.mu.Unlock()
				return f.Fake.Start(ctx, r)
			}
		}},
		{"the work directory goes by the name", "The work directory goes with the sandbox", func(f *faulty) {
			before := map[string]int{}
			f.logs = func(_ context.Context, id sandbox.Identity, _ bool, out io.Writer) error {
				before[id.Name]++
				_, err := out.Write(bytes.Repeat([]byte("1\n"), before[id.Name]))
				return err
			}
		}},
	}
}

// creator remembers what was made through this driver, and not through one that was open before.
func (f *faulty) creator() map[string]bool {
	own := map[string]bool{}
	f.create = func(ctx context.Context, r *driver.CreateRequest) error {
		own[r.Identity.ID] = true
		return f.Fake.Create(ctx, r)
	}
	return own
}
