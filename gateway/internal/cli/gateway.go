package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/gateway/internal/config"
	"github.com/sandgate/sandgate/gateway/internal/daemon"
	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

// NativeShim is the first argument with which this program is what holds a sandbox of the native driver.
const NativeShim = "native-shim"

// Version is the program's, set by the linker.
var Version = "dev"

func gatewayCommand(env Env, c *client) *cobra.Command {
	var paths []string
	var dev, logJSON bool
	attach := map[string]string{}
	var level string
	cmd := &cobra.Command{
		Use: "gateway", Short: "Run the gateway", Args: exactly(),
		Long: "Runs the gateway until it gets SIGINT or SIGTERM. SIGHUP loads the configuration anew.\n\n" + exitCodes,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := newLogger(env.Stderr, level, logJSON)
			if err != nil {
				return err
			}
			if len(attach) > 0 && !dev {
				return fmt.Errorf("%w: --attach needs --dev: nothing of a process that was started by hand is verified", errUsage)
			}
			return runGateway(cmd.Context(), env, daemon.Options{Paths: paths, Dev: dev, Attach: attach, Logger: logger})
		},
	}
	cmd.Flags().StringArrayVar(&paths, "config", nil, "a file, or a directory of .hcl and .hcl.json files (repeatable)")
	cmd.Flags().BoolVar(&dev, "dev", false, "a throwaway data directory with the native driver where no --config is given; checksums may be left out")
	cmd.Flags().StringToStringVar(&attach, "attach", nil, "NAME=FILE: with --dev, attach to the process of extension NAME that runs with SANDGATE_ATTACH=FILE, instead of starting its program")
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	cmd.Flags().BoolVar(&logJSON, "log-json", false, "log in JSON")
	cmd.AddCommand(&cobra.Command{Use: "reload", Short: "Load the configuration anew", Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
		return c.with(cmd.Context(), func(ctx context.Context, g gatewayv1.GatewayClient) error {
			res, err := g.Reload(ctx, &gatewayv1.ReloadRequest{})
			if err != nil {
				return err
			}
			for _, change := range res.Changes {
				fmt.Fprintln(env.Stdout, change)
			}
			fmt.Fprintln(env.Stdout, "in force:", res.Generation)
			return nil
		})
	}})
	return cmd
}

func newLogger(w io.Writer, level string, asJSON bool) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("%w: --log-level takes debug, info, warn or error, not %q", errUsage, level)
	}
	opts := &slog.HandlerOptions{Level: l}
	if asJSON {
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return slog.New(slog.NewTextHandler(w, opts)), nil
}

// shim is the command by which this program holds a sandbox. It is named by what is executed now, so that a program
// that is replaced while the gateway runs changes nothing.
func shim() []string { return []string{"/proc/self/exe", NativeShim} }

func runGateway(ctx context.Context, env Env, opts daemon.Options) (err error) {
	opts.Version, opts.Shim, opts.Manager = Version, shim(), daemon.ManagerOf(env.Getenv, os.Getpid())
	if opts.Dev && len(opts.Paths) == 0 {
		dir, err := devConfig(env)
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		opts.Paths, opts.Throwaway = []string{filepath.Join(dir, "dev.hcl")}, true
	}
	if len(opts.Paths) == 0 {
		return fmt.Errorf("%w: say --config, or --dev for a throwaway gateway", errUsage)
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, unix.SIGHUP)
	defer signal.Stop(hup)
	opts.Reload = hup
	d, findings, err := daemon.New(ctx, opts)
	if findings != nil {
		if rerr := findings.Render(env.Stderr); rerr != nil {
			return rerr
		}
	}
	if err != nil {
		return err
	}
	if d == nil {
		return errReported{exitConfig}
	}
	return d.Run(ctx)
}

// devConfig writes the configuration of a throwaway gateway.
func devConfig(env Env) (string, error) {
	dir, err := os.MkdirTemp("", "sandgate-dev-")
	if err != nil {
		return "", err
	}
	socket := filepath.Join(dir, "gateway.sock")
	text := fmt.Sprintf("gateway {\n  data_dir = %q\n  listen   = \"unix://%s\"\n}\n\ndriver \"native\" {}\n", filepath.Join(dir, "data"), socket)
	if err := os.WriteFile(filepath.Join(dir, "dev.hcl"), []byte(text), 0o600); err != nil {
		return "", err
	}
	fmt.Fprintf(env.Stderr, "a throwaway gateway; in another terminal:\n  export SANDGATE_ADDR=unix://%s\n", socket)
	return dir, nil
}

func versionCommand(env Env, c *client) *cobra.Command {
	var server bool
	cmd := &cobra.Command{Use: "version", Short: "Print the version", Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
		fmt.Fprintln(env.Stdout, "sandgate", Version, revision())
		if !server {
			return nil
		}
		return c.with(cmd.Context(), func(ctx context.Context, g gatewayv1.GatewayClient) error {
			v, err := g.GetVersion(ctx, &gatewayv1.GetVersionRequest{})
			if err != nil {
				return err
			}
			fmt.Fprintln(env.Stdout, "gateway ", v.Version, v.Commit, v.Generation)
			return nil
		})
	}}
	cmd.Flags().BoolVar(&server, "gateway", false, "the running gateway's, too")
	return cmd
}

func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}

func configCommand(env Env) *cobra.Command {
	return noun("config", "Check and format configurations", validateCommand(env), fmtCommand(env))
}

func validateCommand(env Env) *cobra.Command {
	var launch, dev bool
	var out format
	cmd := &cobra.Command{
		Use: "validate PATH...", Short: "Check a configuration", Args: oneOrMore("PATH..."),
		Long: "Checks a configuration: exits with 0 or 1 and starts nothing. What an extension takes in its\nconfig block is known from when its program was last started, by a gateway or by --launch; where it is not, a warning\nsays so. With --launch it launches the extensions and negotiates with them too, and ends them again.",
		RunE: func(cmd *cobra.Command, args []string) error {
			findings, err := check(cmd.Context(), args, launch, dev)
			if err != nil {
				return err
			}
			if err := showFindings(env, findings, out); err != nil {
				return err
			}
			if findings.HasErrors() {
				return errReported{exitFailure}
			}
			return nil
		},
	}
	out.flag(cmd)
	cmd.Flags().BoolVar(&launch, "launch", false, "launch the extensions and negotiate with them")
	cmd.Flags().BoolVar(&dev, "dev", false, "checksums may be left out")
	return cmd
}

func showFindings(env Env, findings *config.Findings, out format) error {
	if out == "table" {
		if err := findings.Render(env.Stderr); err != nil || findings.HasErrors() {
			return err
		}
		_, err := fmt.Fprintln(env.Stdout, "The configuration is valid.")
		return err
	}
	var raw bytes.Buffer
	if err := findings.JSON(&raw); err != nil {
		return err
	}
	return out.raw(env.Stdout, raw.Bytes())
}

func check(ctx context.Context, paths []string, launch, dev bool) (*config.Findings, error) {
	opts := daemon.Options{Paths: paths, Dev: dev, Version: Version, Shim: shim(), Logger: slog.New(slog.DiscardHandler)}
	if launch {
		return daemon.Check(ctx, opts)
	}
	return daemon.CheckOffline(opts), nil
}

func fmtCommand(env Env) *cobra.Command {
	var checkOnly bool
	cmd := &cobra.Command{Use: "fmt PATH...", Short: "Write configurations in canonical form", Args: oneOrMore("PATH..."), RunE: func(_ *cobra.Command, args []string) error {
		changed := false
		for _, path := range args {
			src, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			formatted, findings := config.Format(src, path)
			if findings.HasErrors() {
				if err := findings.Render(env.Stderr); err != nil {
					return err
				}
				return errReported{exitConfig}
			}
			if string(formatted) == string(src) {
				continue
			}
			changed = true
			fmt.Fprintln(env.Stdout, path)
			if checkOnly {
				continue
			}
			if err := rewrite(path, formatted); err != nil {
				return err
			}
		}
		if checkOnly && changed {
			return errReported{exitFailure}
		}
		return nil
	}}
	cmd.Flags().BoolVar(&checkOnly, "check", false, "write nothing; exit with 1 when a file is not in canonical form")
	return cmd
}

// rewrite gives a file another text, whole or not at all, and leaves its mode and its owner as they are.
func rewrite(path string, text []byte) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".fmt-*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if was, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		err = errors.Join(err, f.Chown(int(was.Uid), int(was.Gid)))
	}
	err = errors.Join(err, f.Chmod(info.Mode().Perm()), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
