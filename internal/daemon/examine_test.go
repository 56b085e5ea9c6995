package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/daemon/webui"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// examined returns what an examiner makes of a twill that is this script.
func examined(t *testing.T, script string) (*webui.Examination, *examiner) {
	t.Helper()
	twill := filepath.Join(t.TempDir(), "twill")
	testkit.Must(t, os.WriteFile(twill, []byte(script), 0o644))
	e := newExaminer(t.Context(), "/run/flannel/twilld.sock")
	e.program = func() (string, error) { return "/bin/sh", nil }
	e.args = append([]string{twill}, e.args...)
	var x *webui.Examination
	testkit.Eventually(t, "there is a result", func() bool {
		x = e.examination()
		return x != nil
	})
	return x, e
}

func TestExaminationHasDoctorsFindings(t *testing.T) {
	// The exit code is 1 when something is bad.
	x, _ := examined(t, `[ "$*" = "doctor --json --socket=/run/flannel/twilld.sock" ] || exit 2
		echo '{"level": "bad", "findings": [{"check": "tun", "level": "bad", "text": "gone", "remedy": "modprobe tun"}]}'; exit 1`)
	want := webui.Finding{Check: "tun", Level: "bad", Text: "gone", Remedy: "modprobe tun"}
	if x.Problem != "" || len(x.Findings) != 1 || x.Findings[0] != want {
		t.Errorf("%+v, want %+v", x, want)
	}
}

func TestExaminationSaysWhyThereAreNoFindings(t *testing.T) {
	if x, _ := examined(t, "exit 3"); !strings.Contains(x.Problem, "exit status 3") {
		t.Errorf("twill fails: %q", x.Problem)
	}
	e := newExaminer(t.Context(), "")
	e.program = func() (string, error) { return "", errors.New("not found") }
	if x := e.run(); x.Problem != "twill is not installed next to twilld" {
		t.Errorf("no twill: %q", x.Problem)
	}
}

// Every host that reaches the port can ask for the page.
func TestDoctorIsRunOnceAMinuteAtMost(t *testing.T) {
	runs := filepath.Join(t.TempDir(), "runs")
	_, e := examined(t, "echo run >>"+runs+`; echo '{"findings": []}'`)
	count := func() int {
		text, _ := os.ReadFile(runs)
		return strings.Count(string(text), "run")
	}
	for range 100 {
		e.examination()
	}
	if n := count(); n != 1 {
		t.Errorf("%d runs, want 1", n)
	}
	e.mu.Lock()
	e.started = time.Now().Add(-examineEvery)
	e.mu.Unlock()
	testkit.Eventually(t, "the next run after a minute", func() bool { e.examination(); return count() == 2 })
}

func TestNoExaminationBeginsOnceTheDaemonEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	e := newExaminer(ctx, "")
	e.program = func() (string, error) { t.Error("twill is looked for"); return "", errors.New("not found") }
	if x := e.examination(); x != nil || !e.started.IsZero() {
		t.Errorf("a run has begun: %+v", x)
	}
}
