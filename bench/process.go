package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/twillnet/twill/internal/lab/netlab"
)

const (
	// readyTimeout is how long a daemon may take to start.
	readyTimeout = 10 * time.Second
	// stopTimeout is how long it may take to exit after SIGTERM.
	stopTimeout = 3 * time.Second
	// logTail is how much of its output error messages quote, in bytes.
	logTail = 4 << 10
)

// process is a daemon that runs inside a host.
type process struct {
	cmd  *netlab.Cmd
	log  string        // file that its output goes to
	done chan struct{} // closed once the process has ended
	err  error         // how it ended; valid after done
}

// startProcess starts a program in a namespace. attr, if not nil, replaces the
// attributes that make the process end with this one.
func startProcess(ns *netlab.Namespace, log string, attr *syscall.SysProcAttr, name string, args ...string) (*process, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := &process{cmd: ns.Command(context.Background(), name, args...), log: log, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if attr != nil {
		p.cmd.SysProcAttr = attr
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// waitUntil polls ready until it returns true. It fails if the process exits or
// takes too long, and then quotes the end of the process's output.
func (p *process) waitUntil(ctx context.Context, ready func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout,
		fmt.Errorf("not ready within %v", readyTimeout))
	defer cancel()
	for !ready() {
		select {
		case <-p.done:
			return p.failure(fmt.Errorf("exited early: %w", p.err))
		case <-ctx.Done():
			return p.failure(context.Cause(ctx))
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// failure adds to err the name of the process and the end of its output.
func (p *process) failure(err error) error {
	name := filepath.Base(p.cmd.Path)
	if said := p.said(); said != "" {
		return fmt.Errorf("%s: %w; its output:\n%s", name, err, said)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// kill ends the process immediately.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// stop ends the process with SIGTERM, or SIGKILL if that is not enough.
func (p *process) stop() error {
	select {
	case <-p.done:
		return p.failure(fmt.Errorf("had exited before: %w", p.err))
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return p.failure(err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTimeout):
		p.kill()
		return p.failure(fmt.Errorf("still running %v after SIGTERM", stopTimeout))
	}
}

// said returns the last logTail bytes of the process's output.
func (p *process) said() string {
	out, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(out[max(0, len(out)-logTail):]))
}
