package netlab

import (
	"context"
	"fmt"
	"os/exec"
	"syscall"
)

// Cmd is an exec.Cmd whose process starts in a namespace.
type Cmd struct {
	*exec.Cmd
	ns *Namespace
}

// Command prepares a process in the namespace; it is used like
// exec.CommandContext. Unless SysProcAttr is replaced, the kernel kills the
// process when the namespace is closed and when this process dies for any reason.
func (n *Namespace) Command(ctx context.Context, name string, args ...string) *Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return &Cmd{Cmd: c, ns: n}
}

// Start is exec.Cmd.Start. A child inherits the namespace of the thread that
// forks it.
func (c *Cmd) Start() error {
	started := make(chan error)
	c.ns.starts <- func() { started <- c.Cmd.Start() }
	return c.in(<-started)
}

// Run is exec.Cmd.Run.
func (c *Cmd) Run() error { return c.in(c.ns.Do(c.Cmd.Run)) }

// Output is exec.Cmd.Output.
func (c *Cmd) Output() (out []byte, err error) {
	err = c.ns.Do(func() error {
		out, err = c.Cmd.Output()
		return err
	})
	return out, c.in(err)
}

// CombinedOutput is exec.Cmd.CombinedOutput.
func (c *Cmd) CombinedOutput() (out []byte, err error) {
	err = c.ns.Do(func() error {
		out, err = c.Cmd.CombinedOutput()
		return err
	})
	return out, c.in(err)
}

// in adds the namespace to an error.
func (c *Cmd) in(err error) error {
	if err != nil {
		return fmt.Errorf("%s in %s: %w", c.Args[0], c.ns, err)
	}
	return nil
}
