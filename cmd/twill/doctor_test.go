package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// examine runs the command on a bare host.
func examine(t *testing.T, args ...string) (out string, err error) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	args = append([]string{"doctor", "--socket=/nonexistent/twilld.sock", "--subnet-file=/nonexistent/subnet.env"}, args...)
	err = netlabtest.Namespace(t, "host").Do(func() error { return program.Run(t.Context(), args, &stdout, &stderr) })
	if stderr.Len() > 0 {
		t.Errorf("stderr: %s", stderr.String())
	}
	return stdout.String(), err
}

// finding returns the first of a check in the JSON.
func finding(t *testing.T, out, check string) doctor.Finding {
	t.Helper()
	var report struct {
		Level    doctor.Level
		Findings []doctor.Finding
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || report.Level != doctor.Bad {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, f := range report.Findings {
		if f.Check == check {
			return f
		}
	}
	t.Fatalf("no %s in\n%s", check, out)
	return doctor.Finding{}
}

func TestDoctorOnABareHostSaysWhatIsMissing(t *testing.T) {
	out, err := examine(t, "--timeout=200ms", "--etcd-endpoints=http://127.0.0.1:1")
	var usage *command.UsageError
	if err == nil || errors.As(err, &usage) || !strings.Contains(err.Error(), "doctor: there are bad findings") {
		t.Errorf("got %v", err)
	}
	for _, want := range []string{
		"bad daemon ", "→ systemctl start twilld", "bad store ", "http://127.0.0.1:1: ", "correct --etcd-endpoints",
		"bad subnet-file ", "/nonexistent/subnet.env",
	} {
		if !strings.Contains(testkit.Unwrapped(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestDoctorReadsTheLeaseFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"Network": "10.5.0.0/16", "Leases": [{"Subnet": "10.5.1.0/24", "PublicIP": "192.0.2.1"}]}`)
	out, _ := examine(t, "--json", "--lease-file="+path)
	if f := finding(t, out, "store"); f.Level != doctor.OK || !strings.Contains(f.Text, "1 leases are valid") {
		t.Errorf("got %+v", f)
	}
	write(`{"Network": "10.5.0.0/33"}`)
	out, _ = examine(t, "--json", "--lease-file="+path)
	if f := finding(t, out, "store"); f.Level != doctor.Bad || !strings.Contains(f.Text, path) || !strings.Contains(f.Text, "Network") {
		t.Errorf("got %+v", f)
	}
}

// TestDoctorReadsEtcd stays in the namespace of the test, where etcd is.
func TestDoctorReadsEtcd(t *testing.T) {
	o := newOperator(t)
	examine := func() doctor.Finding {
		t.Helper()
		out, _, _ := o.twill("doctor", "--json", "--socket=/nonexistent/twilld.sock", "--subnet-file=/nonexistent/subnet.env")
		return finding(t, out, "store")
	}
	if f := examine(); f.Level != doctor.Bad || !strings.Contains(f.Text, "no network config") || !strings.Contains(f.Remedy, "twill config set") {
		t.Errorf("got %+v", f)
	}
	o.prints("written: network 10.5.0.0/16, backend udp\n", "config", "set", o.file(someConfig))
	if f := examine(); f.Level != doctor.OK {
		t.Errorf("got %+v", f)
	}
}
