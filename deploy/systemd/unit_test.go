// Package systemd has no code: it holds twilld's service unit and checks it with
// systemd's own tools.
package systemd

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const unit = "twilld.service"

// installed writes the unit with a program that this host has, and returns its path.
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

// The scale is from 0 to 10, where 10 is a service without limits.
func TestUnitIsExposedNoMoreThanItMustBe(t *testing.T) {
	analyze(t, "security", "--offline=true", "--threshold=19", installed(t))
}

// The page has a row for each setting that leaves the service exposed, with what
// it counts and the reason.
func TestPageHasAReasonForEachPointOfExposure(t *testing.T) {
	var settings []struct{ Name, Exposure string }
	if err := json.Unmarshal([]byte(analyze(t, "security", "--offline=true", "--json=short", installed(t))), &settings); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, s := range settings {
		if s.Exposure != "" && s.Exposure != "0" {
			want = append(want, s.Name+" "+s.Exposure)
		}
	}
	page, err := os.ReadFile("../../docs/systemd.md")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(.+)` \\| ([0-9.]+) \\| ..+ \\|$").FindAllSubmatch(page, -1) {
		got = append(got, strings.ReplaceAll(string(m[1]), `\|`, "|")+" "+string(m[2]))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the page explains\n%s\nsystemd lists\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
