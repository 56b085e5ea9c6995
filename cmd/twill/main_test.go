package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/status"
)

func TestWrongCommandLineIsNamed(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{nil, "no command given; commands are status"},
		{[]string{"stauts"}, `unknown command "stauts"; commands are status`},
		{[]string{"status", "now"}, `status: unexpected argument "now"`},
		{[]string{"status", "-watch"}, "status: flag provided but not defined: -watch"},
		{[]string{"version", "please"}, "version: unexpected argument"},
	} {
		err := program.Run(t.Context(), tc.args, &bytes.Buffer{}, &bytes.Buffer{})
		var usage *command.UsageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: got %v, want a usage error with %q", tc.args, err, tc.want)
		}
	}
}

func TestHelpListsEveryCommand(t *testing.T) {
	var out bytes.Buffer
	if err := program.Run(t.Context(), []string{"--help"}, &out, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range program.Commands {
		if !strings.Contains(out.String(), "\n  "+c.Name+" ") || !strings.Contains(out.String(), c.Summary) {
			t.Errorf("%s is missing in\n%s", c.Name, out.String())
		}
	}
}

func TestStatusPrintsPageOrJSON(t *testing.T) {
	socket := daemonSays(t, status.Document{Version: "v0.1.0", PID: 42, Waiting: "a lease"})

	var page bytes.Buffer
	if err := program.Run(t.Context(), []string{"status", "--socket", socket}, &page, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	if want := "twilld v0.1.0, pid 42, up 0s, not ready: waiting for a lease\n"; !strings.HasPrefix(page.String(), want) {
		t.Errorf("got %q, want it to begin with %q", page.String(), want)
	}
	var raw bytes.Buffer
	if err := program.Run(t.Context(), []string{"status", "-json", "-socket=" + socket}, &raw, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	var d status.Document
	if err := json.Unmarshal(raw.Bytes(), &d); err != nil || d.PID != 42 {
		t.Errorf("%s: %v", raw.Bytes(), err)
	}
}

func TestStatusWithoutDaemonSaysSo(t *testing.T) {
	err := program.Run(t.Context(), []string{"status", "-socket=/nonexistent/twilld.sock"}, &bytes.Buffer{}, &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "is twilld running") {
		t.Errorf("got %v", err)
	}
}

// TestOperatorsProgramCarriesNoLaboratory: plots alone would make it half as large
// again.
func TestOperatorsProgramCarriesNoLaboratory(t *testing.T) {
	for _, path := range dependencies(t) {
		if strings.HasPrefix(path, "gonum.org/") || strings.Contains(path, "/internal/lab/") || strings.HasSuffix(path, "twill/bench") {
			t.Errorf("twill imports %s, which is for twill-lab", path)
		}
	}
}

// TestOperatorsProgramHasNoClientOfKubernetes: that would make it half as large again.
// What it needs to know of Kubernetes is in lease/kube/layout.
func TestOperatorsProgramHasNoClientOfKubernetes(t *testing.T) {
	for _, path := range dependencies(t) {
		if strings.HasPrefix(path, "k8s.io/") || strings.HasSuffix(path, "twill/lease/kube") {
			t.Errorf("twill imports %s, which is for twilld", path)
		}
	}
}

// dependencies lists the packages that this program is made of.
func dependencies(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}
