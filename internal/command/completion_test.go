package command

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// script writes what greet prints for args to a file.
func script(t *testing.T, args ...string) (path string) {
	t.Helper()
	out, _, _, err := greet(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, []byte(out), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestShellsCompleteCommandsAndFlags lets each shell complete command lines of greet.
func TestShellsCompleteCommandsAndFlags(t *testing.T) {
	// How each shell is made to complete "greet WORD..." outside a terminal, with the
	// script in $1 and the words after it. It prints the candidates.
	for shell, run := range map[string]string{
		"bash": `source "$1"; shift; COMP_WORDS=(greet "$@"); COMP_CWORD=$#; _greet; printf '%s\n' "${COMPREPLY[@]}"`,
		"zsh": `compdef() { : }; source "$1"; shift; _describe() { print -l -- ${(P)2} }; _arguments() { print -l -- "$@" }
			words=(greet "$@"); CURRENT=$#words; _greet`,
		"fish": `source $argv[1]; complete -C "greet $argv[2..]"`,
	} {
		t.Run(shell, func(t *testing.T) {
			if _, err := exec.LookPath(shell); err != nil {
				t.Skipf("no %s: make test installs it", shell)
			}
			path := script(t, "completion", shell)
			for _, tt := range []struct {
				words []string
				want  string // a line begins with it
			}{
				{[]string{"hel"}, "hello"},
				{[]string{"by"}, "bye"},
				{[]string{"hello", "--l"}, "--loud"},
				{[]string{"completion", "fi"}, "fish"},
			} {
				if shell == "zsh" && tt.words[0] == "completion" {
					tt.want = "1:shell:(bash zsh fish)" // what zsh itself completes from
				}
				args := append([]string{"-c", run}, append([]string{"greet", path}, tt.words...)...)
				if shell == "fish" {
					args = slices.Delete(args, 2, 3) // fish has no $0
				}
				out, err := exec.CommandContext(t.Context(), shell, args...).CombinedOutput()
				lines := strings.Split(string(out), "\n")
				if err != nil || !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, tt.want) }) {
					t.Errorf("greet %s: %v, got %q, want %q", strings.Join(tt.words, " "), err, out, tt.want)
				}
			}
		})
	}
}

func TestUnknownShellIsNamed(t *testing.T) {
	_, _, _, err := greet(t, "completion", "tcsh")
	if err == nil || !strings.Contains(err.Error(), `unknown shell "tcsh"; want bash, zsh or fish`) {
		t.Errorf("got %v", err)
	}
}

// TestManualPageHasTheHelpTexts reads the page as man does.
func TestManualPageHasTheHelpTexts(t *testing.T) {
	if _, err := exec.LookPath("groff"); err != nil {
		t.Skip("no groff: make test installs it")
	}
	cmd := exec.CommandContext(t.Context(), "groff", "-man", "-Tascii", "-ww", "-P-cbou", script(t, "man"))
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	page, err := cmd.Output()
	if err != nil || complaints.Len() > 0 {
		t.Errorf("groff: %v, %s", err, complaints.String())
	}
	for _, want := range []string{"greet - greet greets", "That is all.", "greet hello [flags] NAME...", "Greets people.", "--loud", "shout"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page has no %q:\n%s", want, page)
		}
	}
}
