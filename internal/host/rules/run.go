package rules

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	// toolTimeout is how long a program may run. With 20,000 rules of
	// kube-proxy iptables takes several seconds, and it waits up to lockSeconds
	// for its lock.
	toolTimeout = 30 * time.Second
	// killWait is how long the pipes of a killed program may stay open.
	killWait = time.Second
)

// errHangs reports that a program has not exited in time.
var errHangs = errors.New("program hangs")

// runner runs the programs of a tool, each for a bounded time.
type runner struct{ timeout time.Duration }

// limit returns a context for one program.
func (r runner) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, r.timeout, errHangs)
}

// output runs a program and returns its standard output. The error of a program
// that fails includes its error message. A program that hangs is killed.
func (r runner) output(ctx context.Context, stdin, path string, args ...string) (string, error) {
	limited, cancel := r.limit(ctx)
	defer cancel()
	cmd := exec.CommandContext(limited, path, args...)
	cmd.WaitDelay = killWait
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	switch {
	case err == nil:
		return stdout.String(), nil
	case ctx.Err() != nil:
		return "", ctx.Err()
	case limited.Err() != nil:
		return "", r.hangs(path)
	}
	if said := strings.Join(strings.Fields(stderr.String()), " "); said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return stdout.String(), err
}

// await calls f, which runs programs that it cannot stop, and returns early if
// f takes too long.
func (r runner) await(ctx context.Context, program string, f func() error) error {
	limited, cancel := r.limit(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-limited.Done():
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return r.hangs(program)
	}
}

// explain clarifies the error that a library returned because its program was
// killed.
func (r runner) explain(ctx, limited context.Context, program string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case limited.Err() != nil:
		return r.hangs(program)
	}
	return oneLine(err)
}

func (r runner) hangs(path string) error {
	return fmt.Errorf("%w: %s did not exit within %s", errHangs, filepath.Base(path), r.timeout)
}
