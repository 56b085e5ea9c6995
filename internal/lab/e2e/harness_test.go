package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run builds what the tests run, and checks afterwards that the tests left
// nothing behind in this process.
func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "e2e: these tests create network namespaces and TUN devices and need root: run them with sudo")
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

// textOf returns the content of a file.
func textOf(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	testkit.Must(t, err)
	return string(text)
}
