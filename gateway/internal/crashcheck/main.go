// Command crashcheck looks at what a crash test has left of a gateway's world, and says what is not as it should be.
//
// It never asks the gateway. It reads the store of ipam and the files of the test's third extension, the native
// driver's directories or the container engine, /proc, the links that ip shows, control groups, sockets, and what each sandbox has written
// down of what it sees; and it compares all of that with the ledger in the gateway's database, which it opens
// read-only. It imports nothing of the gateway: what it knows of formats stands in their documentation.
//
// Nothing printed means that all is well. What is about to end gets a moment: the whole is looked at again until it
// is well or the time is over.
package main

import (
	"flag"
	"fmt"
	"slices"
	"time"
)

// patience is how long what is left may take to go away. What has leaked stays.
const patience = 5 * time.Second

// site is what the test says of what it made.
type site struct {
	dir     string // of the site; every process of it has it among its arguments
	run     string // where the sockets of extensions lie
	driver  string // the name of the composed driver, with which the ids of its sandboxes begin
	gateway int    // the gateway's pid; 0: it has ended in order, and nothing may be left of it
	cluster string // the address of an API server under the composed driver; "": there is none
	engine  string // the socket of the container engine; "": the base is the native driver, and a third extension binds it
	qemu    string // the program that stands in for QEMU; "": the base runs no virtual machines
}

// witnessed reports whether there is the third extension.
func (s site) witnessed() bool { return s.engine == "" && s.qemu == "" && s.cluster == "" }

func main() {
	var s site
	flag.StringVar(&s.dir, "dir", "", "the directory of the site")
	flag.StringVar(&s.run, "run", "", "the directory of the gateway's sockets")
	flag.StringVar(&s.driver, "driver", "", "the composed driver")
	flag.IntVar(&s.gateway, "gateway", 0, "the pid of the gateway; 0: it has ended")
	flag.StringVar(&s.engine, "engine", "", "the socket of the container engine under the composed driver; empty: it is the native driver")
	flag.StringVar(&s.qemu, "qemu", "", "what stands in for QEMU where the composed driver runs virtual machines")
	flag.StringVar(&s.cluster, "cluster", "", "the address of the API server under the composed driver, which asks for no credentials")
	flag.Parse()
	var wrong []string
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) { //nolint:forbidigo // there is nothing to be told by
		if wrong = s.look(); len(wrong) == 0 || time.Since(began) > patience {
			break
		}
	}
	for _, w := range wrong {
		fmt.Println(w)
	}
}

// report collects what is wrong.
type report []string

func (r *report) add(format string, args ...any) { *r = append(*r, fmt.Sprintf(format, args...)) }

// look compares the world with the ledger once.
func (s site) look() []string {
	var r report
	led, err := readLedger(s.dir + "/data/journal.db")
	if err != nil {
		return []string{err.Error()}
	}
	led.judge(&r)
	leases := readLeases(s.dir+"/leases/leases.jsonl", &r)
	held := readWitness(s.dir+"/witness", &r)
	s.compareHeld(led, leases, held, &r)
	s.judgeProcesses(led, readProcesses(s.dir), &r)
	s.judgeSockets(&r)
	switch {
	case s.cluster != "":
		s.judgeCluster(led, leases, &r)
	case s.engine != "":
		s.judgeEngine(led, leases, &r)
	case s.qemu != "":
		s.judgeDirectories(led, &r)
		s.judgeLinks(led, &r)
		s.judgeLogs(led, leases, &r)
	default:
		s.judgeDirectories(led, &r)
		s.judgeLinks(led, &r)
		s.judgeGroups(led, &r)
		s.judgeMounts(&r)
		s.judgeSights(led, leases, &r)
	}
	slices.Sort(r)
	return r
}
