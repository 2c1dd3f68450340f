package native

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// insideSwitch makes the test binary a program that runs within a sandbox and says what it finds there.
const insideSwitch = "native-inside"

// sight is what a sandbox sees of itself and of the host.
type sight struct {
	UID        int
	Hostname   string
	PIDs       []string
	Namespaces map[string]string
	Status     map[string]string // of /proc/self/status
	Files      []string          // descriptors that the command was given
	Links      []string
	Wrote      []string          // what it could open for writing
	Read       map[string]string // what it could read of what it was asked to look at
	Did        []string          // what it could do and should not
}

func insideMain(args []string) int {
	time.AfterFunc(10*time.Minute, func() { unix.Exit(3) }) // whoever began the test was killed
	switch args[0] {
	case "look":
		return look(args[1:])
	case "serve":
		return serve(args[1])
	case "dial":
		return dial(args[1], args[2])
	case "allocate":
		return allocate(1 << 10)
	case "hold": // what has much does not end in a moment
		_ = allocate(256)
		fmt.Println("up")
		select {}
	}
	return 2
}

// look says what there is; the arguments are paths of the host that it tries to read.
func look(paths []string) int {
	s := sight{UID: os.Getuid(), Namespaces: map[string]string{}, Status: map[string]string{}, Read: map[string]string{}}
	s.Hostname, _ = os.Hostname()
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if strings.Trim(e.Name(), "0123456789") == "" {
			s.PIDs = append(s.PIDs, e.Name())
		}
	}
	for _, ns := range []string{"pid", "mnt", "ipc", "uts", "net", "user"} {
		s.Namespaces[ns], _ = os.Readlink("/proc/self/ns/" + ns)
	}
	raw, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(raw), "\n") {
		key, value, _ := strings.Cut(line, ":")
		s.Status[key] = strings.TrimSpace(value)
	}
	for fd := range 64 {
		if target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil && !strings.HasPrefix(target, "anon_inode:[event") {
			s.Files = append(s.Files, fmt.Sprint(fd))
		}
	}
	links, _ := net.Interfaces()
	for _, l := range links {
		s.Links = append(s.Links, l.Name)
	}
	s.write()
	s.reach()
	for _, p := range paths {
		if raw, err := os.ReadFile(p); err == nil {
			s.Read[p] = string(raw)
		} else if list, err := os.ReadDir(p); err == nil && len(list) > 0 {
			s.Read[p] = fmt.Sprint(list)
		}
	}
	_ = json.NewEncoder(os.Stdout).Encode(s)
	return 0
}

func (s *sight) write() {
	for _, p := range []string{"/x", "/etc/x", "/usr/x", "/var/x", "/var/tmp/x", "/dev/shm/x", "/tmp/x", "/work/x",
		"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger"} {
		flags := os.O_WRONLY
		if filepath.Base(p) == "x" {
			flags |= os.O_CREATE
		}
		if f, err := os.OpenFile(p, flags, 0o600); err == nil {
			_ = f.Close()
			s.Wrote = append(s.Wrote, p)
		}
	}
}

// reach tries to get at the first process of the sandbox, which may do more than the command, and at the host.
func (s *sight) reach() {
	did := func(what string, err error) {
		if err == nil {
			s.Did = append(s.Did, what)
		}
	}
	for _, name := range []string{"mem", "environ", "maps", "exe", "fd/1", "root/etc", "task/1/mem"} {
		f, err := os.OpenFile("/proc/1/"+name, os.O_RDONLY, 0)
		if err == nil && name == "environ" { // it opens for everybody and reads for nobody
			_, err = f.Read(make([]byte, 1))
		}
		did("opened /proc/1/"+name, err)
	}
	did("mounted", unix.Mount("tmpfs", "/tmp", "tmpfs", 0, ""))
	did("unmounted", unix.Unmount("/proc/sys", unix.MNT_DETACH))
	did("made a device", unix.Mknod("/work/disk", unix.S_IFBLK|0o600, 0))
	did("set the host name", unix.Sethostname([]byte("taken")))
	_, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	did("listened to a network", err)
	_, err = unix.Openat(unix.AT_FDCWD, "/proc/kcore", unix.O_RDONLY, 0)
	if err == nil {
		raw, _ := os.ReadFile("/proc/kcore")
		if len(raw) > 0 {
			did("read the kernel's memory", nil)
		}
	}
	for _, sig := range []unix.Signal{unix.SIGKILL, unix.SIGSTOP, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGSEGV} {
		_ = unix.Kill(1, sig) // it has no effect: who reads this sees that it goes on
	}
	did("traced the first process", unix.PtraceSeize(1))
}

func serve(address string) int {
	l, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("serving")
	for {
		c, err := l.Accept()
		if err != nil {
			return 1
		}
		_, _ = io.WriteString(c, "hello")
		_ = c.Close()
	}
}

func dial(address, patience string) int {
	wait, err := time.ParseDuration(patience)
	if err != nil {
		return 2
	}
	c, err := net.DialTimeout("tcp", address, wait)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	raw, _ := io.ReadAll(c)
	fmt.Println(string(raw))
	return 0
}

// allocate takes that many MiB, every page of them.
func allocate(n int) int {
	var all [][]byte
	for range n {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4 << 10 {
			b[i] = 1
		}
		all = append(all, b)
	}
	fmt.Println(len(all), "MiB were given")
	return 0
}
