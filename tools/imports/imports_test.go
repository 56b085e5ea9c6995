package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// page is a small module's: two commands, a backend over an engine, a laboratory.
const page = "# How it is built\n\n## Packages\n\n" +
	"| package | knows | rule |\n|---|---|---|\n" +
	"| **commands** | | |\n" +
	"| `cmd/d`, `cmd/lab` | arguments | |\n" +
	"| **laboratory** | | |\n" +
	"| `internal/lab/...` | namespaces | imported only by `cmd/lab` |\n" +
	"| **backends** | | |\n" +
	"| `internal/backend` | which one | |\n" +
	"| `internal/backend/udp` | devices | imports none of `lease/...` |\n" +
	"| **engine** | | |\n" +
	"| `lease` | leases | imports nothing |\n" +
	"| `encap` | bytes | imports nothing |\n" +
	"\n" + drawingBegins + "stale\n" + drawingEnds + "\nThe end.\n"

func sound() []pkg {
	return []pkg{
		{"cmd/d", []string{"encap", "internal/backend"}},
		{"cmd/lab", []string{"internal/lab/netlab"}},
		{"encap", nil},
		{"internal/backend", []string{"internal/backend/udp", "lease"}},
		{"internal/backend/udp", []string{"encap"}},
		{"internal/lab/netlab", []string{"internal/lab/netlab/mmsg"}},
		{"internal/lab/netlab/mmsg", nil},
		{"lease", nil},
	}
}

func parsed(t *testing.T) table {
	t.Helper()
	tab, err := parseTable(page)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func TestSoundImportsBreakNoRule(t *testing.T) {
	if broken := parsed(t).check(sound()); broken != nil {
		t.Error(errors.Join(broken...))
	}
}

func TestEachKindOfViolationIsFound(t *testing.T) {
	for _, c := range []struct{ name, from, to, want string }{
		{"upwards", "internal/backend/udp", "internal/backend", "internal/backend/udp imports internal/backend, which does not stand below it in the table"},
		{"sideways", "cmd/d", "cmd/lab", "cmd/d imports cmd/lab, which does not stand below it in the table"},
		{"from a leaf", "lease", "encap", "lease imports encap, and may import nothing"},
		{"forbidden", "internal/backend/udp", "lease", "internal/backend/udp imports lease, which its rule forbids"},
		{"of what is for others", "cmd/d", "internal/lab/netlab", "cmd/d imports internal/lab/netlab, which is not for it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			pkgs := sound()
			for i := range pkgs {
				if pkgs[i].path == c.from {
					pkgs[i].imports = append(pkgs[i].imports, c.to)
				}
			}
			broken := parsed(t).check(pkgs)
			if len(broken) != 1 || broken[0].Error() != c.want {
				t.Errorf("got %v, want %q", broken, c.want)
			}
		})
	}
}

func TestTableAndPackagesAreTheSame(t *testing.T) {
	pkgs := append(sound(), pkg{"internal/new", nil})
	if broken := parsed(t).check(pkgs); len(broken) != 1 || !strings.Contains(broken[0].Error(), "internal/new is missing from the table") {
		t.Errorf("a new package: got %v", broken)
	}
	pkgs = sound()[1:]
	if broken := parsed(t).check(pkgs); len(broken) != 1 || !strings.Contains(broken[0].Error(), "names cmd/d, which does not exist") {
		t.Errorf("a package that was removed: got %v", broken)
	}
}

func TestUnknownRuleIsRefused(t *testing.T) {
	wrong := strings.Replace(page, "imports nothing", "imports little", 1)
	if _, err := parseTable(wrong); err == nil || !strings.Contains(err.Error(), `unknown rule "imports little"`) {
		t.Errorf("got %v", err)
	}
}

// What cmd/d imports of encap goes without saying: it has it through the backend.
func TestDrawingHasAnArrowForEachImportThatNoOtherImplies(t *testing.T) {
	const want = "```mermaid\nflowchart TD\n" +
		"  subgraph layer_commands [commands]\n    cmd_d[\"cmd/d\"]\n    cmd_lab[\"cmd/lab\"]\n  end\n" +
		"  subgraph layer_laboratory [laboratory]\n    internal_lab[\"internal/lab/...\"]\n  end\n" +
		"  subgraph layer_backends [backends]\n    internal_backend[\"internal/backend\"]\n    internal_backend_udp[\"internal/backend/udp\"]\n  end\n" +
		"  subgraph layer_engine [engine]\n    lease[\"lease\"]\n    encap[\"encap\"]\n  end\n" +
		"  cmd_d --> internal_backend\n  cmd_lab --> internal_lab\n" +
		"  internal_backend --> internal_backend_udp\n  internal_backend --> lease\n  internal_backend_udp --> encap\n```\n"
	got := parsed(t).draw(sound())
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	drawn, err := replaceDrawing([]byte(page), got)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(drawn); strings.Contains(s, "stale") || !strings.HasSuffix(s, want+drawingEnds+"\nThe end.\n") {
		t.Errorf("the page is\n%s", s)
	}
}

// The real thing, on a module on disk: a stale drawing fails the check, drawing
// it makes the check pass, and an import upwards fails it again.
func TestCheckOfAModule(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module example.org/m\n\ngo 1.26.0\n")
	write("a/a.go", "package a\n\nimport _ \"example.org/m/b\"\n")
	write("b/b.go", "package b\n")
	write("b/b_test.go", "package b_test\n\nimport _ \"example.org/m/a\"\n")
	write("c/c_test.go", "package c\n")
	write("PAGE.md", section+"\n\n| package | knows | rule |\n|---|---|---|\n| **all** | | |\n| `a` | | |\n| `b` | | |\n\n"+
		drawingBegins+drawingEnds)
	if _, err := exec.LookPath("go"); err != nil {
		t.Fatal(err)
	}

	path := filepath.Join(dir, "PAGE.md")
	if err := run([]string{"check", path}); err == nil || !strings.Contains(err.Error(), "make imports") {
		t.Errorf("check of a stale drawing: %v", err)
	}
	if err := run([]string{"draw", path}); err != nil {
		t.Error(err)
	}
	if err := run([]string{"check", path}); err != nil {
		t.Errorf("check after drawing: %v", err)
	}
	write("a/a.go", "package a\n")
	write("b/b.go", "package b\n\nimport _ \"example.org/m/a\"\n")
	if err := run([]string{"check", path}); err == nil || !strings.Contains(err.Error(), "b imports a, which does not stand below it") {
		t.Errorf("check of an import upwards: %v", err)
	}
}
