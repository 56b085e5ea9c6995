// Package systemd has no code: it holds the service unit of twilld, and checks
// it with systemd's own tools.
package systemd

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const unit = "twilld.service"

// installed writes the unit as it would stand on a host that has the program,
// and returns its path.
func installed(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	const program = "/usr/local/bin/twilld"
	if !bytes.Contains(text, []byte("\nExecStart="+program+"\n")) {
		t.Fatalf("the unit does not start %s", program)
	}
	path := filepath.Join(t.TempDir(), unit)
	if err := os.WriteFile(path, bytes.ReplaceAll(text, []byte(program), []byte("/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func analyze(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("systemd-analyze", args...)
	cmd.Env = append(os.Environ(), "SYSTEMD_COLORS=0", "SYSTEMD_PAGER=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("systemd-analyze %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestUnitIsWhatSystemdUnderstands(t *testing.T) {
	if out := analyze(t, "verify", installed(t)); out != "" {
		t.Errorf("systemd complains:\n%s", out)
	}
}

// A service with all it needs of the network, and the right to change it, has
// 2.3 on systemd's scale from 0 to 10, where 10 is a service without limits.
func TestUnitIsExposedNoMoreThanItMustBe(t *testing.T) {
	analyze(t, "security", "--offline=true", "--threshold=23", installed(t))
}
