package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/twillnet/twill/internal/status"
)

const (
	// reloadWithin is how long a new process may take to take over. For example, the
	// store may not answer it, while the running process does not depend on an answer.
	reloadWithin = 90 * time.Second
	// askEvery is how often the control socket is asked whether the new process has
	// taken over.
	askEvery = 10 * time.Millisecond
)

// reload starts a process that takes over from the running one, with the same
// arguments and environment, and returns when that has happened. The new process
// outlives this one. If it fails, the running one continues.
func (d *daemon) reload(ctx context.Context, args []string, stderr io.Writer) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	c := exec.Command(program, append(args, "--reload=false", "--takeover")...)
	c.Stderr = stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // protects it from the terminal's signals
	if err := c.Start(); err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	ctx, cancel := context.WithTimeoutCause(ctx, reloadWithin, fmt.Errorf("not ready within %s", reloadWithin))
	defer cancel()
	ask := time.NewTicker(askEvery)
	defer ask.Stop()
	for {
		select {
		case err := <-ended:
			return fmt.Errorf("reload: the new twilld failed, the running one continues: %w", cmp.Or(err, errors.New("it exited with status 0 before it took over")))
		case <-ctx.Done():
			_ = c.Process.Signal(syscall.SIGTERM)
			return fmt.Errorf("reload: the new twilld was stopped, the running one continues: %w", context.Cause(ctx))
		case <-ask.C:
		}
		if doc, err := status.Fetch(ctx, d.options.controlSocket); err == nil && doc.PID == c.Process.Pid {
			return nil
		}
	}
}
