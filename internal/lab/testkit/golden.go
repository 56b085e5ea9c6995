package testkit

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// Update is the flag -update of tests with golden files.
var Update = flag.Bool("update", false, "write the golden files instead of comparing with them")

// Golden compares got with the file name in testdata. With -update it writes the file.
func Golden(t testing.TB, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *Update {
		Must(t, os.MkdirAll("testdata", 0o755), os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	Must(t, err)
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}

// Page compares a page for a terminal with a golden file, and checks that its lines have at
// most 80 columns. Only commands to copy, behind an arrow, may be longer.
func Page(t testing.TB, name, page string) {
	t.Helper()
	for line := range strings.Lines(page) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 && !strings.HasPrefix(strings.TrimLeft(line, " "), "→ ") {
			t.Errorf("%s: %d columns: %s", name, n, line)
		}
	}
	Golden(t, name, page)
}
