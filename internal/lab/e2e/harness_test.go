package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/netlab"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run builds what the tests run, and checks afterwards that the tests left
// nothing behind in this process.
func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "e2e: these tests make network namespaces and TUN devices and need root: run them with sudo")
		return 1
	}
	var err error
	if binDir, err = os.MkdirTemp("", "twill-e2e-bin-"); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer os.RemoveAll(binDir)
	if err := build("twilld", "./cmd/twilld"); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	code := m.Run()
	if left := netlab.Held(); len(left) > 0 && code == 0 {
		fmt.Fprintf(os.Stderr, "e2e: namespaces that the tests did not close: %q\n", left)
		return 1
	}
	return code
}

// binDir is where build puts binaries.
var binDir string

// bin returns the path of a binary that build has made.
func bin(name string) string { return filepath.Join(binDir, name) }

// build builds a command of this module as it is shipped: static, without cgo.
func build(name, pkg string, flags ...string) error {
	cmd := exec.Command("go", append(append([]string{"build", "-trimpath", "-o", bin(name)}, flags...), pkg)...)
	cmd.Dir = filepath.Join("..", "..", "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// patience is how long a test waits for what should take milliseconds: the
// machine may be busy.
const patience = 10 * time.Second

// eventually polls until cond holds, and fails the test with what did not come
// true.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	if !within(patience, cond) {
		t.Fatalf("not within %s: %s", patience, what)
	}
}

// within polls until cond holds, for at most d, and reports whether it did.
func within(d time.Duration, cond func() bool) bool {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return cond()
		}
	}
	return true
}

// syncBuffer is a bytes.Buffer that a process writes and a test reads.
type syncBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b = append(s.b, p...)
	return len(p), nil
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.b)
}
