package daemon

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
)

// examples builds the example extensions once, and returns the directory that they lie in. TestMain removes it.
var examples = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "examples")
	if err != nil {
		return "", err
	}
	examplesDir = dir
	build := exec.Command("go", "build", "-trimpath", "-o", dir+"/", "./ipam", "./tenant-namespace", "./guest-dropin", "./device-claim")
	build.Dir, build.Env = "../../../examples", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return dir, nil
})

var examplesDir string
