package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandgate/sandgate/gateway/internal/config"
	"github.com/sandgate/sandgate/plugin/plugintest/conformance"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
)

// verification is what the flags of verify say.
type verification struct {
	program     conformance.Program
	config      string
	env, labels []string
	rules       []string
	out         format
}

func verifyCommand(env Env) *cobra.Command {
	v := &verification{}
	list := false
	cmd := &cobra.Command{
		Use: "verify PROGRAM [-- ARG...]", Short: "Run a program against the rules of the extension contract",
		Long: `Runs a program, in whatever language it is written, against every rule of the extension contract: it is started,
called, killed and started again as a gateway would. It needs no gateway. Exits with 0 when every rule that applies is
kept, with 1 when one is broken.

--config names a file with what would stand in the extension's config block. In it ${scratch} is a directory that
lives as long as the run, for whatever the extension keeps.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if list {
				return listRules(env)
			}
			if len(args) == 0 {
				return fmt.Errorf("%w: %s takes PROGRAM", errUsage, cmd.CommandPath())
			}
			v.program.Command, v.program.Args = args[0], args[1:]
			return v.run(cmd.Context(), env)
		},
	}
	v.out.flag(cmd)
	f := cmd.Flags()
	f.StringVar(&v.config, "config", "", "a file with the content of the extension's config block")
	f.StringVar(&v.program.Interpreter, "interpreter", "", "of a script; by default what its first line says")
	f.StringArrayVar(&v.program.Files, "file", nil, "a file that a script needs beside it (repeatable)")
	f.StringArrayVar(&v.env, "env", nil, "NAME=VALUE of the program's environment, which is otherwise empty (repeatable)")
	f.StringVar(&v.program.Workspace, "workspace", "", "the name of the sandboxes' workspace, where the extension does not take every one")
	f.StringVar(&v.program.Image, "image", "", "the sandboxes' image")
	f.StringArrayVar(&v.labels, "label", nil, "KEY=VALUE of the sandboxes (repeatable)")
	f.StringArrayVar(&v.rules, "rule", nil, "try only this rule (repeatable)")
	f.DurationVar(&v.program.Patience, "patience", 5*time.Second, "how long anything may take that ought to be quick")
	f.BoolVar(&list, "rules", false, "print the rules, and try none")
	return cmd
}

func listRules(env Env) error {
	for _, r := range conformance.Rules() {
		if _, err := fmt.Fprintf(env.Stdout, "%-22s %s\n", r.ID, r.Reason); err != nil {
			return err
		}
	}
	return nil
}

func (v *verification) run(ctx context.Context, env Env) (err error) {
	if v.program.Env, err = pairs("--env", v.env, nil); err != nil {
		return err
	}
	if v.program.Labels, err = pairs("--label", v.labels, nil); err != nil {
		return err
	}
	if v.program.Interpreter == "" {
		if v.program.Interpreter, err = shebang(v.program.Command); err != nil {
			return err
		}
	}
	scratch, err := os.MkdirTemp("", "sandgate-verify-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	if err := v.decode(ctx, env, scratch); err != nil {
		return err
	}
	report, err := conformance.Run(ctx, v.program, v.rules...)
	if err != nil {
		return err
	}
	if v.out == "table" {
		err = report.Write(env.Stdout)
	} else {
		var raw []byte
		if raw, err = json.Marshal(report); err == nil {
			err = v.out.raw(env.Stdout, raw)
		}
	}
	if err == nil && report.Failed > 0 {
		return errReported{exitFailure}
	}
	return err
}

// decode reads the configuration with the program's own schema, as a gateway does.
func (v *verification) decode(ctx context.Context, env Env, scratch string) error {
	m, err := conformance.Describe(ctx, v.program)
	if err != nil {
		return nil // it does not come as far as a configuration: the rules say why
	}
	var schema extension.ConfigSchema
	if len(m.ConfigSchema) > 0 {
		if err := json.Unmarshal(m.ConfigSchema, &schema); err != nil {
			return fmt.Errorf("%s %s describes its configuration in a way that cannot be read: %w", m.Name, m.Version, err)
		}
	}
	raw, findings := config.LoadBlock(v.config, schema, map[string]string{"scratch": scratch}, fmt.Sprintf("extension %q %s", m.Name, m.Version))
	if findings.HasErrors() {
		if err := findings.Render(env.Stderr); err != nil {
			return err
		}
		return errReported{exitConfig}
	}
	v.program.Config = raw
	return nil
}

// shebang returns the interpreter that the first line of a script names, or nothing for what is no script.
func shebang(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fault.New(fault.NotFound, "open the program: %w", err)
	}
	defer func() { _ = f.Close() }()
	line, err := bufio.NewReader(f).ReadString('\n')
	words := strings.Fields(strings.TrimPrefix(line, "#!"))
	if err != nil || !strings.HasPrefix(line, "#!") || len(words) == 0 {
		return "", nil
	}
	if filepath.Base(words[0]) == "env" && len(words) > 1 {
		return exec.LookPath(words[1])
	}
	return words[0], nil
}
