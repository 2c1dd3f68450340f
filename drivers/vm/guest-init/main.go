// Command guest-init is the first process of the VM driver's machines. It makes the world that the sandbox's command
// sees, runs the drop-ins and then the command, tells the driver through the machine's serial ports what becomes of
// them, and turns the machine off. It is in every machine's initramfs, so it is small.
package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/vm/internal/guest"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest-init is the first process of a virtual machine, and nothing else")
		return
	}
	m := &machine{}
	defer m.off() // whatever happens: a first process that ends is a panic of the kernel
	if err := prepare(); err != nil {
		console("prepare: %v", err)
		return
	}
	m.ports = openPorts()
	c, err := configuration()
	m.run = c.Run
	m.say(guest.Event{Type: guest.Init})
	code := 0
	if err = because(guest.ConfigInvalid, err); err == nil {
		code, err = m.live(c)
	}
	var f *failure
	if errors.As(err, &f) {
		m.say(guest.Event{Type: guest.Failed, Reason: f.reason, Message: f.Error()})
		return
	}
	m.say(guest.Event{Type: guest.Exit, Code: code})
}

// machine is what the first process knows.
type machine struct {
	*ports
	run  int
	jobs jobs
}

// failure is why a machine did not come to run its command.
type failure struct {
	reason string
	err    error
}

func (f *failure) Error() string { return f.err.Error() }

func because(reason string, err error) error {
	if err == nil {
		return nil
	}
	return &failure{reason, err}
}

// live runs what there is to run, and returns the code with which the command ended.
func (m *machine) live(c *guest.Config) (int, error) {
	go m.orders(m.jobs.stop)
	if err := network(c); err != nil {
		return 0, because(guest.NetworkFailed, err)
	}
	if err := root(c); err != nil {
		return 0, because(guest.RootFailed, err)
	}
	who, err := lookUp(c.User)
	if err == nil {
		err = settle(c, who)
	}
	if err != nil {
		return 0, because(guest.RootFailed, err)
	}
	out, err := m.output(who)
	if err != nil {
		return 0, because(guest.RootFailed, err)
	}
	defer out.close()
	env := environment(c, who)
	for _, d := range c.DropIns {
		if err := m.dropIn(d, env, out); err != nil {
			return m.jobs.failed(because(guest.DropInFailed, fmt.Errorf("drop-in %s: %w", d.Name, err)))
		}
	}
	pid, err := m.jobs.start(c, who, env, out)
	if err != nil {
		return m.jobs.failed(because(guest.CommandFailed, fmt.Errorf("the command %q cannot be executed: %w", c.Command[0], err)))
	}
	m.say(guest.Event{Type: guest.Ready})
	code := m.jobs.wait(pid)
	m.jobs.end()
	return code, nil
}

// configuration reads what the machine is to be, and removes it: it has secrets.
func configuration() (*guest.Config, error) {
	raw, err := os.ReadFile(guest.ConfigPath)
	if err == nil {
		err = os.Remove(guest.ConfigPath)
	}
	if err != nil {
		return &guest.Config{}, err
	}
	return guest.ParseConfig(raw)
}

// off turns the machine off, with everything on its disk.
func (m *machine) off() {
	m.jobs.end()
	leave()
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		console("turn off: %v", err)
	}
	time.Sleep(time.Hour) // it is off before that
}

// console says something to whoever reads the machine's console, when there is no other way.
func console(format string, args ...any) { fmt.Fprintf(os.Stderr, "guest-init: "+format+"\n", args...) }
